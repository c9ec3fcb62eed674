"""The steps of `mlpkit check` in their order, and their runner.

A step returns a sentence, or raises: `_StepEnded` with another verdict and its sentence, or any error of mlpkit, which
means that it failed, and whose text is the sentence.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mlpkit.check.report import CheckReport, StepResult, Verdict
from mlpkit.check.service import CheckedService, MemoryWatch
from mlpkit.client import LocalFiles, TrainRequest, data_of, upload
from mlpkit.errors import (
    AnswerError,
    ArgumentError,
    MlpkitError,
    ModelNotLoaded,
    ServiceUnreachable,
    TimeLimitExceeded,
    UnexpectedAnswer,
    WorkerLost,
)
from mlpkit.formats import kind_of
from mlpkit.log import logger

_MIB = 1 << 20
_AT_ONCE = 32
_SETTLE_SECONDS = 3.0
_LEAST_LEAK = 24 * _MIB
_LONGEST_EXCERPT = 100
_ROUNDING = 1e-4
_LONGEST_SECONDS = 10.0
_MUST_BE_REFUSED = {"text for features", "a number for features", "null inside", "no model_id", "broken JSON"}
"""What the protocol itself forbids; whether the rest is refused is the algorithm's choice."""


class _StepEnded(Exception):
    """A step has ended otherwise than `passed`; the text is the sentence."""

    def __init__(self, verdict: Verdict, sentence: str) -> None:
        super().__init__(sentence)
        self.verdict = verdict


@dataclass
class CheckRun:
    """What the steps share: the request, and what earlier steps found."""

    service: CheckedService
    files: LocalFiles = field(default_factory=LocalFiles)
    parameters: object = None
    timeout: float = 3600.0
    examples: Sequence[Any] = ()
    request: TrainRequest | None = None
    model_id: str = ""
    answers: list[Any] = field(default_factory=list)
    throughput: float | None = None
    levels: dict[str, int] = field(default_factory=dict)

    def predict(self, features: object) -> Any:
        """The loaded model's answer."""
        return self.service.client.predict(self.model_id, features)


_Step = Callable[[CheckRun], str]


def _look_at_service(run: CheckRun) -> str:
    """The service answers, and has the algorithm."""
    algorithms = run.service.client.monitor().algorithms
    return f"algorithm {run.service.algorithm} of kind {run.service.kind}; the service has {', '.join(algorithms)}"


def _upload_data(run: CheckRun) -> str:
    """The data is sound, and the files are uploaded."""
    from mlpkit.formats import check_rows
    from mlpkit.storage import open_storage

    service = run.service
    kind = kind_of(service.kind)
    data = run.files.data
    run.examples = list(service.examples) or [dict(kind.example)]
    run.files.check()
    report = check_rows(data, service.kind, name=data.name) if data is not None and kind.checked else None
    if report is not None and report.fatal:
        raise _StepEnded("failed", f"{report.summary()}; `mlpkit data check` shows every row")
    if data is not None and not service.examples:
        run.examples = _examples_of(data, service.kind) or run.examples
    with contextlib.closing(open_storage(service.settings)) as storage:
        run.request = upload(run.files, storage, service.settings.data_bucket, "check", run.parameters)
    if data is None:
        raise _StepEnded("skipped", "no data was given (--data FILE)")
    sentence = f"{data.stat().st_size:,} bytes uploaded"
    if report is not None and report.warnings:
        raise _StepEnded("warning", f"{sentence}; {report.warnings} warnings (`mlpkit data check` shows them)")
    return sentence


def _refuse_unknown_algorithm(run: CheckRun) -> str:
    """Training an algorithm that does not exist is refused."""
    try:
        run.service.client.train("no such algorithm")
    except ArgumentError as error:
        return str(error)
    raise _StepEnded("failed", "a train of an algorithm that does not exist was accepted")


def _submit(run: CheckRun) -> str:
    """The training is accepted."""
    if not run.service.trains:
        run.model_id = f"check-{secrets.token_hex(8)}"
        raise _StepEnded("skipped", f"the algorithm has no train function; model {run.model_id} is loaded without one")
    request = run.request or TrainRequest({}, run.parameters, {})
    job = run.service.client.train(run.service.algorithm, request.data, request.parameters, request.extend)
    run.model_id = job.model_id
    return f"model {job.model_id}"


def _wait_for_training(run: CheckRun) -> str:
    """The training completes within the limit."""
    if not run.service.trains:
        raise _StepEnded("skipped", "nothing was trained")
    seen: list[str] = []

    def note(status: Any) -> None:
        word = str(status.status)
        if not seen or seen[-1] != word:
            seen.append(word)

    job = run.service.client.job(run.service.algorithm, run.model_id)
    try:
        job.wait(run.timeout, progress=note)
    except TimeLimitExceeded:
        # Only mlpkit has cancel; in another service the job continues.
        with contextlib.suppress(MlpkitError):
            job.cancel()
        raise _StepEnded(
            "failed", f"the training has not ended within {run.timeout:g} s (--timeout); status {seen[-1]}"
        ) from None
    return " → ".join(seen)


def _load(run: CheckRun) -> str:
    """The trained model loads, and the monitor shows it."""
    service = run.service
    client = service.client
    run.levels["before"] = service.memory()
    client.load(service.algorithm, run.model_id)
    if not client.monitor().load.get(run.model_id):
        raise _StepEnded("failed", "load answered success, but monitor does not show the model")
    run.levels["loaded"] = service.memory()
    return ""


def _load_again(run: CheckRun) -> str:
    """A loaded model can be loaded again: the platform repeats its calls."""
    run.service.client.load(run.service.algorithm, run.model_id)
    return ""


def _predict(run: CheckRun) -> str:
    """Every example is answered."""
    for features in run.examples:
        try:
            run.answers.append(run.predict(features))
        except ArgumentError as error:
            where = "examples= of the App, or --features, say what to ask"
            raise _StepEnded("failed", f"{_excerpt(features)} is refused: {error}; {where}") from None
    return _excerpt(run.answers[0])


def _check_kind(run: CheckRun) -> str:
    """The answers are what the algorithm's kind prescribes."""
    from mlpkit.formats import check_answer

    kind = run.service.kind
    if kind_of(kind).answer is None:
        raise _StepEnded("skipped", f"kind {kind} prescribes nothing")
    for features, answer in zip(run.examples, run.answers, strict=True):
        try:
            check_answer(kind, answer)
        except AnswerError as error:
            raise _StepEnded("failed", f"the answer to {_excerpt(features)} is not a {kind}: {error}") from None
    return ""


def _predict_again(run: CheckRun) -> str:
    """The same question gets the same answer."""
    for features, answer in zip(run.examples, run.answers, strict=True):
        second = run.predict(features)
        if not _same(answer, second):
            sentence = f"the same features got {_excerpt(answer)} and then {_excerpt(second)}"
            if kind_of(run.service.kind).may_differ:
                raise _StepEnded("warning", sentence)
            raise _StepEnded("failed", sentence)
    return ""


def _predict_at_once(run: CheckRun) -> str:
    """32 predictions at a time are all answered, and alike."""
    examples = [run.examples[number % len(run.examples)] for number in range(_AT_ONCE)]
    started = time.monotonic()
    with ThreadPoolExecutor(_AT_ONCE) as threads:
        answers = list(threads.map(lambda features: _answer_or_error(run, features), examples))
    seconds = time.monotonic() - started
    run.throughput = _AT_ONCE / seconds
    failures = [answer for answer in answers if isinstance(answer, MlpkitError)]
    if failures:
        raise _StepEnded("failed", f"{len(failures)} of {_AT_ONCE} predictions at once failed: {failures[0]}")
    wrong = [n for n in range(_AT_ONCE) if not _same(answers[n], run.answers[n % len(run.answers)])]
    if wrong and not kind_of(run.service.kind).may_differ:
        raise _StepEnded("failed", f"{len(wrong)} of {_AT_ONCE} predictions at once got another answer than alone")
    return f"{run.throughput:.0f} a second"


def _answer_bad_input(run: CheckRun) -> str:
    """Unexpected input gets a clear answer in time, and does no harm."""
    refused = [_ask_badly(run, name, body) for name, body in _bad_bodies(run.model_id).items()]
    after = run.predict(run.examples[0])
    if not _same(after, run.answers[0]) and not kind_of(run.service.kind).may_differ:
        raise _StepEnded("failed", "after the bad input the model gives another answer than before")
    return f"{len(refused)} tried, {sum(refused)} refused, {refused.count(False)} answered"


def _unload(run: CheckRun) -> str:
    """The model is gone, and can be unloaded again without an error."""
    service = run.service
    client = service.client
    client.unload(service.algorithm, run.model_id)
    _expect_not_loaded(run, "unload")
    client.unload(service.algorithm, run.model_id)
    run.levels["unloaded"] = _settled_memory(service)
    return ""


def _same_after_loading_again(run: CheckRun) -> str:
    """Loaded again, the model answers as before."""
    service = run.service
    client = service.client
    client.load(service.algorithm, run.model_id)
    answers = [run.predict(features) for features in run.examples]
    run.levels["loaded again"] = service.memory()
    client.unload(service.algorithm, run.model_id)
    run.levels["unloaded again"] = _settled_memory(service)
    for before, now in zip(run.answers, answers, strict=True):
        if not _same(before, now) and not kind_of(service.kind).may_differ:
            raise _StepEnded("failed", f"before it was unloaded it answered {_excerpt(before)}, now {_excerpt(now)}")
    return ""


def _give_memory_back(run: CheckRun) -> str:
    """Loading and unloading again gives all memory back.

    The first load is not counted: it brings libraries into memory that stay there for good.
    """
    if run.service.pid is None:
        raise _StepEnded("skipped", "the memory of a service that runs elsewhere cannot be seen")
    if "unloaded again" not in run.levels:
        raise _StepEnded("skipped", "the model was not loaded again")
    first = run.levels["unloaded"]
    second = run.levels["unloaded again"]
    model = max(0, run.levels["loaded again"] - first)
    kept = second - first
    if kept > max(_LEAST_LEAK, model // 2):
        raise _StepEnded(
            "failed",
            f"after unload {kept / _MIB:.0f} MiB more are in use than after the first one: the model is still "
            "referred to (a global list, a cache, a thread?); @app.load(isolated=True) ends the process with the model",
        )
    return f"{model / _MIB:.0f} MiB for the model, {max(0, kept) / _MIB:.0f} MiB kept"


def _delete(run: CheckRun) -> str:
    """The model is deleted, and is not there any more."""
    service = run.service
    client = service.client
    client.load(service.algorithm, run.model_id)
    client.delete(service.algorithm, run.model_id)
    _expect_not_loaded(run, "delete")
    if not service.trains:
        return ""
    try:
        client.load(service.algorithm, run.model_id)
    except MlpkitError:
        return ""
    client.unload(service.algorithm, run.model_id)
    raise _StepEnded("warning", "the model can still be loaded after delete: are its files in another place?")


STEPS: Mapping[str, _Step] = {
    "service": _look_at_service,
    "data": _upload_data,
    "unknown algorithm": _refuse_unknown_algorithm,
    "train": _submit,
    "status": _wait_for_training,
    "load": _load,
    "load twice": _load_again,
    "predict": _predict,
    "kind": _check_kind,
    "same answer twice": _predict_again,
    "32 at once": _predict_at_once,
    "bad input": _answer_bad_input,
    "unload": _unload,
    "load again": _same_after_loading_again,
    "memory": _give_memory_back,
    "delete": _delete,
}
_NEEDED = {"service", "train", "status", "load", "predict", "unload"}
"""Steps that the later ones need: when one fails, the rest is skipped."""


def _clean_up(run: CheckRun) -> None:
    """Removes the uploaded files; the service keeps its record of the job."""
    from mlpkit.storage import open_storage

    if run.request is not None:
        with contextlib.closing(open_storage(run.service.settings)) as storage:
            run.request.remove(storage)


def _examples_of(data: Path, name: str) -> list[Any]:
    from mlpkit.formats import read_rows

    kind = kind_of(name)
    if not kind.checked:
        return []
    rows = itertools.islice(read_rows(data, name), 3)
    return [dict(kind.features(row)) for row in rows]


def _answer_or_error(run: CheckRun, features: object) -> Any:
    try:
        return run.predict(features)
    except MlpkitError as error:
        return error


def _expect_not_loaded(run: CheckRun, after: str) -> None:
    try:
        run.predict(run.examples[0])
    except (ModelNotLoaded, UnexpectedAnswer):
        return
    except MlpkitError as error:
        raise _StepEnded(
            "failed", f"after {after} a prediction should say that the model is not loaded, it says: {error}"
        ) from None
    raise _StepEnded("failed", f"after {after} the model still answers predictions")


def _settled_memory(service: CheckedService) -> int:
    """The memory when it has stopped falling, in bytes."""
    lowest = service.memory()
    deadline = time.monotonic() + _SETTLE_SECONDS
    still = 0
    while still < 5 and time.monotonic() < deadline:
        time.sleep(0.1)
        now = service.memory()
        still = 0 if now < lowest else still + 1
        lowest = min(lowest, now)
    return lowest


def _bad_bodies(model_id: str) -> dict[str, bytes]:
    """Bodies of predict requests by what is wrong with them."""

    def body(**fields: object) -> bytes:
        return json.dumps({"model_id": model_id, **fields}).encode()

    return {
        "no features": body(),
        "text for features": body(features="text"),
        "a number for features": body(features=1),
        "null inside": body(features={"sentence": None}),
        "empty features": body(features={}),
        "wrong types inside": body(features={"sentence": {"a": [1, 2]}, "text": 1.5}),
        "strange characters": body(features={"sentence": "\x00\ud83d\ude00\u202e\ufeff" * 50}),
        "a long sentence": body(features={"sentence": "long " * 20_000}),
        "text for params": body(features={}, params="text"),
        "no model_id": b"{}",
        "broken JSON": b'{"model_id": ',
    }


def _ask_badly(run: CheckRun, name: str, body: bytes) -> bool:
    """Sends such a body; True if it was refused, False if answered.

    Raises:
        _StepEnded: the answer is missing, late or not of the protocol, a worker died, or a success is impossible; it
            shows a traceback.
    """
    client = run.service.client
    started = time.monotonic()
    refused = False
    try:
        answer = client.request("POST", f"{client.prefix}predict", body)
        data_of(answer)
    except (ServiceUnreachable, TimeLimitExceeded, UnexpectedAnswer, WorkerLost) as error:
        raise _StepEnded("failed", f"{name}: {error}") from None
    except MlpkitError:
        refused = True
    seconds = time.monotonic() - started
    if seconds > _LONGEST_SECONDS:
        raise _StepEnded("failed", f"{name}: the answer took {seconds:.0f} s")
    if name in _MUST_BE_REFUSED and not refused:
        raise _StepEnded("failed", f"{name}: it was accepted")
    if b"Traceback" in answer.body:
        raise _StepEnded("warning", f"{name}: the answer shows a traceback")
    return refused


def _same(one: Any, other: Any) -> bool:
    """Equal, up to rounding: batches may add up floats in another order."""
    if isinstance(one, bool) or isinstance(other, bool):
        return one is other
    if isinstance(one, (int, float)) and isinstance(other, (int, float)):
        return one == other or abs(one - other) <= _ROUNDING * max(abs(one), abs(other), 1.0)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(_same, one, other))
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_same(one[key], other[key]) for key in one)
    return bool(one == other)


def _excerpt(value: object) -> str:
    """The beginning of a value as JSON, for a sentence."""
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= _LONGEST_EXCERPT else text[: _LONGEST_EXCERPT - 1] + "…"


def run_check(
    run: CheckRun,
    *,
    on_begin: Callable[[str], None] = lambda step: None,
    on_end: Callable[[StepResult], None] = lambda outcome: None,
) -> CheckReport:
    """The report of the whole life of an algorithm.

    `on_begin` gets the name of every step that begins, `on_end` its outcome; steps that need a
    failed one are skipped.
    """
    outcomes: list[StepResult] = []
    broken = ""
    with MemoryWatch(run.service) as memory:
        for name, step in STEPS.items():
            on_begin(name)
            outcome = _outcome(name, step, run, memory) if not broken else _skipped(name, broken)
            on_end(outcome)
            outcomes.append(outcome)
            if outcome.verdict == "failed" and name in _NEEDED:
                broken = name
    try:
        _clean_up(run)
    except MlpkitError as error:
        logger.warning("the uploaded data could not be removed: {}", error)
    return CheckReport(
        target=run.service.target,
        algorithm=run.service.algorithm,
        outcomes=outcomes,
        throughput=run.throughput,
    )


def _outcome(name: str, step: _Step, run: CheckRun, memory: MemoryWatch) -> StepResult:
    memory.take()
    started = time.monotonic()
    verdict: Verdict = "passed"
    try:
        sentence = step(run)
    except _StepEnded as reason:
        verdict = reason.verdict
        sentence = str(reason)
    except MlpkitError as reason:
        verdict = "failed"
        sentence = str(reason)
    return StepResult(
        step=name, verdict=verdict, sentence=sentence, seconds=time.monotonic() - started, memory=memory.take()
    )


def _skipped(name: str, broken: str) -> StepResult:
    return StepResult(step=name, verdict="skipped", sentence=f"{broken} failed")
