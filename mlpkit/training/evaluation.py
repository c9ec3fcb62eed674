"""How good a model is: it answers every test row.

`load` and `predict` of the script run as in the service. A job does this after `train` and before the model is stored,
and so do `mlpkit evaluate` and `mlpkit compare`. The rows are read as a stream, and the measures keep counts, so that
memory does not grow with the number of rows.
"""

from __future__ import annotations

import contextlib
import contextvars
import itertools
import math
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import msgspec

from mlpkit.algorithm import Algorithm
from mlpkit.app import App
from mlpkit.errors import AnswerError, ArgumentError, EvaluationFailed, MlpkitError, TimeLimitExceeded, UserCodeError
from mlpkit.formats import Durations, EvaluationReport, FailedRows, check_answer, kind_of, to_json
from mlpkit.injection import NULL, Fields, Plan, ProcessScope, Services, async_user_code, split_batch
from mlpkit.log import logger

T = TypeVar("T")
NumberedRow = tuple[int, Any]
"""The line of a row in its file, from 1, and the row."""
Decoded = tuple[Fields, dict[str, object]]
"""The fields of a row's request, and the arguments of `predict` that they become."""

REPORT = "evaluation.json"
"""The name of the report's file in the model's folder."""
_NO_ROWS = "there is no test row"
_BATCH = 32
"""Rows that are read together if `predict` takes one at a time."""
_COMPARED = 8
"""Rows of the first batch that are asked twice, to find out whether the order of the answers is right."""


@dataclass(frozen=True)
class RowAnswer:
    """What a model answered to a test row.

    `answer` is the author's own object, `plain` the same as decoded JSON; both are None if there is an `error`.
    """

    line: int
    row: Any
    answer: Any = None
    plain: Any = None
    error: MlpkitError | None = None


class ModelUnderTest:
    """A loaded model that answers test rows.

    Use it as a context manager, in one thread, in which no event loop runs.

    Args:
        services: what `load` gets.
        fields: the fields that `load` can name.
    """

    def __init__(self, app: App, algorithm: Algorithm, services: Services, fields: Fields) -> None:
        self.algorithm = algorithm
        self.durations = Durations()
        self.seconds = {"load": 0.0, "predict": 0.0}
        self._app = app
        self._services = services
        self._fields = fields
        self._scope = ProcessScope(services, app.overrides(), self._in_loop)
        self._exits = contextlib.ExitStack()
        self._loop: Any = None
        self._own_fields: dict[str, object] = {"model": None, "model_id": fields["model_id"]}
        self._order_is_known = False

    def __enter__(self) -> ModelUnderTest:
        load = self._plan("load")
        started = time.perf_counter()
        try:
            self._exits.callback(self._scope.close)
            with _named("on_start"):
                for hook in self._app.lifecycle("on_start"):
                    self.call(hook.plan)
            for hook in reversed(self._app.lifecycle("on_stop")):
                self._exits.callback(self.call, hook.plan)
            with _named("load"):
                self._own_fields["model"], closers = load.open(self._fields, self._services, self._scope)
            for close in reversed(closers):
                self._exits.callback(close)
            unload = self.algorithm.plan("unload")
            if unload is not None:
                self._exits.callback(self.call, unload)
        except BaseException:
            self._exits.close()
            raise
        self.seconds["load"] = time.perf_counter() - started
        return self

    def __exit__(self, *error: object) -> None:
        try:
            self._exits.close()
        except MlpkitError as failure:
            logger.warning("the clean-up after the evaluation failed: {}", failure)
        finally:
            # The scope holds this object, so that it would keep the model's memory for a while.
            self._own_fields["model"] = None
            if self._loop is not None:
                self._loop.close()

    def call(self, plan: Plan, **fields: object) -> Any:
        """What a function of the script returns.

        It can name `fields`, and the model.

        Raises:
            UserCodeError: it failed.
        """
        return plan({**self._own_fields, **fields}, self._services, self._scope)

    def answers(self, rows: Iterable[NumberedRow]) -> Iterator[RowAnswer]:
        """The answers to the rows, in their order.

        Raises:
            EvaluationFailed: `predict` does not answer each item of a batch, or mixes them up.
        """
        plan = self._plan("predict")
        size = self.algorithm.predict_options.max_batch_size
        remaining = iter(rows)
        while batch := list(itertools.islice(remaining, size if size > 1 else _BATCH)):
            yield from self._batch(plan, batch)

    def _batch(self, plan: Plan, batch: Sequence[NumberedRow]) -> list[RowAnswer]:
        errors: dict[int, MlpkitError] = {}
        items: list[Decoded] = []
        for index, (_, row) in enumerate(batch):
            try:
                items.append(self._decoded(plan, self._features(row)))
            except MlpkitError as error:
                _raise_interrupt(error)
                errors[index] = error
        started = time.perf_counter()
        found = self._predicted(plan, items)
        took = time.perf_counter() - started
        self.seconds["predict"] += took
        self.durations.add(took, len(batch))
        if plan.batch and not self._order_is_known and len(items) > 1:
            self._check_order(plan, items[:_COMPARED], found)
        given = iter(found)
        return [self._tested(*batch[index], errors.get(index) or next(given)) for index in range(len(batch))]

    def _tested(self, line: int, row: Any, found: Any) -> RowAnswer:
        if isinstance(found, MlpkitError):
            return RowAnswer(line, row, error=found)
        try:
            check_answer(self.algorithm.kind, found)
            return RowAnswer(line, row, found, msgspec.json.decode(_json(found)))
        except MlpkitError as error:
            return RowAnswer(line, row, error=error)

    def _features(self, row: Any) -> bytes:
        plan = self.algorithm.plan("features")
        if plan is None:
            return msgspec.json.encode(kind_of(self.algorithm.kind).features(row))
        made = _json(self.call(plan, row=row))
        if not made.startswith(b"{"):
            raise ArgumentError(f"features returned {made[:80].decode(errors='replace')}: it must be a JSON object")
        return made

    def _decoded(self, plan: Plan, features: bytes) -> Decoded:
        fields = {**self._own_fields, "features": msgspec.Raw(features), "params": NULL, "uuid": None}
        return fields, plan.decode(fields)

    def _predicted(self, plan: Plan, items: list[Decoded]) -> list[Any]:
        """The answers, or in their place why there is none."""
        if not plan.batch:
            return [self._single(plan, *item) for item in items]
        if not items:
            return []
        try:
            merged = plan.merged([arguments for _, arguments in items])
            with plan.complete(merged, self._own_fields, self._services, self._scope) as call:
                return split_batch(plan.run(call.arguments, self._in_loop), len(items))
        except AnswerError as error:
            raise EvaluationFailed(str(error)) from error
        except UserCodeError as error:
            _raise_interrupt(error)
            # As in the service: a bad item fails alone.
            return [error] if len(items) == 1 else [self._predicted(plan, [item])[0] for item in items]

    def _single(self, plan: Plan, fields: Fields, arguments: dict[str, object]) -> Any:
        try:
            # As in the service, a dependency may take fields of the request too.
            with plan.complete(arguments, fields, self._services, self._scope) as call:
                answer = plan.run(call.arguments, self._in_loop)
                return kind_of(self.algorithm.kind).joined(answer) if plan.is_generator else answer
        except MlpkitError as error:
            _raise_interrupt(error)
            return error

    def _check_order(self, plan: Plan, items: list[Decoded], found: list[Any]) -> None:
        """Asks for the first rows again, in another order.

        Raises:
            EvaluationFailed: the answers are the same, but not in the order of the rows.
        """
        self._order_is_known = True
        if kind_of(self.algorithm.kind).may_differ:
            return
        again = self._predicted(plan, items[1:] + items[:1])
        first = self._predicted(plan, items) if len(found) != len(items) else found
        try:
            wanted = [_json(answer) for answer in first[1:] + first[:1]]
            got = [_json(answer) for answer in again]
        except MlpkitError:
            return
        if got != wanted and Counter(got) == Counter(wanted):
            raise EvaluationFailed(
                "predict does not answer in the order of its features: answer i of a batch must belong to features[i]"
            )

    def _in_loop(self, function: Callable[..., Any], /, **arguments: object) -> Any:
        import asyncio

        if self._loop is None:
            self._loop = asyncio.new_event_loop()
        return self._loop.run_until_complete(async_user_code(function, **arguments))

    def _plan(self, name: str) -> Plan:
        plan = self.algorithm.plan(name)
        if plan is None:
            raise EvaluationFailed(f"algorithm {self.algorithm.name!r} has no {name} function")
        return plan


@dataclass
class Evaluation:
    """The measures of one model while it answers."""

    model: ModelUnderTest
    _failed: FailedRows = field(default_factory=FailedRows)
    _rows: int = 0

    def __post_init__(self) -> None:
        make = kind_of(self.model.algorithm.kind).measure
        self._measure = make() if make is not None else None

    def add(self, tested: RowAnswer) -> bool | None:
        """Counts an answer, and says whether it is right.

        None if that is not known.
        """
        self._rows += 1
        if tested.error is not None:
            if not self._failed.rows:
                self._failed = FailedRows(0, tested.line, str(tested.error))
                logger.warning("predict failed for the test row of line {}: {}", tested.line, tested.error)
            self._failed = msgspec.structs.replace(self._failed, rows=self._failed.rows + 1)
        if self._measure is None:
            return None
        try:
            return self._measure.add(tested.line, tested.row, tested.plain)
        except AttributeError as error:
            # The measure of a kind that somebody has registered, with rows of another shape.
            measure = type(self._measure).__name__
            raise EvaluationFailed(
                f"the rows of kind {self.model.algorithm.kind!r} do not fit {measure}: {error}; "
                "give them what it reads, or the kind a measure of its own"
            ) from error

    def run(
        self, rows: Iterable[NumberedRow], note: Callable[[bool | None], object] = lambda right: None
    ) -> dict[str, Any]:
        """Measures all rows; the figures of `@app.evaluate`, if the script has it.

        `note` is told of each row whether the answer is right.

        Raises:
            EvaluationFailed: what `predict` answers cannot be measured.
            UserCodeError: the author's `evaluate` failed.
        """

        def pairs() -> Iterator[tuple[Any, Any]]:
            for tested in self.model.answers(rows):
                note(self.add(tested))
                yield tested.row, tested.answer

        remaining = pairs()
        plan = self.model.algorithm.plan("evaluate")
        metrics: dict[str, Any] = {}
        if plan is not None:
            with _named("evaluate"):
                returned = self.model.call(plan, pairs=remaining)
            metrics = _checked_metrics(returned)
        for _ in remaining:
            pass  # what the author's function has left
        return metrics

    def report(self, **known: Any) -> EvaluationReport:
        """The report; `known` are further fields of it."""
        if self._rows and self._failed.rows == self._rows:
            first = f"line {self._failed.line}: {self._failed.message}"
            message = f"predict failed for all {self._rows:,} test rows; {first}"
            return EvaluationReport(**{**known, "rows": self._rows, "error": message, "failed": self._failed})
        figures: dict[str, Any] = {"rows": self._rows} if self._measure is None else self._measure.figures()
        if self._rows and not figures["rows"] and known.get("metrics"):
            figures = {"rows": self._rows}  # only the author's function knows what is right
        elif not figures["rows"]:
            # Shares of nothing would be taken for results.
            unused = figures.get("negatives", 0)
            error = f"all {unused:,} test rows have posneg 0: none says what is right" if unused else _NO_ROWS
            figures = {"rows": 0, "negatives": unused, "error": figures.get("error") or error}
        return EvaluationReport(
            **{
                **known,
                **figures,
                "failed": self._failed,
                "milliseconds": self.model.durations.milliseconds(),
                "seconds": {name: float(f"{seconds:.4g}") for name, seconds in self.model.seconds.items()},
            }
        )


def with_time_limit(function: Callable[[threading.Event], T], limit: float) -> T:
    """What the function returns; it runs in a thread of its own.

    The event is set when the limit is over. A function that does not end then is left behind: the process ends anyway
    when its work is done.

    Raises:
        TimeLimitExceeded: it did not end within `limit` seconds.
    """
    over = threading.Event()
    results: list[T] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            results.append(function(over))
        except BaseException as error:
            errors.append(error)

    context = contextvars.copy_context()
    thread = threading.Thread(target=context.run, args=(run,), name="mlpkit-evaluate", daemon=True)
    thread.start()
    try:
        thread.join(limit)
    finally:
        over.set()
    if thread.is_alive() and not results and not errors:
        # It may be between two batches.
        thread.join(1)
    if errors:
        raise errors[0]
    if not results:
        raise TimeLimitExceeded(f"the evaluation took longer than {limit:g} s (MLPKIT_EVALUATE_TIMEOUT)")
    return results[0]


@contextlib.contextmanager
def _named(function: str) -> Iterator[None]:
    """Says in an error which function of the script has failed."""
    try:
        yield
    except UserCodeError as error:
        _raise_interrupt(error)
        if isinstance(error.__cause__, EvaluationFailed):
            raise error.__cause__ from None  # it came through the author's function
        raise UserCodeError(f"{function} failed: {error}", kind=error.kind, trace=error.trace) from error


def _raise_interrupt(error: MlpkitError) -> None:
    """Raises a Ctrl-C again, which ends `mlpkit evaluate`.

    It is not a failure of the row.
    """
    if isinstance(error.__cause__, KeyboardInterrupt) and threading.current_thread() is threading.main_thread():
        raise error.__cause__


def _checked_metrics(returned: Any) -> dict[str, Any]:
    if not isinstance(returned, dict) or not all(isinstance(name, str) for name in returned):
        raise EvaluationFailed(f"evaluate returned {returned!r:.80}: it must be a dict of names and numbers")
    metrics: dict[str, Any] = {}
    for name, value in returned.items():
        try:
            number = float(value)
        except (TypeError, ValueError):
            raise EvaluationFailed(f"evaluate returned {value!r:.80} as {name}: it must be a number") from None
        if not math.isfinite(number):
            raise EvaluationFailed(f"evaluate returned {number} as {name}: it must be a finite number")
        metrics[name] = number
    return metrics


def _json(answer: Any) -> bytes:
    if isinstance(answer, MlpkitError):
        raise answer
    try:
        return to_json(answer)
    except (TypeError, ValueError, RecursionError) as error:
        raise AnswerError(str(error)) from error
