"""TCP: start with `flow`, whose theory of operation explains the rest."""
