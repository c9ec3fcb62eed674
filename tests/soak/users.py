"""The users of the soak: each does one thing again and again, at times of its own chance, until it is over."""

from __future__ import annotations

import json
import random
import threading
import traceback
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from socket import create_connection
from time import time

from mlpkit.client import JobHandle
from mlpkit.errors import JobNotFound, MlpkitError
from tests.soak.record import GONE, Ask, Training
from tests.soak.scene import ALGORITHMS, MOVERS, Known, Scene

CROWD = 30
"""Predictions that come together: more than a batch takes and the waiting room holds."""
_ORDERS = ("finish", "finish", "finish", "raise", "exit", "kill")
_LIVE_WITHIN = 2.0
_JOB_SECONDS = 120.0


class Users:
    """Threads that use the service of a scene; `start` and `join` them."""

    def __init__(self, scene: Scene) -> None:
        self._scene, self._record = scene, scene.record
        self._crowd = ThreadPoolExecutor(CROWD)
        does: list[tuple[str, float, Callable[[random.Random], None]]] = [
            *((f"predict {number}", 0.1, self._predict) for number in range(4)),
            *((f"move {number}", 1.5, partial(self._move, number)) for number in range(MOVERS)),
            ("crowd", 4.0, self._come_together),
            ("hang up", 1.0, self._hang_up),
            ("train", 3.5, self._train),
            ("cancel", 8.0, self._cancel),
            ("life", 8.0, self._live_a_life),
            ("look", 2.0, self._look),
        ]
        self._threads = [threading.Thread(target=self._repeat, args=each, daemon=True, name=each[0]) for each in does]

    def start(self) -> None:
        """Lets them begin."""
        for each in self._threads:
            each.start()

    def join(self, timeout: float) -> None:
        """Waits until all have done what they were at; one that hangs is wrong."""
        for each in self._threads:
            each.join(timeout)
            if each.is_alive():
                self._record.blame(f"the user {each.name!r} still waits after {timeout:g} s")
        self._crowd.shutdown(wait=False)

    def _repeat(self, name: str, pause: float, do: Callable[[random.Random], None]) -> None:
        chance = random.Random(f"{self._scene.seed} {name}")
        while not self._scene.over.wait(chance.expovariate(1 / pause)):
            try:
                do(chance)
            except Exception:
                self._record.blame(f"the user {name!r} failed: {traceback.format_exc(limit=-3)}")

    def _predict(self, chance: random.Random) -> None:
        known = chance.choice([*self._scene.steady, *(each for models in self._scene.moving for each in models)])
        self._question(known, chance.choice((0.0, 0.0, 0.005, 0.03)), chance.random())

    def _question(self, known: Known, seconds: float, nonce: float, allowed: tuple[str, ...] = ("Overloaded",)) -> None:
        """Asks a model, and checks that the answer is the one to this question."""
        if known not in self._scene.steady:
            allowed = (*allowed, "ModelNotLoaded")
        asked = {"nonce": f"{nonce}", "seconds": seconds}
        answer = self._record.ask(
            "predict", lambda uuid: self._scene.client.predict(known.model_id, asked, uuid=uuid), allowed
        )
        right = {"nonce": asked["nonce"], "word": known.word, "model_id": known.model_id}
        if answer is not None and answer != right:
            self._record.blame(f"{known.model_id} was asked {asked} and answered {answer}")

    def _come_together(self, chance: random.Random) -> None:
        known = chance.choice(self._scene.steady)
        asked = [self._crowd.submit(self._question, known, 0.01, chance.random()) for _ in range(CROWD)]
        for each in asked:
            each.result()

    def _hang_up(self, chance: random.Random) -> None:
        """Asks, and closes the connection before the answer may be there."""
        known, uuid, began = chance.choice(self._scene.steady), self._record.new_uuid(), time()
        features = {"nonce": "of nobody", "seconds": 0.05}
        body = json.dumps({"model_id": known.model_id, "features": features, "uuid": uuid})
        head = "POST /predict HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: "
        try:
            with create_connection(("127.0.0.1", self._scene.service.port), timeout=5) as connection:
                connection.sendall(f"{head}{len(body)}\r\n\r\n{body}".encode())
                self._scene.over.wait(chance.uniform(0, 0.1))
        except OSError as error:
            if not self._record.excused(began, time(), "server"):
                self._record.blame(f"no connection could be made: {error!r}")
        self._record.asks.append(Ask("predict", uuid, began, time(), GONE))

    def _move(self, number: int, chance: random.Random) -> None:
        known = chance.choice(self._scene.moving[number])
        if chance.random() < 0.6:
            self._record.ask(
                "load",
                lambda uuid: self._scene.client.load(
                    known.algorithm, known.model_id, known.path, uuid=uuid, timeout=60
                ),
            )
        else:
            self._record.ask(
                "unload",
                lambda uuid: self._scene.client.unload(known.algorithm, known.model_id, uuid=uuid, timeout=60),
            )

    def _train(self, chance: random.Random) -> None:
        self._submit(chance.choice(ALGORITHMS), chance.choice(_ORDERS), chance.choice((0.0, 0.0, 0.5, 4.0)))

    def _submit(self, algorithm: str, do: str, seconds: float) -> JobHandle | None:
        parameters = {"word": f"word of {do}", "do": do, "seconds": seconds}
        job = self._record.ask(
            "train", lambda uuid: self._scene.client.train(algorithm, parameters=parameters, uuid=uuid)
        )
        if job is not None:
            self._record.trainings[job.model_id] = Training(algorithm, do)
        return job

    def _cancel(self, chance: random.Random) -> None:
        recent = list(self._record.trainings.items())[-4:]
        if recent:
            model_id, training = chance.choice(recent)
            training.cancelled = True
            self._record.ask("cancel", lambda uuid: self._scene.client.cancel(training.algorithm, model_id))

    def _live_a_life(self, chance: random.Random) -> None:
        """A model from its training to its end."""
        algorithm = chance.choice(ALGORITHMS)
        job = self._submit(algorithm, "finish", 0.0)
        if job is None:
            return
        training = self._record.trainings[job.model_id]
        if self._record.ask("wait", lambda uuid: self._waited(job), ("TrainFailed",)) is None:
            return  # It was cancelled, or had no store: the accounts tell whether it may have failed.
        self._record.ask("load", lambda uuid: self._scene.client.load(algorithm, job.model_id, uuid=uuid, timeout=60))
        known = Known(algorithm, job.model_id, "word of finish", "")
        self._question(known, 0.0, chance.random())
        training.deleted = True
        self._record.ask(
            "delete", lambda uuid: self._scene.client.delete(algorithm, job.model_id, uuid=uuid, timeout=60)
        )

    def _waited(self, job: JobHandle) -> str:
        """Waits for the end of a job, through restarts of the service."""
        began = time()
        while True:
            try:
                return str(JobHandle(self._scene.client, job.algorithm, job.model_id).wait(_JOB_SECONDS).status)
            except MlpkitError as error:
                unreachable = type(error).__name__ == "ServiceUnreachable"
                if not unreachable or time() > began + _JOB_SECONDS or self._scene.over.wait(0.5):
                    raise

    def _look(self, chance: random.Random) -> None:
        began, client = time(), self._scene.client
        if not client.live() and not self._record.excused(began, time(), "server"):
            self._record.blame("/health/live did not answer")
        elif time() - began > _LIVE_WITHIN and not self._record.excused(began, time(), "server"):
            self._record.blame(f"/health/live took {time() - began:.2f} s")
        for look in (client.jobs, client.models, client.monitor):
            self._record.ask("look", lambda uuid, look=look: bool(look()))  # type: ignore[misc]
        recent = list(self._record.trainings)[-50:]
        if recent:
            try:
                client.job_view(chance.choice(recent))
            except JobNotFound as error:
                self._record.blame(f"an accepted job is lost: {error}")
            except MlpkitError as error:
                if not self._record.excused(began, time(), "server"):
                    self._record.blame(f"a job could not be looked at: {error}")
