"""Who uses what in the cache, across processes: a file for each user, locked as long as the user lives.

The kernel drops the lock however a process ends, so that a dead user never holds anything. The file has a line for each
entry that is held at the same time; the line of one that was released is blank, and used again.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
import threading
from collections import Counter
from pathlib import Path

from mlpkit.errors import StorageError
from mlpkit.storage.store import write_at

_ENTRY = 40
"""Characters of an entry's name: all have as many, so that a line can be written over another."""


class Leases:
    """The entries that this user holds, and those that any user does. Safe from every thread."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._lock = threading.Lock()
        self._held: Counter[str] = Counter()
        self._lines: dict[str, int] = {}
        self._blank: list[int] = []
        self.user = f"{os.getpid()}-{secrets.token_hex(4)}"
        self._open = True
        # It gets its name once it is locked: before that, everybody would take it for a dead user's.
        unlocked = folder / f".{self.user}"
        self._file = os.open(unlocked, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX)
            unlocked.rename(folder / self.user)
        except BaseException:
            os.close(self._file)
            unlocked.unlink(missing_ok=True)
            raise

    def hold(self, entry: str) -> None:
        """The entry is in use from now on; call it under the entry's lock. Each `hold` needs a `release`.

        Raises:
            StorageError: the user has closed its leases.
            OSError: the disk is full; the entry is not held.
        """
        with self._lock:
            if not self._open:
                raise StorageError("the storage was closed while it was in use")
            if not self._held[entry]:
                line = self._blank[-1] if self._blank else len(self._lines)
                self._write(line, entry)
                self._lines[entry] = line
                del self._blank[-1:]
            self._held[entry] += 1

    def again(self, entry: str) -> bool:
        """Holds once more what this user holds already, which needs no lock; False where it does not hold it."""
        with self._lock:
            if not (self._open and self._held.get(entry)):
                return False
            self._held[entry] += 1
            return True

    def release(self, entry: str) -> None:
        """Takes one `hold` back; an entry that is not held is no error."""
        with self._lock:
            if self._held[entry] > 1:
                self._held[entry] -= 1
            elif self._open and self._held.pop(entry, 0):
                line = self._lines.pop(entry)
                self._blank.append(line)
                # What cannot be blanked is kept by the cache for longer than it need be, which does no harm.
                with contextlib.suppress(OSError):
                    self._write(line, "")

    def everybodys(self) -> set[str]:
        """The entries that any living user holds."""
        held: set[str] = set()
        for file in self._files():
            if file.name == self.user or not _is_dead(file):
                held |= _entries_of(file)
        return held

    def dead(self) -> list[str]:
        """The names of the users that are dead and not buried."""
        return [file.name for file in self._files() if file.name != self.user and _is_dead(file)]

    def bury(self, user: str) -> None:
        """Removes the file of a dead user; others may have done so."""
        (self._folder / user).unlink(missing_ok=True)

    def close(self) -> None:
        """Releases everything."""
        with self._lock:
            if self._open:
                self._open = False
                os.close(self._file)
                # Without its lock it is a dead user's, for others to remove where this one cannot.
                with contextlib.suppress(OSError):
                    (self._folder / self.user).unlink()

    def _write(self, line: int, text: str) -> None:
        write_at(self._file, f"{text:{_ENTRY}}\n".encode(), line * (_ENTRY + 1))

    def _files(self) -> list[Path]:
        return [file for file in self._folder.iterdir() if not file.name.startswith(".")]


def _is_dead(file: Path) -> bool:
    try:
        descriptor = os.open(file, os.O_RDONLY)
    except FileNotFoundError:
        return True
    try:
        # Shared, so that two who look at the same time do not take each other for the living user.
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    finally:
        os.close(descriptor)
    return True


def _entries_of(file: Path) -> set[str]:
    with contextlib.suppress(FileNotFoundError):
        return set(file.read_text().split())
    return set()
