"""Faults of the store, made for real: stopped, killed and unreachable servers, broken connections, wrong keys."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from mlpkit.errors import SettingsError, StorageDenied, StorageError, StorageUnavailable
from mlpkit.settings import Settings
from mlpkit.storage import open_storage
from tests.servers import LONG, Relay, S3Server, free_port, proxy_of, wait_until
from tests.storage.conftest import SLACK, OpenStorage

MIB = 1 << 20


@pytest.fixture
def own_proxy(s3: S3Server) -> Iterator[tuple[S3Server, subprocess.Popen[bytes]]]:
    """An S3 server that the test may stop and kill."""
    if s3.folder is None:
        pytest.skip("the server that MLPKIT_TEST_S3 names is not ours to stop")
    with proxy_of(s3) as proxy:
        yield proxy


@pytest.fixture
def local(tmp_path: Path) -> Path:
    (tmp_path / "local").write_bytes(b"content")
    return tmp_path / "local"


@pytest.fixture
def large(tmp_path: Path) -> Path:
    (tmp_path / "large").write_bytes(os.urandom(1 * MIB) * 72)
    return tmp_path / "large"


def _through(relay: Relay, settings: Settings) -> Settings:
    return settings.with_options(minio_host=relay.endpoint)


def test_a_store_that_hangs_is_unavailable_within_the_time_out_and_well_again_after(
    own_proxy: tuple[S3Server, subprocess.Popen[bytes]], s3_settings: Settings, opened: OpenStorage, local: Path
) -> None:
    server, process = own_proxy
    patient = s3_settings.with_options(minio_host=server.endpoint)
    storage = opened(patient.with_options(storage_timeout=0.5))
    opened(patient).save(local, f"{s3_settings.data_bucket}/k")
    process.send_signal(signal.SIGSTOP)
    try:
        for ask in (storage.fetch, storage.stat, storage.list, lambda path: storage.save(local, path)):
            began = time.monotonic()
            with pytest.raises(StorageUnavailable, match=f"{server.endpoint}.*{s3_settings.data_bucket}.*in time"):
                ask(f"{s3_settings.data_bucket}/k")
            assert time.monotonic() - began < 0.5 + SLACK
        began = time.monotonic()
        with pytest.raises(StorageUnavailable):
            storage.check()
        assert time.monotonic() - began < 0.5 + SLACK
    finally:
        process.send_signal(signal.SIGCONT)

    def is_well() -> bool:
        with contextlib.suppress(StorageUnavailable):
            storage.check()
            return storage.fetch(f"{s3_settings.data_bucket}/k").read_bytes() == b"content"
        return False

    wait_until(is_well, "the store is used again")


def test_check_gives_up_after_three_seconds_whatever_the_time_out(
    own_proxy: tuple[S3Server, subprocess.Popen[bytes]], s3_settings: Settings, opened: OpenStorage
) -> None:
    server, process = own_proxy
    storage = opened(s3_settings.with_options(minio_host=server.endpoint, storage_timeout=60.0))
    process.send_signal(signal.SIGSTOP)
    began = time.monotonic()
    try:
        with pytest.raises(StorageUnavailable):
            storage.check()
    finally:
        process.send_signal(signal.SIGCONT)
    assert time.monotonic() - began < 3.0 + SLACK


def test_a_large_upload_to_a_store_that_hangs_is_given_up(
    own_proxy: tuple[S3Server, subprocess.Popen[bytes]], s3_settings: Settings, opened: OpenStorage, large: Path
) -> None:
    server, process = own_proxy
    failed: list[StorageError] = []

    def save() -> None:
        try:
            storage.save(large, f"{s3_settings.data_bucket}/large")
        except StorageError as error:
            failed.append(error)

    with Relay(server.endpoint) as watched:
        storage = opened(s3_settings.with_options(minio_host=watched.endpoint, storage_timeout=10.0))
        saving = threading.Thread(target=save)
        saving.start()
        wait_until(lambda: watched.count("PUT", "partNumber=2") > 0, "parts are sent")
        process.send_signal(signal.SIGSTOP)
        began = time.monotonic()
        try:
            saving.join(LONG)
        finally:
            process.send_signal(signal.SIGCONT)
    assert time.monotonic() - began < 12.5 + SLACK
    assert isinstance(failed[0], StorageUnavailable)
    assert f"{s3_settings.data_bucket}/large: the store did not answer in time" in str(failed[0])
    assert not opened(s3_settings).exists(f"{s3_settings.data_bucket}/large")


def test_a_store_that_has_ended_is_unavailable_and_says_what_to_check(
    own_proxy: tuple[S3Server, subprocess.Popen[bytes]], s3_settings: Settings, opened: OpenStorage, local: Path
) -> None:
    server, process = own_proxy
    storage = opened(s3_settings.with_options(minio_host=server.endpoint))
    storage.save(local, f"{s3_settings.data_bucket}/k")
    process.kill()
    process.wait()

    began = time.monotonic()
    with pytest.raises(StorageUnavailable, match=r"cannot be reached.*refused.*MINIO_HOST"):
        storage.fetch(f"{s3_settings.data_bucket}/k")
    assert time.monotonic() - began < 5.0 + SLACK


def test_a_store_that_comes_back_in_time_is_waited_for(
    s3: S3Server, s3_settings: Settings, opened: OpenStorage
) -> None:
    if s3.folder is None:
        pytest.skip("the server that MLPKIT_TEST_S3 names is not ours to stop")
    port = free_port()
    storage = opened(s3_settings.with_options(minio_host=f"127.0.0.1:{port}", storage_timeout=30.0, storage_retries=10))
    found: list[bool] = []
    asking = threading.Thread(target=lambda: found.append(storage.exists("no-such-bucket/k")))
    asking.start()

    with Relay(s3.endpoint, port=port):
        asking.join(LONG)

    assert found == [False]


@pytest.mark.parametrize("secure", [False, True])
def test_wrong_credentials_are_denied_and_not_shown(
    s3_settings: Settings, opened: OpenStorage, local: Path, secure: bool
) -> None:
    wrong = "k3y-nobody-may-see"
    changed = {"minio_secret_key": wrong} if secure else {"minio_access_key": wrong, "minio_secret_key": wrong}
    storage = opened(s3_settings.with_options(**changed))
    for ask in (storage.fetch, storage.exists, storage.list, lambda path: storage.save(local, path)):
        with pytest.raises(StorageDenied, match=r"MINIO_(ACCESS|SECRET)_KEY") as caught:
            ask(f"{s3_settings.data_bucket}/k")
        assert wrong not in str(caught.value)
        assert s3_settings.data_bucket in str(caught.value)
        assert s3_settings.minio_host in str(caught.value)
    with pytest.raises(StorageDenied):
        storage.check()
    assert wrong not in repr(storage)


def test_denial_is_not_tried_again(relay: Relay, s3_settings: Settings, opened: OpenStorage) -> None:
    storage = opened(_through(relay, s3_settings).with_options(minio_secret_key="wrong"))
    with pytest.raises(StorageDenied):
        storage.list("some-bucket")
    assert relay.count("GET") == 1


def test_an_answer_that_breaks_off_is_fetched_again(
    relay: Relay, s3_settings: Settings, opened: OpenStorage, tmp_path: Path
) -> None:
    content = os.urandom(3 * MIB)
    (tmp_path / "local").write_bytes(content)
    storage = opened(_through(relay, s3_settings))
    storage.save(tmp_path / "local", f"{s3_settings.data_bucket}/k")
    storage.close()
    relay.cut(times=2, after=MIB)

    assert storage.fetch(f"{s3_settings.data_bucket}/k").read_bytes() == content
    assert relay.count("GET", "/k") == 3


def test_a_large_object_comes_and_goes_in_parallel_parts_and_survives_broken_connections(
    relay: Relay, s3_settings: Settings, opened: OpenStorage, large: Path
) -> None:
    storage = opened(_through(relay, s3_settings))
    storage.save(large, f"{s3_settings.data_bucket}/large")
    assert relay.count("PUT", "partNumber=") == 5
    relay.cut(times=2, after=4 * MIB)

    assert storage.fetch(f"{s3_settings.data_bucket}/large").read_bytes() == large.read_bytes()
    assert relay.count("GET", "/large") == 5 + 2
    assert (storage.fetch_dir(s3_settings.data_bucket) / "large").stat().st_size == 72 * MIB
    assert relay.count("GET", "/large") == 5 + 2
    opened(_through(relay, s3_settings)).fetch(f"{s3_settings.data_bucket}/large")
    assert relay.count("GET", "/large") == 5 + 2, "the digest that was taken of the parts is that of the copy"


def test_a_connection_that_breaks_every_time_is_given_up(
    relay: Relay, s3_settings: Settings, opened: OpenStorage, local: Path
) -> None:
    storage = opened(_through(relay, s3_settings))
    storage.save(local, f"{s3_settings.data_bucket}/k")
    storage.close()
    relay.cut(times=1000, after=0)

    with pytest.raises(StorageUnavailable, match="connection broke"):
        storage.fetch(f"{s3_settings.data_bucket}/k")
    assert relay.count("GET", "/k") == 1 + s3_settings.storage_retries


def test_something_that_is_no_s3_store_is_named_as_such(
    s3_settings: Settings, opened: OpenStorage, tmp_path: Path
) -> None:
    import http.server

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        storage = opened(s3_settings.with_options(minio_host=f"127.0.0.1:{server.server_port}", storage_timeout=2.0))
        with pytest.raises(StorageError, match=f"127.0.0.1:{server.server_port}.*bucket 'some-bucket'"):
            storage.list("some-bucket")
    finally:
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize("host", ["http://h:1/path", "ftp://h", "user:secret@h", "h:99999", "h:x", "http://"])
def test_an_endpoint_that_is_no_address_is_a_settings_error(tmp_path: Path, host: str) -> None:
    settings = Settings(home=tmp_path, minio_host=host, minio_access_key="a", minio_secret_key="s" * 8)
    with pytest.raises(SettingsError, match="MINIO_HOST") as caught:
        open_storage(settings)
    assert "secret" not in str(caught.value)


def test_an_endpoint_may_be_a_url(s3_settings: Settings, opened: OpenStorage) -> None:
    opened(s3_settings.with_options(minio_host=f"http://{s3_settings.minio_host}/", minio_secure=True)).check()


def test_a_store_without_credentials_is_a_settings_error(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="MINIO_ACCESS_KEY"):
        open_storage(Settings(home=tmp_path, minio_host="h:1"))


def test_opening_a_storage_imports_and_makes_nothing(tmp_path: Path) -> None:
    code = (
        "import sys, pathlib; from mlpkit.settings import Settings; from mlpkit.storage import open_storage\n"
        "home = pathlib.Path(sys.argv[1])\n"
        "open_storage(Settings(home=home, minio_host='h:1', minio_access_key='a', minio_secret_key='b'))\n"
        "assert not home.exists()\n"
        "assert not {'minio', 'urllib3'} & sys.modules.keys(), sorted(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "home")], check=True, timeout=LONG)
