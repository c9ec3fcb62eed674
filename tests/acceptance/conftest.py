"""Services in processes of their own, on a real S3 store, with the data that the tests upload to it."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Protocol

import pytest

from mlpkit.settings import Settings
from mlpkit.storage import Storage, open_storage
from tests.acceptance.service import RunningService
from tests.corpora import corpora_folder
from tests.servers import S3Server

SCRIPTS = Path(__file__).parent / "scripts"

Upload = Callable[[Path], str]


class Start(Protocol):
    """`start("patient", {"MLP_TRAIN_TASK_NUM": "1"})`: a service of a script beside the tests, or of a file.

    It uses the S3 store, and is ready. `home` is another one than `<tmp_path>/home`; `ready=False` does not wait.
    """

    def __call__(
        self,
        script: str | Path,
        settings: Mapping[str, str] = {},
        *,
        home: Path | None = None,
        ready: bool = True,
    ) -> RunningService: ...


@pytest.fixture
def start(s3: S3Server, tmp_path: Path) -> Iterator[Start]:
    with ExitStack() as exits:

        def start_service(
            script: str | Path,
            settings: Mapping[str, str] = {},
            *,
            home: Path | None = None,
            ready: bool = True,
        ) -> RunningService:
            file = SCRIPTS / f"{script}.py" if isinstance(script, str) else script
            usual = {"MLPKIT_SHUTDOWN_GRACE": "5", **s3.environment}
            service = RunningService(f"{file}:app", home or tmp_path / "home", {**usual, **settings})
            exits.callback(service.stop)
            if ready:
                service.wait_ready()
            return service

        yield start_service


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where the scripts and a test meet: what they did, and what they wait for."""
    made = tmp_path / "meeting"
    made.mkdir()
    return made


@pytest.fixture
def store(s3: S3Server, tmp_path: Path) -> Iterator[Storage]:
    """The S3 store itself, past every service."""
    storage = open_storage(
        Settings(
            home=tmp_path / "store",
            minio_host=s3.endpoint,
            minio_access_key=s3.access_key,
            minio_secret_key=s3.secret_key,
        )
    )
    yield storage
    storage.close()


@pytest.fixture
def upload(store: Storage) -> Upload:
    """Puts a file into the platform's data bucket; its location for a train request."""

    def put(file: Path) -> str:
        location = f"acceptance/{secrets.token_hex(8)}/{file.name}"
        store.save(file, f"ml-platform-data/{location}")
        return location

    return put


@pytest.fixture(scope="session")
def corpora() -> Path:
    """The folder with the test data in the platform's formats, which is no part of the repository."""
    return corpora_folder()
