"""Trainings on a Ray cluster of three nodes: none is lost, none runs twice, all can be ended."""

from __future__ import annotations

import re
import shutil
import signal
import socket
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import psutil
import pytest

import mlpkit
from mlpkit.client import Client, JobHandle
from mlpkit.errors import LoadFailed, TrainFailed
from mlpkit.storage import Storage
from tests.acceptance.conftest import Start
from tests.acceptance.service import RunningService, gone
from tests.conftest import Report
from tests.faults.machine import small_disk
from tests.impossible import impossible
from tests.servers import LONG, Relay, S3Server, proxy_of, wait_until
from tests.servers.nginx import Nginx
from tests.servers.raycluster import RayCluster, is_installed, ray_cluster

pytestmark = pytest.mark.slow

SECRETS = ("MINIO_SECRET_KEY", "MINIO_ACCESS_KEY")
JOBS = 30


NODES: list[dict[str, Any]] = [{"num_cpus": 0}, {"num_cpus": 4}, {"num_cpus": 4}, {"num_cpus": 4, "num_gpus": 2}]
"""A head without room for jobs, and three nodes: one has two GPUs."""


@pytest.fixture(scope="module")
def cluster() -> Iterator[RayCluster]:
    """A cluster that several tests use."""
    yield from new_cluster()


@pytest.fixture
def own_cluster() -> Iterator[RayCluster]:
    """A cluster that a test may break."""
    yield from new_cluster()


@pytest.fixture
def impatient_cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[RayCluster]:
    """A cluster that needs seconds to find that a node does not answer, and not more than a minute."""
    monkeypatch.setenv("RAY_health_check_timeout_ms", "3000")
    monkeypatch.setenv("RAY_health_check_failure_threshold", "3")
    yield from new_cluster()


def new_cluster() -> Iterator[RayCluster]:
    if not is_installed():
        impossible("Ray is not installed: pip install 'mlpkit[ray]'")
    with ray_cluster(NODES) as running:
        yield running


def train(client: Client, folder: Path, algorithm: str = "far") -> JobHandle:
    return client.train(algorithm, parameters={"folder": str(folder)})


def runs_of(folder: Path, job: JobHandle) -> list[str]:
    """A line for each run of the job: its pid, and what it says."""
    file = folder / f"{job.model_id}.pids"
    return file.read_text().splitlines() if file.exists() else []


def process_of(folder: Path, job: JobHandle, runs: int = 1, within: float = LONG) -> psutil.Process:
    """The process of the job's last run, once there were so many."""
    wait_until(lambda: len(runs_of(folder, job)) >= runs, "the job runs", within)
    return psutil.Process(int(runs_of(folder, job)[-1].split()[0]))


def end_of(job: JobHandle) -> str:
    """The message of a job that ends with an error."""
    with pytest.raises(TrainFailed) as failed:
        job.wait(LONG)
    return str(failed.value)


def node_of(client: Client, job: JobHandle) -> str:
    """The id of the node on which the job's last run is."""
    found: list[str] = re.findall(r"it runs on node \S+ \((\w+)\)", client.log(job.model_id))
    return found[-1]


def test_jobs_run_on_all_nodes_and_their_models_are_served_here(
    start: Start, cluster: RayCluster, folder: Path, report: Report
) -> None:
    client = start("far", {**cluster.environment, "MLP_TRAIN_TASK_NUM": "6"}).client
    train(client, folder, "quick").wait(LONG)

    begun = time.monotonic()
    jobs = [train(client, folder, "quick") for _ in range(JOBS)]
    for job in jobs:
        job.wait(LONG)
    seconds = time.monotonic() - begun

    nodes = Counter(node_of(client, job) for job in jobs)
    assert len(nodes) == 3
    assert [len(runs_of(folder, job)) for job in jobs] == [1] * JOBS
    report(f"{JOBS} jobs on 3 nodes, 6 at a time: {seconds:.1f} s, {dict(nodes)}")


def test_what_a_job_says_arrives_while_it_runs(start: Start, cluster: RayCluster, folder: Path) -> None:
    client = start("far", cluster.environment).client
    job = train(client, folder)
    process = process_of(folder, job)

    wait_until(lambda: "a line of train" in client.log(job.model_id), "its lines arrive")
    wait_until(
        lambda: (shown := job.status().progress) is not None and shown["fraction"] == 0.5, "its progress arrives"
    )
    assert "wait_for" in client.stack(job.model_id)
    assert client.job_view(job.model_id).state == "training"

    (folder / "go").touch()
    job.wait(LONG)
    wait_until(lambda: gone(process), "its process has ended")
    client.load("far", job.model_id)
    assert client.predict(job.model_id, {}) == job.model_id


@pytest.mark.timeout(600)
def test_a_job_of_a_killed_node_runs_again_on_another(
    start: Start, own_cluster: RayCluster, folder: Path, report: Report
) -> None:
    client = start("far", own_cluster.environment).client
    plain = train(client, folder)
    first = process_of(folder, plain)
    node = node_of(client, plain)

    begun = time.monotonic()
    own_cluster.kill(next(number for number, each in enumerate(own_cluster.node_ids()) if each.startswith(node)))
    second = process_of(folder, plain, runs=2, within=2 * LONG)
    report(f"a job runs again {time.monotonic() - begun:.1f} s after its node was killed")

    assert gone(first)
    assert node_of(client, plain) != node
    assert "died while the job ran" in client.log(plain.model_id) or plain.status().attempt == 2
    (folder / "go").touch()
    plain.wait(LONG)
    assert len(runs_of(folder, plain)) == 2
    wait_until(lambda: gone(second), "its process has ended")


@pytest.mark.timeout(600)
def test_a_job_of_a_stalled_node_runs_again_only_when_it_has_ended_there(
    start: Start, impatient_cluster: RayCluster, folder: Path, report: Report
) -> None:
    client = start("far", impatient_cluster.environment).client
    job = train(client, folder)
    first = process_of(folder, job)
    raylet = next(parent for parent in first.parents() if parent.name() == "raylet")

    begun = time.monotonic()
    raylet.suspend()
    try:
        wait_until(lambda: "is dead: in" in client.log(job.model_id), "Ray calls the node dead")
        assert not gone(first)
        process_of(folder, job, runs=2, within=2 * LONG)
        assert gone(first)
    finally:
        raylet.resume()
    report(f"a job runs again {time.monotonic() - begun:.1f} s after its node has stalled")
    (folder / "go").touch()
    job.wait(LONG)
    assert len(runs_of(folder, job)) == 2


def test_a_job_without_attempts_left_says_that_its_node_died(
    start: Start, own_cluster: RayCluster, folder: Path
) -> None:
    client = start("far", own_cluster.environment).client
    job = train(client, folder, "stuck")
    process = process_of(folder, job)
    node = node_of(client, job)

    own_cluster.kill(next(number for number, each in enumerate(own_cluster.node_ids()) if each.startswith(node)))

    assert re.search(r"node \S+ \(\w+\) of the Ray cluster died while the job ran", end_of(job))
    wait_until(lambda: gone(process), "its process has ended")


def test_a_killed_attempt_continues_from_its_checkpoint(start: Start, cluster: RayCluster, folder: Path) -> None:
    client = start("far", cluster.environment).client
    job = train(client, folder, "saving")
    process = process_of(folder, job, runs=2)

    process.kill()
    process_of(folder, job, runs=3)
    (folder / "go").touch()
    job.wait(LONG)

    assert [line.split(" ", 1)[1].strip() for line in runs_of(folder, job)] == ["from 0", "saved", "from 2"]


def test_a_job_whose_actor_is_killed_runs_again(start: Start, cluster: RayCluster, folder: Path) -> None:
    client = start("far", cluster.environment).client
    job = train(client, folder)
    process = process_of(folder, job)

    actor_of(process).kill()
    process_of(folder, job, runs=2)

    assert gone(process)
    (folder / "go").touch()
    job.wait(LONG)
    assert job.status().attempt == 2


def actor_of(process: psutil.Process) -> psutil.Process:
    """The process of the actor in which a job runs."""
    return next(parent for parent in process.parents() if "JobActor" in " ".join([parent.name(), *parent.cmdline()]))


def test_gpus_are_given_by_number_and_none_is_waited_for_in_vain(
    start: Start, cluster: RayCluster, folder: Path
) -> None:
    client = start("far", {**cluster.environment, "MLPKIT_PLACE_TIMEOUT": "5s"}).client
    train(client, folder, "two_gpus").wait(LONG)
    job = train(client, folder, "nine_gpus")

    wait_until(lambda: "waiting for a node with 9 GPUs" in (job.status().message or ""), "the reason is shown")
    assert job.status().status == "init"
    message = end_of(job)

    assert "there was no node with 9 GPUs: the cluster has 4 nodes, with at most 4 CPUs, 2 GPUs" in message
    assert "MLPKIT_PLACE_TIMEOUT" in message
    assert "64.0 GiB of memory" in end_of(train(client, folder, "large"))
    assert not list(folder.glob(f"{job.model_id}*"))
    train(client, folder, "quick").wait(LONG)


def test_a_cancel_ends_a_job_that_is_stuck_in_c_code(
    start: Start, cluster: RayCluster, folder: Path, report: Report
) -> None:
    client = start("far", {**cluster.environment, "MLP_TRAIN_TASK_NUM": "1"}).client
    job = train(client, folder, "stuck")
    process = process_of(folder, job)
    waiting = train(client, folder, "stuck")

    begun = time.monotonic()
    job.cancel()
    report(f"a cancel of a job that is stuck in C code was answered after {time.monotonic() - begun:.2f} s")

    assert gone(process)
    assert end_of(job) == "cancelled"
    process_of(folder, waiting)
    waiting.cancel()
    train(client, folder, "quick").wait(LONG)


def test_jobs_of_a_killed_service_end_and_run_again_after_its_restart(
    start: Start, cluster: RayCluster, folder: Path, report: Report
) -> None:
    service = start("far", cluster.environment)
    job = train(service.client, folder)
    stuck = train(service.client, folder, "stuck")
    processes = [process_of(folder, job), process_of(folder, stuck)]

    service.kill()
    begun = time.monotonic()
    wait_until(lambda: all(gone(each) for each in processes), "the jobs have ended")
    report(f"jobs of a killed service ended after {time.monotonic() - begun:.1f} s")

    client = start("far", cluster.environment).client
    process_of(folder, job, runs=2)
    (folder / "go").touch()
    assert client.status("far", job.model_id).status == "training"
    JobHandle(client, job.algorithm, job.model_id).wait(LONG)
    assert "the service ended while it ran" in (client.job_view(stuck.model_id).message or "")
    assert len(runs_of(folder, job)) == 2


def test_nothing_of_the_service_stays_in_the_cluster(
    start: Start, cluster: RayCluster, s3: S3Server, folder: Path, tmp_path: Path
) -> None:
    script = tmp_path / "project" / "far.py"
    script.parent.mkdir()
    script.write_text((Path(__file__).parent / "scripts" / "far.py").read_text())
    (script.parent / ".env").write_text(f"MINIO_SECRET_KEY={s3.secret_key}\n")
    service = start(script, cluster.environment)
    job = train(service.client, folder)
    process = process_of(folder, job)

    code = Path(process.cwd())
    assert [each.name for each in code.rglob("*") if each.is_file() and each.suffix != ".pyc"] == ["far.py"]
    actor = actor_of(process)
    for each in (process, actor):
        assert not set(SECRETS) & set(each.environ())
        assert s3.secret_key not in " ".join([*each.environ().values(), *each.cmdline()])

    (folder / "go").touch()
    job.wait(LONG)
    wait_until(lambda: not code.exists(), "the folder of the job is removed")


def test_a_service_without_its_cluster_serves_and_says_why_jobs_wait(
    start: Start, own_cluster: RayCluster, folder: Path
) -> None:
    service: RunningService = start("far", {**own_cluster.environment, "MLPKIT_PLACE_TIMEOUT": "20s"})
    (folder / "go").touch()
    done = train(service.client, folder)
    done.wait(LONG)
    service.client.load("far", done.model_id)

    own_cluster.stop()
    job = train(service.client, folder)

    wait_until(lambda: "the Ray cluster cannot be used" in (job.status().message or ""), "the reason is shown")
    assert service.client.predict(done.model_id, {}) == done.model_id
    assert "the Ray cluster cannot be used" in end_of(job)


ODD_NODES = """
from mlpkit import App, ModelDir

app = App("good")
stranger, cut_off, small = (app.algorithm(name) for name in ("stranger", "cut_off", "small"))

@app.train(memory="12GiB")
@stranger.train(gpus=1)
@cut_off.train(cpus=4, memory="6GiB")
@small.train(cpus=8)
def train(parameters: dict, out: ModelDir) -> None:
    (out / "weights").write_bytes(bytes(parameters["size"]))
"""
"""Each algorithm fits on one node only: see the nodes of the test."""
ASKED_BY_PROXY = "2130706433"
"""127.0.0.1 as a number: mlpkit does not take it for this machine, so it asks a proxy if there is one."""


def test_nodes_that_cannot_reach_the_store_or_have_no_disk_space_fail_their_jobs_only(
    start: Start, s3: S3Server, folder: Path, tmp_path: Path
) -> None:
    if not is_installed():
        impossible("Ray is not installed: pip install 'mlpkit[ray]'")
    authority = certificate(folder / "store.pem")
    trusted = {"SSL_CERT_FILE": str(authority)}
    script = tmp_path / "project" / "odd.py"
    script.parent.mkdir()
    script.write_text(ODD_NODES)
    with ExitStack() as exits:
        store = Nginx(tmp_path / "nginx", [int(s3.endpoint.rpartition(":")[2])], authority)
        exits.callback(store.stop)
        disk = exits.enter_context(small_disk(tmp_path / "small", "8m"))
        nodes: list[dict[str, Any]] = [
            {"num_cpus": 0},
            {"num_cpus": 1, "memory": 16 << 30, "env_vars": trusted},
            {"num_cpus": 1, "memory": 1 << 30, "num_gpus": 1},
            {"num_cpus": 4, "memory": 8 << 30, "env_vars": {**trusted, "https_proxy": "http://127.0.0.1:9"}},
            {"num_cpus": 8, "memory": 1 << 30, "env_vars": {**trusted, "TMPDIR": str(disk.folder)}},
        ]
        cluster = exits.enter_context(ray_cluster(nodes))
        at = {"MINIO_HOST": f"{ASKED_BY_PROXY}:{store.port}", "MINIO_SECURE": "true", **trusted}
        client = start(script, {**cluster.environment, **at, "MLPKIT_STORE_RETRY": "0"}).client

        def error_of(algorithm: str, size: int = 100) -> str:
            return end_of(client.train(algorithm, parameters={"size": size}))

        client.train("good", parameters={"size": 100}).wait(LONG)
        assert re.search(r"TLS failed \(.*certificate verify failed.*\(SSL_CERT_FILE\)", error_of("stranger"))
        assert re.search(r"the proxy failed|cannot be reached", error_of("cut_off"))
        full = r"No space left on device: the disk of \S+/small/mlpkit-\d+/job-\S+ on \S+ has \d+\.\d MiB left"
        assert re.search(full, error_of("small", 20 << 20))
        disk.fill(left=64 << 10)
        assert "No space left on device" in error_of("small", 1 << 20)
        client.train("good", parameters={"size": 100}).wait(LONG)
        disk.free()
        client.train("small", parameters={"size": 100}).wait(LONG)


def certificate(file: Path) -> Path:
    """A certificate for this machine, with its key in the same file."""
    names = f"subjectAltName=IP:127.0.0.1,DNS:{ASKED_BY_PROXY}"
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=store"]
    try:
        subprocess.run([*command, "-addext", names, "-keyout", "key", "-out", "cert"], check=True, cwd=file.parent)
    except FileNotFoundError:
        impossible("openssl is not installed")
    file.write_text("".join((file.parent / name).read_text() for name in ("cert", "key")))
    return file


SILENT = """
import time
from pathlib import Path
from mlpkit import App, Checkpoint, ModelDir, Progress, TrainData

app = App("silent")
reading = app.algorithm("reading")
deaf = app.algorithm("deaf")

@app.train(memory="2GiB")
@deaf.train(gpus=1)
def train(model_id: str, parameters: dict, checkpoint: Checkpoint, progress: Progress, out: ModelDir) -> None:
    folder = Path(parameters["folder"])
    (folder / model_id).touch()
    while not (folder / "save").exists():
        time.sleep(0.02)
    (checkpoint / "state").write_text("half")
    progress.update(0.5, f"saved {checkpoint.save(now=True)}")
    while not (folder / "go").exists():
        time.sleep(0.02)
    (out / "weights").write_text(model_id)

@reading.train(memory="2GiB")
def train_reading(data: TrainData, out: ModelDir) -> None:
    (out / "weights").write_bytes(data.path.read_bytes())
"""


def test_a_store_that_accepts_and_never_answers_ends_no_job_but_the_one_that_needs_it(
    start: Start, s3: S3Server, store: Storage, folder: Path, tmp_path: Path
) -> None:
    """At the fetch of the data, at a checkpoint, at the store of the model, and for one node only."""
    if not is_installed():
        impossible("Ray is not installed: pip install 'mlpkit[ray]'")
    if s3.folder is None:
        pytest.skip("the store of MLPKIT_TEST_S3 is not ours to stop")
    script = tmp_path / "project" / "silent.py"
    script.parent.mkdir()
    script.write_text(SILENT)
    (folder / "rows.tsv").write_text("good day\tgood\t1\nbad day\tbad\t1\n")
    store.save(folder / "rows.tsv", "ml-platform-data/silent/rows.tsv")
    with ExitStack() as exits:
        entrance, proxy = exits.enter_context(proxy_of(s3))
        relay = exits.enter_context(Relay(entrance.endpoint))
        # The kernel accepts, and nobody answers.
        mute = exits.enter_context(socket.create_server(("127.0.0.1", 0)))
        nodes: list[dict[str, Any]] = [
            {"num_cpus": 0},
            {"num_cpus": 4, "memory": 8 << 30},
            {
                "num_cpus": 1,
                "memory": 1 << 30,
                "num_gpus": 1,
                "env_vars": {"http_proxy": f"http://127.0.0.1:{mute.getsockname()[1]}"},
            },
        ]
        cluster = exits.enter_context(ray_cluster(nodes))
        host = f"{ASKED_BY_PROXY}:{relay.endpoint.rpartition(':')[2]}"
        limits = {"MLPKIT_STORAGE_TIMEOUT": "2", "MLPKIT_STORAGE_RETRIES": "0", "MLPKIT_STORE_RETRY": "15s"}
        client = start(script, {**cluster.environment, **limits, "MINIO_HOST": host}).client

        def run(algorithm: str = "silent") -> JobHandle:
            return client.train(algorithm, parameters={"folder": str(folder)})

        def half_way(job: JobHandle) -> JobHandle:
            wait_until((folder / job.model_id).exists, "the job runs")
            return job

        with relay.held("rows.tsv"):
            message = end_of(client.train("reading", "silent/rows.tsv"))
        assert "ml-platform-data/silent/rows.tsv: the store did not answer in time" in message
        client.train("reading", "silent/rows.tsv").wait(LONG)
        assert "the store did not answer in time" in end_of(run("deaf"))

        job = half_way(run())
        proxy.send_signal(signal.SIGSTOP)
        (folder / "save").touch()
        wait_until(lambda: (shown := job.status().progress) is not None and shown["fraction"] == 0.5, "it goes on")
        assert "the checkpoint could not be saved, the training goes on" in client.log(job.model_id)
        (folder / "go").touch()
        wait_until(lambda: "could not be stored" in client.log(job.model_id), "its model waits for the store")
        proxy.send_signal(signal.SIGCONT)
        job.wait(LONG)

        (folder / "go").unlink()
        job = half_way(run())
        wait_until(lambda: (shown := job.status().progress) is not None and shown["fraction"] == 0.5, "it is saved")
        proxy.send_signal(signal.SIGSTOP)
        (folder / "go").touch()
        assert "the store did not answer in time" in end_of(job)
        proxy.send_signal(signal.SIGCONT)
        run().wait(LONG)


def test_a_package_that_the_nodes_lack_is_the_error_of_the_job(
    start: Start, cluster: RayCluster, tmp_path: Path, folder: Path
) -> None:
    (tmp_path / "packages").mkdir()
    (tmp_path / "packages" / "only_here.py").touch()
    script = folder / "needy.py"
    script.write_text(
        "import only_here\nfrom mlpkit import App\napp = App('needy')\n\n@app.train\ndef train() -> None: ...\n"
    )
    client = start(script, {**cluster.environment, "PYTHONPATH": str(tmp_path / "packages")}).client

    for _ in range(2):
        assert "needy.py, line 1" in (end := end_of(client.train("needy")))
        assert "No module named 'only_here'" in end


OTHERS = """
from mlpkit import App, ModelDir

app = App("good")
other, older, without = (app.algorithm(name) for name in ("other", "older", "without"))

@app.train(memory="12GiB")
@other.train(gpus=1, memory="2GiB")
@older.train(cpus=4, memory="6GiB")
@without.train(cpus=8)
def train(out: ModelDir) -> None:
    (out / "weights").touch()

@other.load(placement="cluster", gpus=1, memory="2GiB")
@without.load(placement="cluster", gpus=2)
def load() -> None: ...

@other.predict
@without.predict
def predict(features: dict) -> None: ...
"""
"""Each algorithm fits on one node only: see the nodes of the test."""


def test_a_node_with_another_mlpkit_or_without_it_is_named_in_one_sentence(start: Start, tmp_path: Path) -> None:
    if not is_installed():
        impossible("Ray is not installed: pip install 'mlpkit[ray]'")
    version = mlpkit.__version__
    here = Path(mlpkit.__file__).parent
    shutil.copytree(here, tmp_path / "other" / "mlpkit", ignore=shutil.ignore_patterns("__pycache__", "static"))
    file = tmp_path / "other" / "mlpkit" / "__init__.py"
    file.write_text(file.read_text().replace(f'"{version}"', '"0.0.1"'))
    stubs = {"older": '__version__ = "0.0.1"', "without": "raise ModuleNotFoundError(\"No module named 'mlpkit'\")"}
    for name, text in stubs.items():
        (tmp_path / name / "mlpkit").mkdir(parents=True)
        (tmp_path / name / "mlpkit" / "__init__.py").write_text(text)
    script = tmp_path / "project" / "others.py"
    script.parent.mkdir()
    script.write_text(OTHERS)
    nodes: list[dict[str, Any]] = [
        {"num_cpus": 0},
        {"num_cpus": 1, "memory": 16 << 30},
        {"num_cpus": 1, "memory": 3 << 30, "num_gpus": 1, "env_vars": {"PYTHONPATH": str(tmp_path / "other")}},
        {"num_cpus": 4, "memory": 8 << 30, "env_vars": {"PYTHONPATH": str(tmp_path / "older")}},
        {"num_cpus": 8, "memory": 1 << 30, "num_gpus": 2, "env_vars": {"PYTHONPATH": str(tmp_path / "without")}},
    ]
    with ray_cluster(nodes) as cluster:
        client = start(script, cluster.environment).client

        def load_error_of(algorithm: str) -> str:
            with pytest.raises(LoadFailed) as failed:
                client.load(algorithm, algorithm)
            return str(failed.value)

        two = rf"node \S+ \(\w+\) has mlpkit 0\.0\.1, this service has {re.escape(version)}: both must be the same"
        one = rf"node \S+ needs mlpkit {re.escape(version)} and its packages, .*: ModuleNotFoundError: No module named "
        for algorithm, expected in (("older", f"{one}'mlpkit.training'"), ("without", f"{one}'mlpkit'")):
            assert re.fullmatch(
                f"mlpkit cannot be started on a node of the Ray cluster: {expected}", end_of(client.train(algorithm))
            )
        assert re.fullmatch(two, end_of(client.train("other")))
        assert re.search(two, load_error_of("other"))
        assert re.search(f"{one}'mlpkit'", load_error_of("without"))
        client.train("good").wait(LONG)
