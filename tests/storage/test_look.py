"""A look at all entries takes its time, while they come and go: what it counts is right all the same."""

from __future__ import annotations

import contextlib
import random
import resource
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from mlpkit.storage.room import Room


@pytest.mark.parametrize("seed", range(20))
def test_what_comes_and_goes_during_a_look_is_counted_all_the_same(tmp_path: Path, seed: int) -> None:
    chance, room, names = random.Random(seed), Room(tmp_path, tmp_path / "entries"), []
    (tmp_path / "entries").mkdir()
    for number in range(10):
        names.append(_come(room, tmp_path, f"{number:040}", 10 + number))
    look, number = room.look(()), 10
    for _ in look:
        for _ in range(chance.randrange(3)):
            if names and chance.random() < 0.5:
                _go(room, tmp_path, names.pop(chance.randrange(len(names))))
            elif number < 40:
                number += 1
                # One that went may come again.
                names.append(_come(room, tmp_path, f"{number % 30:040}", 10 + number))

    assert room.total() == sum(each.stat().st_size for each in (tmp_path / "entries").glob("*/files/*"))


def test_a_look_after_whose_begin_something_was_lost_count_of_does_not_count(tmp_path: Path) -> None:
    (tmp_path / "entries").mkdir()
    room = Room(tmp_path, tmp_path / "entries")
    for number in range(3):
        _come(room, tmp_path, f"{number:040}", 10)
    look = room.look(())
    next(look)
    room.forget()
    looked_through(room, look)
    assert room.total() is None

    looked_through(room)
    assert room.total() == 30


def test_a_look_does_not_count_where_the_disk_has_no_room_for_what_moves_meanwhile(tmp_path: Path) -> None:
    (tmp_path / "entries").mkdir()
    room = Room(tmp_path, tmp_path / "entries")
    _come(room, tmp_path, "a" * 40, 10)
    looked_through(room)
    look = room.look(())
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    # Room for the account, and for half a line.
    resource.setrlimit(resource.RLIMIT_FSIZE, (25, hard))
    try:
        next(look)
        _come(room, tmp_path, "b" * 40, 5)
        looked_through(room, look)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    assert room.total() == 15


def _come(room: Room, folder: Path, name: str, size: int) -> str:
    made = folder / "made"
    (made / "files").mkdir(parents=True)
    (made / "meta.json").touch()
    (made / "files" / "file").write_bytes(bytes(size))
    if (folder / "entries" / name).exists():
        _go(room, folder, name)
    with room.changing(size, name):
        made.rename(folder / "entries" / name)
    return name


def _go(room: Room, folder: Path, name: str) -> None:
    entry = folder / "entries" / name
    with contextlib.suppress(FileNotFoundError), room.changing(-room.freed_by(name), name):
        entry.rename(folder / "gone")
        shutil.rmtree(folder / "gone")


def looked_through(room: Room, look: Iterator[None] | None = None) -> None:
    """Takes all steps of a look, or what is left of them."""
    for _ in look or room.look(()):
        pass
