"""An engine whose jobs run as on another machine: what travels becomes bytes, and answers get lost."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio
import msgspec

from mlpkit.algorithm import TrainOptions
from mlpkit.settings import Settings
from mlpkit.training import JobOutcome
from mlpkit.training.engine import JobRun, Place, ProcessUsage
from mlpkit.training.remote import JobOrder, RemoteRun, apply_event, decode_events, pack_code


class RemoteEngine:
    """Has two places. Every second answer to the question for events is lost, and asked for again."""

    def __init__(self, target: str, settings: Settings) -> None:
        self._target = target
        # Its machine has another home.
        self._settings = settings.with_options(store_url=settings.store)

    async def open(self) -> None:
        self._slots = anyio.CapacityLimiter(self._settings.train_task_num)

    async def close(self) -> None:
        pass

    def check(self, options: TrainOptions) -> None:
        pass

    @asynccontextmanager
    async def place(self, options: TrainOptions) -> AsyncIterator[Place]:
        async with self._slots:
            yield _Elsewhere(self._target, self._settings)

    def fits(self, asked: TrainOptions, wanted: TrainOptions) -> bool:
        return True

    def why_waiting(self, options: TrainOptions) -> str:
        return ""


class _Elsewhere:
    def __init__(self, target: str, settings: Settings) -> None:
        self._target = target
        self._settings = settings

    async def run(self, run: JobRun) -> JobOutcome:
        async def stop_when_asked() -> None:
            await run.stop.made.wait()
            assert run.stop.reason is not None
            self._remote.stop(run.stop.reason)

        code = pack_code(self._target, self._settings)
        order = msgspec.msgpack.encode(JobOrder.of("tests", run, self._settings, code))
        self._remote = RemoteRun(order)
        tasks = [asyncio.create_task(self._remote.run()), asyncio.create_task(stop_when_asked())]
        try:
            return await self._follow(self._remote, run)
        finally:
            for task in tasks:
                task.cancel()
                with anyio.CancelScope(shield=True), contextlib.suppress(asyncio.CancelledError):
                    await task

    async def usage(self) -> ProcessUsage | None:
        return await self._remote.usage()

    async def stack(self) -> str:
        return await self._remote.stack()

    async def _follow(self, remote: RemoteRun, run: JobRun) -> JobOutcome:
        after = 0
        while True:
            await remote.take(after, 10)
            found = decode_events(msgspec.msgpack.encode(await remote.take(after, 0)))
            for event in found.events:
                outcome = apply_event(event, run)
                if outcome is not None:
                    return outcome
            run.log.flush()
            after = found.last
