"""A store that cannot be reached or refuses: an error that says where, and no secret in anything that can be read."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from mlpkit.errors import LoadFailed, MlpkitError, TrainFailed
from tests.acceptance.conftest import Start, Upload
from tests.acceptance.service import RunningService
from tests.secret import new_secret
from tests.servers import LONG, S3Server, free_port, proxy_of, wait_until

pytestmark = pytest.mark.slow

IMPATIENT = {"MLPKIT_STORAGE_TIMEOUT": "2", "MLPKIT_STORAGE_RETRIES": "1"}
TALKATIVE = {"MLPKIT_LOG_LEVEL": "trace", "MLPKIT_DEBUG": "on"}
SECRET = new_secret()


@pytest.fixture
def data(tmp_path: Path) -> Path:
    file = tmp_path / "train.tsv"
    file.write_text("good day\tgood\t1\nbad day\tbad\t1\n", encoding="utf-8")
    return file


def readable(service: RunningService, model_id: str) -> dict[str, bytes]:
    """Everything that this service shows or leaves, by its name: answers, log, files, command lines."""
    targets = [
        *("/jobs", f"/jobs/{model_id}", f"/jobs/{model_id}/log", "/models", "/monitor", "/metrics", "/node_info"),
        *("/health/ready", "/openapi.json", "/", "/docs", f"/status?model_id={model_id}&algorithm=mood"),
    ]
    found = {target: service.client.request("GET", target).body for target in targets}
    body = f'{{"algorithm": "mood", "model_id": "{model_id}"}}'.encode()
    found |= {target: service.client.request("POST", target, body).body for target in ("/load", "/delete", "/unload")}
    found |= {str(file): file.read_bytes() for file in service.home.rglob("*") if file.is_file()}
    found |= {f"arguments of {each.pid}": " ".join(each.cmdline()).encode() for each in service.family()}
    return {**found, "log": service.log.encode()}


def assert_tells_no_secret(service: RunningService, model_id: str, *errors: BaseException) -> None:
    shown = readable(service, model_id)
    shown |= {f"error {number}": str(each).encode() for number, each in enumerate(errors)}
    assert [name for name, content in shown.items() if SECRET.encode() in content] == []


def failures(service: RunningService, location: str) -> tuple[str, MlpkitError, MlpkitError]:
    """What comes of a training and of a load; and the id of the job."""
    job = service.client.train("mood", location)
    with pytest.raises(TrainFailed) as train:
        job.wait(LONG)
    with pytest.raises(LoadFailed) as load:
        service.client.load("mood", "model-1")
    return job.model_id, train.value, load.value


def test_store_that_is_not_there_is_named_with_bucket_and_key(start: Start) -> None:
    endpoint = f"127.0.0.1:{free_port()}"
    access = {"MINIO_HOST": endpoint, "MINIO_ACCESS_KEY": "somebody", "MINIO_SECRET_KEY": SECRET}
    service = start("mood", {**access, **IMPATIENT, **TALKATIVE}, ready=False)
    service.wait_live()

    model_id, train, load = failures(service, "folder/train.tsv")

    for error, path in ((train, marker_of(train)), (load, "ml-platform-model/model-1/mlpkit.json")):
        assert f"http://{endpoint}: {path}: the store cannot be reached (" in str(error)
        assert "check MINIO_HOST" in str(error)
    wait_until(lambda: not service.client.ready().ready, "the store's absence is noticed")
    assert endpoint in str(service.client.ready().reasons)
    assert_tells_no_secret(service, model_id, train, load)


def test_store_that_refuses_the_secret_is_named_with_bucket_and_key(
    start: Start, s3: S3Server, upload: Upload, data: Path
) -> None:
    location = upload(data)
    service = start("mood", {**TALKATIVE, "MINIO_SECRET_KEY": SECRET}, ready=False)
    service.wait_live()

    model_id, train, load = failures(service, location)

    for error, path in (
        (train, marker_of(train)),
        (load, "ml-platform-model/model-1/mlpkit.json"),
    ):
        assert f"{s3.endpoint}: {path}: the" in str(error)
        assert "MINIO_SECRET_KEY" in str(error)
    assert_tells_no_secret(service, model_id, train, load)


def marker_of(error: Exception) -> str:
    """The marker of a failed training's model, which it stores first, to see whether it can."""
    model_id = str(error).partition("ml-platform-model/")[2].partition("/")[0]
    return f"ml-platform-model/{model_id or 'none'}/mlpkit.incomplete"


def test_bucket_that_is_missing_is_named_with_its_store_and_the_key(start: Start, s3: S3Server) -> None:
    service = start("mood", {"MLPKIT_DATA_BUCKET": "no-such-data", "MLPKIT_MODEL_BUCKET": "no-such-models"})

    # Before the training, which makes the bucket of the models.
    with pytest.raises(LoadFailed) as load:
        service.client.load("mood", "model-1")
    _, train, _ = failures(service, "folder/train.tsv")

    for error, bucket, key in (
        (train, "no-such-data", "folder/train.tsv"),
        (load.value, "no-such-models", "model-1/"),
    ):
        assert f"{s3.endpoint}: bucket '{bucket}' does not exist (asked for {bucket}/{key})" in str(error)
    wait_until(lambda: service.client.ready().ready, "the store was checked")


def test_store_that_hangs_is_an_error_in_time_and_works_afterwards(
    start: Start, s3: S3Server, upload: Upload, data: Path
) -> None:
    if s3.folder is None:
        pytest.skip("the store of MLPKIT_TEST_S3 is not ours to stop")
    location = upload(data)
    with proxy_of(s3) as (entrance, proxy):
        service = start("mood", {**entrance.environment, **IMPATIENT})
        trained = service.client.train("mood", location)
        trained.wait(LONG)
        proxy.send_signal(signal.SIGSTOP)
        try:
            _, train, load = failures(service, location)
        finally:
            proxy.send_signal(signal.SIGCONT)
        for error, path in (
            (train, marker_of(train)),
            (load, "ml-platform-model/model-1/mlpkit.json"),
        ):
            assert f"{entrance.endpoint}: {path}: the store did not answer in time" in str(error)

        service.client.load("mood", trained.model_id)
        answer = service.client.predict(trained.model_id, {"sentence": "good day"})
        assert [label["label"] for label in answer] == ["good"]


def test_store_that_is_away_at_the_start_is_stood_in_for_by_the_cache_where_that_is_wanted(
    start: Start, s3: S3Server, upload: Upload, data: Path
) -> None:
    if s3.folder is None:
        pytest.skip("the store of MLPKIT_TEST_S3 is not ours to stop")
    offline = {**IMPATIENT, "MLPKIT_CACHE_OFFLINE": "on"}
    with proxy_of(s3) as (entrance, proxy):
        service = start("mood", {**entrance.environment, **offline})
        job = service.client.train("mood", upload(data))
        job.wait(LONG)
        service.client.load("mood", job.model_id)
        service.kill()
        proxy.kill()
        proxy.wait()

        strict = start("mood", {**entrance.environment, **IMPATIENT}, ready=False)
        wait_until(
            lambda: f"model '{job.model_id}' could not be loaded at the start" in strict.log, "it is refused", 60
        )
        assert strict.client.monitor().load == {}
        assert "the last known copy is used" not in strict.log
        strict.kill()

        service = start("mood", {**entrance.environment, **offline}, ready=False)
        service.wait_live()
        wait_until(lambda: job.model_id in service.client.monitor().load, "the model is loaded of the cache")
        answer = service.client.predict(job.model_id, {"sentence": "good day"})
        assert [label["label"] for label in answer] == ["good"]
        said = f"http://{entrance.endpoint}: ml-platform-model/{job.model_id}/mlpkit.json: the store cannot be reached"
        (line, *_) = (each for each in service.log.splitlines() if "the last known copy is used" in each)
        assert said in line
        assert "(MLPKIT_CACHE_OFFLINE)" in line
        wait_until(lambda: entrance.endpoint in str(service.client.ready().reasons), "the reason names the store")
