"""What the cache holds is known without a look at every entry, and is right whatever happens."""

from __future__ import annotations

import contextlib
import os
import shutil
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import filelock
import pytest

from mlpkit.settings import Settings, encode_settings
from mlpkit.storage import open_storage
from mlpkit.storage.cache import FileCache
from mlpkit.storage.index import CacheIndex, Files, Holds
from tests.servers import LONG, Relay, wait_until
from tests.storage.conftest import OpenStorage

KIB = 1 << 10

_LOOKS = """
import sys
from pathlib import Path

looks = []
sys.addaudithook(lambda event, args: looks.append(str(args[0])) if event in ("os.listdir", "os.scandir") else None)

from mlpkit.settings import decode_settings
from mlpkit.storage import open_storage

settings = decode_settings(Path(sys.argv[1]).read_bytes())
storage = open_storage(settings)
for path in sys.argv[3:]:
    storage.release(storage.fetch(path))
storage.close()
print(looks.count(str((settings.cache_path / sys.argv[2]).absolute())))
"""


@pytest.fixture
def looks(tmp_path: Path) -> Callable[..., int]:
    """How often a new process lists that folder of the cache while it fetches these."""

    def count(settings: Settings, folder: str, *paths: str) -> int:
        (tmp_path / "settings.json").write_bytes(encode_settings(settings))
        command = [sys.executable, "-c", _LOOKS, str(tmp_path / "settings.json"), folder, *paths]
        return int(subprocess.run(command, check=True, timeout=LONG, capture_output=True, text=True).stdout)

    return count


@pytest.fixture
def filled(folder_settings: Settings, opened: OpenStorage, tmp_path: Path) -> Settings:
    """Settings of a folder store with 200 objects of 1 KiB, and a cache of 100 KiB."""
    (tmp_path / "tree").mkdir()
    for number in range(200):
        (tmp_path / "tree" / f"{number}").write_bytes(number.to_bytes(1, "big") * KIB)
    settings = folder_settings.with_options(cache_size=100 * KIB)
    opened(settings).save_dir(tmp_path / "tree", settings.data_bucket)
    return settings


def _paths(settings: Settings, numbers: range) -> list[str]:
    return [f"{settings.data_bucket}/{number}" for number in numbers]


def _held(settings: Settings) -> int:
    files = [each.stat() for each in (settings.cache_path / "entries").glob("*/files/**/*") if each.is_file()]
    return sum({each.st_ino: each.st_size for each in files}.values())


def _total(settings: Settings) -> int:
    with contextlib.closing(sqlite3.connect(settings.cache_path / "index.db")) as database:
        (total,) = database.execute("SELECT total FROM account").fetchone()
    return int(total)


def _index(folder: Path) -> CacheIndex:
    (folder / "entries").mkdir(exist_ok=True)
    return CacheIndex(folder, Holds(folder / "holds"))


def _files(*sizes: int, start: int = 1) -> Files:
    return list(enumerate(sizes, start))


def test_neither_the_start_nor_a_fetch_looks_at_all_entries(filled: Settings, looks: Callable[..., int]) -> None:
    looks(filled, "entries", *_paths(filled, range(90)))

    assert looks(filled, "entries", *_paths(filled, range(95))) == 0
    assert looks(filled, "making", *_paths(filled, range(100))) == 1, "at the start, for processes that were killed"


def test_eviction_does_not_look_at_all_entries(filled: Settings, looks: Callable[..., int]) -> None:
    looks(filled, "entries", *_paths(filled, range(100)))

    assert looks(filled, "entries", *_paths(filled, range(100, 180))) == 0
    assert looks(filled, "entries", *_paths(filled, range(180, 200))) == 0
    assert _held(filled) == 100 * KIB
    kept = {each.name for each in (filled.cache_path / "entries").glob("*/files/*")}
    assert kept == {str(number) for number in range(100, 200)}


def test_what_was_used_lately_is_not_evicted(filled: Settings, looks: Callable[..., int]) -> None:
    looks(filled, "entries", *_paths(filled, range(101)))
    looks(filled, "entries", *_paths(filled, range(1, 11)))

    looks(filled, "entries", *_paths(filled, range(110, 120)))

    kept = {each.name for each in (filled.cache_path / "entries").glob("*/files/*")}
    assert kept >= {str(number) for number in range(1, 11)}
    assert not kept & {str(number) for number in range(11, 21)}


def test_the_account_is_exact_with_folders_that_share_files(filled: Settings, opened: OpenStorage) -> None:
    storage = opened(filled)
    for number in range(0, 200, 10):
        only = [str(each) for each in range(number, number + 10)]
        storage.release(storage.fetch_dir(filled.data_bucket, only=only))
        storage.release(storage.fetch(f"{filled.data_bucket}/{number}"))
        assert _total(filled) == _held(filled) <= 100 * KIB
    assert list((filled.cache_path / "making").iterdir()) == []


def test_a_process_that_was_killed_while_an_entry_came_or_went_makes_the_cache_count_again(
    filled: Settings, opened: OpenStorage
) -> None:
    storage = opened(filled)
    for path in _paths(filled, range(50)):
        storage.release(storage.fetch(path))
    storage.close()
    dead = filled.cache_path / "making" / f"{'d' * 40}-0"
    (dead / "files").mkdir(parents=True)
    (dead / "meta.json").touch()
    index = _index(filled.cache_path)
    with index.adding("d" * 40, "subject", _files(70 * KIB)):
        pass
    assert _total(filled) == 120 * KIB

    storage.fetch(f"{filled.data_bucket}/0")

    assert not dead.exists()
    assert _total(filled) == _held(filled) == 50 * KIB


def test_entries_that_somebody_else_removes_are_not_counted_for_long(filled: Settings, opened: OpenStorage) -> None:
    storage = opened(filled)
    for path in _paths(filled, range(90)):
        storage.release(storage.fetch(path))
    for folder in list((filled.cache_path / "entries").iterdir())[:40]:
        shutil.rmtree(folder)

    for path in _paths(filled, range(90, 200)):
        storage.release(storage.fetch(path))

    assert _total(filled) == _held(filled) == 100 * KIB


def test_objects_of_a_folder_that_others_evict_while_it_is_fetched_are_not_counted_twice(
    relay: Relay, s3_settings: Settings, opened: OpenStorage, tmp_path: Path
) -> None:
    (tmp_path / "tree").mkdir()
    for name in ("early", "late"):
        (tmp_path / "tree" / name).write_bytes(os.urandom(KIB))
    settings = s3_settings.with_options(minio_host=relay.endpoint)
    storage, hungry = opened(settings), opened(settings.with_options(cache_size=1))
    storage.save_dir(tmp_path / "tree", f"{settings.data_bucket}/d")
    storage.save(tmp_path / "tree" / "early", f"{settings.data_bucket}/other")
    fetching = threading.Thread(target=lambda: storage.fetch_dir(f"{settings.data_bucket}/d"))

    with relay.held("/d/late"):
        fetching.start()
        early = "*/files/early"
        making, entries = settings.cache_path / "making", settings.cache_path / "entries"
        wait_until(lambda: any(entries.glob(early)) and any(making.glob(early)), "one object is there, and linked")
        hungry.release(hungry.fetch(f"{settings.data_bucket}/other"))
    fetching.join(LONG)

    assert _total(settings) == _held(settings)


def test_an_entry_is_counted_before_it_comes(tmp_path: Path) -> None:
    index = _index(tmp_path)
    with index.adding("a", "subject", _files(10)):
        assert index.total() == 10
    index.remove("a")
    assert index.total() == 0


def test_a_change_that_fails_is_not_counted(tmp_path: Path) -> None:
    index = _index(tmp_path)
    with index.adding("a", "subject", _files(10)):
        pass
    with pytest.raises(OSError, match="no such place"), index.adding("b", "subject", _files(5, start=7)):
        raise OSError("no such place")
    assert index.total() == 10


def test_an_entry_that_comes_while_the_index_is_made_again_is_in_the_new_one(tmp_path: Path) -> None:
    index, another = _index(tmp_path), _index(tmp_path)
    with index.adding("a", "subject", _files(10)):
        (tmp_path / "index.db").unlink()
        assert another.total() == 0
    assert another.total() == index.total() == 10


def test_files_that_entries_share_are_counted_once_until_the_last_has_gone(tmp_path: Path) -> None:
    index = _index(tmp_path)
    for entry, sizes in (("a", (10, 20)), ("b", (10,)), ("c", (10, 20, 30))):
        with index.adding(entry, "subject", _files(*sizes)):
            pass
    assert index.total() == 60
    index.remove("c")
    assert index.total() == 30
    index.remove("a")
    assert index.total() == 10
    index.remove("a")
    index.remove("b")
    assert index.total() == 0


def test_an_index_that_is_nonsense_is_made_again(filled: Settings, opened: OpenStorage) -> None:
    cache = filled.cache_path
    storage = opened(filled)
    for path in _paths(filled, range(120)):
        storage.release(storage.fetch(path))
    (cache / "index.db").write_bytes(os.urandom(100_000))

    for path in _paths(filled, range(120, 200)):
        storage.release(storage.fetch(path))

    assert _total(filled) == _held(filled) == 100 * KIB


def test_a_cache_whose_entries_are_all_in_use_is_not_looked_through_with_every_fetch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mlpkit.storage.cache._NOTICEABLE", 0.0)
    monkeypatch.setattr("mlpkit.storage.cache._REST", 1e9)
    cache = FileCache(tmp_path / "cache", limit=1)
    cache.obtain("a", subject="a", source="a", make=_one_file)
    cache.keep_limit()
    monkeypatch.setattr(cache.index, "oldest", lambda: pytest.fail("it is looked through again"))

    cache.keep_limit()

    cache.close()


def test_the_limit_is_kept_with_every_fetch(filled: Settings, opened: OpenStorage) -> None:
    roomy, storage = opened(filled.with_options(cache_size=1 << 30)), opened(filled)
    for path in _paths(filled, range(150)):
        roomy.release(roomy.fetch(path))
    for path in _paths(filled, range(150, 170)):
        storage.release(storage.fetch(path))
        assert _total(filled) == _held(filled) == 100 * KIB
    kept = {each.name for each in (filled.cache_path / "entries").glob("*/files/*")}
    assert kept == {str(number) for number in range(70, 170)}


def test_a_fetch_waits_for_others_that_evict(filled: Settings, opened: OpenStorage) -> None:
    roomy, storage = opened(filled.with_options(cache_size=1 << 30)), opened(filled)
    for path in _paths(filled, range(110)):
        roomy.release(roomy.fetch(path))
    last = _paths(filled, range(110, 111))[0]
    fetching = threading.Thread(target=lambda: storage.release(storage.fetch(last)))

    with filelock.FileLock(filled.cache_path / "locks" / "eviction", timeout=LONG):
        fetching.start()
        wait_until(lambda: _held(filled) == 111 * KIB, "it has been fetched")
    fetching.join(LONG)

    assert _held(filled) == 100 * KIB


def test_folder_of_the_version_before_is_taken_over(filled: Settings, opened: OpenStorage) -> None:
    cache = filled.cache_path
    storage = opened(filled.with_options(cache_size=1 << 30))
    for path in _paths(filled, range(120)):
        storage.release(storage.fetch(path))
    storage.close()
    for name in ("index.db", "index.db-journal", "index.db.lock", "holds"):
        (cache / name).unlink()
    for name in ("usage", "usage.lock", "oldest", "moves", "look.lock", "changes"):
        (cache / name).write_bytes(b"00000000000000122880")
    for name in ("newest", "users"):
        (cache / name).mkdir()
        (cache / name / "some").write_text("text")

    opened(filled).fetch(f"{filled.data_bucket}/119")

    assert _total(filled) == _held(filled) == 100 * KIB
    assert {each.name for each in cache.iterdir()} == {
        *("entries", "locks", "making", "holds", "index.db", "index.db-journal", "index.db.lock")
    }


def test_entries_that_come_and_go_while_the_index_is_made_again_are_counted(tmp_path: Path) -> None:
    first = FileCache(tmp_path, limit=1 << 20)
    for number in range(300):
        first.release(first.obtain(f"{number}", subject=f"{number}", source="s", make=_one_file))
    caches = [FileCache(tmp_path, limit=200 * len(b"content")) for _ in range(3)]

    def come_and_go(cache: FileCache, start: int) -> None:
        for number in range(start, start + 60):
            cache.release(cache.obtain(f"new {number}", subject=f"new {number}", source="s", make=_one_file))
            cache.keep_limit()

    threads = [threading.Thread(target=come_and_go, args=(cache, 100 * n)) for n, cache in enumerate(caches)]
    for thread in threads:
        thread.start()
    (tmp_path / "index.db").write_bytes(b"?" * 10_000)
    first.release(first.obtain("last", subject="last", source="s", make=_one_file))
    for thread in threads:
        thread.join(LONG)

    held = {file.stat().st_ino: file.stat().st_size for file in (tmp_path / "entries").glob("*/files/*")}
    assert first.index.total() == sum(held.values())
    for cache in (first, *caches):
        cache.close()


def test_an_index_that_another_keeps_locked_is_a_warning_and_everything_is_counted_later(
    filled: Settings, opened: OpenStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mlpkit.storage.index._BUSY_SECONDS", 0.1)
    storage = opened(filled)
    storage.release(storage.fetch(f"{filled.data_bucket}/0"))
    with contextlib.closing(sqlite3.connect(filled.cache_path / "index.db", isolation_level=None)) as database:
        database.execute("BEGIN EXCLUSIVE")
        for path in _paths(filled, range(3)):
            storage.release(storage.fetch(path))
        database.execute("ROLLBACK")

    storage.release(storage.fetch(f"{filled.data_bucket}/3"))

    assert _total(filled) == _held(filled) == 4 * KIB


_FETCHES_AND_FORKS = """
import os, sys
from pathlib import Path
from mlpkit.settings import decode_settings
from mlpkit.storage import open_storage

storage = open_storage(decode_settings(Path(sys.argv[1]).read_bytes()))
paths = sys.argv[2:]
storage.release(storage.fetch(paths[0]))
if os.fork() == 0:
    for path in paths[1:]:
        storage.release(storage.fetch(path))
    sys.exit()
for path in reversed(paths[1:]):
    storage.release(storage.fetch(path))
assert os.wait()[1] == 0
storage.close()
"""


def test_processes_that_fork_and_are_killed_leave_an_account_that_is_right(filled: Settings, tmp_path: Path) -> None:
    (tmp_path / "settings.json").write_bytes(encode_settings(filled))
    command = [sys.executable, "-c", _FETCHES_AND_FORKS, str(tmp_path / "settings.json")]
    groups = [_paths(filled, range(start, start + 120)) for start in (0, 40, 80)]
    processes = [subprocess.Popen([*command, *paths]) for paths in groups]
    try:
        wait_until(lambda: _held(filled) > 20 * KIB, "they fetch")
        processes[0].kill()
        assert [each.wait(LONG) for each in processes[1:]] == [0, 0]
    finally:
        for process in processes:
            process.kill()
            process.wait(LONG)

    storage = open_storage(filled)
    storage.release(storage.fetch(f"{filled.data_bucket}/0"))
    storage.close()
    with contextlib.closing(sqlite3.connect(filled.cache_path / "index.db")) as database:
        assert database.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    assert _total(filled) == _held(filled) <= 100 * KIB


def _one_file(folder: Path) -> dict[str, str]:
    (folder / "file").write_bytes(b"content")
    return {}
