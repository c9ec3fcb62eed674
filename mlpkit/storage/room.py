"""How much the cache holds, and what goes first, without a look at every entry each time.

    usage          the bytes of all entries, as 20 digits; blank where they must be counted
    oldest         a line for each of the entries that go next, the first of them at the end: last use in ns, and name
    usage.lock     held while an entry comes or goes, together with the change of `usage`

A process that is killed in between leaves its scratch folder behind, which makes others count again.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from mlpkit.storage.disk import write_at
from mlpkit.storage.locks import locked

_DIGITS = 20
_NAME = 40
_LINE = _DIGITS + 1 + _NAME + 1
_FEWEST = 1000
_LONGEST_WAIT = 300.0


class Room:
    """The account of a cache's entries, shared by all processes. A file that several entries share is counted once."""

    def __init__(self, folder: Path, entries: Path) -> None:
        self._entries = entries
        self._usage, self._oldest = str(folder / "usage"), str(folder / "oldest")
        # It has its size from the beginning, so that a disk that is full later is no obstacle.
        if not os.path.exists(self._usage):
            self.forget()

    def total(self) -> int | None:
        """The bytes of all entries; None where they must be counted."""
        with _opened(self._usage) as file:
            digits = os.pread(file, _DIGITS, 0)
        return int(digits) if digits.isdigit() else None

    @contextlib.contextmanager
    def changing(self, count: int) -> Iterator[None]:
        """The block moves an entry of so many bytes in, or of so many less than none out: both happen, or neither."""
        with locked(f"{self._usage}.lock", _LONGEST_WAIT):
            total = self.total()
            changed = None if total is None else max(0, total + count)
            # Before an entry comes and after one has gone: a scratch folder holds it as long as the account is wrong.
            if count > 0:
                self._write(changed)
            try:
                yield
            except BaseException:
                self._write(total)
                raise
            if count < 0:
                self._write(changed)

    def forget(self) -> None:
        """Makes the next who asks count."""
        with locked(f"{self._usage}.lock", _LONGEST_WAIT):
            self._write(None)

    def count(self) -> int:
        """Looks at every file of every entry: the bytes of all entries."""
        return self._look()[0]

    def oldest(self) -> Iterator[str]:
        """The entries' names, the least recently used first, each once; one that is taken is not given again soon.

        They come from the file `oldest` as long as that has any, then from a look at all entries, which also counts
        them. Only one process at a time may ask.
        """
        yield from self._popped()
        found = self._look()[1]
        few = found[: max(_FEWEST, len(found) // 4)]
        if not self._push(few):
            few = []
        yield from self._popped()
        if len(few) < len(found):
            yield from (name for _, name in self._look()[1])

    def freed_by(self, entry: str) -> int:
        """The bytes that are free once the entry is gone: those of files that no other entry shares."""
        try:
            files = list(_files_below(f"{self._entries}/{entry}/files"))
        except FileNotFoundError:
            return 0
        return sum(each.st_size for each in files if each.st_nlink == 1)

    def _look(self) -> tuple[int, list[tuple[int, str]]]:
        """The bytes of all entries; their last uses in ns and names, the least recently used first."""
        sizes: dict[int, int] = {}
        uses: list[tuple[int, str]] = []
        with locked(f"{self._usage}.lock", _LONGEST_WAIT):
            for entry in os.scandir(self._entries):
                # Entries may be damaged; and where a folder cannot be read, the others still can.
                with contextlib.suppress(OSError):
                    sizes.update((each.st_ino, each.st_size) for each in _files_below(f"{entry.path}/files"))
                with contextlib.suppress(OSError):
                    uses.append((os.stat(f"{entry.path}/meta.json").st_mtime_ns, entry.name))
            total = sum(sizes.values())
            self._write(total)
        return total, sorted(uses)

    def _write(self, total: int | None) -> None:
        with _opened(self._usage) as file:
            write_at(file, b" " * _DIGITS if total is None else f"{total:0{_DIGITS}}".encode(), 0)

    def _push(self, entries: list[tuple[int, str]]) -> bool:
        """Keeps the entries for `_popped`; False where the disk has no room for that."""
        lines = "".join(f"{used:0{_DIGITS}} {name}\n" for used, name in reversed(entries))
        try:
            Path(self._oldest).write_text(lines)
        except OSError:
            with contextlib.suppress(OSError):
                os.unlink(self._oldest)
            return False
        return True

    def _popped(self) -> Iterator[str]:
        """Takes entries from the end of the file; without those that were used since it was written."""
        if not os.path.exists(self._oldest):
            return
        with _opened(self._oldest) as file:
            size = os.fstat(file).st_size
            while size >= _LINE:
                size -= _LINE
                used, _, name = os.pread(file, _LINE, size).decode("ascii", "replace").strip().partition(" ")
                os.ftruncate(file, size)
                with contextlib.suppress(OSError, ValueError):
                    if os.stat(f"{self._entries}/{name}/meta.json").st_mtime_ns == int(used):
                        yield name


@contextlib.contextmanager
def _opened(file: str) -> Iterator[int]:
    descriptor = os.open(file, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _files_below(folder: str) -> Iterator[os.stat_result]:
    with os.scandir(folder) as found:
        for each in found:
            if each.is_dir(follow_symlinks=False):
                yield from _files_below(each.path)
            else:
                yield each.stat(follow_symlinks=False)
