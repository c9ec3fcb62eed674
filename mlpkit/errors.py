"""The tree of errors, each with its protocol word and HTTP status.

Sources: the words `arg_error` and `fail` are the platform's (`tests/wire/PROTOCOL.md`, section 1.1).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar


def did_you_mean(name: str, known: Iterable[str], *, cutoff: float = 0.5) -> str:
    """`, did you mean 'features'?`, or nothing without a close name.

    `cutoff` is how alike names must be, from 0 to 1 (`difflib.SequenceMatcher.ratio`).
    """
    import difflib  # here, as only mistakes need it: it would slow down every `import mlpkit`

    close = difflib.get_close_matches(name, list(known), n=1, cutoff=cutoff)
    return f", did you mean {close[0]!r}?" if close else ""


class MlpkitError(Exception):
    """The root of all errors that mlpkit raises on purpose.

    `str(error)` is a sentence for the person who can act on it.
    `status` is the word that the protocol's answer carries, `http_status` the code sent with `MLPKIT_HTTP_ERRORS=http`.
    """

    status: ClassVar[str] = "fail"
    http_status: ClassVar[int] = 500
    trace: str = ""
    """The traceback of the user's code behind the error, for the log; empty if there is none."""


class DeclarationError(MlpkitError):
    """An author's mistake in a script.

    The message says what is wrong, in which function, file and line, and what would be right.
    """


class SettingsError(MlpkitError):
    """A setting that is unknown, or whose value cannot be used.

    The message names the variable and what is allowed.
    """


class ArgumentError(MlpkitError):
    """The caller sent something that cannot be used; nothing was changed."""

    status = "arg_error"
    http_status = 400


class AlgorithmNotFound(ArgumentError):
    """The request names an algorithm that this service does not have."""

    http_status = 404

    def __init__(self, algorithm: str) -> None:
        super().__init__(f"algorithm [{algorithm}] not support")


class NotInRequest(ArgumentError):
    """The request has nothing to make a service from.

    A parameter that may be None gets None instead.
    """


class UnsafePath(ArgumentError):
    """An id or path that would leave its folder, such as `..`."""


class BodyTooLarge(ArgumentError):
    """The request's body is larger than `MLPKIT_MAX_BODY`."""

    http_status = 413


class MalformedBody(ArgumentError):
    """The request's body is broken, or not a JSON object."""


class Unauthorized(ArgumentError):
    """The request has no bearer token, or not the right one (`MLPKIT_TOKEN`)."""

    http_status = 401


class ModelNotLoaded(MlpkitError):
    """A prediction was asked of a model that is not loaded here."""

    http_status = 404

    def __init__(self, model_id: str) -> None:
        super().__init__(f"model [{model_id}] not loaded")


class ModelInUse(MlpkitError):
    """An alias leads to the model, so it must not be unloaded."""

    http_status = 409

    def __init__(self, model_id: str, alias: str) -> None:
        super().__init__(f"the alias [{alias}] leads to model [{model_id}]: move or remove the alias first")


class LoadFailed(MlpkitError):
    """The author's `load` failed; the worker has nothing of the model."""

    def __init__(self, text: str) -> None:
        super().__init__(f"load fail {text}")


class EvaluationFailed(MlpkitError):
    """A model could not be evaluated, so there are no figures."""


class BelowGate(MlpkitError):
    """A model does not reach its `min_f1`; the message has the figure."""


class PredictFailed(MlpkitError):
    """The user's `predict` failed, or answered what cannot be sent."""

    def __init__(self, text: str) -> None:
        super().__init__(f"predict fail {text}")


class UserCodeError(MlpkitError):
    """Any exception that the author's code raised, BaseException too.

    `str()` is the exception's own text.
    `trace` holds the traceback from the user's first frame on; it is for the log, never for an answer.
    """

    def __init__(self, text: str, *, kind: str = "", trace: str = "") -> None:
        super().__init__(text)
        self.kind = kind
        self.trace = trace


class AnswerError(MlpkitError):
    """An answer that does not fit the kind of the algorithm.

    The message starts with the path of the wrong field.
    """


class Overloaded(MlpkitError):
    """A queue is full, so the request was refused immediately.

    `retry_after` is in seconds.
    """

    http_status = 503
    retry_after: int = 1

    def __init__(self, message: str, *, retry_after: int = 1) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class ServiceStopping(Overloaded):
    """The service is shutting down and takes no new work."""


class WorkerLost(MlpkitError):
    """The worker process ended while it worked on the request.

    The message says how it ended.
    """

    http_status = 502


class WorkerNotReady(WorkerLost):
    """No worker took the request; the message says why."""


class TimeLimitExceeded(MlpkitError):
    """Something took longer than its time limit.

    The message names the limit and what was done about it.
    """

    http_status = 504


class JobNotFound(MlpkitError):
    """No training job has this model id."""

    http_status = 404

    def __init__(self, model_id: str) -> None:
        super().__init__(f"no job with model id [{model_id}]")


class JobConflict(MlpkitError):
    """The state of the job does not allow what was asked."""

    http_status = 409


class JournalError(MlpkitError):
    """The file of the training jobs cannot be read or written."""


class DataError(MlpkitError):
    """A row of training data that cannot be used.

    The message names the file, the line and, if it is known, the column.
    """

    http_status = 422


class StorageError(MlpkitError):
    """The store could not do what was asked.

    The message names the endpoint, the bucket and the key, never a secret.
    """

    http_status = 502


class ObjectNotFound(StorageError):
    """The object, prefix or bucket does not exist."""

    http_status = 404


class StorageDenied(StorageError):
    """The store refused the credentials, or they do not allow this."""


class StorageUnavailable(StorageError):
    """The store could not be reached, or did not answer in time."""

    http_status = 503


class ModelChanged(StorageError):
    """A model was deleted, or its files changed, while it was stored.

    The message names what changed.
    """

    http_status = 409


class IncompleteModel(StorageError):
    """A model or checkpoint without its manifest, or with files missing."""


class DatabaseError(MlpkitError):
    """The platform's database could not be asked, or refused.

    Neither the message nor the trace names its host or user.
    """

    http_status = 503


class ServiceUnreachable(MlpkitError):
    """A client could not connect, or lost the connection too early."""

    http_status = 502


class UnexpectedAnswer(MlpkitError):
    """What a client received is not an answer of the platform's protocol."""

    http_status = 502


class TrainingStopped(BaseException):
    """`Checkpoint.save` raises it if the job should end and has been saved.

    Let it pass: mlpkit ends the job. It is not an `Exception`, so `except Exception` does not catch it.
    """


class TrainFailed(MlpkitError):
    """A training job ended with `error`; the message is the reason."""
