"""Disks that are full or read-only, for real: what cannot be kept is refused and says so, what was kept stays true."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, closing
from pathlib import Path

import pytest

from mlpkit import Client
from mlpkit.client import JobHandle
from mlpkit.errors import LoadFailed, MlpkitError, PredictFailed, StorageError, TrainFailed
from mlpkit.settings import Settings
from mlpkit.storage import Storage, open_storage
from tests.acceptance.service import RunningService
from tests.faults.conftest import warnings
from tests.faults.machine import SmallDisk, read_only, small_disk
from tests.servers import LONG, S3Server, wait_until

SCRIPT = Path(__file__).parent / "scripts" / "storing.py"
BUCKET = "ml-platform-model"
MIB = 1 << 20

Start = Callable[..., RunningService]


@pytest.fixture
def mounted() -> Iterator[ExitStack]:
    """What is mounted goes after the services that use it."""
    with ExitStack() as exits:
        yield exits


@pytest.fixture
def start(tmp_path: Path, mounted: ExitStack) -> Iterator[Start]:
    """A service of the storing script on `<tmp_path>/home`."""
    with ExitStack() as exits:

        def start_service(settings: Mapping[str, str] = {}, *, ready: bool = True) -> RunningService:
            usual = {"MLPKIT_SHUTDOWN_GRACE": "2", "MLP_TRAIN_TASK_NUM": "1", "MLPKIT_STORE_RETRY": "0"}
            service = RunningService(f"{SCRIPT}:app", tmp_path / "home", {**usual, **settings})
            exits.callback(service.stop)
            if ready:
                service.wait_ready()
            return service

        yield start_service


def content(seed: int, size: int = 3 * MIB) -> bytes:
    return hashlib.shake_128(str(seed).encode()).digest(size)


def put(home: Path, name: str, data: bytes) -> str:
    """Puts an object into the folder store; its path."""
    file = home / "storage" / BUCKET / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(data)
    return f"{BUCKET}/{name}"


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def ask(client: Client, model_id: str, path: str = "") -> object:
    return client.predict(model_id, {"path": path})


def half_made(cache: Path) -> list[Path]:
    """Files in the cache that are no whole entry of it."""
    found = list((cache / "making").iterdir())
    for meta in (cache / "entries").glob("*/meta.json"):
        files = json.loads(meta.read_bytes())["files"]
        found += [meta for name, (size, _) in files.items() if (meta.parent / "files" / name).stat().st_size != size]
    return found


def test_full_cache_makes_place_or_says_so_and_never_keeps_a_half_file(
    tmp_path: Path, mounted: ExitStack, start: Start
) -> None:
    disk = mounted.enter_context(small_disk(tmp_path / "cache", "8m"))
    models = {f"m-{number}": content(number) for number in range(4)}
    paths = {name: put(tmp_path / "home", f"{name}.bin", data) for name, data in models.items()}
    service = start({"MLPKIT_CACHE_DIR": str(disk.folder)})
    client = service.client
    for name in ("m-0", "m-1"):
        client.load("storing", name, paths[name])
    with pytest.raises(LoadFailed, match=r"the file cache .*/cache cannot keep .*m-2.bin \(No space left.*free some"):
        client.load("storing", "m-2", paths["m-2"])
    with pytest.raises(PredictFailed, match=r"No space left on device"):
        ask(client, "m-0", paths["m-2"])
    assert half_made(disk.folder) == []
    assert {name: ask(client, name) for name in ("m-0", "m-1")} == {
        name: {f"{name}.bin": digest(models[name])} for name in ("m-0", "m-1")
    }

    client.unload("storing", "m-0")
    client.load("storing", "m-2", paths["m-2"])
    assert "is full: 1 entries were removed" in service.log
    assert ask(client, "m-2") == {"m-2.bin": digest(models["m-2"])}
    assert ask(client, "m-1") == {"m-1.bin": digest(models["m-1"])}
    assert half_made(disk.folder) == []
    assert client.ready().ready


def test_cache_without_room_for_one_more_name_says_so(tmp_path: Path, mounted: ExitStack, start: Start) -> None:
    old, path = (put(tmp_path / "home", f"{name}.bin", b"content") for name in ("old", "m"))
    disk = mounted.enter_context(small_disk(tmp_path / "cache", "8m,nr_inodes=40"))
    service = start({"MLPKIT_CACHE_DIR": str(disk.folder)})
    service.client.load("storing", "old", old)
    for number in range(os.statvfs(disk.folder).f_favail):
        (disk.folder / f"filler-{number}").touch()
    with pytest.raises(LoadFailed, match=r"the file cache .* cannot keep .*m.bin \(No space left"):
        service.client.load("storing", "m", path)
    for each in disk.folder.glob("filler-*"):
        each.unlink()
    service.client.load("storing", "m", path)
    assert [ask(service.client, name) for name in ("old", "m")] == [
        {f"{name}.bin": digest(b"content")} for name in ("old", "m")
    ]


def test_cache_without_room_for_one_more_folder_makes_place(tmp_path: Path, mounted: ExitStack) -> None:
    disk = mounted.enter_context(small_disk(tmp_path / "cache", "8m,nr_inodes=80"))
    with closing(open_storage(Settings(home=tmp_path / "home", cache_dir=disk.folder))) as storage:
        # Of one object, so that no entry but the last has a pointer that would make place by going first.
        for number in range(1, 6):
            storage.release(storage.fetch(put(tmp_path / "home", "old.bin", b"." * number)))
        locks_of_the_entry_and_of_eviction = 2
        for number in range(os.statvfs(disk.folder).f_favail - locks_of_the_entry_and_of_eviction):
            (disk.folder / f"filler-{number}").touch()
        assert storage.fetch(put(tmp_path / "home", "new.bin", b"content")).read_bytes() == b"content"
    assert half_made(disk.folder) == []


@pytest.fixture
def storage(tmp_path: Path, s3: S3Server, mounted: ExitStack) -> Iterator[Storage]:
    """A storage on the S3 store, whose cache is on a small disk."""
    disk = mounted.enter_context(small_disk(tmp_path / "cache", "16m"))
    settings = Settings(
        home=tmp_path / "home",
        cache_dir=disk.folder,
        minio_host=s3.endpoint,
        minio_access_key=s3.access_key,
        minio_secret_key=s3.secret_key,
        model_bucket="model-full-disk",
    )
    opened = open_storage(settings)
    yield opened
    opened.close()


def save(storage: Storage, tmp_path: Path, size: int) -> tuple[str, bytes]:
    """Puts an object into the store; its path and its content."""
    data, path = content(7, size), f"model-full-disk/{tmp_path.name}"
    (tmp_path / "object").write_bytes(data)
    storage.save(tmp_path / "object", path)
    return path, data


@pytest.mark.parametrize("size", [300_000, 5 * MIB])
def test_object_that_the_disk_cannot_hold_whole_is_never_given_out(tmp_path: Path, storage: Storage, size: int) -> None:
    path, data = save(storage, tmp_path, size)
    disk = SmallDisk(tmp_path / "cache")
    disk.fill(left=size - 100_000)
    with pytest.raises(StorageError, match=rf"cannot keep .*: {path} \(No space left on device\)"):
        storage.fetch(path)
    assert half_made(disk.folder) == []
    disk.free()
    assert storage.fetch(path).read_bytes() == data


@pytest.mark.slow
def test_full_home_refuses_new_jobs_and_loses_none(tmp_path: Path, mounted: ExitStack, start: Start) -> None:
    disk = mounted.enter_context(small_disk(tmp_path / "home", "16m"))
    service = start()
    client, go = service.client, str(tmp_path / "go")
    running = client.train("dry", parameters={"go": go})
    waiting = [client.train("dry") for _ in range(2)]
    wait_until(lambda: running.status().status == "training", "the job runs")

    disk.fill()
    with pytest.raises(MlpkitError, match=r"jobs\.db cannot be written: .*full: free some space on that disk"):
        client.train("dry")
    assert [each.model_id for each in client.jobs()] == [each.model_id for each in (*waiting[::-1], running)]
    Path(go).touch()
    wait_until(lambda: "trying again in" in service.log, "the end of the job cannot be written")
    assert running.status().status == "training"
    assert [each.status().status for each in waiting] == ["init", "init"]
    assert client.live()

    disk.free()
    for each in (running, *waiting, client.train("dry")):
        each.wait(LONG)
    service.kill()
    states = {each.model_id: each.state for each in start().client.jobs()}
    assert list(states.values()) == ["completed"] * 4


def test_log_of_a_job_on_a_full_home_goes_on_when_there_is_room(
    tmp_path: Path, mounted: ExitStack, start: Start
) -> None:
    disk = mounted.enter_context(small_disk(tmp_path / "home", "16m"))
    service = start()
    client = service.client
    job = client.train("dry", parameters={"go": str(tmp_path / "go"), "lines": 500})
    wait_until(lambda: "starts, attempt 1" in client.log(job.model_id), "it runs")
    disk.fill()
    (tmp_path / "go").touch()
    wait_until(lambda: "line 499" in service.log, "it has printed")
    assert service.log.count("the job's own log cannot be written (No space left on device)") == 1
    assert "line 499" not in client.log(job.model_id)
    disk.free()
    (tmp_path / "go on").touch()
    job.wait(LONG)
    assert "the last line" in client.log(job.model_id)


@pytest.mark.slow
def test_full_home_keeps_models_loaded_and_names_what_a_restart_would_forget(
    tmp_path: Path, mounted: ExitStack, start: Start
) -> None:
    disk = mounted.enter_context(small_disk(tmp_path / "home", "16m"))
    path = put(tmp_path / "home", "m.bin", b"content")
    service = start({"MLPKIT_CACHE_DIR": str(tmp_path / "cache")})
    client = service.client
    client.load("storing", "before", path)
    disk.fill()
    client.load("storing", "meanwhile", path)
    assert ask(client, "meanwhile") == {"m.bin": digest(b"content")}
    warning = r"models.json cannot be written (No space left on device): until it can, a restart loads what was loaded"
    assert warning in str(warnings(client))
    assert client.ready().ready

    disk.free()
    wait_until(lambda: warnings(client) == [], "the list is written")
    service.kill()
    service = start({"MLPKIT_CACHE_DIR": str(tmp_path / "cache")})
    assert sorted(service.client.monitor().load) == ["before", "meanwhile"]


def test_model_that_a_full_store_cannot_hold_leaves_nothing_there(
    tmp_path: Path, mounted: ExitStack, start: Start
) -> None:
    disk = mounted.enter_context(small_disk(tmp_path / "home" / "storage", "8m"))
    service = start()
    client = service.client
    small = client.train("storing", parameters={"size": MIB})
    small.wait(LONG)
    large = client.train("storing", parameters={"size": 4 * MIB})
    with pytest.raises(TrainFailed, match=r"folder .*/storage: .* No space left on device: free some space"):
        large.wait(LONG)
    files = {each.relative_to(disk.folder).as_posix() for each in disk.folder.rglob("*") if each.is_file()}
    assert files == {f"{BUCKET}/{small.model_id}/{name}" for name in ("0.bin", "1.bin", "mlpkit.json")}
    with pytest.raises(LoadFailed, match="there is no model"):
        client.load("storing", large.model_id)
    client.load("storing", small.model_id)

    again = client.train("storing", parameters={"size": 2 * MIB})
    again.wait(LONG)
    client.load("storing", again.model_id)


def test_cache_that_becomes_read_only_refuses_new_models_and_keeps_the_loaded_ones(
    tmp_path: Path, start: Start
) -> None:
    paths = {name: put(tmp_path / "home", f"{name}.bin", name.encode()) for name in ("old", "new", "known")}
    service = start()
    client = service.client
    for name in ("old", "known"):
        client.load("storing", name, paths[name])
    with read_only(tmp_path / "home" / "cache"):
        refusal = r"the file cache .*/cache cannot keep .* \(Read-only file system\): check .* or set MLPKIT_CACHE_DIR"
        with pytest.raises(LoadFailed, match=refusal):
            client.load("storing", "new", paths["new"])
        with pytest.raises(PredictFailed, match=refusal):
            ask(client, "old", paths["new"])
        client.unload("storing", "known")
        assert ask(client, "old") == {"old.bin": digest(b"old")}
        assert client.ready().ready
    client.load("storing", "new", paths["new"])
    assert ask(client, "new") == {"new.bin": digest(b"new")}


def test_service_whose_cache_cannot_be_written_at_the_start_says_so_in_readiness(tmp_path: Path, start: Start) -> None:
    (tmp_path / "cache").mkdir()
    with read_only(tmp_path / "cache"):
        service = start({"MLPKIT_CACHE_DIR": str(tmp_path / "cache")}, ready=False)
        service.wait_live()
        wait_until(lambda: "the file cache cannot be used" in str(service.client.ready().reasons), "it says so")
        assert "Read-only file system" in str(service.client.ready().reasons)
        assert "check MLPKIT_CACHE_DIR" in str(service.client.ready().reasons)


@pytest.mark.slow
def test_service_starts_on_a_full_home_and_its_jobs_go_on_when_there_is_room(
    tmp_path: Path, mounted: ExitStack, start: Start
) -> None:
    disk = mounted.enter_context(small_disk(tmp_path / "home", "16m"))
    service = start({"MLP_TRAIN_TASK_NUM": "2"})
    jobs = [service.client.train(name, parameters={"go": str(tmp_path / "go")}) for name in ("dry", "again", "dry")]
    wait_until(lambda: [each.status().status for each in jobs] == ["training", "training", "init"], "two jobs run")
    service.kill()
    disk.fill()
    client = start({"MLP_TRAIN_TASK_NUM": "2"}).client
    with pytest.raises(MlpkitError, match="free some space"):
        client.train("dry")
    disk.free()
    (tmp_path / "go").touch()
    once, twice, waiting = (JobHandle(client, each.algorithm, each.model_id) for each in jobs)
    with pytest.raises(TrainFailed, match="the service ended while it ran"):
        once.wait(LONG)
    twice.wait(LONG)
    waiting.wait(LONG)
    assert [client.job_view(each.model_id).attempt for each in jobs] == [1, 2, 1]
