"""Models on a Ray cluster, without Ray: what is refused at the start, and the actor with its worker."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import anyio
import msgspec
import pytest

from mlpkit.algorithm import LoadOptions
from mlpkit.errors import SettingsError
from mlpkit.script import absolute_search_path
from mlpkit.serving.messages import (
    Item,
    Load,
    Logged,
    Predict,
    Ready,
    Reply,
    ServerMessage,
    StartWorker,
    Stop,
    WorkerMessage,
    decode_worker_message,
    encode,
)
from mlpkit.serving.ray import WorkerActor, order_for
from mlpkit.settings import Settings, encode_settings
from tests.servers import LONG
from tests.serving.conftest import OpenModels, prediction_of

pytestmark = pytest.mark.anyio

SCRIPT = """
import os

app = App("far")

@app.load(placement="cluster", replicas=2)
def load(model_id: str) -> str:
    print("a line of load")
    return model_id

@app.predict
def predict(model: str, features: dict) -> list:
    if "die" in features:
        os.abort()
    return [model, features, os.getcwd()]
"""


class Node:
    """What a messenger does with an actor, without Ray."""

    def __init__(self, actor: WorkerActor) -> None:
        self.actor = actor
        self.said: list[WorkerMessage] = []

    async def put(self, *messages: ServerMessage) -> None:
        await self.actor.put(msgspec.msgpack.encode([encode(message) for message in messages]))

    async def take(self) -> str:
        """Takes what has come; how the worker has ended, if it has."""
        messages, ended = msgspec.msgpack.decode(await self.actor.take(), type=tuple[list[bytes], str])
        self.said += [decode_worker_message(message) for message in messages]
        return ended

    async def wait_for(self, wanted: Callable[[WorkerMessage], bool]) -> WorkerMessage:
        with anyio.fail_after(LONG):
            while not (found := [message for message in self.said if wanted(message)]):
                await self.take()
        return found[0]

    async def end(self) -> str:
        with anyio.fail_after(LONG):
            while not (ended := await self.take()):
                pass
        return ended


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The temporary folder of the node."""
    folder = tmp_path / "node"
    folder.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    return folder


@pytest.fixture
async def node(tmp_path: Path, temporary: Path) -> AsyncIterator[Node]:
    """A node on which a worker has imported the script."""
    script = tmp_path / "project" / "far_script.py"
    script.parent.mkdir()
    script.write_text("from mlpkit import App\n" + SCRIPT)
    settings = Settings(home=tmp_path / "home")
    start = StartWorker(f"{script}:app", absolute_search_path(), encode_settings(settings), "worker-7", True)
    actor = WorkerActor()
    assert await actor.start(await order_for(start, LoadOptions(placement="cluster"), settings)) == b""
    found = Node(actor)
    await found.wait_for(lambda message: isinstance(message, Ready))
    yield found
    await actor.cancel()


def is_there(temporary: Path) -> bool:
    """Whether the node has the script."""
    return any(temporary.rglob("far_script.py"))


def load(id: int) -> Load:
    return Load(id, "far", "m", None, b"null", None, "uuid")


def predict(id: int, features: bytes) -> Predict:
    return Predict(id, "m", [Item(params=b"null", uuid=None, log_uuid="uuid", features=features)])


def answers(id: int) -> Callable[[WorkerMessage], bool]:
    return lambda message: isinstance(message, Reply) and message.id == id


async def test_a_worker_on_a_node_loads_predicts_and_is_heard(node: Node, temporary: Path) -> None:
    await node.put(load(1))
    await node.wait_for(answers(1))
    await node.put(*[predict(number, b'{"number": %d}' % number) for number in range(2, 12)])
    for number in range(2, 12):
        reply = await node.wait_for(answers(number))
        assert isinstance(reply, Reply)
        assert isinstance(reply.results[0], bytes)
        model, features, folder = msgspec.json.decode(reply.results[0])
        assert (model, features) == ("m", {"number": number})
        assert Path(folder).is_relative_to(temporary)
    line = await node.wait_for(lambda message: isinstance(message, Logged) and "a line" in message.line.message)
    assert isinstance(line, Logged)
    assert line.line.process == "worker-7"


async def test_the_end_of_a_worker_is_told_and_its_folder_is_removed(node: Node, temporary: Path) -> None:
    assert is_there(temporary)
    await node.put(load(1))
    await node.wait_for(answers(1))
    await node.put(predict(2, b'{"die": true}'))
    assert await node.end() == "was killed by SIGABRT"
    assert not is_there(temporary)


async def test_a_worker_that_is_asked_to_stop_ends(node: Node) -> None:
    await node.put(Stop())
    assert await node.end() == "exited with code 0"


async def test_a_node_without_disk_space_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "missing"))
    settings = Settings(home=tmp_path / "home")
    start = StartWorker("installed:app", [], encode_settings(settings), "worker-1", True)
    order = await order_for(start, LoadOptions(placement="cluster"), settings)
    assert b"No such file" in await WorkerActor().start(order)


async def test_a_service_without_a_cluster_says_what_to_do(open_models: OpenModels) -> None:
    with pytest.raises(
        SettingsError, match=r"'far' has @app\.load\(placement='cluster'\).* start it with --engine ray"
    ):
        async with open_models(SCRIPT):
            pass


async def test_models_in_the_server_need_no_cluster(open_models: OpenModels) -> None:
    async with open_models(SCRIPT, workers=0) as models:
        await models.load("far", "m")
        assert msgspec.json.decode(await prediction_of(models, "m", b"{}"))[0] == "m"


async def test_nobody_else_imports_ray(open_models: OpenModels) -> None:
    async with open_models(SCRIPT.replace('placement="cluster"', "isolated=True")) as models:
        await models.load("far", "m")
        (model,) = models.listed()
        assert model.nodes == []
        assert [worker.node for worker in models.workers()] == ["", "", ""]
    assert "ray" not in sys.modules
