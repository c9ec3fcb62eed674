"""What the cache holds is known without a look at every entry, and is right whatever happens."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from mlpkit.errors import StorageUnavailable
from mlpkit.settings import Settings, encode_settings
from mlpkit.storage.cache import FileCache
from mlpkit.storage.locks import locked
from mlpkit.storage.room import Room
from mlpkit.storage.store import BLOCK, BlockDigest, combined, digest_of
from tests.servers import Relay, wait_until
from tests.storage.conftest import OpenStorage
from tests.storage.test_look import looked_through

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
        return int(subprocess.run(command, check=True, timeout=60, capture_output=True, text=True).stdout)

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


def _room(settings: Settings) -> Room:
    return Room(settings.cache_path, settings.cache_path / "entries")


def test_neither_the_start_nor_a_fetch_looks_at_all_entries(filled: Settings, looks: Callable[..., int]) -> None:
    looks(filled, "entries", *_paths(filled, range(90)))

    assert looks(filled, "entries", *_paths(filled, range(95))) == 0
    assert looks(filled, "users", *_paths(filled, range(100))) == 1, "at the start, for users that were killed"


def test_eviction_looks_at_all_entries_once_in_many_times(filled: Settings, looks: Callable[..., int]) -> None:
    assert looks(filled, "entries", *_paths(filled, range(100))) == 1, "a new cache is counted once"

    assert looks(filled, "entries", *_paths(filled, range(100, 180))) == 1
    assert looks(filled, "entries", *_paths(filled, range(180, 200))) == 0, "another process uses the last look too"
    assert _held(filled) == 100 * KIB
    kept = {each.name for each in (filled.cache_path / "entries").glob("*/files/*")}
    assert kept == {str(number) for number in range(100, 200)}


def test_what_is_used_after_the_look_is_not_evicted_by_it(filled: Settings, looks: Callable[..., int]) -> None:
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
        assert _room(filled).total() == _held(filled) <= 100 * KIB
    assert list((filled.cache_path / "making").iterdir()) == []


def test_a_process_that_was_killed_while_an_entry_came_or_went_makes_the_cache_count_again(
    filled: Settings, opened: OpenStorage
) -> None:
    storage = opened(filled)
    for path in _paths(filled, range(50)):
        storage.release(storage.fetch(path))
    storage.close()
    dead = filled.cache_path / "making" / "dead-0"
    (dead / "files").mkdir(parents=True)
    (dead / "meta.json").touch()
    (filled.cache_path / "users" / "dead").touch()
    with _room(filled).changing(70 * KIB):
        pass

    storage.fetch(f"{filled.data_bucket}/0")

    assert not dead.exists()
    assert _room(filled).total() == _held(filled) == 50 * KIB


@pytest.mark.parametrize("drift", [70 * KIB, -50 * KIB])
def test_an_account_that_is_wrong_is_right_after_the_next_look_at_all_entries(
    filled: Settings, opened: OpenStorage, drift: int
) -> None:
    storage = opened(filled)
    for path in _paths(filled, range(90)):
        storage.release(storage.fetch(path))
    with _room(filled).changing(drift):
        pass

    for path in _paths(filled, range(90, 200)):
        storage.release(storage.fetch(path))

    assert _room(filled).total() == _held(filled) == 100 * KIB


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
    fetching.join(30)

    assert _room(settings).total() == _held(settings)


def test_an_entry_is_counted_before_it_comes_and_until_it_has_gone(tmp_path: Path) -> None:
    (tmp_path / "entries").mkdir()
    room = Room(tmp_path, tmp_path / "entries")
    looked_through(room)
    with room.changing(10):
        assert room.total() == 10
    with room.changing(-10):
        assert room.total() == 10
    assert room.total() == 0


def test_a_change_that_fails_is_not_counted(tmp_path: Path) -> None:
    (tmp_path / "entries").mkdir()
    room = Room(tmp_path, tmp_path / "entries")
    looked_through(room)
    with room.changing(10):
        pass
    with pytest.raises(OSError, match="no such place"), room.changing(5):
        raise OSError("no such place")
    assert room.total() == 10


def test_an_account_and_an_order_that_are_nonsense_are_made_again(filled: Settings, opened: OpenStorage) -> None:
    cache = filled.cache_path
    storage = opened(filled)
    for path in _paths(filled, range(120)):
        storage.release(storage.fetch(path))
    (cache / "usage").write_bytes(b"?" * 20)
    (cache / "oldest").write_bytes(os.urandom(1000))

    for path in _paths(filled, range(120, 200)):
        storage.release(storage.fetch(path))

    assert _room(filled).total() == _held(filled) == 100 * KIB


def test_a_cache_whose_entries_are_all_in_use_is_not_looked_through_with_every_fetch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mlpkit.storage.eviction._NOTICEABLE", 0.0)
    monkeypatch.setattr("mlpkit.storage.eviction._REST", 1e9)
    cache = FileCache(tmp_path / "cache", limit=1)
    cache.obtain("a", subject="a", source="a", make=_one_file)
    cache.keep_limit()
    (tmp_path / "cache" / "oldest").unlink()

    cache.keep_limit()

    assert not (tmp_path / "cache" / "oldest").exists()
    cache.close()


def _let_looks_stand_still(monkeypatch: pytest.MonkeyPatch, *, after: int) -> None:
    """A look pauses after so many steps, in the fetch and then in the thread, until somebody hurries it."""
    monkeypatch.setattr("mlpkit.storage.eviction._AT_ONCE", after)
    monkeypatch.setattr("mlpkit.storage.eviction._STEPS", after)
    monkeypatch.setattr("mlpkit.storage.eviction._PAUSE", 1000.0)


def test_no_fetch_waits_for_a_look_at_a_large_cache_up_to_a_tenth_above_the_limit(
    filled: Settings, opened: OpenStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    _let_looks_stand_still(monkeypatch, after=20)
    storage = opened(filled)
    for path in _paths(filled, range(110)):
        storage.release(storage.fetch(path))
    assert _held(filled) == 110 * KIB, "the look stands still, and nobody waits for it"

    storage.release(storage.fetch(_paths(filled, range(110, 111))[0]))

    assert _room(filled).total() == _held(filled) == 100 * KIB
    kept = {each.name for each in (filled.cache_path / "entries").glob("*/files/*")}
    assert kept == {str(number) for number in range(11, 111)}


def test_a_fetch_waits_for_others_that_evict_above_a_tenth_above_the_limit(
    filled: Settings, opened: OpenStorage
) -> None:
    roomy, storage = opened(filled.with_options(cache_size=1 << 30)), opened(filled)
    for path in _paths(filled, range(110)):
        roomy.release(roomy.fetch(path))
    last = _paths(filled, range(110, 111))[0]
    fetching = threading.Thread(target=lambda: storage.release(storage.fetch(last)))

    with locked(f"{filled.cache_path}/locks/eviction", 10):
        fetching.start()
        wait_until(lambda: _held(filled) == 111 * KIB, "it has been fetched")
    fetching.join(30)

    assert _held(filled) == 100 * KIB


def test_a_fetch_removes_a_few_more_than_it_adds_after_a_look(
    filled: Settings, opened: OpenStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mlpkit.storage.eviction._AT_ONCE", 0)
    monkeypatch.setattr("mlpkit.storage.eviction._A_FEW", 3)
    roomy, storage = opened(filled.with_options(cache_size=1 << 30)), opened(filled)
    for path in _paths(filled, range(108)):
        roomy.release(roomy.fetch(path))
    wait_until(lambda: _room(filled).total() == 108 * KIB, "it has been counted")
    (filled.cache_path / "oldest").unlink()

    storage.release(storage.fetch(_paths(filled, range(108, 109))[0]))
    wait_until(lambda: _room(filled).knows_more(), "it is known what goes first")
    held = []
    for path in _paths(filled, range(109, 115)):
        storage.release(storage.fetch(path))
        held.append(_held(filled) // KIB)

    assert held == [107, 105, 103, 101, 100, 100]


def test_a_storage_that_is_closed_ends_its_look(
    filled: Settings, opened: OpenStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    _let_looks_stand_still(monkeypatch, after=1)
    storage = opened(filled)
    storage.release(storage.fetch(_paths(filled, range(1))[0]))
    with pytest.raises(StorageUnavailable):
        next(_room(filled).look(()))

    storage.close()

    assert not [each for each in threading.enumerate() if each.name == "mlpkit-cache"]
    looked_through(_room(filled))
    assert _room(filled).total() == KIB


def _one_file(folder: Path) -> dict[str, str]:
    (folder / "file").write_bytes(b"content")
    return {}


@pytest.mark.parametrize("size", [0, 1, BLOCK - 1, BLOCK, BLOCK + 1, 2 * BLOCK + 5])
def test_a_digest_is_the_same_in_whatever_pieces_the_content_comes(tmp_path: Path, size: int) -> None:
    content = os.urandom(1 << 10) * (size // (1 << 10)) + os.urandom(size % (1 << 10))
    (tmp_path / "file").write_bytes(content)
    pieces, ranges = BlockDigest(), []
    for start in range(0, size, 3_000_001):
        pieces.update(content[start : start + 3_000_001])
    for start in range(0, size, BLOCK):
        ranges.append(BlockDigest())
        ranges[-1].update(content[start : start + BLOCK])

    assert combined(pieces.blocks) == digest_of(tmp_path / "file")
    assert combined(block for each in ranges for block in each.blocks) == digest_of(tmp_path / "file")
    if size:
        (tmp_path / "file").write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        assert combined(pieces.blocks) != digest_of(tmp_path / "file")
