"""Load, unload, delete, predict and killed workers, by several clients at once: answers agree with a simple model."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, ClassVar

import psutil
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from mlpkit.errors import LoadFailed, MlpkitError, ModelNotLoaded, WorkerLost
from tests.acceptance.service import RunningService
from tests.faults.conftest import SCRIPT, order
from tests.servers import LONG, wait_until

pytestmark = pytest.mark.slow

CLIENTS = 8
IDS = ("a", "b", "c")
MOST_KILLS = 4
"""More in a minute, and the service takes its time to start the next worker, as it should."""
_examples = itertools.count()

Step = tuple[str, str]
steps = st.lists(
    st.tuples(st.sampled_from(["load", "unload", "predict", "predict", "delete"]), st.sampled_from(IDS)),
    min_size=2,
    max_size=CLIENTS,
)


class Serving(RuleBasedStateMachine):
    """What should be loaded, beside the service itself. Every example has model ids of its own."""

    service: ClassVar[RunningService]
    callers: ClassVar[ThreadPoolExecutor]
    kills: ClassVar[int] = 0

    def __init__(self) -> None:
        super().__init__()
        self.example = next(_examples)
        self.loaded: set[str] = set()

    def named(self, model: str) -> str:
        return f"{model}-{self.example}"

    def run(self, step: Step) -> Any:
        """The outcome of a step: what it returned, or the error."""
        do, model = step
        client, model_id = self.service.client, self.named(model)
        try:
            if do == "predict":
                return client.predict(model_id, order(seconds=0.01))["model_id"]
            return getattr(client, do)("faulty", model_id, timeout=60)
        except MlpkitError as error:
            return error

    @rule(together=steps)
    def ask(self, together: list[Step]) -> None:
        """Several clients at once; afterwards the model of what is loaded knows what they can have done."""
        outcomes = list(self.callers.map(self.run, together))
        for step, outcome in zip(together, outcomes, strict=True):
            self.check(step, outcome, together, may_be_lost=False)
        self.learn(together, certain=True)

    @rule(together=steps)
    def kill_a_worker_meanwhile(self, together: list[Step]) -> None:
        """The same, and the younger worker dies. What was in its hands may be lost, and nothing else."""
        if self.kills == MOST_KILLS:
            return
        type(self).kills += 1
        asked = [self.callers.submit(self.run, step) for step in together]
        wait_until(lambda: bool(self.service.workers()), "there is a worker to kill")
        victim = max(self.service.workers(), key=lambda each: each.create_time())
        with contextlib.suppress(psutil.NoSuchProcess):
            victim.kill()
        for step, each in zip(together, asked, strict=True):
            self.check(step, each.result(LONG), together, may_be_lost=True)
        wait_until(lambda: victim.pid not in [each.pid for each in self.service.workers()], "it is gone")
        wait_until(lambda: self.service.client.ready().ready, "all is as before")
        self.learn(together, certain=False)

    @invariant()
    def what_is_loaded_answers_and_nothing_else_does(self) -> None:
        placed = {each for each in self.service.client.monitor().load if each.endswith(f"-{self.example}")}
        assert placed == {self.named(each) for each in self.loaded}
        for model in IDS:
            outcome = self.run(("predict", model))
            if model in self.loaded:
                assert outcome == self.named(model)
            else:
                assert isinstance(outcome, ModelNotLoaded)

    def check(self, step: Step, outcome: Any, together: list[Step], *, may_be_lost: bool) -> None:
        do, model = step
        if may_be_lost and isinstance(outcome, (WorkerLost, LoadFailed)):
            return
        changes = {other for other, each in together if each == model and other != "predict"}
        if do == "predict":
            might_be_absent = model not in self.loaded or changes & {"unload", "delete"}
            might_be_there = model in self.loaded or "load" in changes
            if isinstance(outcome, ModelNotLoaded):
                assert might_be_absent, (step, outcome)
            else:
                assert outcome == self.named(model), (step, outcome)
                assert might_be_there, (step, outcome)
        elif may_be_lost and do == "delete":
            # Its hook runs in a worker that may be the one that was killed.
            assert outcome is None or isinstance(outcome, MlpkitError)
        else:
            assert outcome is None, (step, outcome)

    def learn(self, together: list[Step], *, certain: bool) -> None:
        """After loads alone, or unloads alone, it is certain what is loaded; else the service is asked."""
        there = set(self.service.client.monitor().load)
        for model in IDS:
            changes = {do for do, each in together if each == model and do != "predict"}
            if changes == {"load"} and certain:
                self.loaded.add(model)
            elif changes and "load" not in changes:
                self.loaded.discard(model)
            elif changes:
                self.loaded = self.loaded - {model} | ({model} if self.named(model) in there else set())

    def teardown(self) -> None:
        for model in IDS:
            self.run(("unload", model))


@pytest.fixture
def running(tmp_path: Path) -> Iterator[RunningService]:
    (tmp_path / "meeting").mkdir()
    values = {"FAULTS_FOLDER": str(tmp_path / "meeting"), "MLP_CLIENT_WORKER": "2", "MLPKIT_SHUTDOWN_GRACE": "1"}
    service = RunningService(f"{SCRIPT}:app", tmp_path / "home", values)
    try:
        service.wait_ready()
        yield service
    finally:
        service.stop()


def test_answers_agree_with_what_is_loaded(running: RunningService) -> None:
    Serving.service, Serving.kills = running, 0
    with ThreadPoolExecutor(CLIENTS) as Serving.callers:
        run_state_machine_as_test(
            Serving,
            settings=settings(
                max_examples=40,
                stateful_step_count=10,
                deadline=None,
                database=None,
                derandomize=True,
                suppress_health_check=list(HealthCheck),
            ),
        )
    assert Serving.kills == MOST_KILLS
