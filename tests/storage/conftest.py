"""Storages on both kinds of store, each test with buckets and a home of its own."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mlpkit.settings import Settings
from mlpkit.storage import Storage, open_storage
from tests.servers import S3Server

OpenStorage = Callable[[Settings], Storage]

SLACK = 15.0
"""Seconds that a busy machine may add to a limit of time."""


@pytest.fixture
def opened() -> Iterator[OpenStorage]:
    """Opens storages that are closed after the test."""
    storages: list[Storage] = []

    def open_another(settings: Settings) -> Storage:
        storages.append(open_storage(settings))
        return storages[-1]

    yield open_another
    for each in storages:
        each.close()


@pytest.fixture
def folder_settings(tmp_path: Path) -> Settings:
    """Settings of the folder store; a store on a busy machine gets time enough."""
    return Settings(home=tmp_path / "home", storage_timeout=60.0, storage_retries=2)


@pytest.fixture
def s3_settings(s3: S3Server, folder_settings: Settings) -> Settings:
    """Settings of the S3 store; their buckets are used by nobody else and do not exist yet."""
    token = secrets.token_hex(6)
    return folder_settings.with_options(
        minio_host=s3.endpoint,
        minio_access_key=s3.access_key,
        minio_secret_key=s3.secret_key,
        model_bucket=f"model-{token}",
        data_bucket=f"data-{token}",
    )


@pytest.fixture(params=["folder", "s3"])
def settings(request: pytest.FixtureRequest) -> Settings:
    """Settings of each store in turn."""
    found: Settings = request.getfixturevalue(f"{request.param}_settings")
    return found


@pytest.fixture
def storage(settings: Settings, opened: OpenStorage) -> Storage:
    """A storage on each store in turn."""
    return opened(settings)
