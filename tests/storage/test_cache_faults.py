"""The file cache where something is wrong: what it leaves behind, and who pays for a full disk."""

from __future__ import annotations

import errno
import sys
import threading
import traceback
from collections.abc import Callable
from pathlib import Path

import filelock
import psutil
import pytest

from mlpkit.errors import StorageError
from mlpkit.settings import Settings
from mlpkit.storage.cache import FileCache
from mlpkit.storage.index import Holds
from tests.servers import LONG, Relay, wait_until
from tests.storage.conftest import OpenStorage


def _fill(folder: Path) -> dict[str, str]:
    (folder / "file").write_bytes(b"content")
    return {}


def _leave_half_made(cache: Path, folders: int) -> None:
    """What processes that were killed leave."""
    for number in range(folders):
        (cache / "making" / f"dead-{number}" / "files").mkdir(parents=True)


def _is_held(cache: Path, copy: Path) -> bool:
    holds = Holds(cache / "holds")
    with holds.unless_held(copy.parent.name) as free:
        holds.close()
        return not free


def _at_once(*calls: Callable[[], object]) -> list[BaseException]:
    """What the calls raise, each in a thread."""
    ready = threading.Barrier(len(calls))
    raised: list[BaseException] = []

    def run(call: Callable[[], object]) -> None:
        ready.wait(LONG)
        try:
            call()
        except BaseException as error:
            raised.append(error)

    threads = [threading.Thread(target=run, args=(call,)) for call in calls]
    for each in threads:
        each.start()
    for each in threads:
        each.join(LONG)
    return raised


def test_all_who_start_together_clean_up_after_a_user_that_was_killed(tmp_path: Path) -> None:
    FileCache(tmp_path, 1).close()
    _leave_half_made(tmp_path, folders=200)

    assert _at_once(*[lambda: FileCache(tmp_path, 1).close()] * 3) == []

    assert list((tmp_path / "making").iterdir()) == []


@pytest.mark.parametrize("new", [False, True])
def test_cache_that_cannot_be_opened_leaves_nothing_and_cleans_up_when_it_can(tmp_path: Path, new: bool) -> None:
    FileCache(tmp_path, 1).close()
    _leave_half_made(tmp_path, folders=1)
    obstacle = tmp_path / ("index.db" if new else "holds")
    obstacle.unlink()
    obstacle.mkdir()
    open_before = psutil.Process().num_fds()
    for _ in range(3):
        with pytest.raises(StorageError, match=r"the file cache cannot be used .*: check MLPKIT_CACHE_DIR"):
            FileCache(tmp_path, 1)
    assert psutil.Process().num_fds() == open_before
    assert len(list((tmp_path / "making").iterdir())) == 1

    obstacle.rmdir()
    FileCache(tmp_path, 1).close()
    assert list((tmp_path / "making").iterdir()) == []


def test_storage_whose_index_cannot_be_opened_says_so_and_leaves_nothing(
    folder_settings: Settings, opened: OpenStorage
) -> None:
    cache = folder_settings.cache_path
    (cache / "index.db").mkdir(parents=True)
    storage = opened(folder_settings)
    with pytest.raises(StorageError, match=r"the file cache cannot be used .*: check MLPKIT_CACHE_DIR"):
        storage.fetch("bucket/key")
    assert storage._made is None

    (cache / "index.db").rmdir()
    with pytest.raises(StorageError, match="does not exist"):
        storage.fetch("bucket/key")


def test_storage_that_is_closed_during_a_save_stays_closed(
    relay: Relay, s3_settings: Settings, opened: OpenStorage, tmp_path: Path
) -> None:
    storage, path = opened(s3_settings.with_options(minio_host=relay.endpoint)), f"{s3_settings.data_bucket}/k"
    (tmp_path / "local").write_bytes(b"content")
    storage.save(tmp_path / "local", path)
    relay.requests.clear()
    saving = threading.Thread(target=lambda: storage.save(tmp_path / "local", path))
    with relay.held("/k"):
        saving.start()
        wait_until(lambda: relay.count("PUT", "/k") == 1, "the save has begun")
        storage.close()
    saving.join(LONG)

    assert not saving.is_alive()
    assert storage._made is None


def test_obtain_that_fails_for_an_entry_in_use_holds_nothing_more(tmp_path: Path) -> None:
    cache = FileCache(tmp_path, 1 << 20)
    copy = cache.obtain("name", subject="one", source="s", make=_fill)
    (copy / "file").unlink()

    def fail(folder: Path) -> dict[str, str]:
        raise IsADirectoryError(errno.EISDIR, "Is a directory")

    with pytest.raises(StorageError, match="Is a directory"):
        cache.obtain("name", subject="one", source="s", make=fail)
    assert _is_held(tmp_path, copy)
    cache.release(copy)
    assert not _is_held(tmp_path, copy)
    cache.close()


def test_of_all_that_find_the_disk_full_at_the_same_moment_one_makes_place(tmp_path: Path) -> None:
    cache, crowd = FileCache(tmp_path, 1 << 20), 4
    for number in range(32):
        cache.release(cache.obtain(f"old {number}", subject=f"{number}", source="s", make=_fill))
    cache.keep_limit()
    found_full: list[Path] = []

    def fill_when_there_is_room(folder: Path) -> dict[str, str]:
        if len(found_full) < crowd:
            found_full.append(folder)
            raise OSError(errno.ENOSPC, "No space left on device")
        return _fill(folder)

    def waiting() -> int:
        stacks = [traceback.walk_stack(frame) for frame in sys._current_frames().values()]
        names = [{frame.f_code.co_name for frame, _ in stack} for stack in stacks]
        return sum(each >= {"_halve", "_locked", "acquire"} for each in names)

    def fetch(number: int) -> Callable[[], object]:
        return lambda: cache.obtain(f"new {number}", subject=f"new {number}", source="s", make=fill_when_there_is_room)

    with filelock.FileLock(tmp_path / "locks" / "eviction", timeout=LONG):
        fetching = threading.Thread(target=lambda: _at_once(*map(fetch, range(crowd))))
        fetching.start()
        wait_until(lambda: waiting() == crowd, "all of them wait to evict")
    fetching.join(LONG)

    assert len(list((tmp_path / "entries").iterdir())) == 16 + crowd
    cache.close()
