"""`JobHandle`: one training job as its submitter sees it."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from mlpkit.client.answers import JobStatus
from mlpkit.errors import JobNotFound, TimeLimitExceeded, TrainFailed

if TYPE_CHECKING:
    from mlpkit.client.client import Client

_FIRST_PAUSE, _LONGEST_PAUSE = 0.05, 2.0
_UNKNOWN_FOR = 10.0


class JobHandle:
    """A job that was submitted; `model_id` is the model that it makes."""

    def __init__(self, client: Client, algorithm: str, model_id: str) -> None:
        self._client, self.algorithm, self.model_id = client, algorithm, model_id

    def __repr__(self) -> str:
        return f"JobHandle({self.algorithm!r}, {self.model_id!r})"

    def status(self) -> JobStatus:
        """How the job stands now."""
        return self._client.status(self.algorithm, self.model_id)

    def wait(self, timeout: float = 3600.0, *, progress: bool | Callable[[JobStatus], None] = False) -> JobStatus:
        """Returns when the job is completed.

        `progress=True` draws a bar on the terminal; a callable gets every status that was seen. The status is asked
        for every 2 seconds, and more often at first.

        Raises:
            TrainFailed: the job ended with `error`; the message is the reason.
            TimeLimitExceeded: it has not ended within `timeout` seconds; it goes on.
            JobNotFound: the service has not known it for 10 seconds.
        """
        with _reporter(progress, f"{self.algorithm} {_shortened(self.model_id)}") as report:
            status = self._poll(time.monotonic() + timeout, timeout, report)
        if status.status == "error":
            raise TrainFailed(status.message or f"job {self.model_id} ended with error; the service gives no reason")
        return status

    def cancel(self) -> None:
        """Ends the job, waiting or running; its status becomes `error`."""
        self._client.cancel(self.algorithm, self.model_id)

    def log(self) -> str:
        """The job's own log so far."""
        return self._client.log(self.model_id)

    def _poll(self, deadline: float, timeout: float, report: Callable[[JobStatus], None]) -> JobStatus:
        pause, known = _FIRST_PAUSE, time.monotonic()
        while True:
            status, now = self.status(), time.monotonic()
            report(status)
            if status.ended:
                return status
            known = now if status.status != "unknown" else known
            if now - known > _UNKNOWN_FOR:
                raise JobNotFound(self.model_id)
            if now > deadline:
                raise TimeLimitExceeded(
                    f"job {self.model_id} has not ended within {timeout:g} s; its status is {status.status}"
                )
            time.sleep(min(pause, max(0.0, deadline - now)))
            pause = min(pause * 1.5, _LONGEST_PAUSE)


def _shortened(model_id: str) -> str:
    """An id of mlpkit's own is longer than half of a terminal's line."""
    return model_id if len(model_id) <= 16 else model_id[:12] + "…"


@contextlib.contextmanager
def _reporter(progress: bool | Callable[[JobStatus], None], title: str) -> Iterator[Callable[[JobStatus], None]]:
    if callable(progress):
        yield progress
    elif progress:
        from mlpkit.client.bar import ProgressBar

        with ProgressBar(title) as bar:
            yield lambda status: bar.show(str(status.status), status.progress)
    else:
        yield lambda status: None
