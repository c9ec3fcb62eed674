"""What answers at the store's address: an S3 server with the right keys, region and clock, or a clear error."""

from __future__ import annotations

import http.client
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta, timezone
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from mlpkit import start_folder
from mlpkit.errors import SettingsError, StorageDenied, StorageError, StorageUnavailable
from mlpkit.settings import Settings
from mlpkit.storage import Manifest, Storage, open_storage, save_model
from tests.servers import LONG, S3Server, closed_port, refusing
from tests.storage.conftest import OpenStorage

PAGE = b"<!doctype html><html><body>Welcome</body></html>"


@pytest.fixture
def local(tmp_path: Path) -> Path:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "weights").write_bytes(b"content")
    return tmp_path / "out" / "weights"


@pytest.mark.parametrize(
    "headers",
    [
        {"Content-Type": "text/html; charset=utf-8"},
        {"Content-Type": "text/html", "ETag": 'W/"2f-abc"'},
        {"Content-Type": "application/json"},
        {"Content-Type": "text/plain", "ETag": 'W/"2f-abc"'},
    ],
    ids=["page", "page with an etag", "json", "text with an etag"],
)
def test_server_that_answers_everything_with_a_page_is_not_taken_for_a_store(
    s3_settings: Settings, opened: OpenStorage, local: Path, headers: dict[str, str]
) -> None:
    with refusing(200, headers, body=PAGE) as page:
        storage = opened(s3_settings.with_options(minio_host=page.endpoint, storage_retries=0))
        path = f"{s3_settings.data_bucket}/k"
        uses: list[Callable[[], object]] = [
            storage.check,
            lambda: storage.save(local, path),
            lambda: storage.stat(path),
            lambda: storage.fetch(path),
            lambda: storage.list(s3_settings.data_bucket),
            lambda: save_model(
                storage, local.parent, f"{s3_settings.model_bucket}/m", Manifest(algorithm="a", kind="k", model_id="m")
            ),
        ]
        for use in uses:
            with pytest.raises(StorageError, match=rf"{page.endpoint}.*is not S3: is the address of the store"):
                use()


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("RequestTimeTooSkewed", "the clocks of this machine and of the store differ"),
        ("AuthorizationHeaderMalformed", r"another region: check MLPKIT_S3_REGION .*expecting 'eu-west-1'"),
        ("ExpiredToken", "MINIO_SESSION_TOKEN"),
        ("AccessDenied", r"lack the right s3:ListBucket"),
    ],
)
def test_check_gives_the_reason_that_the_store_gives(
    s3_settings: Settings, opened: OpenStorage, code: str, words: str
) -> None:
    body = f"<Error><Code>{code}</Code><Message>no; expecting 'eu-west-1'</Message></Error>".encode()
    with refusing(403, {"Content-Type": "application/xml"}, body=body) as store:
        storage = opened(s3_settings.with_options(minio_host=store.endpoint, storage_retries=0))
        with pytest.raises(StorageDenied, match=words):
            storage.check()


def test_a_clock_that_is_wrong_is_named_by_a_real_store(
    s3_settings: Settings, opened: OpenStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = opened(s3_settings)
    storage.check()
    late = datetime.now(timezone.utc) - timedelta(hours=2)
    monkeypatch.setattr("minio.time.utcnow", lambda: late)
    for use in (storage.check, lambda: storage.stat(f"{s3_settings.data_bucket}/k")):
        with pytest.raises(StorageDenied, match="the clocks of this machine and of the store differ"):
            use()


def test_a_wrong_region_is_named_by_a_real_store(s3: S3Server, s3_settings: Settings, opened: OpenStorage) -> None:
    if s3.folder is None:
        pytest.skip("not every server that MLPKIT_TEST_S3 may name checks the region")
    storage = opened(s3_settings.with_options(s3_region="mars-north-1"))
    with pytest.raises(StorageDenied, match="MLPKIT_S3_REGION"):
        storage.check()


def test_check_warns_of_a_data_bucket_that_does_not_exist(
    s3_settings: Settings, opened: OpenStorage, local: Path
) -> None:
    storage = opened(s3_settings)
    (warning,) = storage.check()
    assert f"the data bucket {s3_settings.data_bucket!r} (MLPKIT_DATA_BUCKET) does not exist" in warning

    storage.save(local, f"{s3_settings.data_bucket}/k")
    assert storage.check() == []


def test_session_token_is_sent_signed_and_never_shown(s3_settings: Settings, opened: OpenStorage) -> None:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            seen.append((self.headers["X-Amz-Security-Token"], self.headers["Authorization"]))
            self.send_error(403)

    seen: list[tuple[str, str]] = []
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        settings = s3_settings.with_options(
            minio_host=f"127.0.0.1:{server.server_port}", minio_session_token="t0ken", storage_retries=0
        )
        with pytest.raises(StorageDenied) as caught:
            opened(settings).check()
        server.shutdown()
    assert "t0ken" not in str(caught.value) + repr(settings)
    token, authorization = seen[0]
    assert token == "t0ken"
    assert "x-amz-security-token" in authorization


class Proxy:
    """What an HTTP proxy got: the request lines, and the credentials."""

    def __init__(self, endpoint: str) -> None:
        self.endpoint = endpoint
        self.requests: list[str] = []
        self.credentials: set[str | None] = set()


@contextmanager
def proxy_to(server: S3Server) -> Iterator[Proxy]:
    """An HTTP proxy that sends every request to this server, whatever host it names."""

    class Handler(BaseHTTPRequestHandler):
        def forward(self) -> None:
            found.requests.append(self.requestline)
            found.credentials.add(self.headers["Proxy-Authorization"])
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            connection = http.client.HTTPConnection(server.endpoint, timeout=LONG)
            path = "/" + self.path.split("/", 3)[3]
            connection.request(self.command, path, body, dict(self.headers.items()))
            answer = connection.getresponse()
            content = answer.read()
            self.send_response(answer.status)
            for name, value in answer.getheaders():
                if name.lower() not in ("connection", "transfer-encoding", "content-length", "date", "server"):
                    self.send_header(name, value)
            self.send_header("Content-Length", answer.getheader("Content-Length") or str(len(content)))
            self.end_headers()
            self.wfile.write(content)
            connection.close()

        do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = forward

        def log_message(self, *words: object) -> None:
            """Says nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as proxy:
        found = Proxy(f"127.0.0.1:{proxy.server_port}")
        threading.Thread(target=proxy.serve_forever, daemon=True).start()
        try:
            yield found
        finally:
            proxy.shutdown()


def test_store_is_reached_through_the_proxy_of_the_environment(
    s3: S3Server, s3_settings: Settings, opened: OpenStorage, local: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if "://" in s3.endpoint:
        pytest.skip("the proxy of this test speaks no TLS")
    path = f"{s3_settings.data_bucket}/k"
    with proxy_to(s3) as proxy:
        monkeypatch.setenv("http_proxy", f"http://user:pass@{proxy.endpoint}")
        storage = opened(s3_settings.with_options(minio_host="store.example:9000"))
        storage.save(local, path)
        assert storage.fetch(path).read_bytes() == b"content"
        assert any("http://store.example:9000/" in line for line in proxy.requests)
        assert proxy.credentials == {"Basic dXNlcjpwYXNz"}

        proxy.requests.clear()
        opened(s3_settings).stat(path)
        assert proxy.requests == [], "a loopback address is reached directly"
        monkeypatch.setenv("no_proxy", "store.example")
        direct = opened(s3_settings.with_options(minio_host="store.example:9000", storage_retries=0))
        with pytest.raises(StorageUnavailable):
            direct.stat(path)
        assert proxy.requests == [], "no_proxy names it"


def test_proxy_that_does_not_answer_is_named(
    s3_settings: Settings, opened: OpenStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    with closed_port() as port:
        monkeypatch.setenv("http_proxy", f"http://user:secret@127.0.0.1:{port}")
        storage = opened(s3_settings.with_options(minio_host="store.example:9000", storage_retries=0))
        with pytest.raises(StorageUnavailable, match=r"the proxy failed \([^\"]*\): .*http_proxy") as caught:
            storage.check()
    assert "secret" not in str(caught.value)


def test_file_with_certificates_that_does_not_exist_is_a_settings_error(
    tmp_path: Path, s3_settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
    open_storage(s3_settings)
    with pytest.raises(SettingsError, match=r"SSL_CERT_FILE is '.*ca.pem': there is no such file"):
        open_storage(s3_settings.with_options(minio_secure=True))


def test_file_with_certificates_that_holds_none_is_named(
    tmp_path: Path, s3_settings: Settings, opened: OpenStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "ca.pem").write_text("not a certificate")
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
    with pytest.raises(StorageError, match=r"SSL_CERT_FILE.*ca.pem"):
        opened(s3_settings.with_options(minio_secure=True)).check()


def test_relative_file_with_certificates_does_not_move_with_chdir(
    tmp_path: Path, s3_settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", "no-such-folder/ca.pem")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SettingsError, match=re.escape(f"{start_folder}/no-such-folder/ca.pem")):
        open_storage(s3_settings.with_options(minio_secure=True))


def test_object_that_is_a_folder_too_has_a_message_of_its_own(
    s3_settings: Settings, opened: OpenStorage, local: Path
) -> None:
    storage, data = opened(s3_settings), s3_settings.data_bucket
    for key in ("d/model", "d/model/weights/x"):
        storage.save(local, f"{data}/{key}")
    with pytest.raises(StorageError, match=rf"{data}/d/model is an object, and there are objects below it .*rename"):
        storage.fetch_dir(f"{data}/d")
    assert storage.fetch(f"{data}/d/model").read_bytes() == b"content"
    assert (storage.fetch_dir(f"{data}/d/model") / "weights" / "x").read_bytes() == b"content"


def test_storage_shows_no_credentials(s3_settings: Settings) -> None:
    assert repr(Storage(s3_settings)) == f"Storage(s3://{s3_settings.minio_host})"
