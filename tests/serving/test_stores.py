"""The stores of callers: open as long as a model of theirs lives, so that their number is bounded by that of models."""

from __future__ import annotations

import gc
import json
import secrets
import sys
import weakref
from pathlib import Path

import pytest

from mlpkit.errors import ArgumentError
from mlpkit.serving.stores import Stores
from mlpkit.settings import Settings
from mlpkit.storage import Storage
from tests.servers import Relay, S3Server, wait_until


@pytest.fixture
def stores(tmp_path: Path) -> Stores:
    return Stores(
        Settings(
            home=tmp_path,
            minio_host="10.0.0.1:9000",
            minio_access_key="access",
            minio_secret_key="secret",
            remote_storage=True,
            remote_allow=("10.0.0.0/8",),
        )
    )


def _from(address: str) -> bytes:
    return json.dumps({"remote_ip": address}).encode()


def test_a_callers_store_is_opened_once_and_closed_with_its_last_user(stores: Stores) -> None:
    first, second = stores.borrow(_from("10.0.0.2")), stores.borrow(_from("10.0.0.2"))
    assert first is second
    stores.give_back(first)
    assert stores.borrow(_from("10.0.0.2")) is second

    gone = weakref.ref(second)
    stores.give_back(second)
    stores.give_back(second)
    del first, second
    gc.collect()
    assert gone() is None


def test_a_thousand_callers_whose_models_are_gone_leave_nothing(stores: Stores) -> None:
    seen: weakref.WeakSet[Storage] = weakref.WeakSet()
    for number in range(1000):
        storage = stores.borrow(_from(f"10.1.{number // 250}.{number % 250}"))
        seen.add(storage)
        stores.give_back(storage)
    del storage
    gc.collect()
    assert len(seen) == 0


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has all of 127.0.0.0/8 as addresses")
def test_the_last_user_of_a_callers_store_takes_its_copies_back(s3: S3Server, tmp_path: Path) -> None:
    port = int(s3.endpoint.rpartition(":")[2])
    bucket = f"data-{secrets.token_hex(6)}"
    settings = Settings(
        home=tmp_path,
        minio_host=s3.endpoint,
        minio_access_key=s3.access_key,
        minio_secret_key=s3.secret_key,
        data_bucket=bucket,
        cache_size=300_000,
        remote_storage=True,
        remote_allow=("127.0.0.2/32",),
    )
    stores = Stores(settings)
    with Relay(s3.endpoint, port, "127.0.0.2"):
        own = stores.own()
        for name in ("held", "first", "second"):
            (tmp_path / "local").write_bytes(name.encode() * 50_000)
            own.save(tmp_path / "local", f"{bucket}/{name}")
        storage = stores.borrow(_from("127.0.0.2"))
        held = storage.fetch(f"{bucket}/held")

        def is_evicted() -> bool:
            for name in ("first", "second"):
                own.release(own.fetch(f"{bucket}/{name}"))
            return not held.exists()

        assert not is_evicted()
        assert held.read_bytes() == b"held" * 50_000, "a copy in use stays"
        stores.give_back(storage)
        # After an eviction in vain that took long, the next one waits a while.
        wait_until(is_evicted, "its copy is evicted")

    stores.close()


def test_the_services_own_store_stays(stores: Stores) -> None:
    own = stores.own()
    for extend in (b"null", _from("10.0.0.1")):
        stores.give_back(stores.borrow(extend))
    assert stores.own() is own


def test_a_store_that_may_not_be_used_is_not_opened(stores: Stores) -> None:
    with pytest.raises(ArgumentError, match=r"192\.168\.1\.1"):
        stores.borrow(_from("192.168.1.1"))
