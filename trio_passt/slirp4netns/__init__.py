"""The command line and the API socket of slirp4netns(1), for programs that know how to call that."""
