"""The accounts at the end of a soak: every request and every job exactly once, in the log as with those who asked."""

from __future__ import annotations

import contextlib
import json
import re
from collections import Counter
from dataclasses import dataclass
from itertools import chain

import psutil

from mlpkit.errors import MlpkitError
from mlpkit.settings import load_settings
from mlpkit.storage import open_model, open_storage
from tests.acceptance.service import gone
from tests.servers import wait_until
from tests.soak.record import ANSWERED, SLACK, Ask, Training
from tests.soak.scene import Scene

LAST_JOBS = 6
_ROUTES = ("predict", "load", "unload", "delete", "train")
"""Those whose requests bear the uuid under which they were recorded."""
_UNANSWERED = ("ServiceUnreachable", "TimeLimitExceeded")
_ACCESS = re.compile(r"\[(soak-\d+)\] server access \| POST /(\w+) \d+ (?:(\w+) )?\d+\.\d ms ")
_PREDICTIONS = re.compile(r" server access \| POST /predict ")
_JOB_END = re.compile(r"\| job \[(\w+)\] of \w+ ended: ")
_ENDS = {
    "finish": r"$",
    "raise": r"RuntimeError: as it was ordered$",
    "exit": r"the training process exited with code 3 ",
    "kill": r"the training process was killed by SIGKILL",
}
_INTERRUPTED = re.compile("the service ended while it ran|the process that had started it has ended")
_ALL_END_WITHIN = 240.0


@dataclass(frozen=True)
class Job:
    """A job as `/jobs` lists it at the end."""

    state: str
    message: str
    uuid: str
    created: float
    ended: float


def settle(scene: Scene) -> Counter[str]:
    """Ends the soak of a scene whose users have stopped; how many jobs ended in which state. Blames what is wrong."""
    _check_metrics(scene)
    for number in range(LAST_JOBS):
        job = scene.client.train("shared", parameters={"word": "last", "seconds": number % 3})
        scene.record.trainings[job.model_id] = Training("shared", "finish")
    scene.kill_server()
    jobs = _ended_jobs(scene)
    _check_jobs(scene, jobs)
    _check_store(scene, jobs)
    _stop(scene)
    log = scene.service.log
    _check_requests(scene, log)
    ends = Counter(_JOB_END.findall(log))
    for model_id in jobs:
        killed = scene.record.excused(jobs[model_id].ended, jobs[model_id].ended, "server")
        if ends[model_id] > 1 or (ends[model_id] == 0 and not killed):
            scene.record.blame(f"job {model_id} ended {ends[model_id]} times by the log")
    return Counter(each.state for each in jobs.values())


def _check_metrics(scene: Scene) -> None:
    """Nothing is held any more, and the counts of the service are those of its log."""

    def at_rest() -> bool:
        return not any(each.waiting or each.in_flight for each in scene.client.models())

    def counted() -> float:
        text = scene.client.request("GET", "/metrics").body.decode()
        return sum(float(each) for each in re.findall(r'^mlpkit_requests_total{route="predict".* (\S+)$', text, re.M))

    def logged() -> int:
        return len(_PREDICTIONS.findall(scene.service.log.rpartition(" | serving ")[2]))

    try:
        wait_until(at_rest, "no model holds a request", 30)
        wait_until(lambda: counted() == logged(), "the metrics count the predictions that the log has", 5)
    except TimeoutError as error:
        scene.record.blame(f"{error}: {counted():g} counted, {logged()} logged")


def _ended_jobs(scene: Scene) -> dict[str, Job]:
    try:
        wait_until(lambda: all(each.ended for each in scene.client.jobs()), "all jobs have ended", _ALL_END_WITHIN)
    except TimeoutError as error:
        scene.record.blame(str(error))
    listed = json.loads(scene.client.request("GET", "/jobs").body)["data"]["jobs"]
    return {
        each["model_id"]: Job(
            each["state"], each["message"] or "", each["uuid"], each["created"], each["ended"] or each["created"]
        )
        for each in listed
    }


def _check_jobs(scene: Scene, jobs: dict[str, Job]) -> None:
    """Every accepted job is there and ended as it was to; none is there that nobody asked for, or that ran twice."""
    record = scene.record
    for uuid, count in Counter(each.uuid for each in jobs.values() if each.uuid.startswith("soak-")).items():
        if count > 1:
            record.blame(f"request {uuid} made {count} jobs")
    for model_id, training in record.trainings.items():
        if model_id not in jobs:
            record.blame(f"job {model_id} was accepted and is not there")
            continue
        job = jobs[model_id]
        is_right = job.state == ("completed" if training.do == "finish" else "error")
        is_right = is_right and re.match(_ENDS[training.do], job.message) is not None
        was_cancelled = training.cancelled and job.message == "cancelled"
        had_trouble = _INTERRUPTED.search(job.message) or record.excused(job.created, job.ended, "store")
        if not (is_right or was_cancelled or had_trouble):
            record.blame(f"job {model_id} was to {training.do} and is {job.state}: {job.message}")
    for twice in scene.folder.glob("*.twice"):
        record.blame(f"job {twice.stem} ran twice at a time")


def _check_store(scene: Scene, jobs: dict[str, Job]) -> None:
    """A completed job has a model, one that failed in its handler has none, and every model there is whole."""
    settings = load_settings({**scene.store.server.environment, "MLPKIT_HOME": str(scene.folder)}, None)
    with contextlib.closing(open_storage(settings)) as storage:
        for model_id, training in scene.record.trainings.items():
            if model_id not in jobs or training.deleted:
                continue
            is_there = storage.exists(f"ml-platform-model/{model_id}/mlpkit.json")
            # One that was cancelled, or that lost its store, at the very end may have stored its model already.
            if is_there != (jobs[model_id].state == "completed") and not (is_there and training.do == "finish"):
                scene.record.blame(f"the model of job {model_id}, {jobs[model_id].state}: stored is {is_there}")
            if is_there:
                try:
                    open_model(storage, settings, model_id, None)
                except MlpkitError as error:
                    scene.record.blame(f"the model of job {model_id} is not whole: {error}")


def _stop(scene: Scene) -> None:
    """SIGTERM: exit code 0, and nothing is left of all that ever ran."""
    for known in scene.steady:
        try:
            assert scene.client.predict(known.model_id, {"nonce": "last"})["word"] == known.word
        except (MlpkitError, AssertionError) as error:
            scene.record.blame(f"{known.model_id} at the end: {error}")
    code, children = scene.service.terminate()
    if code != 0:
        scene.record.blame(f"after SIGTERM, the exit code was {code}")
    for each in chain(children, psutil.process_iter()):
        with contextlib.suppress(psutil.Error):
            if not gone(each) and each.environ().get("SOAK_FOLDER") == str(scene.folder):
                scene.record.blame(f"process {each.pid} is left: {' '.join(each.cmdline())}")
                each.kill()


def _check_requests(scene: Scene, log: str) -> None:
    """The log has every answered request once, as its caller knows it; one that broke off at most once."""
    record = scene.record
    asks = {each.uuid: each for each in record.asks if each.route in _ROUTES}
    lines = Counter[str]()
    for uuid, route, word in _ACCESS.findall(log):
        lines[uuid] += 1
        ask = asks.get(uuid)
        if ask is None or ask.route != route:
            record.blame(f"the log has {route} {uuid}, which nobody asked")
        elif ask.outcome == ANSWERED and word:
            record.blame(f"{route} {uuid} was answered and is {word} in the log")
        elif ask.outcome != ANSWERED and _has_answer(ask) and not word:
            record.blame(f"{route} {uuid} was refused ({ask.outcome}) and is a success in the log")
    for uuid, ask in asks.items():
        # Lines wait a moment for company, and a killed server writes no more.
        may_be_lost = not _has_answer(ask) or record.excused(ask.ended, ask.ended + SLACK, "server")
        if lines[uuid] > 1 or (lines[uuid] == 0 and not may_be_lost):
            record.blame(f"{ask.route} {uuid} ({ask.outcome}) is {lines[uuid]} times in the log")


def _has_answer(ask: Ask) -> bool:
    return ask.outcome not in (*_UNANSWERED, "caller gone")
