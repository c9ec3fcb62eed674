"""When a call over the network is tried again: only faults that may pass, with back-off, never past its deadline."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TypeVar

import tenacity

from mlpkit.log import logger

Result = TypeVar("Result")

_FIRST_PAUSE = 0.2
_LONGEST_PAUSE = 5.0
_SHORTEST_ATTEMPT = 0.1


@dataclass(frozen=True)
class Patience:
    """How long one call may take with all its attempts, in seconds, and how often it is tried again."""

    timeout: float
    retries: int

    def call(
        self,
        attempt: Callable[[float], Result],
        *,
        on: tuple[type[Exception], ...],
        unwanted: Callable[[Result], bool] = lambda result: False,
    ) -> Result:
        """What `attempt(seconds left)` returns; tried again when it raises one of `on` or returns what is unwanted.

        After the last attempt its own exception is raised, or its unwanted result returned.
        """
        deadline = time.monotonic() + self.timeout

        def too_late(state: tenacity.RetryCallState) -> bool:
            return state.attempt_number > self.retries or time.monotonic() + _FIRST_PAUSE >= deadline

        retrying = tenacity.Retrying(
            stop=too_late,
            wait=_pause_until(deadline),
            retry=tenacity.retry_if_exception_type(on) | tenacity.retry_if_result(unwanted),
            before_sleep=_log_retry,
            retry_error_callback=_last_outcome,
        )
        return retrying(lambda: attempt(max(deadline - time.monotonic(), _SHORTEST_ATTEMPT)))


_current: ContextVar[Patience | None] = ContextVar("patience", default=None)


def current_patience(usual: Patience) -> Patience:
    """The patience that `patience_of` set for this context, else the usual one."""
    return _current.get() or usual


@contextlib.contextmanager
def patience_of(patience: Patience) -> Iterator[None]:
    """Calls inside the block have this patience and not their usual one."""
    token = _current.set(patience)
    try:
        yield
    finally:
        _current.reset(token)


def _pause_until(deadline: float) -> Callable[[tenacity.RetryCallState], float]:
    backoff = tenacity.wait_random_exponential(multiplier=_FIRST_PAUSE, max=_LONGEST_PAUSE)
    return lambda state: max(0.0, min(backoff(state), deadline - time.monotonic() - _SHORTEST_ATTEMPT))


def _log_retry(state: tenacity.RetryCallState) -> None:
    outcome = state.outcome
    reason = "an answer that may pass" if outcome is None or not outcome.failed else repr(outcome.exception())
    logger.debug("the store failed ({}); attempt {} follows", reason, state.attempt_number + 1)


def _last_outcome(state: tenacity.RetryCallState) -> object:
    assert state.outcome is not None
    return state.outcome.result()
