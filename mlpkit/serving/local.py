"""A worker that is no process: models in the server itself (`--workers 0`)."""

from __future__ import annotations

import asyncio
import contextlib

from mlpkit.app import App
from mlpkit.errors import TimeLimitExceeded, WorkerNotReady
from mlpkit.serving.host import Host
from mlpkit.serving.messages import Answer
from mlpkit.serving.worker import Answered, Held, Work, running
from mlpkit.settings import Settings


class LocalWorker:
    """Models in the server process: for debugging, where a breakpoint in a handler must work."""

    def __init__(self, index: int, app: App, settings: Settings) -> None:
        self.index, self.name, self.ready = index, "server", False
        self._app, self._settings = app, settings
        self._held: dict[int, Held] = {}
        self._host: Host | None = None
        self._ended: asyncio.Future[str] | None = None

    async def start(self) -> None:
        self._ended = asyncio.get_running_loop().create_future()
        self._host = Host(self._app, self._settings, self._answer, inline=False)
        await self._host.start()
        self.ready = True

    async def ended(self) -> str:
        assert self._ended is not None
        return await self._ended

    async def stop(self, grace: float) -> None:
        self.ready = False
        if self._host is not None:
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._host.stop(), max(grace, 0.1))
        if self._ended is not None and not self._ended.done():
            self._ended.set_result("was stopped")

    def begin(self, work: Work, limit: float, answered: Answered, at_once: int = 1) -> None:
        if self._host is None or not self.ready:
            answered(WorkerNotReady("the server's own worker is not running"))
            return
        self._held[work.id] = Held(work, limit, answered, at_once)
        self._host.take(work)

    def hold(self) -> None:
        pass

    def release(self) -> None:
        pass

    def watch(self, now: float) -> None:
        for held in running(self._held.values()):
            if held.is_late(now):
                del self._held[held.work.id]
                held.answered(TimeLimitExceeded(f"{type(held.work).__name__} took longer than {held.limit:g} s"))

    def _answer(self, answer: Answer) -> None:
        held = self._held.pop(answer.id, None)
        if held is not None:
            held.answered(answer)
