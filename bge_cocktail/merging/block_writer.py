"""Large files written past the page cache: their pages are not needed again, and making room for them costs most."""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
from pathlib import Path

BLOCK = 4 << 20
# what disks want writes to be a multiple of
SECTOR = 4096


class BlockWriter:
    """Writes a new file in large aligned blocks, directly to the disk where the file system can.

    Args:
        path: The file; it must not exist.
    """

    def __init__(self, path: Path) -> None:
        self._buffer = mmap.mmap(-1, BLOCK)
        self._view = memoryview(self._buffer)
        self._filled = 0
        self._size = 0
        self._file = _open(path)

    def write(self, content: bytes | memoryview) -> None:
        """Append some bytes."""
        rest = memoryview(content)
        self._size += len(rest)
        while rest:
            part = rest[: BLOCK - self._filled]
            self._view[self._filled : self._filled + len(part)] = part
            self._filled += len(part)
            rest = rest[len(part) :]
            if self._filled == BLOCK:
                self._flush(BLOCK)

    def close(self) -> None:
        """Write what is left and close the file."""
        try:
            if self._filled:
                # a last block of whole sectors, and then cut to what was asked for
                self._flush(-(-self._filled // SECTOR) * SECTOR)
                os.ftruncate(self._file, self._size)
        finally:
            self.abandon()

    def abandon(self) -> None:
        """Close the file as it is."""
        os.close(self._file)
        self._view.release()
        self._buffer.close()

    def _flush(self, count: int) -> None:
        done = 0
        while done < count:
            try:
                done += os.write(self._file, self._view[done:count])
            except OSError as error:
                flags = fcntl.fcntl(self._file, fcntl.F_GETFL)
                if error.errno != errno.EINVAL or not flags & _DIRECT:
                    raise
                # a file system that opens such files and can't write them
                fcntl.fcntl(self._file, fcntl.F_SETFL, flags & ~_DIRECT)
        self._filled = 0


_DIRECT: int = getattr(os, "O_DIRECT", 0)


def _open(path: Path) -> int:
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
    try:
        return os.open(path, flags | _DIRECT, 0o666)
    except OSError as error:
        if error.errno != errno.EINVAL or not _DIRECT:
            raise
        path.unlink(missing_ok=True)
        return os.open(path, flags, 0o666)
