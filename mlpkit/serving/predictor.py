"""The predictions of one loaded model in one process: from JSON to the user's `predict` and back to JSON.

Quick synchronous handlers run on the loop itself, in arrival order; slow ones in threads, so that other models go on;
`async def` ones on the loop, several at once. `_results` is written once, as a coroutine: for a synchronous handler it
never suspends, and is run to its end in one step. Only a synchronous handler of single items has a shorter way.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import Callable, Coroutine, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

import msgspec

from mlpkit import formats
from mlpkit.app import Algorithm
from mlpkit.errors import AnswerError, MlpkitError, UserCodeError
from mlpkit.injection import Plan, ProcessScope, Services, async_user_code, user_code, user_error
from mlpkit.log import logger, request_id
from mlpkit.serving.messages import Answer, Failure, Item, Predict, Result
from mlpkit.settings import Settings

T = TypeVar("T")
Decoded = tuple[int, dict[str, object]]
"""An item's place in its batch, and its arguments."""

_SLOW = 0.02
"""Seconds from which on a synchronous handler runs in a thread: handing it over costs a thousandth of that."""
_TURN = 0.001
"""Seconds for which quick handlers may run before the loop gets to write their answers."""
_PAUSE = 0.0001
"""Requests that come sooner after each other than so many seconds are of the same turn of the loop."""
_TOGETHER = 64
"""How many `async def` predictions of one model run at the same time."""
_NULL = b"null"


@dataclass(frozen=True)
class Surroundings:
    """What a process offers to handlers: its settings, its services, its process-wide dependencies."""

    settings: Settings
    services: Services
    scope: ProcessScope


class Predictor:
    """Runs the predictions of one model. `send` gets the answer to every request, on the loop.

    `inline=False` keeps handlers off the loop altogether: for the server process, which must stay responsive.
    """

    def __init__(
        self,
        algorithm: Algorithm,
        model_id: str,
        model: object,
        surroundings: Surroundings,
        send: Callable[[Answer], None],
        *,
        inline: bool,
    ) -> None:
        self.algorithm, self.model_id, self.model = algorithm, model_id, model
        self._around, self._send = surroundings, send
        self._plan = algorithm.plan("predict")
        self._batches = self._plan is not None and self._plan.batch
        self._is_async = self._plan is not None and self._plan.is_async
        self._kind = formats.kind_of(algorithm.kind)
        self._checks = surroundings.settings.check_answers and self._kind.answer is not None
        threads = algorithm.predict_options.threads
        self._inline = inline and threads == 1 and not self._is_async
        self._at_once = max(threads, _TOGETHER) if self._is_async else threads
        self._loop = asyncio.get_running_loop()
        self._threads: ThreadPoolExecutor | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._waiting: deque[Predict] = deque()
        self._running, self._scheduled, self._usual = 0, False, 0.0
        self._turn_began = self._turn_ended = 0.0

    def take(self, request: Predict) -> None:
        """Begins with a request, or keeps it until the ones before it are done."""
        self._waiting.append(request)
        if not self._scheduled:
            self._work()

    def close(self) -> None:
        """Lets go of the model."""
        self.model = None
        if self._threads is not None:
            self._threads.shutdown(wait=False)

    def _go_on(self) -> None:
        self._scheduled = False
        self._turn_began = 0.0
        self._work()

    def _work(self) -> None:
        # The first call runs in a thread too: nobody knows how long it takes.
        if not (self._inline and 0.0 < self._usual < _SLOW and self._running == 0):
            self._begin_waiting()
            return
        while self._waiting and not self._scheduled:
            request, began = self._waiting.popleft(), time.perf_counter()
            results = self._results_now(request.items)
            ended = time.perf_counter()
            self._send(self._timed(request, results, ended - began))
            if began - self._turn_ended > _PAUSE or not self._turn_began:
                self._turn_began = began
            self._turn_ended = ended
            if ended - self._turn_began > _TURN:
                self._scheduled = True
                self._loop.call_soon(self._go_on)

    def _begin_waiting(self) -> None:
        while self._waiting and self._running < self._at_once:
            self._running += 1
            self._begin(self._waiting.popleft())

    def _begin(self, request: Predict) -> None:
        if self._is_async:
            task = self._loop.create_task(self._answer_async(request))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
            return
        if self._threads is None:
            self._threads = ThreadPoolExecutor(self._at_once, thread_name_prefix="mlpkit-predict")
        future = self._threads.submit(self._answer, request)
        future.add_done_callback(self._hand_over)

    def _hand_over(self, done: Future[Answer]) -> None:
        # A handler may outlive the loop of a process that stops; nobody waits for its answer then.
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._end, done.result())

    def _end(self, answer: Answer) -> None:
        self._running -= 1
        self._send(answer)
        if not self._scheduled:
            self._work()

    def _answer(self, request: Predict) -> Answer:
        started = time.perf_counter()
        results = self._results_now(request.items)
        return self._timed(request, results, time.perf_counter() - started)

    def _results_now(self, items: list[Item]) -> list[Result]:
        """The results of a synchronous handler."""
        plan = self._plan
        if plan is None or plan.batch:
            return _run_now(self._results(items))
        return [self._result(plan, item) for item in items]

    async def _answer_async(self, request: Predict) -> None:
        started = time.perf_counter()
        results = await self._results(request.items)
        self._end(self._timed(request, results, time.perf_counter() - started))

    def _timed(self, request: Predict, results: list[Result], seconds: float) -> Answer:
        each = seconds if self._batches else seconds / len(results)
        self._usual = 0.8 * self._usual + 0.2 * each if self._usual else each
        return Answer(request.id, results, seconds)

    def _result(self, plan: Plan, item: Item) -> Result:
        """The result of one item of a synchronous handler; never raises."""
        token = request_id.set(item.log_uuid)
        try:
            fields = self._fields(item)
            arguments = plan.decode(fields)
            if plan.is_simple:
                return self._written(plan, item, user_code(plan.function, **arguments))
            with plan.complete(arguments, fields, self._around.services, self._around.scope) as call:
                answer = user_code(plan.function, **call.arguments)
            return self._written(plan, item, answer)
        except MlpkitError as error:
            return self._failed(error)
        except Exception as error:
            return self._broken(error)
        finally:
            request_id.reset(token)

    def _broken(self, error: Exception) -> Failure:
        logger.exception("predict of model {!r} failed inside mlpkit", self.model_id)
        return Failure.of(MlpkitError(f"internal error: {error}"))

    async def _results(self, items: list[Item]) -> list[Result]:
        """The results of a batch, one per item; never raises."""
        try:
            return await self._tried(items)
        except asyncio.CancelledError:
            # Nobody cancels a prediction: something that the handler awaited was.
            failure = Failure.of(UserCodeError("CancelledError"))
        except Exception as error:
            failure = self._broken(error)
        return [failure] * len(items)

    async def _tried(self, items: list[Item]) -> list[Result]:
        """The results of a batch. An item that does not decode never enters the handler."""
        plan = self._plan
        if plan is None:
            missing = UserCodeError(f"algorithm {self.algorithm.name!r} has no predict function")
            return [Failure.of(missing)] * len(items)
        results: list[Result] = [_NULL] * len(items)
        good: list[Decoded] = []
        for index, item in enumerate(items):
            try:
                good.append((index, plan.decode(self._fields(item))))
            except MlpkitError as error:
                results[index] = Failure.of(error)
        if plan.batch and good:
            await self._run_batch(plan, items, good, results)
        else:
            for index, arguments in good:
                results[index] = await self._run_one(plan, items[index], arguments)
        return results

    async def _run_one(self, plan: Plan, item: Item, arguments: dict[str, object]) -> Result:
        token = request_id.set(item.log_uuid)
        try:
            return self._written(plan, item, await self._called(plan, arguments, item))
        except MlpkitError as error:
            return self._failed(error)
        finally:
            request_id.reset(token)

    async def _run_batch(self, plan: Plan, items: list[Item], good: list[Decoded], results: list[Result]) -> None:
        """Fills in the results of a batch; one that raises is run again item by item: a bad item fails alone."""
        token = request_id.set(",".join(items[index].log_uuid for index, _ in good[:8]))
        try:
            answers = _of_length(await self._called(plan, _merged(plan, good), None), len(good))
        except MlpkitError as error:
            if len(good) > 1:
                for each in good:
                    await self._run_batch(plan, items, [each], results)
            else:
                results[good[0][0]] = self._failed(error)
            return
        finally:
            request_id.reset(token)
        for (index, _), answer in zip(good, answers, strict=True):
            try:
                results[index] = self._written(plan, items[index], answer)
            except MlpkitError as error:
                results[index] = self._failed(error)

    async def _called(self, plan: Plan, arguments: dict[str, object], item: Item | None) -> Any:
        if plan.is_simple:
            return await _awaited(plan, arguments)
        fields = self._fields(item) if item else {"model": self.model, "model_id": self.model_id}
        with plan.complete(arguments, fields, self._around.services, self._around.scope) as call:
            return await _awaited(plan, call.arguments)

    def _fields(self, item: Item) -> Mapping[str, object]:
        return {
            "model": self.model,
            "model_id": self.model_id,
            "features": msgspec.Raw(item.features),
            "params": msgspec.Raw(item.params),
            "uuid": item.uuid,
        }

    def _written(self, plan: Plan, item: Item, answer: object) -> bytes:
        if self._kind.limit is not None and item.params != _NULL and not plan.takes("params"):
            answer = self._kind.limit(answer, msgspec.json.decode(item.params))
        if self._checks:
            formats.check_answer(self._kind.name, answer)
        try:
            return formats.to_json(answer)
        except (TypeError, ValueError, RecursionError) as error:
            raise AnswerError(str(error)) from error
        except Exception as error:
            # An answer may be of the author's own classes, which say themselves what they are in JSON.
            raise user_error(error) from error

    def _failed(self, error: MlpkitError) -> Failure:
        logger.bind(uuid=request_id.get()).error("predict of model {!r} failed: {}", self.model_id, error_text(error))
        return Failure.of(error)


def error_text(error: MlpkitError) -> str:
    """The error and, where the user's code raised it, its traceback: for the log."""
    return f"{error}\n{error.trace}".rstrip() if error.trace else str(error)


async def _awaited(plan: Plan, arguments: dict[str, object]) -> Any:
    if plan.is_async:
        return await async_user_code(plan.function, **arguments)
    return user_code(plan.function, **arguments)


def _run_now(coroutine: Coroutine[Any, Any, T]) -> T:
    """The result of a coroutine that never suspends."""
    try:
        coroutine.send(None)
    except StopIteration as stop:
        result: T = stop.value
        return result
    raise RuntimeError("a synchronous handler suspended")


def _merged(plan: Plan, good: list[Decoded]) -> dict[str, object]:
    """The arguments of a batch: a list per batched field, the first item's value for what belongs to the model."""
    first = good[0][1]
    merged: dict[str, object] = {}
    for each in plan.fields:
        if each.batched:
            merged[each.name] = [arguments[each.name] for _, arguments in good]
        elif each.name in first:
            merged[each.name] = first[each.name]
    return merged


def _of_length(answers: Any, wanted: int) -> list[Any]:
    try:
        each = iter(answers)
    except TypeError:
        raise AnswerError(f"predict takes batches, so it must answer a list, not {type(answers).__name__}") from None
    found: list[Any] = user_code(list, each)
    if isinstance(answers, (str, bytes, dict)) or len(found) != wanted:
        raise AnswerError(f"predict answered {len(found)} items to a batch of {wanted}: one answer per item is needed")
    return found
