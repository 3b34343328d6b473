"""Write a cpio archive in the "newc" format that Linux unpacks as its initramfs, and unpack it here.

Format: Documentation/driver-api/early-userspace/buffer-format.rst of the kernel. Everything is owned by root
and carries no time stamp, so equal contents make equal archives.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import BinaryIO

HEADER_BYTES = 110
MAGIC = b"070701"
TRAILER = "TRAILER!!!"


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
        self._entry(TRAILER, 0, b"")

    def _entry(self, path: str, mode: int, content: bytes, device: tuple[int, int] = (0, 0)) -> None:
        name = path.encode() + b"\0"
        inode, self._next_inode = self._next_inode, self._next_inode + 1
        # inode, mode, uid, gid, nlink, mtime, size, device of the file system (2), of the node (2),
        # size of the name, checksum
        fields = (inode, mode, 0, 0, 1, 0, len(content), 0, 0, *device, len(name), 0)
        header = MAGIC + b"".join(b"%08x" % field for field in fields) + name
        self._file.write(header + bytes(-len(header) % 4))
        self._file.write(content + bytes(-len(content) % 4))


def unpack(file: BinaryIO, directory: Path) -> None:
    """Make what an archive has: directories, files and links, in the order in which `CpioWriter` writes them.

    No device nodes: they are the kernel's business here.
    """
    directory.mkdir()
    while True:
        header = file.read(HEADER_BYTES)
        assert header.startswith(MAGIC), "no newc archive"
        fields = [int(header[at : at + 8], 16) for at in range(len(MAGIC), HEADER_BYTES, 8)]
        mode, byte_count, name_bytes = fields[1], fields[6], fields[11]
        name = file.read(name_bytes)[:-1].decode()
        file.read(-(HEADER_BYTES + name_bytes) % 4)
        if name == TRAILER:
            return
        content = file.read(byte_count)
        file.read(-byte_count % 4)
        path = Path(f"{directory}{os.path.normpath(f'/{name}')}")  # what is above the root is the root
        if stat.S_ISDIR(mode):
            path.mkdir(exist_ok=True)
        elif stat.S_ISLNK(mode):
            path.symlink_to(content.decode())
        elif stat.S_ISREG(mode):
            path.write_bytes(content)
        if not stat.S_ISLNK(mode) and path.exists():
            path.chmod(stat.S_IMODE(mode))
