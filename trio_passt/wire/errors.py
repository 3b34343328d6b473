"""The one error that parsers raise."""


class MalformedPacket(Exception):  # noqa: N818 - the field's name for it
    """Bytes from outside that are not what their header claims; the text says which field and why.

    It is the only exception that a `parse` function of `trio_passt.wire` raises, whatever the bytes.
    """
