"""The client against a service that speaks the protocol and is not mlpkit."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass

import msgspec
import pytest

from mlpkit.client import Client, JobStatus
from mlpkit.errors import (
    AlgorithmNotFound,
    ArgumentError,
    LoadFailed,
    ModelNotLoaded,
    PredictFailed,
    TimeLimitExceeded,
    TrainFailed,
    UnexpectedAnswer,
)
from tests.servers import LONG


@pytest.fixture
def client(foreign: str) -> Iterator[Client]:
    with Client(foreign, "/mlp", timeout=LONG) as made:
        yield made


class Hyper(msgspec.Struct):
    name: str = "struct"


@dataclass
class Sentence:
    sentence: str


def test_the_whole_life_of_a_model(client: Client) -> None:
    job = client.train("echo", "corpus/train.json", {"name": "life"})
    seen: list[JobStatus] = []
    assert job.wait(LONG, progress=seen.append).status == "completed"
    assert [each.status for each in seen] == ["init", "training", "completed"]
    client.load("echo", job.model_id)
    assert job.model_id in client.monitor().load
    assert client.predict(job.model_id, Sentence("好"), {"top_n": 1}) == [{"sentence": "好"}, {"top_n": 1}]
    client.unload("echo", job.model_id)
    client.delete("echo", job.model_id)
    assert job.model_id not in client.monitor().load


def test_train_sends_every_field_that_the_protocol_requires(client: Client) -> None:
    client.train("echo", "corpus/train.json", Hyper(), uuid="u-1")
    sent = json.loads(client.request("GET", "/seen").body)[-1]
    assert sent["data"] == {"location": "corpus/train.json"}
    assert sent["parameter"] == {"name": "struct"}
    assert (sent["extend"], sent["model_path"], sent["uuid"]) == ({}, "", "u-1")


def test_the_location_of_test_rows_is_sent_in_data(client: Client) -> None:
    for data in ("train.tsv", {"location": "train.tsv"}):
        client.train("echo", data, test="test.tsv")
        sent = json.loads(client.request("GET", "/seen").body)[-1]
        assert sent["data"] == {"location": "train.tsv", "test_location": "test.tsv"}


def test_the_token_is_sent_as_a_bearer_and_not_shown(foreign: str) -> None:
    with Client(foreign, "mlp/", token="not-to-be-seen") as client:
        assert "not-to-be-seen" not in repr(client)
        client.train("echo")
        assert json.loads(client.request("GET", "/seen").body)[-1]["authorization"] == "Bearer not-to-be-seen"


def test_refusals_become_the_exceptions_that_they_stand_for(client: Client) -> None:
    with pytest.raises(AlgorithmNotFound, match=r"algorithm \[nope\] not support"):
        client.train("nope")
    with pytest.raises(ModelNotLoaded, match=r"model \[m-0\] not loaded"):
        client.predict("m-0", {})
    with pytest.raises(LoadFailed, match=r"^load fail no such file$"):
        client.load("echo", "broken-1")
    client.load("echo", "m-1")
    with pytest.raises(PredictFailed, match=r"^predict fail division by zero$"):
        client.predict("m-1", {"sentence": "boom"})
    with pytest.raises(ArgumentError, match="expect"):
        client.predict("m-1", [1])


def test_a_failed_training_raises_when_it_is_waited_for(client: Client) -> None:
    with pytest.raises(TrainFailed, match="gives no reason"):
        client.train("echo", parameters={"name": "bad"}).wait(LONG)


def test_waiting_ends_at_its_time_out(client: Client) -> None:
    with pytest.raises(TimeLimitExceeded, match=r"not ended within 0\.3 s; its status is training"):
        client.train("echo", parameters={"name": "stuck"}).wait(0.3)


def test_a_route_that_the_service_does_not_have_is_no_answer_of_the_protocol(client: Client, foreign: str) -> None:
    with pytest.raises(UnexpectedAnswer, match="is the prefix right"):
        client.jobs()
    with Client(foreign, "/wrong") as elsewhere, pytest.raises(UnexpectedAnswer, match="is the prefix right"):
        elsewhere.monitor()


def test_node_info_reads_the_wire_s_spelling(client: Client) -> None:
    info = client.node_info()
    assert (info.total_memory, info.total_cpu, info.idle_cpu_rate) == (7.7, 2, 0.97)


def test_a_bare_nan_of_a_foreign_service_is_read(client: Client) -> None:
    client.load("echo", "m-2")
    answer = client.predict("m-2", {"sentence": "nan"})
    assert answer != answer


def test_what_json_cannot_express_is_refused_before_it_is_sent(client: Client) -> None:
    with pytest.raises(ArgumentError, match="cannot be written as JSON"):
        client.predict("m-1", {"sentence": object()})
