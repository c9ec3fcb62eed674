"""MLPKIT_CACHE_TRUST: for how long a copy is served without asking the store, and what ends that at once."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from mlpkit.errors import ObjectNotFound
from mlpkit.settings import Settings, encode_settings
from mlpkit.storage import Manifest, Storage, open_model, save_model
from mlpkit.storage.copies import Freshness
from mlpkit.storage.index import CacheIndex, Holds
from tests.servers import LONG, Relay, S3Server, wait_until
from tests.storage.conftest import OpenStorage

_ELSEWHERE = """
import sys
from pathlib import Path
from mlpkit.settings import decode_settings
from mlpkit.storage import open_storage

settings, method, *arguments = sys.argv[1:]
getattr(open_storage(decode_settings(Path(settings).read_bytes())), method)(*arguments)
"""


@pytest.fixture
def trusting(relay: Relay, s3_settings: Settings) -> Settings:
    """Settings with a trust that no test outlives."""
    return s3_settings.with_options(minio_host=relay.endpoint, cache_trust=3600.0)


@pytest.fixture
def data(trusting: Settings) -> str:
    return trusting.data_bucket


@pytest.fixture
def storage(trusting: Settings, opened: OpenStorage, tmp_path: Path) -> Storage:
    """A storage with the objects `d/k` and `d/other`, which are `old`."""
    storage = opened(trusting)
    (tmp_path / "old").write_bytes(b"old")
    (tmp_path / "new").write_bytes(b"new")
    for name in ("d/k", "d/other"):
        storage.save(tmp_path / "old", f"{trusting.data_bucket}/{name}")
    return storage


def _in_another_process(folder: Path, settings: Settings, method: str, *arguments: str) -> None:
    (folder / "settings.json").write_bytes(encode_settings(settings))
    command = [sys.executable, "-c", _ELSEWHERE, str(folder / "settings.json"), method, *arguments]
    subprocess.run(command, check=True, timeout=LONG)


def test_a_copy_that_was_checked_lately_is_served_without_a_request(storage: Storage, data: str, relay: Relay) -> None:
    copies = storage.fetch(f"{data}/d/k"), storage.fetch_dir(f"{data}/d")
    for each in copies:
        storage.release(each)
    relay.requests.clear()

    assert (storage.fetch(f"{data}/d/k"), storage.fetch_dir(f"{data}/d")) == copies
    assert (storage.fetch(f"{data}/d/k"), storage.fetch_dir(f"{data}/d")) == copies
    with storage.open(f"{data}/d/k") as content:
        assert content.read() == b"old"
    assert relay.requests == []


def test_without_trust_and_with_ask_each_fetch_is_one_request(
    storage: Storage, trusting: Settings, data: str, relay: Relay, opened: OpenStorage
) -> None:
    asking = opened(trusting.with_options(cache_trust=0.0))
    for each in (storage, asking):
        each.fetch(f"{data}/d/k")
    relay.requests.clear()

    storage.fetch(f"{data}/d/k", ask=True)
    asking.fetch(f"{data}/d/k")

    assert [each.partition(" ")[0] for each in relay.requests] == ["HEAD"] * 2


def test_trust_ends_with_its_time(
    trusting: Settings, data: str, relay: Relay, opened: OpenStorage, storage: Storage
) -> None:
    hasty = opened(trusting.with_options(cache_trust=0.3))
    hasty.fetch(f"{data}/d/k")
    relay.requests.clear()

    def is_asked_for_again() -> bool:
        hasty.release(hasty.fetch(f"{data}/d/k"))
        return relay.count("HEAD", "/d/k") > 0

    wait_until(is_asked_for_again, "the trust is over")


def test_a_save_through_the_same_cache_ends_the_trust_of_the_object_and_its_folders(
    storage: Storage, trusting: Settings, data: str, tmp_path: Path
) -> None:
    asks: list[Callable[[], Path]] = [
        lambda: storage.fetch(f"{data}/d/k"),
        lambda: storage.fetch_dir(f"{data}/d") / "k",
        lambda: storage.fetch_dir(data) / "d" / "k",
        lambda: storage.fetch_dir(data, only=["d/k"]) / "d" / "k",
    ]
    assert [each().read_bytes() for each in asks] == [b"old"] * 4

    _in_another_process(tmp_path, trusting, "save", str(tmp_path / "new"), f"{data}/d/k")
    assert [each().read_bytes() for each in asks] == [b"new"] * 4

    storage.save(tmp_path / "old", f"{data}/d/k")
    assert [each().read_bytes() for each in asks] == [b"old"] * 4


def test_a_delete_through_the_same_cache_ends_the_trust(
    storage: Storage, trusting: Settings, data: str, tmp_path: Path
) -> None:
    storage.fetch(f"{data}/d/k")
    storage.fetch_dir(f"{data}/d")

    _in_another_process(tmp_path, trusting, "delete", f"{data}/d/k")

    with pytest.raises(ObjectNotFound):
        storage.fetch(f"{data}/d/k")
    assert [each.name for each in storage.fetch_dir(f"{data}/d").iterdir()] == ["other"]


def test_a_save_while_the_store_is_asked_leaves_no_trust(tmp_path: Path) -> None:
    (tmp_path / "entries").mkdir()
    indexes = [CacheIndex(tmp_path, Holds(tmp_path / "holds")) for _ in range(2)]
    mine, elsewhere = (Freshness(index, "store", 3600.0) for index in indexes)
    comparison = mine.begin("subject", "bucket/d/k")
    elsewhere.changed(["bucket/d/k"])
    mine.end(comparison, tmp_path)
    assert mine.known("subject") is None

    mine.end(mine.begin("subject", "bucket/d/k"), tmp_path)
    assert mine.known("subject") == tmp_path


def test_without_the_index_nothing_is_trusted_and_nothing_fails(
    folder_settings: Settings, opened: OpenStorage, tmp_path: Path
) -> None:
    trusting, path = folder_settings.with_options(cache_trust=3600.0), f"{folder_settings.data_bucket}/k"
    storage, elsewhere = opened(trusting), opened(trusting.with_options(cache_dir=tmp_path / "another cache"))
    seen = []
    for version in (b"first", b"second", b"third"):
        (tmp_path / "local").write_bytes(version)
        elsewhere.save(tmp_path / "local", path)
        seen.append(storage.fetch(path).read_bytes())
        if version == b"first":
            (trusting.cache_path / "index.db").unlink()
            (trusting.cache_path / "index.db").mkdir()
    assert seen == [b"first", b"second", b"third"]


def test_loading_a_model_always_asks(
    storage: Storage, trusting: Settings, data: str, tmp_path: Path, opened: OpenStorage
) -> None:
    elsewhere = opened(trusting.with_options(cache_dir=tmp_path / "cache of another machine"))
    manifest = Manifest(algorithm="a", kind="k", model_id="m")
    for version in (b"first", b"second"):
        (tmp_path / "model").mkdir(exist_ok=True)
        (tmp_path / "model" / "weights").write_bytes(version)
        save_model(elsewhere, tmp_path / "model", f"{trusting.model_bucket}/m", manifest)
        loaded = open_model(storage, trusting, "m", None)
        fetched = storage.fetch(f"{trusting.model_bucket}/m/weights")

        assert (loaded / "weights").read_bytes() == version
        assert fetched.read_bytes() == b"first"


def test_a_trusted_copy_that_is_damaged_is_fetched_again(storage: Storage, data: str) -> None:
    for again in (True, False):
        copy = storage.fetch(f"{data}/d/k")
        copy.chmod(0o644)
        copy.write_bytes(b"bad")
        if not again:
            storage.release(copy)
            storage.release(copy)
        assert storage.fetch(f"{data}/d/k").read_bytes() == b"old"


def test_a_copy_that_was_served_because_the_store_was_away_is_not_trusted(
    s3: S3Server, trusting: Settings, opened: OpenStorage, relay: Relay, storage: Storage, data: str
) -> None:
    storage.fetch(f"{data}/d/k")
    relay.close()
    started_later = opened(trusting.with_options(cache_offline=True, storage_retries=0))
    assert started_later.fetch(f"{data}/d/k").read_bytes() == b"old"

    with Relay(s3.endpoint, port=int(relay.endpoint.rpartition(":")[2])) as back:
        started_later.fetch(f"{data}/d/k")
        assert back.count("HEAD", "/d/k") == 1
