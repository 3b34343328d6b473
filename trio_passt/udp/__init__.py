"""UDP: one task for each pair of guest endpoint and remote, ended by silence."""
