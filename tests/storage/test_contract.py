"""What every store does alike: the same tests against a folder and a real S3 server."""

from __future__ import annotations

import os
import threading
import urllib.request
from pathlib import Path

import pytest

from mlpkit.errors import ArgumentError, ObjectNotFound, UnsafePath
from mlpkit.settings import Settings
from mlpkit.storage import Storage
from tests.servers import LONG


def _write(path: Path, content: bytes = b"content") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


@pytest.fixture
def data(settings: Settings) -> str:
    return settings.data_bucket


@pytest.mark.parametrize("content", [b"", b"x", os.urandom(300_000)], ids=["empty", "one byte", "300 kB"])
def test_what_is_saved_is_fetched(storage: Storage, data: str, tmp_path: Path, content: bytes) -> None:
    storage.save(_write(tmp_path / "local.bin", content), f"{data}/a/b.bin")

    copy = storage.fetch(f"{data}/a/b.bin")

    assert copy.read_bytes() == content
    assert copy.name == "b.bin"
    with storage.open(f"{data}/a/b.bin") as opened:
        assert opened.read() == content


@pytest.mark.parametrize("key", ["数据/训练集 一.csv", "a b+c%20&=#?.txt", "naïve 😀.txt", "~tilde'\"quote*.txt"])
def test_keys_may_be_any_text(storage: Storage, data: str, tmp_path: Path, key: str) -> None:
    storage.save(_write(tmp_path / "local", b"1"), f"{data}/{key}")

    assert [each.path for each in storage.list(data)] == [f"{data}/{key}"]
    assert storage.fetch(f"{data}/{key}").read_bytes() == b"1"
    assert storage.delete(f"{data}/{key}") == 1
    assert not storage.exists(f"{data}/{key}")


def test_a_copy_is_read_only(storage: Storage, data: str, tmp_path: Path) -> None:
    storage.save(_write(tmp_path / "local"), f"{data}/k")

    assert storage.fetch(f"{data}/k").stat().st_mode & 0o222 == 0
    assert (storage.fetch_dir(data) / "k").stat().st_mode & 0o222 == 0


def test_a_changed_object_is_fetched_anew_and_the_old_copy_stays(storage: Storage, data: str, tmp_path: Path) -> None:
    storage.save(_write(tmp_path / "local", b"old!"), f"{data}/k")
    old = storage.fetch(f"{data}/k")

    storage.save(_write(tmp_path / "local", b"new!"), f"{data}/k")

    assert storage.fetch(f"{data}/k").read_bytes() == b"new!"
    assert (storage.fetch_dir(data) / "k").read_bytes() == b"new!"
    assert old.read_bytes() == b"old!"


def test_stat_says_size_and_time_and_an_etag_that_changes(storage: Storage, data: str, tmp_path: Path) -> None:
    storage.save(_write(tmp_path / "local", b"12345"), f"{data}/k")
    first = storage.stat(f"{data}/k")
    storage.save(_write(tmp_path / "local", b"54321"), f"{data}/k")
    second = storage.stat(f"{data}/k")

    assert (first.path, first.size) == (f"{data}/k", 5)
    assert abs(first.modified - (tmp_path / "local").stat().st_mtime) < 60
    assert first.etag
    assert first.etag != second.etag
    assert storage.list(data)[0].etag == second.etag


def test_what_does_not_exist_is_object_not_found_with_its_path(storage: Storage, data: str, tmp_path: Path) -> None:
    storage.save(_write(tmp_path / "local"), f"{data}/there")

    for ask in (storage.fetch, storage.stat, storage.open, storage.fetch_dir):
        with pytest.raises(ObjectNotFound, match=f"{data}/missing"):
            ask(f"{data}/missing")
    with pytest.raises(ObjectNotFound, match="missing"):
        storage.fetch_dir(data, only=["there", "missing"])
    assert not storage.exists(f"{data}/missing")
    assert storage.list(f"{data}/missing") == []
    assert storage.delete(f"{data}/missing") == 0
    assert storage.delete(f"{data}/missing", recursive=True) == 0


def test_a_missing_bucket_is_named(storage: Storage, tmp_path: Path) -> None:
    for ask in (storage.fetch, storage.stat, storage.list, storage.fetch_dir):
        with pytest.raises(ObjectNotFound, match="bucket 'no-such-bucket' does not exist"):
            ask("no-such-bucket/k")
    with pytest.raises(ObjectNotFound, match="bucket 'no-such-bucket' does not exist"):
        storage.save(_write(tmp_path / "local"), "no-such-bucket/k")
    assert not storage.exists("no-such-bucket/k")
    assert storage.delete("no-such-bucket/k", recursive=True) == 0


def test_save_makes_the_model_bucket_and_the_data_bucket(storage: Storage, settings: Settings, tmp_path: Path) -> None:
    for bucket in (settings.model_bucket, settings.data_bucket):
        storage.save(_write(tmp_path / "local"), f"{bucket}/k")
        assert storage.exists(f"{bucket}/k")


def test_many_threads_may_make_the_bucket_at_once(storage: Storage, data: str, tmp_path: Path) -> None:
    for number in range(12):
        _write(tmp_path / "many" / f"{number}.txt", str(number).encode())

    storage.save_dir(tmp_path / "many", f"{data}/many")

    assert len(storage.list(data)) == 12


def test_a_folder_is_saved_and_fetched_whole(storage: Storage, data: str, tmp_path: Path) -> None:
    files = {f"{part}/{number}.txt": f"{part}{number}".encode() for part in ("甲", "b/c") for number in range(10)}
    for name, content in files.items():
        _write(tmp_path / "tree" / name, content)

    storage.save_dir(tmp_path / "tree", f"{data}/prefix")
    copy = storage.fetch_dir(f"{data}/prefix/")

    assert {each.relative_to(copy).as_posix(): each.read_bytes() for each in copy.rglob("*.txt")} == files
    chosen = storage.fetch_dir(f"{data}/prefix", only=["甲/0.txt"])
    assert [each.name for each in chosen.rglob("*.txt")] == ["0.txt"]


def test_linked_files_and_folders_are_saved_as_what_they_point_to(storage: Storage, data: str, tmp_path: Path) -> None:
    _write(tmp_path / "elsewhere" / "f", b"f")
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree" / "folder").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "tree" / "file").symlink_to(tmp_path / "elsewhere" / "f")
    (tmp_path / "tree" / "circle").symlink_to(tmp_path / "tree")

    storage.save_dir(tmp_path / "tree", f"{data}/t")

    assert [each.key for each in storage.list(data)] == ["t/file", "t/folder/f"]


def test_a_prefix_is_a_folder_and_not_the_start_of_a_name(storage: Storage, data: str, tmp_path: Path) -> None:
    for key in ("m/1/a", "m/1/b/c", "m/10/a", "m/1"[:2] + "1x"):
        storage.save(_write(tmp_path / "local"), f"{data}/{key}")

    assert [each.key for each in storage.list(f"{data}/m/1")] == ["m/1/a", "m/1/b/c"]
    assert [each.key for each in storage.list(data, limit=2)] == ["m/1/a", "m/1/b/c"]
    assert storage.delete(f"{data}/m/1", recursive=True) == 2
    assert [each.key for each in storage.list(data)] == ["m/10/a", "m/1x"]


def test_delete_without_recursive_removes_one_object(storage: Storage, data: str, tmp_path: Path) -> None:
    storage.save(_write(tmp_path / "local"), f"{data}/a")
    storage.save(_write(tmp_path / "local"), f"{data}/b/c")

    assert storage.delete(f"{data}/b") == 0
    assert storage.delete(f"{data}/a") == 1
    assert [each.key for each in storage.list(data)] == ["b/c"]


def test_many_objects_are_listed_and_deleted(storage: Storage, data: str, tmp_path: Path) -> None:
    for number in range(104):
        _write(tmp_path / "many" / f"{number:03}")
    storage.save_dir(tmp_path / "many", f"{data}/many")

    assert [each.key for each in storage.list(data)] == [f"many/{number:03}" for number in range(104)]
    assert storage.delete(f"{data}/many/", recursive=True) == 104
    assert storage.list(data) == []


@pytest.mark.parametrize(
    "path",
    ["", "bucket", "/bucket/k", "/etc/passwd", "bucket/", "bucket//k", "bucket/../k", "bucket/a/../../k", "../bucket/k",
     "bucket/.", "bucket/a\\b", "bucket/a\x00b", "bucket/a\nb", "bucket/k/", "..", "ab/k", "b*cket/k", "1.2.3.4/k",
     "bucket/\ud800", "bucket/ ", "bucket/" + "k" * 256, "bucket/" + "k/" * 600 + "k"],
)  # fmt: skip
def test_a_path_that_would_leave_its_place_is_refused(storage: Storage, tmp_path: Path, path: str) -> None:
    local = _write(tmp_path / "local")
    for use in (storage.fetch, storage.stat, storage.delete, storage.exists, lambda path: storage.save(local, path)):
        with pytest.raises(UnsafePath):
            use(path)
    with pytest.raises(UnsafePath):
        storage.list(f"{path}/../x")


def test_a_local_file_that_does_not_exist_cannot_be_saved(storage: Storage, data: str, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nothing"):
        storage.save(tmp_path / "nothing", f"{data}/k")
    with pytest.raises(FileNotFoundError, match="nothing"):
        storage.save_dir(tmp_path / "nothing", f"{data}/k")
    with pytest.raises(FileNotFoundError):
        storage.save(tmp_path, f"{data}/k")


def test_a_presigned_url_reads_without_credentials(storage: Storage, data: str, tmp_path: Path) -> None:
    storage.save(_write(tmp_path / "local", b"signed"), f"{data}/字.txt")

    url = storage.presign(f"{data}/字.txt", expires=60)

    with urllib.request.urlopen(url, timeout=10) as answer:
        assert answer.read() == b"signed"
    with pytest.raises(ArgumentError, match="7 days"):
        storage.presign(f"{data}/字.txt", expires=8 * 24 * 3600)


def test_check_is_content_with_a_store_that_has_no_buckets_yet(storage: Storage) -> None:
    storage.check()


def test_a_closed_storage_opens_again(storage: Storage, data: str, tmp_path: Path) -> None:
    storage.save(_write(tmp_path / "local"), f"{data}/k")
    storage.close()
    storage.close()

    assert storage.fetch(f"{data}/k").read_bytes() == b"content"


def test_readers_see_the_old_object_or_the_new_one(storage: Storage, data: str, tmp_path: Path) -> None:
    contents = [bytes([number]) * 400_000 for number in range(6)]
    storage.save(_write(tmp_path / "local", contents[0]), f"{data}/k")
    seen: list[bytes] = []
    done = threading.Event()

    def read() -> None:
        while not done.is_set():
            copy = storage.fetch(f"{data}/k")
            seen.append(copy.read_bytes())
            storage.release(copy)

    readers = [threading.Thread(target=read) for _ in range(2)]
    for each in readers:
        each.start()
    for content in contents[1:]:
        storage.save(_write(tmp_path / "local", content), f"{data}/k")
    done.set()
    for each in readers:
        each.join(LONG)

    assert seen
    assert set(seen) <= set(contents)
