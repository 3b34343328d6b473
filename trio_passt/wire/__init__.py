"""Bytes ↔ meaning, sans-IO.

Every codec has `parse` (bytes of a packet → a frozen value, or `MalformedPacket` and no other error) and
`emit` (the value → bytes).  Multi-byte fields are in network byte order (big-endian) on the wire and plain
integers in the values.  Nothing here imports `trio`, `socket` or `time`.
"""
