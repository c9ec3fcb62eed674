"""Who uses what in the cache: seen by every process, and by nobody after the user's end."""

from __future__ import annotations

import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from mlpkit.errors import StorageError
from mlpkit.storage.index import Holds
from tests.servers import LONG

ONE, OTHER, THIRD = (letter * 40 for letter in "abc")

_HOLDER = """
import sys
from pathlib import Path
from mlpkit.storage.index import Holds

holds = Holds(Path(sys.argv[1]))
holds.hold(sys.argv[2])
print("held", flush=True)
sys.stdin.read()
"""


def everybodys(holds: Holds) -> set[str]:
    """Which of the three anybody holds."""
    found = set()
    for name in (ONE, OTHER, THIRD):
        with holds.unless_held(name) as free:
            if not free:
                found.add(name)
    return found


def test_everybody_sees_what_any_user_holds_until_it_is_released_as_often(tmp_path: Path) -> None:
    mine, theirs = Holds(tmp_path / "holds"), Holds(tmp_path / "holds")
    mine.hold(ONE)
    mine.hold(ONE)
    theirs.hold(OTHER)

    assert everybodys(mine) == everybodys(theirs) == {ONE, OTHER}
    mine.release(ONE)
    assert everybodys(theirs) == {ONE, OTHER}
    mine.release(ONE)
    mine.release(ONE)
    assert everybodys(theirs) == {OTHER}
    theirs.close()
    assert everybodys(mine) == set()
    mine.close()


def test_file_of_the_holds_does_not_grow_with_its_age(tmp_path: Path) -> None:
    holds = Holds(tmp_path / "holds")
    holds.hold(ONE)
    for number in range(100):
        holds.hold(f"{number:040}")
        holds.hold(OTHER)
        holds.release(f"{number:040}")
        holds.release(OTHER)
    holds.hold(THIRD)

    assert everybodys(holds) == {ONE, THIRD}
    assert (tmp_path / "holds").stat().st_size == 0
    holds.close()


def test_user_that_has_closed_holds_nothing_more(tmp_path: Path) -> None:
    holds, other = Holds(tmp_path / "holds"), Holds(tmp_path / "holds")
    holds.hold(ONE)
    holds.close()
    holds.close()
    holds.release(ONE)

    with pytest.raises(StorageError, match="closed while it was in use"):
        holds.hold(OTHER)
    assert everybodys(other) == set()
    other.close()


def test_entry_is_held_on_a_disk_without_room_too(tmp_path: Path) -> None:
    holds, other = Holds(tmp_path / "holds"), Holds(tmp_path / "holds")
    holds.hold(ONE)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, hard))
    try:
        holds.hold(OTHER)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert everybodys(other) == {ONE, OTHER}
    holds.release(OTHER)
    assert everybodys(other) == {ONE}
    holds.close()
    other.close()


def test_killed_process_holds_nothing_more(tmp_path: Path) -> None:
    holds = Holds(tmp_path / "holds")
    command = [sys.executable, "-c", _HOLDER, str(tmp_path / "holds"), ONE]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"held\n"
        assert everybodys(holds) == {ONE}
        process.send_signal(signal.SIGKILL)
        process.wait(LONG)
    assert everybodys(holds) == set()
    holds.close()


def test_nobody_begins_to_use_what_is_being_removed(tmp_path: Path) -> None:
    holds, other = Holds(tmp_path / "holds"), Holds(tmp_path / "holds")
    with holds.unless_held(ONE) as free:
        assert free
        assert everybodys(other) == {ONE}
        assert everybodys(holds) == {ONE}, "another thread of the same process does not remove it too"
    assert everybodys(other) == set()
    holds.close()
    other.close()
