"""Write a cpio archive in the "newc" format that Linux unpacks as its initramfs.

Format: Documentation/driver-api/early-userspace/buffer-format.rst of the kernel. Everything is owned by root
and carries no time stamp, so equal contents make equal archives.
"""

from __future__ import annotations

import stat
from typing import BinaryIO


class CpioWriter:
    """Appends entries to an open binary file; `close()` writes the trailer, and leaves the file open."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._next_inode = 1
        self._directories: set[str] = set()

    def add_directory(self, path: str, mode: int = 0o755) -> None:
        """Add a directory and the parents that it still lacks; one that is there already is left alone."""
        path = path.strip("/")
        if not path or path in self._directories:
            return
        self.add_directory(path.rpartition("/")[0])
        self._directories.add(path)
        self._entry(path, stat.S_IFDIR | mode, b"")

    def add_file(self, path: str, content: bytes, mode: int = 0o644) -> None:
        """Add a regular file."""
        self.add_directory(path.rpartition("/")[0])
        self._entry(path.strip("/"), stat.S_IFREG | mode, content)

    def add_symlink(self, path: str, target: str) -> None:
        """Add a symbolic link."""
        self.add_directory(path.rpartition("/")[0])
        self._entry(path.strip("/"), stat.S_IFLNK | 0o777, target.encode())

    def add_character_device(self, path: str, major: int, minor: int) -> None:
        """Add a device node. The kernel opens /dev/console before anything could have mounted a /dev."""
        self.add_directory(path.rpartition("/")[0])
        self._entry(path.strip("/"), stat.S_IFCHR | 0o600, b"", device=(major, minor))

    def close(self) -> None:
        """Write the trailer."""
        self._entry("TRAILER!!!", 0, b"")

    def _entry(self, path: str, mode: int, content: bytes, device: tuple[int, int] = (0, 0)) -> None:
        name = path.encode() + b"\0"
        inode, self._next_inode = self._next_inode, self._next_inode + 1
        # inode, mode, uid, gid, nlink, mtime, size, device of the file system (2), of the node (2),
        # size of the name, checksum
        fields = (inode, mode, 0, 0, 1, 0, len(content), 0, 0, *device, len(name), 0)
        header = b"070701" + b"".join(b"%08x" % field for field in fields) + name
        self._file.write(header + bytes(-len(header) % 4))
        self._file.write(content + bytes(-len(content) % 4))
