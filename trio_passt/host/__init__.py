"""The host's side: sockets and their options, readiness, listeners, routes and resolvers."""
