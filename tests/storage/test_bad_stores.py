"""Stores that answer, and badly: in trouble, slow, sending on to another place, or changing what is being read."""

from __future__ import annotations

import os
import re
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from mlpkit.errors import StorageError, StorageUnavailable
from mlpkit.settings import Settings
from mlpkit.storage import Storage
from tests.servers import LONG, Relay, S3Server, free_port, refusing, wait_until
from tests.storage.conftest import SLACK, OpenStorage

MIB = 1 << 20


def every_use(storage: Storage, local: Path) -> list[Callable[[str], object]]:
    """Whatever sends a request for one object."""
    return [storage.fetch, storage.stat, storage.exists, storage.delete, lambda path: storage.save(local, path)]


@pytest.fixture
def local(tmp_path: Path) -> Path:
    (tmp_path / "local").write_bytes(os.urandom(8 * MIB))
    return tmp_path / "local"


@pytest.mark.parametrize("status", [500, 503, 429])
def test_a_store_in_trouble_is_asked_again_and_then_named_within_the_time_out(
    s3_settings: Settings, opened: OpenStorage, local: Path, status: int
) -> None:
    with refusing(status) as store:
        storage = opened(s3_settings.with_options(minio_host=store.endpoint, storage_timeout=5.0, storage_retries=2))
        for use in every_use(storage, local):
            store.requests.clear()
            began = time.monotonic()
            where = f"{store.endpoint}: {s3_settings.data_bucket}/folder/k"
            with pytest.raises(StorageUnavailable, match=f"{re.escape(where)}: the store is in trouble .*{status}"):
                use(f"{s3_settings.data_bucket}/folder/k")
            assert time.monotonic() - began < 5.0 + SLACK
            assert len(store.requests) == 3
        with pytest.raises(StorageUnavailable, match=f"{status}"):
            storage.check()


def test_a_store_that_is_in_trouble_for_a_while_is_waited_for(
    s3: S3Server, s3_settings: Settings, opened: OpenStorage
) -> None:
    if "://" in s3.endpoint:
        pytest.skip("the relay speaks no TLS and takes host:port only")
    port = free_port()
    storage = opened(s3_settings.with_options(minio_host=f"127.0.0.1:{port}", storage_timeout=30.0, storage_retries=10))
    found: list[bool] = []
    asking = threading.Thread(target=lambda: found.append(storage.exists("no-such-bucket/k")))
    with refusing(503, port=port) as trouble:
        asking.start()
        wait_until(lambda: len(trouble.requests) > 1, "it is asked again")
    with Relay(s3.endpoint, port=port):
        asking.join(LONG)
    assert found == [False]


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_store_that_sends_on_to_another_place_is_not_followed(
    s3_settings: Settings, opened: OpenStorage, local: Path, status: int
) -> None:
    with (
        refusing(200) as elsewhere,
        refusing(status, {"Location": f"http://{elsewhere.endpoint}/inside"}) as store,
    ):
        storage = opened(s3_settings.with_options(minio_host=store.endpoint, storage_timeout=5.0, storage_retries=2))
        for use in every_use(storage, local):
            with pytest.raises(StorageError, match=store.endpoint):
                use(f"{s3_settings.data_bucket}/k")
        with pytest.raises(StorageError, match=store.endpoint):
            storage.list(s3_settings.data_bucket)
        with pytest.raises(StorageError, match=store.endpoint):
            storage.check()
        assert store.requests
        assert elsewhere.requests == []


def test_a_store_that_is_slow_and_not_silent_is_waited_for(
    relay: Relay, s3_settings: Settings, opened: OpenStorage, local: Path
) -> None:
    storage = opened(s3_settings.with_options(minio_host=relay.endpoint, storage_timeout=6.0, storage_retries=0))
    path = f"{s3_settings.data_bucket}/k"
    opened(s3_settings).save(local, path)
    with relay.slowed(MIB):
        began = time.monotonic()
        assert storage.fetch(path).read_bytes() == local.read_bytes()
        storage.save(local, f"{path} again")
        assert time.monotonic() - began > 12.0
    assert opened(s3_settings).fetch(f"{path} again").read_bytes() == local.read_bytes()


def test_a_store_that_stops_reading_in_the_middle_of_an_upload_is_given_up(
    s3_settings: Settings, opened: OpenStorage, local: Path
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as deaf:
        deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 64 << 10)
        endpoint = f"127.0.0.1:{deaf.getsockname()[1]}"
        storage = opened(s3_settings.with_options(minio_host=endpoint, storage_timeout=1.0, storage_retries=0))
        began = time.monotonic()
        where = f"{endpoint}: {s3_settings.data_bucket}/k"
        with pytest.raises(StorageUnavailable, match=f"{where}: the store did not answer in time"):
            storage.save(local, f"{s3_settings.data_bucket}/k")
        assert time.monotonic() - began < 1.0 + SLACK


def test_an_object_that_is_replaced_in_the_middle_of_its_download_is_never_a_mixture(
    relay: Relay, s3_settings: Settings, opened: OpenStorage, tmp_path: Path
) -> None:
    storage, path = opened(s3_settings.with_options(minio_host=relay.endpoint)), f"{s3_settings.data_bucket}/k"
    versions = [bytes([number]) * (8 * MIB) for number in (1, 2)]
    for name, content in zip(("old", "new"), versions, strict=True):
        (tmp_path / name).write_bytes(content)
    opened(s3_settings).save(tmp_path / "old", path)
    found: list[bytes] = []
    fetching = threading.Thread(target=lambda: found.append(storage.fetch(path).read_bytes()))
    relay.cut(times=1, after=4 * MIB)
    with relay.slowed(4 * MIB):
        fetching.start()
        wait_until(lambda: relay.answered > MIB, "the download has begun")
        with relay.held("/k"):
            wait_until(lambda: relay.count("GET", "/k") == 2, "it broke in the middle, and goes on there")
            opened(s3_settings).save(tmp_path / "new", path)
    fetching.join(LONG)
    assert found == [versions[1]]
