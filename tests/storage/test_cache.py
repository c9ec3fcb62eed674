"""The file cache: one download however many ask, nothing broken served, nothing in use removed, its limit kept."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mlpkit.errors import ObjectNotFound, StorageUnavailable
from mlpkit.settings import Settings, encode_settings
from mlpkit.storage import Storage
from mlpkit.storage.s3 import PART
from tests.servers import LONG, Relay, wait_until
from tests.storage.conftest import OpenStorage

KIB = 1 << 10

Fetcher = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def fetcher(tmp_path: Path) -> Iterator[Fetcher]:
    """Starts processes that fetch a path; they are ended after the test."""
    started: list[subprocess.Popen[str]] = []

    def start(settings: Settings, path: str, *options: str) -> subprocess.Popen[str]:
        (tmp_path / "settings.json").write_bytes(encode_settings(settings))
        command = [sys.executable, "-m", "tests.storage.fetcher", str(tmp_path / "settings.json"), path, *options]
        started.append(subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True))
        return started[-1]

    yield start
    for each in started:
        each.kill()
        each.communicate(timeout=LONG)


@pytest.fixture
def store(folder_settings: Settings, opened: OpenStorage, tmp_path: Path) -> Storage:
    """A folder store with ten objects of 100 KiB, and a cache of 350 KiB."""
    storage = opened(folder_settings.with_options(cache_size=350 * KIB))
    for number in range(10):
        (tmp_path / "tree" / "part").mkdir(parents=True, exist_ok=True)
        (tmp_path / "tree" / f"{number}").write_bytes(bytes([number]) * 100 * KIB)
    (tmp_path / "tree" / "part" / "x").write_bytes(b"x" * 100 * KIB)
    storage.save_dir(tmp_path / "tree", folder_settings.data_bucket)
    return storage


@pytest.fixture
def bucket(folder_settings: Settings) -> str:
    return folder_settings.data_bucket


def _first_line(process: subprocess.Popen[str]) -> Path:
    assert process.stdout is not None
    return Path(process.stdout.readline().strip())


def _cached(settings: Settings) -> int:
    files = [each.stat() for each in (settings.cache_path / "entries").glob("*/files/**/*") if each.is_file()]
    return sum({each.st_ino: each.st_size for each in files}.values())


@pytest.mark.parametrize("size", [8 << 20, pytest.param(200 << 20, marks=pytest.mark.slow)])
def test_eight_processes_fetch_an_object_once(
    relay: Relay, s3_settings: Settings, opened: OpenStorage, tmp_path: Path, fetcher: Fetcher, size: int
) -> None:
    settings = s3_settings.with_options(minio_host=relay.endpoint)
    (tmp_path / "local").write_bytes(os.urandom(1 << 20) * (size >> 20))
    opened(settings).save(tmp_path / "local", f"{settings.data_bucket}/model.bin")

    with relay.held():
        processes = [fetcher(settings, f"{settings.data_bucket}/model.bin") for _ in range(8)]
        wait_until(lambda: relay.count("HEAD", "/model.bin") == 8, "all of them have asked for the object", timeout=300)
    copies = {_first_line(each) for each in processes}

    assert [each.wait(LONG) for each in processes] == [0] * 8
    assert len(copies) == 1
    assert copies.pop().read_bytes() == (tmp_path / "local").read_bytes()
    parts = -(-size // PART) if size > PART else 1
    assert relay.count("GET", "/model.bin") == parts
    assert size <= relay.answered < size + (1 << 20)


def test_many_threads_fetch_an_object_once_alone_and_in_its_folder(
    relay: Relay, s3_settings: Settings, opened: OpenStorage, tmp_path: Path
) -> None:
    settings = s3_settings.with_options(minio_host=relay.endpoint)
    storage = opened(settings)
    (tmp_path / "local").write_bytes(b"content")
    storage.save(tmp_path / "local", f"{settings.data_bucket}/p/k")
    found: list[bytes] = []
    asks = [
        lambda: storage.fetch(f"{settings.data_bucket}/p/k"),
        lambda: storage.fetch_dir(f"{settings.data_bucket}/p") / "k",
    ]

    threads = [threading.Thread(target=lambda ask=ask: found.append(ask().read_bytes())) for ask in asks * 8]
    with relay.held("/p/k"):
        for each in threads:
            each.start()
        wait_until(lambda: relay.count("HEAD", "/p/k") == 8, "those that fetch the object have asked for it")
    for each in threads:
        each.join(LONG)

    assert found == [b"content"] * 16
    assert relay.count("GET", "/p/k") == 1


def test_a_copy_outlives_the_process_and_is_asked_for_with_one_small_request(
    relay: Relay, s3_settings: Settings, opened: OpenStorage, tmp_path: Path
) -> None:
    settings = s3_settings.with_options(minio_host=relay.endpoint)
    (tmp_path / "local").write_bytes(b"content")
    opened(settings).save(tmp_path / "local", f"{settings.data_bucket}/k")
    opened(settings).fetch(f"{settings.data_bucket}/k")
    relay.requests.clear()

    opened(settings).fetch(f"{settings.data_bucket}/k")

    assert [each.partition(" ")[0] for each in relay.requests] == ["HEAD"]


def test_an_unchanged_file_of_a_changed_folder_is_not_fetched_again(
    relay: Relay, s3_settings: Settings, opened: OpenStorage, tmp_path: Path
) -> None:
    settings = s3_settings.with_options(minio_host=relay.endpoint)
    storage = opened(settings)
    for name in ("same", "changing"):
        (tmp_path / name).write_bytes(b"old")
        storage.save(tmp_path / name, f"{settings.data_bucket}/d/{name}")
    storage.fetch_dir(f"{settings.data_bucket}/d")
    (tmp_path / "changing").write_bytes(b"new")
    storage.save(tmp_path / "changing", f"{settings.data_bucket}/d/changing")

    copy = storage.fetch_dir(f"{settings.data_bucket}/d")

    assert {each.name: each.read_bytes() for each in copy.iterdir()} == {"same": b"old", "changing": b"new"}
    assert relay.count("GET", "/d/same") == 1
    assert relay.count("GET", "/d/changing") == 2


def _truncate(file: Path) -> None:
    os.truncate(file, 10)


def _overwrite(file: Path) -> None:
    before = file.stat()
    file.write_bytes(b"y" * before.st_size)
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))


def _forget(file: Path) -> None:
    (file.parents[1] / "meta.json").unlink()


def _garble(file: Path) -> None:
    (file.parents[1] / "meta.json").write_bytes(b'{"source": "\xff"}')


@pytest.mark.parametrize("damage", [_truncate, _overwrite, Path.unlink, _forget, _garble])
@pytest.mark.parametrize("again", [True, False], ids=["same process", "new process"])
def test_a_damaged_copy_is_never_served(
    store: Storage, bucket: str, damage: Callable[[Path], None], again: bool
) -> None:
    def object_copy() -> Path:
        return store.fetch(f"{bucket}/part/x")

    def folder_copy() -> Path:
        return store.fetch_dir(f"{bucket}/part") / "x"

    for ask in (object_copy, folder_copy):
        copy = ask()
        copy.chmod(0o644)
        damage(copy)
        if not again:
            store.close()

        assert ask().read_bytes() == b"x" * 100 * KIB
        assert ask().stat().st_mode & 0o222 == 0


def test_an_object_that_changes_while_it_is_asked_for_is_not_taken_for_the_old_one(
    relay: Relay, s3_settings: Settings, opened: OpenStorage, tmp_path: Path
) -> None:
    storage = opened(s3_settings.with_options(minio_host=relay.endpoint))
    path = f"{s3_settings.data_bucket}/k"
    (tmp_path / "old").write_bytes(b"old")
    (tmp_path / "new").write_bytes(b"new")
    storage.save(tmp_path / "old", path)
    found: list[bytes] = []
    fetching = threading.Thread(target=lambda: found.append(storage.fetch(path).read_bytes()))
    with relay.held():
        fetching.start()
        wait_until(lambda: relay.count("GET", "/k") == 1, "the object is asked for")
        storage.save(tmp_path / "new", path)
    fetching.join(LONG)
    storage.save(tmp_path / "old", path)

    assert found == [b"new"]
    assert storage.fetch(path).read_bytes() == b"old"


def test_an_empty_cache_folder_is_filled_again(store: Storage, bucket: str, folder_settings: Settings) -> None:
    import shutil

    store.fetch(f"{bucket}/0")
    shutil.rmtree(folder_settings.cache_path / "entries")
    (folder_settings.cache_path / "entries").mkdir()

    assert store.fetch(f"{bucket}/0").read_bytes() == bytes(100 * KIB)


def test_the_least_recently_used_copies_go_first(store: Storage, bucket: str, folder_settings: Settings) -> None:
    copies = {}
    for number in (0, 1, 2, 0, 3):
        copies[number] = store.fetch(f"{bucket}/{number}")
        store.release(copies[number])
    store.release(store.fetch(f"{bucket}/4"))

    assert {number for number, copy in copies.items() if copy.exists()} == {0, 3}
    assert _cached(folder_settings) <= 350 * KIB


def test_a_copy_in_use_is_not_removed_until_it_is_released(
    store: Storage, bucket: str, folder_settings: Settings
) -> None:
    held = store.fetch(f"{bucket}/0")
    twice = store.fetch(f"{bucket}/0")
    store.release(twice)
    for number in range(1, 8):
        store.release(store.fetch(f"{bucket}/{number}"))
    assert held.read_bytes() == bytes(100 * KIB)

    store.release(held)
    for number in range(1, 8):
        store.release(store.fetch(f"{bucket}/{number}"))
    assert not held.exists()
    assert _cached(folder_settings) <= 350 * KIB


def test_everything_in_use_is_kept_even_above_the_limit(store: Storage, bucket: str) -> None:
    copies = [store.fetch(f"{bucket}/{number}") for number in range(10)]

    assert [each.read_bytes() for each in copies] == [bytes([number]) * 100 * KIB for number in range(10)]


def test_a_folder_in_use_is_not_removed_and_its_files_are_counted_once(
    store: Storage, bucket: str, folder_settings: Settings
) -> None:
    folder = store.fetch_dir(f"{bucket}/part")
    for number in range(8):
        store.release(store.fetch(f"{bucket}/{number}"))
        assert _cached(folder_settings) <= 350 * KIB

    assert (folder / "x").read_bytes() == b"x" * 100 * KIB
    assert _cached(folder_settings) >= 300 * KIB


def test_what_another_process_uses_is_kept_until_that_process_ends(
    store: Storage, bucket: str, folder_settings: Settings, fetcher: Fetcher
) -> None:
    other = fetcher(folder_settings, f"{bucket}/0", "hold")
    held = _first_line(other)
    for number in range(1, 8):
        store.release(store.fetch(f"{bucket}/{number}"))
    assert held.read_bytes() == bytes(100 * KIB)

    other.kill()
    other.wait(LONG)
    for number in range(1, 8):
        store.release(store.fetch(f"{bucket}/{number}"))
    assert not held.exists()


def test_a_download_that_was_killed_leaves_nothing_and_the_next_succeeds(
    relay: Relay, s3_settings: Settings, opened: OpenStorage, tmp_path: Path, fetcher: Fetcher
) -> None:
    settings = s3_settings.with_options(minio_host=relay.endpoint, storage_timeout=20.0)
    (tmp_path / "local").write_bytes(os.urandom(20 << 20))
    storage = opened(settings)
    storage.save(tmp_path / "local", f"{settings.data_bucket}/k")
    with relay.held():
        process = fetcher(settings, f"{settings.data_bucket}/k")
        making = settings.cache_path / "making"
        wait_until(lambda: making.exists() and any(making.iterdir()), "the download has begun")
        process.send_signal(signal.SIGKILL)
        process.wait(LONG)
    assert any(making.iterdir())

    assert storage.fetch(f"{settings.data_bucket}/k").read_bytes() == (tmp_path / "local").read_bytes()
    assert list(making.iterdir()) == []


def test_offline_serves_the_last_known_copy_when_the_store_is_gone(
    s3_settings: Settings, opened: OpenStorage, tmp_path: Path, relay: Relay
) -> None:
    settings = s3_settings.with_options(minio_host=relay.endpoint, cache_offline=True, storage_retries=0)
    storage = opened(settings)
    for content in (b"older", b"newer"):
        (tmp_path / "local").write_bytes(content)
        storage.save(tmp_path / "local", f"{settings.data_bucket}/d/k")
        storage.fetch(f"{settings.data_bucket}/d/k")
        storage.fetch_dir(f"{settings.data_bucket}/d")
    relay.close()

    assert storage.fetch(f"{settings.data_bucket}/d/k").read_bytes() == b"newer"
    assert (storage.fetch_dir(f"{settings.data_bucket}/d") / "k").read_bytes() == b"newer"
    with pytest.raises(StorageUnavailable):
        storage.fetch(f"{settings.data_bucket}/never-seen")
    with pytest.raises(StorageUnavailable):
        opened(settings.with_options(cache_offline=False)).fetch(f"{settings.data_bucket}/d/k")
    with pytest.raises(StorageUnavailable):
        storage.fetch_dir(f"{settings.data_bucket}/d", only=["k"])


def test_offline_does_not_hide_that_an_object_was_deleted(
    s3_settings: Settings, opened: OpenStorage, tmp_path: Path
) -> None:
    storage = opened(s3_settings.with_options(cache_offline=True))
    (tmp_path / "local").write_bytes(b"content")
    storage.save(tmp_path / "local", f"{s3_settings.data_bucket}/k")
    storage.fetch(f"{s3_settings.data_bucket}/k")
    storage.delete(f"{s3_settings.data_bucket}/k")

    with pytest.raises(ObjectNotFound):
        storage.fetch(f"{s3_settings.data_bucket}/k")


def test_two_stores_with_the_same_paths_do_not_share_copies(
    folder_settings: Settings, opened: OpenStorage, tmp_path: Path
) -> None:
    for name in ("one", "two"):
        storage = opened(folder_settings.with_options(home=tmp_path / name, cache_dir=tmp_path / "cache"))
        (tmp_path / "local").write_bytes(name.encode())
        storage.save(tmp_path / "local", f"{folder_settings.data_bucket}/k")
        assert storage.fetch(f"{folder_settings.data_bucket}/k").read_bytes() == name.encode()
