"""Models are loaded from a real S3 store when a prediction asks for them, and leave when memory is short."""

from __future__ import annotations

import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.request import urlopen

import pytest

from mlpkit import Client
from mlpkit.errors import LoadFailed, MlpkitError, ModelNotLoaded
from tests.acceptance.conftest import Start
from tests.acceptance.service import RunningService
from tests.servers import LONG, wait_until

CALLERS = 50


def counted(service: RunningService, metric: str) -> int:
    with urlopen(f"http://127.0.0.1:{service.port}/metrics", timeout=LONG) as answer:
        text = answer.read().decode()
    return int(sum(float(value) for value in re.findall(rf"^{metric}{{.*}} (\S+)$", text, re.MULTILINE)))


def trained(client: Client, word: str) -> str:
    job = client.train("asked", parameters={"word": word})
    job.wait(LONG)
    return job.model_id


def answer(client: Client, model_id: str) -> object:
    return client.predict(model_id, {})


def test_models_of_an_s3_store_come_when_asked_and_leave_when_memory_is_short(start: Start, tmp_path: Path) -> None:
    settings = {"DEADLY": str(tmp_path / "deadly"), "MLPKIT_MODEL_MEMORY": "20MiB"}
    client = start("asked", settings).client
    first, second, third = [trained(client, word) for word in ("one", "two", "three")]

    # Another replica, which has seen none of them.
    service = start("asked", settings, home=tmp_path / "other")
    client = service.client
    with ThreadPoolExecutor(CALLERS) as callers:
        answers = list(callers.map(lambda _: answer(client, first), range(CALLERS)))
    assert answers == ["one"] * CALLERS
    assert service.log.count(f"loads {first}") == 1
    assert answer(client, second) == "two"
    assert answer(client, third) == "three"
    assert {model.model_id for model in client.models()} == {second, third}
    assert all(model.lazy for model in client.models())
    assert (counted(service, "mlpkit_lazy_loads_total"), counted(service, "mlpkit_model_evictions_total")) == (3, 1)

    with pytest.raises(ModelNotLoaded):
        answer(client, "unknown")
    client.delete("asked", second)
    with pytest.raises(ModelNotLoaded):
        answer(client, second)
    assert answer(client, first) == "one"

    # A worker that dies takes the other models with it; all of them come back.
    fourth = trained(client, "four")
    client.unload("asked", third)
    (tmp_path / "deadly").touch()
    with pytest.raises(LoadFailed, match="was killed by SIGKILL"):
        answer(client, fourth)
    (tmp_path / "deadly").unlink()
    for model_id, word in ((fourth, "four"), (first, "one"), (third, "three")):
        wait_until(lambda model_id=model_id, word=word: says(client, model_id, word), "it answers")  # type: ignore[misc]


def says(client: Client, model_id: str, word: str) -> bool:
    try:
        return answer(client, model_id) == word
    except MlpkitError:
        return False
