"""The predictions of one loaded model in one process.

From JSON to the user's `predict`, and back to JSON.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any

import msgspec

from mlpkit import formats
from mlpkit.algorithm import Algorithm
from mlpkit.errors import AnswerError, MlpkitError, UserCodeError
from mlpkit.injection import (
    END,
    Plan,
    ProcessScope,
    Services,
    async_user_code,
    next_async_value,
    next_value,
    split_batch,
    user_code,
    user_error,
)
from mlpkit.log import flush_author_streams, logger, request_id, traceparent, with_request_id
from mlpkit.serving.messages import Failure, Item, Predict, Reply, Result
from mlpkit.settings import Settings
from mlpkit.tracing import is_on, note_failure, span

Arguments = dict[str, object]
Decoded = tuple[int, Arguments]
"""An item's place in its batch, and its arguments."""

_NULL = b"null"
_MOST_CANCELLED = 1000
_MOST_UUIDS = 8
"""How many uuids of a batch are in a line of the log."""


class PredictRunner:
    """Runs the predictions of one model.

    `send` gets the reply to every request, in the thread that made it.
    """

    def __init__(
        self,
        algorithm: Algorithm,
        model_id: str,
        model: object,
        settings: Settings,
        services: Services,
        scope: ProcessScope,
        send: Callable[[Reply], None],
    ) -> None:
        self.algorithm = algorithm
        self.model_id = model_id
        self.model = model
        self._services = services
        self._scope = scope
        self.send = send
        self._plan = algorithm.plan("predict")
        self._kind = formats.kind_of(algorithm.kind)
        self.max_answer = settings.max_answer
        self._checks = settings.check_answers and self._kind.answer is not None
        self._tasks: set[asyncio.Task[None]] = set()
        self._cancelled: set[int] = set()
        self.seconds = math.inf
        """How long the last request took in `run`."""

    @property
    def is_async(self) -> bool:
        """Whether predictions run on the event loop.

        Then they begin with `start`; others run in a thread, with `run`.
        """
        return self._plan is not None and self._plan.is_async

    @property
    def is_generator(self) -> bool:
        """Whether `predict` yields its answer in parts."""
        return self._plan is not None and self._plan.is_generator

    def is_cancelled(self, id: int) -> bool:
        """Whether nobody waits for this request any more."""
        return id in self._cancelled

    def cancel(self, id: int) -> None:
        """Lets a generator be closed after its present part; from any thread."""
        # One that has ended meanwhile is never asked about again.
        if len(self._cancelled) >= _MOST_CANCELLED:
            self._cancelled.clear()
        self._cancelled.add(id)

    def run(self, request: Predict) -> None:
        """Answers a request here and now; never raises."""
        started = time.perf_counter()
        plan = self._plan
        if plan is None:
            missing = UserCodeError(f"algorithm {self.algorithm.name!r} has no predict function")
            results: list[Result] = [Failure.of(missing)] * len(request.items)
        elif plan.batch:
            results = self._batch(plan, request.items)
        elif plan.is_generator:
            results = [self._generated(plan, request.id, item) for item in request.items]
        else:
            single = self._traced_single if is_on() and request.items[0].traceparent else self._single
            results = [single(plan, item) for item in request.items]
        self.seconds = time.perf_counter() - started
        self.send(Reply(request.id, results, self.seconds))

    def start(self, request: Predict) -> None:
        """Begins to answer a request of an `async` handler.

        To be called on the event loop.
        """
        assert self._plan is not None
        task = asyncio.get_running_loop().create_task(self._run_async(self._plan, request))
        # The loop itself keeps only weak references.
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _single(self, plan: Plan, item: Item) -> Result:
        token = request_id.set(item.log_uuid)
        trace_token = traceparent.set(item.traceparent)
        try:
            fields = self._fields(item)
            arguments = plan.decode(fields)
            if plan.is_simple:
                try:
                    answer = plan.function(**arguments)
                except BaseException as error:  # as `user_code`, without a call for each prediction
                    raise user_error(error) from error
            else:
                with plan.complete(arguments, fields, self._services, self._scope) as call:
                    answer = user_code(plan.function, **call.arguments)
            return self._written(plan, item, answer)
        except Exception as error:
            return self._failed(error)
        finally:
            flush_author_streams()
            traceparent.reset(trace_token)
            request_id.reset(token)

    def _traced_single(self, plan: Plan, item: Item) -> Result:
        with self._in_span([item]):
            return self._single(plan, item)

    @contextmanager
    def _in_span(self, items: list[Item]) -> Iterator[None]:
        """Lets a call belong to the trace of its first item."""
        trace = items[0].traceparent
        # Rows of an evaluation and examples have no trace of their own.
        spanned = span("predict", model_id=self.model_id, items=len(items)) if trace else nullcontext()
        with with_request_id(_uuids(items), trace), spanned:
            yield

    def _generated(self, plan: Plan, id: int, item: Item) -> Result:
        """`_single` for a `predict` that yields its answer in parts."""
        with self._in_span([item]):
            try:
                fields = self._fields(item)
                with plan.complete(plan.decode(fields), fields, self._services, self._scope) as call:
                    generator = user_code(plan.function, **call.arguments)
                    parts = _AnswerParts(self, id, item)
                    try:
                        while not parts.cancelled and (part := next_value(generator)) is not END:
                            parts.add(part)
                    finally:
                        user_code(generator.close)
                return _NULL if parts.cancelled else self._written(plan, item, self._kind.joined(parts.found))
            except Exception as error:
                return self._failed(error)
            finally:
                self._cancelled.discard(id)

    async def _generated_async(self, plan: Plan, id: int, item: Item) -> Result:
        """`_generated` for an `async` generator."""
        with self._in_span([item]):
            try:
                fields = self._fields(item)
                with plan.complete(plan.decode(fields), fields, self._services, self._scope) as call:
                    generator = user_code(plan.function, **call.arguments)
                    parts = _AnswerParts(self, id, item)
                    try:
                        while (
                            not parts.cancelled
                            and (part := await async_user_code(next_async_value, generator)) is not END
                        ):
                            parts.add(part)
                    finally:
                        await async_user_code(generator.aclose)
                return _NULL if parts.cancelled else self._written(plan, item, self._kind.joined(parts.found))
            except (Exception, asyncio.CancelledError) as error:
                return self._failed(error)
            finally:
                self._cancelled.discard(id)

    def _batch(self, plan: Plan, items: list[Item]) -> list[Result]:
        """The results of a batch."""
        results, good = self._decoded(plan, items)
        if good:
            answers: list[Any] | BaseException
            with self._in_span([items[index] for index, _ in good]):
                try:
                    with self._completed(plan, good) as call:
                        answers = split_batch(user_code(plan.function, **call.arguments), len(good))
                except Exception as error:
                    answers = error
            for index in self._write_all(plan, items, good, answers, results):
                results[index] = self._batch(plan, [items[index]])[0]
        return results

    async def _run_async(self, plan: Plan, request: Predict) -> None:
        started = time.perf_counter()
        if plan.batch:
            results = await self._batch_async(plan, request.items)
        elif plan.is_generator:
            results = [await self._generated_async(plan, request.id, item) for item in request.items]
        else:
            results = [await self._single_async(plan, item) for item in request.items]
        self.send(Reply(request.id, results, time.perf_counter() - started))

    async def _single_async(self, plan: Plan, item: Item) -> Result:
        """`_single` for an `async` handler."""
        with self._in_span([item]):
            try:
                fields = self._fields(item)
                with plan.complete(plan.decode(fields), fields, self._services, self._scope) as call:
                    answer = await async_user_code(plan.function, **call.arguments)
                return self._written(plan, item, answer)
            except (Exception, asyncio.CancelledError) as error:
                return self._failed(error)

    async def _batch_async(self, plan: Plan, items: list[Item]) -> list[Result]:
        """`_batch` for an `async` handler."""
        results, good = self._decoded(plan, items)
        if good:
            answers: list[Any] | BaseException
            with self._in_span([items[index] for index, _ in good]):
                try:
                    with self._completed(plan, good) as call:
                        answers = split_batch(await async_user_code(plan.function, **call.arguments), len(good))
                except (Exception, asyncio.CancelledError) as error:
                    answers = error
            for index in self._write_all(plan, items, good, answers, results):
                results[index] = (await self._batch_async(plan, [items[index]]))[0]
        return results

    def _decoded(self, plan: Plan, items: list[Item]) -> tuple[list[Result], list[Decoded]]:
        """The results of a batch to be filled in, and its items.

        An item that does not decode fails here, and does not enter the batch.
        """
        results: list[Result] = [_NULL] * len(items)
        good: list[Decoded] = []
        for index, item in enumerate(items):
            with with_request_id(item.log_uuid, item.traceparent):
                try:
                    good.append((index, plan.decode(self._fields(item))))
                except Exception as error:
                    results[index] = self._failed(error)
        return results, good

    def _completed(self, plan: Plan, good: list[Decoded]) -> Any:
        fields = {"model": self.model, "model_id": self.model_id}
        return plan.complete(plan.merged([arguments for _, arguments in good]), fields, self._services, self._scope)

    def _write_all(
        self,
        plan: Plan,
        items: list[Item],
        good: list[Decoded],
        answers: list[Any] | BaseException,
        results: list[Result],
    ) -> list[int]:
        """Fills in the results of a batch; returns what must run alone.

        These are all of a batch that has raised, so that only a bad item fails. `answers` is then what it raised.
        """
        if isinstance(answers, BaseException):
            if len(good) > 1:
                return [index for index, _ in good]
            index = good[0][0]
            with with_request_id(items[index].log_uuid, items[index].traceparent):
                results[index] = self._failed(answers)
            return []
        for (index, _), answer in zip(good, answers, strict=True):
            with with_request_id(items[index].log_uuid, items[index].traceparent):
                try:
                    results[index] = self._written(plan, items[index], answer)
                except Exception as error:
                    results[index] = self._failed(error)
        return []

    def _fields(self, item: Item) -> Mapping[str, object]:
        return {
            "model": self.model,
            "model_id": self.model_id,
            "features": msgspec.Raw(item.features),
            "params": msgspec.Raw(item.params),
            "uuid": item.uuid,
        }

    def _written(self, plan: Plan, item: Item, answer: object) -> bytes:
        """The answer as JSON, checked, and cut as `params` ask."""
        if self._kind.limit is not None and item.params != _NULL and not plan.takes("params"):
            answer = self._kind.limit(answer, msgspec.json.decode(item.params))
        if self._checks:
            formats.check_answer(self._kind.name, answer)
        encoded = self.encoded(answer)
        if len(encoded) > self.max_answer:
            raise self.too_long(len(encoded))
        return encoded

    def encoded(self, answer: object) -> bytes:
        """An answer, or a part of one, as JSON."""
        try:
            encoded = formats.to_json(answer)
        except (TypeError, ValueError, RecursionError) as error:
            raise AnswerError(str(error)) from error
        except Exception as error:
            # An answer may be of the author's own classes, which say themselves what they are in JSON.
            raise user_error(error) from error
        return encoded

    def too_long(self, size: int) -> AnswerError:
        """The refusal of an answer of this many bytes."""
        allowed = f"{self.max_answer:,} are allowed (MLPKIT_MAX_ANSWER)"
        return AnswerError(f"the answer has {size:,} bytes of JSON, {allowed}")

    def send_part(self, id: int, part: bytes) -> None:
        """Sends a part of an answer."""
        self.send(Reply(id, [part], final=False))

    def _failed(self, error: BaseException) -> Failure:
        """The failure of an item; it is logged too."""
        if isinstance(error, asyncio.CancelledError):
            # Nobody cancels a prediction: something that the handler awaited was cancelled.
            error = UserCodeError("CancelledError")
        note_failure(error)
        if not isinstance(error, MlpkitError):
            logger.error("predict of model {!r} failed inside mlpkit", self.model_id, exception=error)
            return Failure.of(MlpkitError(f"internal error: {error}"))
        logger.error("predict of model {!r} failed: {}", self.model_id, error, trace=error.trace)
        return Failure.of(error)


class _AnswerParts:
    """The parts of one answer, sent as they come if wanted."""

    def __init__(self, runner: PredictRunner, id: int, item: Item) -> None:
        self.found: list[object] = []
        self._runner = runner
        self._id = id
        self._sends = item.parts
        self._size = 0

    @property
    def cancelled(self) -> bool:
        """Whether the caller has gone."""
        return self._runner.is_cancelled(self._id)

    def add(self, part: object) -> None:
        """Takes a part.

        Raises:
            AnswerError: it is not JSON, or the parts are too long together.
        """
        encoded = self._runner.encoded(part)
        self._size += len(encoded)
        if self._size > self._runner.max_answer:
            raise self._runner.too_long(self._size)
        self.found.append(part)
        if self._sends:
            self._runner.send_part(self._id, encoded)


def _uuids(items: list[Item]) -> str:
    return ",".join(item.log_uuid for item in items[:_MOST_UUIDS])
