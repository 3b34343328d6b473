"""A scripted guest: the tests of the data path read as a script of what goes over the wire.

`oracle` checks every frame that the daemon sent, with scapy; `stage` sets up one guest session on a link in memory,
with real host sockets on loopback and a clock that moves only when told; `tcp` is the guest's and the host's end of
one connection; `mini_tcp` a guest that plays its part by itself, and `cable` the terrible link to it.
"""
