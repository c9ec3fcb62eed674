"""How much the cache holds, and what goes first, without a look at every entry each time.

    usage          the bytes of all entries, as 20 digits; blank where they must be counted
    oldest         a line for each of the entries that go next, the first of them at the end: last use in ns, and name
    usage.lock     held while an entry comes or goes, together with the change of `usage`
    look.lock      held during a look at all entries, which come and go meanwhile
    moves          what `came` and `went` since the look began, a line each, with bytes and name; else empty

A process that is killed while an entry comes or goes leaves its scratch folder behind, which makes others count again.
"""

from __future__ import annotations

import contextlib
import heapq
import os
from collections.abc import Callable, Collection, Generator, Iterator
from pathlib import Path

from mlpkit.storage.locks import locked
from mlpkit.storage.store import write_at

_DIGITS = 20
_NAME = 40
_LINE = _DIGITS + 1 + _NAME + 1
_FEWEST = 1000
_SHARE = 4
"""One of so many entries, the least recently used, are kept in order; those in use are not among them."""
_SORTED_AT_ONCE = 1000
"""Sorting all of them in one go would keep other threads waiting."""
_BEGUN = "begun\n"
_LONGEST_WAIT = 300.0


class Room:
    """The account of a cache's entries, shared by all processes. A file that several entries share is counted once."""

    def __init__(self, folder: Path, entries: Path) -> None:
        self._entries = entries
        self._usage, self._oldest, self._moves = (str(folder / name) for name in ("usage", "oldest", "moves"))
        self._lock, self._looking = f"{self._usage}.lock", str(folder / "look.lock")
        # They are there from the beginning, so that a disk that is full later is no obstacle.
        for file in (self._moves, self._looking):
            with _opened(file):
                pass
        if not os.path.exists(self._usage):
            self.forget()

    def total(self) -> int | None:
        """The bytes of all entries; None where they must be counted."""
        with _opened(self._usage) as file:
            digits = os.pread(file, _DIGITS, 0)
        return int(digits) if digits.isdigit() else None

    @contextlib.contextmanager
    def changing(self, count: int, entry: str = "") -> Iterator[None]:
        """The block moves an entry of so many bytes in, or of so many less than none out: both happen, or neither."""
        with locked(self._lock, _LONGEST_WAIT):
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
            if entry and self._is_looked_at():
                came = os.path.exists(f"{self._entries}/{entry}")
                self._note(f"{'came' if came else 'went'} {abs(count)} {entry}\n")

    def forget(self) -> None:
        """Makes the next who asks count."""
        with locked(self._lock, _LONGEST_WAIT):
            self._write(None)
            # A look that is under way may or may not have seen what makes this one necessary.
            self._note("")

    def oldest(self) -> Iterator[str]:
        """The names of entries, the least recently used first, each once; one that is taken is not given again.

        They come from the file `oldest`, without those that were used since the look that wrote it; none where it is
        used up. Only one process at a time may ask.
        """
        if not os.path.exists(self._oldest):
            return
        with _opened(self._oldest) as file:
            while (size := os.fstat(file).st_size - _LINE) >= 0:
                used, _, name = os.pread(file, _LINE, size).decode("ascii", "replace").strip().partition(" ")
                os.ftruncate(file, size)
                with contextlib.suppress(OSError, ValueError):
                    if os.stat(f"{self._entries}/{name}/meta.json").st_mtime_ns == int(used):
                        yield name

    def knows_more(self) -> bool:
        """Whether there is more in the file `oldest`."""
        with contextlib.suppress(FileNotFoundError):
            return os.stat(self._oldest).st_size >= _LINE
        return False

    def look(self, held: Collection[str], timeout: float = 0.0) -> Generator[None, None, list[str]]:
        """Looks at every file of every entry, in small steps: counts them, and writes what goes first to `oldest`.

        Nobody waits for it: entries may come and go between the steps, and what is counted is right all the same. Its
        value are the lines (see `name_in`) of all entries that are not held, the least recently used first.

        Raises:
            StorageUnavailable: another has been looking for `timeout` seconds.
        """
        sizes: dict[int, int] = {}
        # No set: to make one larger that has many takes three times as long, and other threads wait.
        counted: dict[str, bool] = {}
        uses: list[list[str]] = [[]]
        with locked(self._looking, timeout), self._told_of_moves() as told:
            with os.scandir(self._entries) as entries:
                for entry in entries:
                    # Entries may be damaged, or go meanwhile; and where a folder cannot be read, the others still can.
                    with contextlib.suppress(OSError):
                        sizes.update([(each.st_ino, each.st_size) for each in _files_below(f"{entry.path}/files")])
                        counted[entry.name] = True
                    with contextlib.suppress(OSError):
                        used = os.stat(f"{entry.path}/meta.json").st_mtime_ns
                        uses[-1].append(f"{used:0{_DIGITS}} {entry.name}\n")
                    if len(uses[-1]) == _SORTED_AT_ONCE:
                        uses[-1].sort()
                        uses.append([])
                    yield
            told(sum(sizes.values()), counted)
            uses[-1].sort()
            lines: list[str] = []
            for line in heapq.merge(*uses):
                if name_in(line) not in held:
                    lines.append(line)
                yield
            self._push(lines[: max(_FEWEST, len(lines) // _SHARE)])
        return lines

    def freed_by(self, entry: str) -> int:
        """The bytes that are free once the entry is gone: those of files that no other entry shares."""
        try:
            files = list(_files_below(f"{self._entries}/{entry}/files"))
        except FileNotFoundError:
            return 0
        return sum(each.st_size for each in files if each.st_nlink == 1)

    @contextlib.contextmanager
    def _told_of_moves(self) -> Iterator[Callable[[int, dict[str, bool]], None]]:
        """What comes and goes inside the block is noted; call what it gives with what was counted, and where."""
        with contextlib.ExitStack() as alone:
            with locked(self._lock, _LONGEST_WAIT):
                noted = self._note(_BEGUN)
            if not noted:
                # The disk has no room for the notes: nothing comes or goes then.
                alone.enter_context(locked(self._lock, _LONGEST_WAIT))
                yield lambda total, counted: self._write(total)
            else:
                yield self._settle

    def _is_looked_at(self) -> bool:
        with contextlib.suppress(FileNotFoundError):
            return os.stat(self._moves).st_size > 0
        return False

    def _noted(self) -> list[str]:
        """The notes for the look; none where nobody looks."""
        with _opened(self._moves) as moves:
            size = os.fstat(moves).st_size
            return os.pread(moves, size, 0).decode("ascii", "replace").splitlines() if size else []

    def _note(self, line: str) -> bool:
        """Adds a line to the notes for the look; where the disk has no room for it the look does not count."""
        with _opened(self._moves) as moves:
            try:
                if line in ("", _BEGUN):
                    os.ftruncate(moves, 0)
                write_at(moves, line.encode(), os.fstat(moves).st_size)
            except OSError:
                os.ftruncate(moves, 0)
                return False
        return True

    def _settle(self, total: int, counted: dict[str, bool]) -> None:
        """Writes what was counted, with what came after it was looked at, and without what went after that."""
        with locked(self._lock, _LONGEST_WAIT):
            moves = self._noted()
            if not moves:
                return
            for what, count, entry in (each.split(" ") for each in moves[1:]):
                if what == "went":
                    total -= int(count) if entry in counted else 0
                    counted.pop(entry, None)
                else:
                    total += 0 if entry in counted else int(count)
                    counted[entry] = True
            self._write(max(0, total))
            self._note("")

    def _write(self, total: int | None) -> None:
        with _opened(self._usage) as file:
            write_at(file, b" " * _DIGITS if total is None else f"{total:0{_DIGITS}}".encode(), 0)

    def _push(self, lines: list[str]) -> None:
        """Keeps the lines for `oldest`; none of them where the disk has no room for that."""
        try:
            Path(self._oldest).write_text("".join(reversed(lines)))
        except OSError:
            with contextlib.suppress(OSError):
                os.unlink(self._oldest)


def name_in(line: str) -> str:
    """The entry of a line of the file `oldest`."""
    return line[_DIGITS + 1 : -1]


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
