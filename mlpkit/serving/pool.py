"""Which workers there are, and what keeps them alive.

A task watches each, and starts it again with back-off.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import TYPE_CHECKING

import anyio
from anyio.abc import TaskGroup

from mlpkit.algorithm import LoadOptions
from mlpkit.errors import LoadFailed, MlpkitError, ServiceStopping, TimeLimitExceeded, WorkerNotReady
from mlpkit.log import logger
from mlpkit.processes import Devices, gpus_in_words
from mlpkit.serving.messages import PARALLEL_LOADS
from mlpkit.serving.worker import Worker

if TYPE_CHECKING:
    from mlpkit.serving.models import Models

_FIRST_PAUSE = 0.05
_LONGEST_PAUSE = 30.0
_STEADY = 60.0
"""Seconds after which a worker that ends is no longer counted as failing again and again."""
_HOPELESS = 3
"""After this many failed starts in a row, requests do not wait for the next one: they are refused with the reason."""


def pause_after(failures: int, first: float = 1.0, longest: float = 60.0) -> float:
    """Seconds until the next try: twice as many after each failure."""
    # Not the power itself: after a thousand failures, as in a night, no float is so large.
    return min(longest, first * 2.0 ** min(failures - 1, 20))


class WorkerSlot:
    """A place for a worker, which stays while workers come and go.

    `worker` is None while none is ready; `since` is when it became so, in seconds since the epoch. `deaths` are those
    in a row, `restarts` all. `loads` is to be held by every load into it. `is_repeat`: the
    log has already that the model which is tried here ended a worker. `devices` are the GPUs that its workers see, of
    which it has `gpus`. `cluster` are the options of its model if its workers are on a Ray cluster.
    """

    def __init__(
        self,
        index: int,
        *,
        isolated: bool,
        gpus: float = 0,
        devices: tuple[str, ...] = (),
        cluster: LoadOptions | None = None,
    ) -> None:
        self.index = index
        self.isolated = isolated
        self.cluster = cluster
        self.gpus = gpus
        self.devices = devices
        self.worker: Worker | None = None
        self.starting: Worker | None = None
        """One that waits for a place on the cluster, perhaps for minutes."""
        self.closed = asyncio.Event()
        self.problem = "is starting"
        self.deaths = 0
        self.restarts = 0
        self.since: float | None = None
        self.models = 0
        self.is_repeat = False
        self.loads = anyio.CapacityLimiter(PARALLEL_LOADS)
        self._failed_starts = 0
        self._known = asyncio.Event()
        """Set if it is known how a wait would end: a worker is ready, or none can be expected soon."""

    @property
    def ready(self) -> bool:
        """Whether there is a worker that takes requests."""
        return self.worker is not None

    @property
    def node(self) -> str:
        """The node of its worker on a cluster, or an empty string."""
        return self.worker.node if self.worker is not None else ""

    @property
    def failing(self) -> bool:
        """Whether the last worker ended, and no other is ready yet."""
        return self.deaths > 0 and not self.ready

    async def wait_ready(self, limit: float) -> Worker:
        """The worker, once it is ready.

        Raises:
            WorkerNotReady: it failed to start again and again, or the slot is closed; says why.
            TimeLimitExceeded: it is not ready within `limit` seconds; says what is wrong with it.
        """
        if not self._known.is_set() or self._has_just_ended():
            try:
                await asyncio.wait_for(self._until_known(), limit)
            except asyncio.TimeoutError:
                raise TimeLimitExceeded(
                    f"no worker was ready within {limit:g} s: worker {self.index} {self.problem}"
                ) from None
        if self.worker is None:
            raise WorkerNotReady(f"worker {self.index} {self.problem}")
        return self.worker

    async def _until_known(self) -> None:
        await self._known.wait()
        while self._has_just_ended():
            await asyncio.sleep(0.01)
            await self._known.wait()

    def _has_just_ended(self) -> bool:
        """Whether the worker takes nothing any more, and leaves in a moment."""
        return self.worker is not None and not self.worker.ready

    def enter(self, worker: Worker) -> None:
        """Makes a worker that is ready the slot's own."""
        self.worker = worker
        self.since = time.time()
        self._failed_starts = 0
        self._known.set()

    def leave(self, how: str, pause: float) -> None:
        """Notes that the worker has ended, or could not start.

        Another is started in `pause` seconds.
        """
        again = f", {self.deaths} times in a row" if self.deaths > 1 else ""
        self.problem = f"{how}{again}; it is started again in {pause:.2g} s"
        self._failed_starts += not self.ready
        self.restarts += 1
        self.worker = None
        self.since = None
        # On a cluster it has waited for a place already.
        if self._failed_starts < (_HOPELESS if self.cluster is None else 1):
            self._known.clear()
        else:
            self._known.set()

    def close(self) -> Worker | None:
        """Takes no more workers; gives the present one, to be stopped."""
        worker = self.worker or self.starting
        self.worker = None
        self.problem = "was stopped"
        self.closed.set()
        self._known.set()
        return worker


class Pool:
    """The slots of a service, and a task for each.

    `models` makes the worker of a slot, and is told when it is ready and when it has ended. Slots take GPUs from
    `devices`.
    """

    def __init__(self, models: Models, devices: Devices) -> None:
        self._models = models
        self._devices = devices
        self.slots: dict[int, WorkerSlot] = {}
        self.restarts = 0
        self._turn = 0

    @property
    def shared(self) -> list[WorkerSlot]:
        """The slots whose workers hold any model."""
        return [slot for slot in self.slots.values() if not slot.isolated]

    def open(self, tasks: TaskGroup, count: int) -> None:
        """Starts `count` shared workers; does not wait for them."""
        self._tasks = tasks
        for _ in range(count):
            self.add(isolated=False)

    def add(self, *, isolated: bool, gpus: float = 0, cluster: LoadOptions | None = None) -> WorkerSlot:
        """A new slot; its worker is being started.

        On a cluster, GPUs are Ray's.

        Raises:
            ArgumentError: the service has fewer GPUs.
            LoadFailed: fewer GPUs are free now.
        """
        self._devices.check(gpus)
        devices = self._devices.take(gpus)
        if devices is None:
            raise LoadFailed(
                f"the model needs {gpus_in_words(gpus)} of MLPKIT_GPUS, and other models or jobs have them: unload a "
                "model, or wait for a job",
                was_tried=False,
            )
        index = next(number for number in range(len(self.slots) + 1) if number not in self.slots)
        slot = self.slots[index] = WorkerSlot(index, isolated=isolated, gpus=gpus, devices=devices, cluster=cluster)
        self._tasks.start_soon(self._keep, slot)
        return slot

    def place(self, replicas: int) -> list[WorkerSlot]:
        """The shared slots for a new model: those with the fewest models."""
        shared = sorted(self.shared, key=lambda slot: (slot.failing, slot.models, slot.index))
        if replicas > len(shared):
            logger.warning("{} replicas are asked for, there are {} workers", replicas, len(shared))
        return shared[:replicas]

    def next(self) -> WorkerSlot:
        """A shared slot for a request that any worker can take.

        Those that are ready take turns.

        Raises:
            ServiceStopping: there is none any more.
        """
        shared = self.shared
        if not shared:
            raise ServiceStopping("the service is stopping")
        ready = [slot for slot in shared if slot.ready] or shared
        self._turn += 1
        return ready[self._turn % len(ready)]

    async def remove(self, slot: WorkerSlot, grace: float) -> None:
        """Ends the worker of a slot, and the slot."""
        if slot.worker is None:
            grace = 0
        worker = slot.close()
        if worker is not None:
            await worker.stop(grace)
        # Removed twice, it must not take a new slot of the same number with it.
        if self.slots.get(slot.index) is slot:
            del self.slots[slot.index]
            self._devices.give_back(slot.devices, slot.gpus)

    async def close(self, grace: float) -> None:
        """Ends all workers at the same time."""
        await asyncio.gather(*(self.remove(slot, grace) for slot in list(self.slots.values())))

    def problems(self) -> list[str]:
        """Why workers are not ready, a sentence each."""
        return [f"worker {slot.index} {slot.problem}" for slot in self.shared if not slot.ready]

    async def _keep(self, slot: WorkerSlot) -> None:
        while not slot.closed.is_set():
            worker = self._models.make_worker(slot)
            started = time.monotonic()
            how = await self._live(slot, worker)
            if slot.closed.is_set():
                return
            self.restarts += 1
            slot.deaths = 1 if time.monotonic() - started > _STEADY else slot.deaths + 1
            pause = pause_after(slot.deaths, _FIRST_PAUSE, _LONGEST_PAUSE)
            slot.leave(how, pause)
            logger.log("DEBUG" if slot.is_repeat else "ERROR", "worker {} {}", slot.index, slot.problem)
            self._models.worker_down(slot, how)
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(slot.closed.wait(), pause)

    async def _live(self, slot: WorkerSlot, worker: Worker) -> str:
        """The life of one worker; how it ended."""
        slot.starting = worker if slot.cluster is not None else None
        try:
            await worker.start()
            if slot.closed.is_set():
                await worker.stop(0)
                return "was stopped"
            slot.enter(worker)
            self._models.worker_up(slot)
            return await worker.ended()
        except MlpkitError as error:
            await worker.stop(0)
            return f"failed: {error}"
        except Exception as error:
            logger.exception("worker {} could not be started", slot.index)
            await worker.stop(0)
            return f"could not be started: {error}"
        finally:
            slot.starting = None
