"""The stores of callers: open as long as a model of theirs lives, so that their number is bounded by that of models."""

from __future__ import annotations

import gc
import json
import weakref
from pathlib import Path

import pytest

from mlpkit.errors import ArgumentError
from mlpkit.serving.stores import Stores
from mlpkit.settings import Settings
from mlpkit.storage import Storage


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


def test_the_services_own_store_stays(stores: Stores) -> None:
    own = stores.own()
    for extend in (b"null", _from("10.0.0.1")):
        stores.give_back(stores.borrow(extend))
    assert stores.own() is own


def test_a_store_that_may_not_be_used_is_not_opened(stores: Stores) -> None:
    with pytest.raises(ArgumentError, match=r"192\.168\.1\.1"):
        stores.borrow(_from("192.168.1.1"))
