"""The seam of the store: `MLPKIT_STORE` names one, and a package of somebody else can bring one."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from mlpkit.errors import ObjectNotFound, SettingsError
from mlpkit.settings import Settings, load_settings
from mlpkit.storage import Manifest, ObjectStat, open_model, open_storage, register_store, save_model, settings_for
from mlpkit.storage.store import Store, Threads
from tests.servers import S3Server
from tests.storage.conftest import OpenStorage


class MemoryStore:
    """A store of another package: the objects are in a dictionary of this process."""

    def __init__(self, settings: Settings) -> None:
        self.url = settings.store
        self._lock = threading.Lock()
        self._objects: dict[str, dict[str, tuple[bytes, float]]] = {}

    def stat(self, bucket: str, key: str) -> ObjectStat:
        content, changed = self._found(bucket, key)
        return ObjectStat(path=f"{bucket}/{key}", etag=f"{changed}", size=len(content), modified=changed)

    def download(self, stat: ObjectStat, target: Path, threads: Threads) -> str:
        target.write_bytes(self._found(stat.bucket, stat.key)[0])
        return ""

    def read(self, bucket: str, key: str, most: int) -> tuple[str, bytes]:
        content, _ = self._found(bucket, key)
        assert len(content) <= most
        return self.stat(bucket, key).etag, content

    def upload(self, source: Path, bucket: str, key: str) -> None:
        with self._lock:
            if bucket not in self._objects:
                raise ObjectNotFound(f"{self.url}: bucket {bucket!r} does not exist")
            self._objects[bucket][key] = (source.read_bytes(), time.time())

    def list(self, bucket: str, prefix: str) -> Iterator[ObjectStat]:
        return (self.stat(bucket, key) for key in sorted(self._objects.get(bucket, ())) if key.startswith(prefix))

    def folders(self, bucket: str) -> Iterator[str]:
        yield from sorted({key.partition("/")[0] for key in self._objects.get(bucket, ()) if "/" in key})

    def delete(self, bucket: str, keys: Sequence[str]) -> None:
        for key in keys:
            self._objects.get(bucket, {}).pop(key, None)

    def discard_uploads(self, bucket: str, prefix: str) -> None:
        """There are none."""

    def make_bucket(self, bucket: str) -> None:
        self._objects.setdefault(bucket, {})

    def presign(self, bucket: str, key: str, expires: int) -> str:
        return f"{self.url}/{bucket}/{key}"

    def check(self, bucket: str) -> bool:
        return bucket in self._objects

    def close(self) -> None:
        """There is nothing to close."""

    def _found(self, bucket: str, key: str) -> tuple[bytes, float]:
        try:
            return self._objects[bucket][key]
        except KeyError:
            raise ObjectNotFound(f"{self.url}: there is no object {bucket}/{key}") from None


def test_store_of_another_package_keeps_objects_and_models(tmp_path: Path, opened: OpenStorage) -> None:
    made: Store = MemoryStore(Settings(store_url="memory://here"))
    register_store("memory", lambda settings: made)
    settings = Settings(home=tmp_path / "home", store_url="memory://here")
    storage = opened(settings)
    assert len(storage.check()) == 1, "the data bucket does not exist yet"
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "weights").write_bytes(b"w")

    save_model(storage, tmp_path / "out", "ml-platform-model/m", Manifest(algorithm="a", kind="k", model_id="m"))
    model = open_model(storage, settings, "m", None)

    assert (model / "weights").read_bytes() == b"w"
    assert [stat.key for stat in storage.list("ml-platform-model")] == ["m/mlpkit.json", "m/weights"]
    assert repr(storage) == "Storage(memory://here)"
    assert not (tmp_path / "home" / "storage").exists()


def test_store_may_be_named_by_a_url(s3: S3Server, tmp_path: Path, opened: OpenStorage) -> None:
    if "://" in s3.endpoint:
        pytest.skip("the server that MLPKIT_TEST_S3 names is a URL already")
    names = {"MINIO_ACCESS_KEY": s3.access_key, "MINIO_SECRET_KEY": s3.secret_key}
    by_url = load_settings({**names, "MLPKIT_STORE": f"s3://{s3.endpoint}/"}, None)
    by_host = load_settings({**names, "MINIO_HOST": s3.endpoint}, None)

    assert by_url.store == by_host.store == f"s3://{s3.endpoint}"
    opened(by_url.with_options(home=tmp_path)).check()


def test_folder_of_the_store_may_be_chosen(tmp_path: Path, opened: OpenStorage) -> None:
    (tmp_path / "local").write_bytes(b"content")
    settings = Settings(home=tmp_path / "home", store_url=f"folder://{tmp_path}/elsewhere")
    opened(settings).save(tmp_path / "local", "ml-platform-data/k")
    assert (tmp_path / "elsewhere" / "ml-platform-data" / "k").read_bytes() == b"content"


@pytest.mark.parametrize(
    ("host", "secure", "url"),
    [
        ("h:9000", False, "s3://h:9000"),
        ("h:9000", True, "s3://h:9000?secure=on"),
        ("https://h", False, "s3://h?secure=on"),
        ("http://h:1/", True, "s3://h:1"),
    ],
)
def test_host_and_url_are_two_ways_to_name_one_store(host: str, secure: bool, url: str) -> None:
    assert Settings(minio_host=host, minio_secure=secure).store == url


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("s4://h:9000", "there is no store for s4:// URLs, only for .*, did you mean 's3'?"),
        ("s3://h:9000/path", "s3://host:port"),
        ("s3://h?tls=on", "s3://host:port"),
        ("folder://relative", "folder:///path"),
    ],
)
def test_url_that_names_no_store_is_a_settings_error(tmp_path: Path, url: str, words: str) -> None:
    settings = Settings(home=tmp_path, store_url=url, minio_access_key="a", minio_secret_key="b")
    with pytest.raises(SettingsError, match=words):
        open_storage(settings)


@pytest.mark.parametrize(
    ("environment", "words"),
    [
        ({"MLPKIT_STORE": "minio:9000"}, "must be a URL without credentials"),
        ({"MLPKIT_STORE": "s3://user:pa55@h:9000"}, "must be a URL without credentials"),
        ({"MLPKIT_STORE": "s3://h:9000"}, "MINIO_ACCESS_KEY and MINIO_SECRET_KEY must be set"),
        ({"MLPKIT_STORE": "s3://h", "MINIO_HOST": "h"}, "both name the store"),
    ],
)
def test_settings_that_name_no_store_are_refused_without_showing_a_password(
    environment: dict[str, str], words: str
) -> None:
    with pytest.raises(SettingsError, match=words) as caught:
        load_settings(environment, None)
    assert "pa55" not in str(caught.value)


def test_secrets_may_end_with_the_line_end_of_their_file() -> None:
    environment = {"MINIO_ACCESS_KEY": "key\n", "MINIO_SECRET_KEY": " sec ret \r\n", "MINIO_SESSION_TOKEN": "t\n"}
    settings = load_settings({**environment, "DB_PASS": "pass\n"}, None)
    assert (settings.minio_access_key, settings.minio_secret_key) == ("key", " sec ret ")
    assert (settings.minio_session_token, settings.db_password) == ("t", "pass")


def test_store_of_a_caller_takes_the_place_of_one_that_is_named_by_a_url() -> None:
    settings = Settings(store_url="s3://own:9100?secure=on", remote_storage=True, remote_allow=("10.0.0.0/8",))
    assert settings_for(settings, '{"remote_ip": "10.1.2.3"}').store == "s3://10.1.2.3:9100?secure=on"
