"""The steps of `mlpkit check`, in the order of an algorithm's life on the platform.

A step returns a sentence, or raises: `Failed` with a sentence of its own, `Skipped` where it has nothing to look at,
`Doubtful` for a warning, or any error of mlpkit, whose text is the sentence then.
"""

from __future__ import annotations

import contextlib
import secrets
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from mlpkit.check.bad_input import ask_badly, bad_bodies
from mlpkit.check.course import Course, Doubtful, Failed, Skipped, excerpt, same
from mlpkit.check.subject import Subject
from mlpkit.errors import AnswerError, ArgumentError, MlpkitError, ModelNotLoaded, TimeLimitExceeded, UnexpectedAnswer

_MIB = 1 << 20
_AT_ONCE = 32
_SETTLE_SECONDS = 3.0
_MAY_DIFFER = ("text_generation", "text_custom")
"""Kinds whose answers may differ from one time to the next."""
_LEAST_LEAK = 24 * _MIB

Step = Callable[[Course], str]


def look_at_service(course: Course) -> str:
    """The service answers, and has the algorithm."""
    algorithms = course.subject.client.monitor().algorithms
    return (
        f"algorithm {course.subject.algorithm} of kind {course.subject.kind}; the service has {', '.join(algorithms)}"
    )


def upload_data(course: Course) -> str:
    """The data is sound, and is uploaded; examples to predict are found."""
    from mlpkit.formats import check_rows
    from mlpkit.storage import open_storage

    subject = course.subject
    course.examples = list(subject.examples)
    if course.data is None:
        course.examples = course.examples or [_plain_example(subject.kind)]
        raise Skipped("no data was given (--data FILE)")
    if not course.data.is_file():
        raise Failed(f"there is no file {course.data}")
    findings = check_rows(course.data, subject.kind, name=course.data.name) if subject.kind != "text_custom" else None
    if findings is not None and findings.fatal:
        raise Failed(f"{findings.summary()}; `mlpkit data check` shows every row")
    course.examples = course.examples or _examples_of(course.data, subject.kind)
    course.location = f"check/{secrets.token_hex(16)}/{course.data.name}"
    with contextlib.closing(open_storage(subject.settings)) as storage:
        storage.save(course.data, f"{subject.settings.data_bucket}/{course.location}")
    sentence = f"{course.data.stat().st_size:,} bytes uploaded"
    if findings is not None and findings.warnings:
        raise Doubtful(f"{sentence}; {findings.warnings} warnings (`mlpkit data check` shows them)")
    return sentence


def refuse_unknown_algorithm(course: Course) -> str:
    """A train of an algorithm that does not exist is refused as the protocol says."""
    try:
        course.subject.client.train("no such algorithm")
    except ArgumentError as error:
        return str(error)
    raise Failed("a train of an algorithm that does not exist was accepted")


def submit(course: Course) -> str:
    """The training is accepted."""
    if not course.subject.trains:
        course.model_id = f"check-{secrets.token_hex(8)}"
        raise Skipped(f"the algorithm has no train function; model {course.model_id} is loaded without one")
    data = {} if course.location is None else {"location": course.location}
    job = course.subject.client.train(course.subject.algorithm, data, course.parameters)
    course.model_id = job.model_id
    return f"model {job.model_id}"


def wait_for_training(course: Course) -> str:
    """The training ends well within the limit, and its status goes through the words of the protocol."""
    if not course.subject.trains:
        raise Skipped("nothing was trained")
    seen: list[str] = []

    def note(status: Any) -> None:
        word = str(status.status)
        if not seen or seen[-1] != word:
            seen.append(word)

    job = course.subject.client.job(course.subject.algorithm, course.model_id)
    try:
        job.wait(course.timeout, progress=note)
    except TimeLimitExceeded:
        # Only mlpkit has cancel; elsewhere the job goes on.
        with contextlib.suppress(MlpkitError):
            job.cancel()
        raise Failed(f"the training has not ended within {course.timeout:g} s (--timeout); status {seen[-1]}") from None
    return " → ".join(seen)


def load(course: Course) -> str:
    """The trained model loads, and the monitor shows it."""
    client, subject = course.subject.client, course.subject
    course.levels["before"] = subject.memory()
    client.load(subject.algorithm, course.model_id)
    if not client.monitor().load.get(course.model_id):
        raise Failed("load answered success, but monitor does not show the model")
    course.levels["loaded"] = subject.memory()
    return ""


def load_again(course: Course) -> str:
    """The model that is loaded already can be loaded once more: the platform repeats its calls."""
    course.subject.client.load(course.subject.algorithm, course.model_id)
    return ""


def predict(course: Course) -> str:
    """Every example is answered."""
    for features in course.examples:
        try:
            course.answers.append(course.predict(features))
        except ArgumentError as error:
            where = "examples= of the App, or --features, say what to ask"
            raise Failed(f"{excerpt(features)} is refused: {error}; {where}") from None
    return excerpt(course.answers[0])


def check_kind(course: Course) -> str:
    """The answers are what the algorithm's kind prescribes."""
    from mlpkit.formats import check_answer

    kind = course.subject.kind
    if kind == "text_custom":
        raise Skipped("kind text_custom prescribes nothing")
    for features, answer in zip(course.examples, course.answers, strict=True):
        try:
            check_answer(kind, answer)
        except AnswerError as error:
            raise Failed(f"the answer to {excerpt(features)} is no {kind}: {error}") from None
    return ""


def predict_again(course: Course) -> str:
    """The same question gets the same answer."""
    for features, answer in zip(course.examples, course.answers, strict=True):
        second = course.predict(features)
        if not same(answer, second):
            sentence = f"the same features got {excerpt(answer)} and then {excerpt(second)}"
            if course.subject.kind in _MAY_DIFFER:
                raise Doubtful(sentence)
            raise Failed(sentence)
    return ""


def predict_at_once(course: Course) -> str:
    """32 predictions at once are all answered, and alike."""
    examples = [course.examples[number % len(course.examples)] for number in range(_AT_ONCE)]
    started = time.monotonic()
    with ThreadPoolExecutor(_AT_ONCE) as threads:
        answers = list(threads.map(lambda features: _answer_or_error(course, features), examples))
    seconds = time.monotonic() - started
    course.throughput = _AT_ONCE / seconds
    failures = [each for each in answers if isinstance(each, MlpkitError)]
    if failures:
        raise Failed(f"{len(failures)} of {_AT_ONCE} predictions at once failed: {failures[0]}")
    wrong = [n for n in range(_AT_ONCE) if not same(answers[n], course.answers[n % len(course.answers)])]
    if wrong and course.subject.kind not in _MAY_DIFFER:
        raise Failed(f"{len(wrong)} of {_AT_ONCE} predictions at once got another answer than alone")
    return f"{course.throughput:.0f} a second"


def answer_bad_input(course: Course) -> str:
    """Input that no algorithm can expect gets a clear answer in time, and the model answers well afterwards."""
    refused = [ask_badly(course, name, body) for name, body in bad_bodies(course.model_id).items()]
    after = course.predict(course.examples[0])
    if not same(after, course.answers[0]) and course.subject.kind not in _MAY_DIFFER:
        raise Failed("after the bad input the model answers otherwise than before")
    return f"{len(refused)} tried, {sum(refused)} refused, {refused.count(False)} answered"


def unload(course: Course) -> str:
    """The model is gone, predictions say so, and unloading it again is no error."""
    client, subject = course.subject.client, course.subject
    client.unload(subject.algorithm, course.model_id)
    _expect_not_loaded(course, "unload")
    client.unload(subject.algorithm, course.model_id)
    course.levels["unloaded"] = _settled_memory(subject)
    return ""


def same_after_loading_again(course: Course) -> str:
    """Loaded again, the model answers as before."""
    client, subject = course.subject.client, course.subject
    client.load(subject.algorithm, course.model_id)
    answers = [course.predict(features) for features in course.examples]
    course.levels["loaded again"] = subject.memory()
    client.unload(subject.algorithm, course.model_id)
    course.levels["unloaded again"] = _settled_memory(subject)
    for before, now in zip(course.answers, answers, strict=True):
        if not same(before, now) and subject.kind not in _MAY_DIFFER:
            raise Failed(f"before it was unloaded it answered {excerpt(before)}, now {excerpt(now)}")
    return ""


def give_memory_back(course: Course) -> str:
    """Loading and unloading once more costs no memory that is not given back.

    The first load is not counted: it brings libraries into memory that stay there for good.
    """
    if course.subject.pid is None:
        raise Skipped("the memory of a service that runs elsewhere cannot be seen")
    if "unloaded again" not in course.levels:
        raise Skipped("the model was not loaded again")
    first, second = course.levels["unloaded"], course.levels["unloaded again"]
    model = max(0, course.levels["loaded again"] - first)
    kept = second - first
    if kept > max(_LEAST_LEAK, model // 2):
        raise Failed(
            f"after unload {kept / _MIB:.0f} MiB more are in use than after the first one: the model is still "
            "referred to (a global list, a cache, a thread?); @app.load(isolated=True) ends the process with the model"
        )
    return f"{model / _MIB:.0f} MiB for the model, {max(0, kept) / _MIB:.0f} MiB kept"


def delete(course: Course) -> str:
    """The model is deleted, and is not there any more."""
    client, subject = course.subject.client, course.subject
    client.load(subject.algorithm, course.model_id)
    client.delete(subject.algorithm, course.model_id)
    _expect_not_loaded(course, "delete")
    if not subject.trains:
        return ""
    try:
        client.load(subject.algorithm, course.model_id)
    except MlpkitError:
        return ""
    client.unload(subject.algorithm, course.model_id)
    raise Doubtful("the model can still be loaded after delete: are its files elsewhere?")


STEPS: Mapping[str, Step] = {
    "service": look_at_service,
    "data": upload_data,
    "unknown algorithm": refuse_unknown_algorithm,
    "train": submit,
    "status": wait_for_training,
    "load": load,
    "load twice": load_again,
    "predict": predict,
    "kind": check_kind,
    "same answer twice": predict_again,
    "32 at once": predict_at_once,
    "bad input": answer_bad_input,
    "unload": unload,
    "load again": same_after_loading_again,
    "memory": give_memory_back,
    "delete": delete,
}
NEEDED = {"service", "train", "status", "load", "predict", "unload"}
"""Steps without which the later ones make no sense: when one fails, the rest is skipped."""


def clean_up(course: Course) -> None:
    """Removes the uploaded data; what the service keeps of the job is its own."""
    from mlpkit.storage import open_storage

    if course.location is not None:
        with contextlib.closing(open_storage(course.subject.settings)) as storage:
            storage.delete(f"{course.subject.settings.data_bucket}/{course.location}")


def _plain_example(kind: str) -> Any:
    return {} if kind == "text_custom" else {"sentence": "a sentence to try"}


def _examples_of(data: Path, kind: str) -> list[Any]:
    from mlpkit.formats import read_rows

    if kind == "text_custom":
        return [_plain_example(kind)]
    found = []
    for row in read_rows(data, kind):
        text = getattr(row, "sentence", None) or getattr(row, "text", None)
        if isinstance(text, str):
            found.append({"sentence": text})
        if len(found) == 3:
            break
    return found or [_plain_example(kind)]


def _answer_or_error(course: Course, features: object) -> Any:
    try:
        return course.predict(features)
    except MlpkitError as error:
        return error


def _expect_not_loaded(course: Course, after: str) -> None:
    try:
        course.predict(course.examples[0])
    except (ModelNotLoaded, UnexpectedAnswer):
        return
    except MlpkitError as error:
        raise Failed(f"after {after} a prediction should say that the model is not loaded, it says: {error}") from None
    raise Failed(f"after {after} the model still answers predictions")


def _settled_memory(subject: Subject) -> int:
    """The memory once it has stopped falling: freed pages and ended processes take a moment."""
    lowest, deadline = subject.memory(), time.monotonic() + _SETTLE_SECONDS
    still = 0
    while still < 5 and time.monotonic() < deadline:
        time.sleep(0.1)
        now = subject.memory()
        still = 0 if now < lowest else still + 1
        lowest = min(lowest, now)
    return lowest
