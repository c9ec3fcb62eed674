"""Who uses what in the cache: seen by every user, and by nobody after the user's end."""

from __future__ import annotations

import resource
from pathlib import Path

import pytest

from mlpkit.errors import StorageError
from mlpkit.storage.leases import Leases

ONE, OTHER, THIRD = (letter * 40 for letter in "abc")


def test_everybody_sees_what_any_user_holds_until_it_is_released_as_often(tmp_path: Path) -> None:
    mine, theirs = Leases(tmp_path), Leases(tmp_path)
    mine.hold(ONE)
    mine.hold(ONE)
    theirs.hold(OTHER)

    assert mine.everybodys() == theirs.everybodys() == {ONE, OTHER}
    mine.release(ONE)
    assert theirs.everybodys() == {ONE, OTHER}
    mine.release(ONE)
    mine.release(ONE)
    assert theirs.everybodys() == {OTHER}
    theirs.close()
    assert mine.everybodys() == set()
    mine.close()


def test_file_of_a_user_does_not_grow_with_its_age(tmp_path: Path) -> None:
    leases = Leases(tmp_path)
    leases.hold(ONE)
    for number in range(100):
        leases.hold(f"{number:040}")
        leases.hold(OTHER)
        leases.release(f"{number:040}")
        leases.release(OTHER)
    leases.hold(THIRD)

    assert leases.everybodys() == {ONE, THIRD}
    assert (tmp_path / leases.user).stat().st_size == 3 * 41
    leases.close()


def test_user_that_has_closed_holds_nothing_more(tmp_path: Path) -> None:
    leases = Leases(tmp_path)
    leases.hold(ONE)
    leases.close()
    leases.release(ONE)

    with pytest.raises(StorageError, match="closed while it was in use"):
        leases.hold(OTHER)
    assert list(tmp_path.iterdir()) == []


def test_entry_that_could_not_be_written_is_not_held_and_can_be_held_later(tmp_path: Path) -> None:
    leases = Leases(tmp_path)
    leases.hold(ONE)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    # Room for one line and a half.
    resource.setrlimit(resource.RLIMIT_FSIZE, (60, hard))
    try:
        with pytest.raises(OSError, match="too large"):
            leases.hold(OTHER)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert OTHER not in leases.everybodys()
    leases.release(OTHER)
    leases.hold(OTHER)
    assert leases.everybodys() == {ONE, OTHER}
    leases.release(OTHER)
    assert leases.everybodys() == {ONE}
    leases.close()
