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

    What to do: Change the script at the line that the message names. `mlpkit check` finds all mistakes at once.
    """


class SettingsError(MlpkitError):
    """A setting that is unknown, or whose value cannot be used.

    The message names the variable and what is allowed.

    What to do: Correct the variable, or the line in `.env`, and start again. The page *Settings* lists all names
    and values.
    """


class ArgumentError(MlpkitError):
    """The caller sent something that cannot be used; nothing was changed.

    What to do: Correct the request; sending it again unchanged gives the same answer.
    """

    status = "arg_error"
    http_status = 400


class AlgorithmNotFound(ArgumentError):
    """The request names an algorithm that this service does not have.

    What to do: Compare `algorithm` with the names that `GET /algorithms` lists; capitals count.
    """

    http_status = 404

    def __init__(self, algorithm: str) -> None:
        super().__init__(f"algorithm [{algorithm}] not support")


class NotInRequest(ArgumentError):
    """The request has nothing to make a service from.

    A parameter that may be None gets None instead.

    What to do: Send the field, or annotate the parameter with `| None`, such as `TrainData | None`.
    """


class UnsafePath(ArgumentError):
    """An id or path that would leave its folder, such as `..`.

    What to do: Send an id or a path without `..`, and without a leading `/`.
    """


class BodyTooLarge(ArgumentError):
    """The request's body is larger than `MLPKIT_MAX_BODY`.

    What to do: Send less at once, or raise `MLPKIT_MAX_BODY`.
    """

    http_status = 413


class MalformedBody(ArgumentError):
    """The request's body is broken, or not a JSON object.

    What to do: Send one JSON object with `Content-Type: application/json`, and do not compress it.
    """


class UploadsOff(ArgumentError):
    """A file was sent to `PUT /data`, and the service takes none.

    What to do: Set `MLPKIT_UPLOAD=on`, or put the file into the data bucket with a client of the store.
    """

    http_status = 403


class Unauthorized(ArgumentError):
    """The request has no bearer token, or not the right one (`MLPKIT_TOKEN`).

    What to do: Send the header `Authorization: Bearer <token>` with the value of `MLPKIT_TOKEN`.
    """

    http_status = 401


class ModelNotLoaded(MlpkitError):
    """A prediction was asked of a model that is not loaded here.

    What to do: Load the model with `POST /load`, and wait for its answer. `GET /models` shows what is loaded, and
    what failed. If the message says that the model is being loaded again, wait: the service has just started.
    """

    http_status = 404

    def __init__(self, model_id: str, why: str = "") -> None:
        super().__init__(f"model [{model_id}] not loaded{why}")


class ModelInUse(MlpkitError):
    """An alias leads to the model, so it must not be unloaded.

    What to do: Let the alias lead to another model (`POST /alias`), or remove it (`POST /unalias`); then try again.
    """

    http_status = 409

    def __init__(self, model_id: str, alias: str) -> None:
        super().__init__(f"the alias [{alias}] leads to model [{model_id}]: move or remove the alias first")


class LoadFailed(MlpkitError):
    """The author's `load` failed; the worker has nothing of the model.

    `was_tried` is false if there was no room for the model, so that `load` was not called.

    What to do: Read the traceback in the log of the service; `mlpkit predict` loads the same model in your
    terminal, where a debugger works.
    """

    def __init__(self, text: str, *, was_tried: bool = True) -> None:
        super().__init__(f"load fail {text}")
        self.was_tried = was_tried


class EvaluationFailed(MlpkitError):
    """A model could not be evaluated, so there are no figures.

    What to do: Read the reason in the message; most often a test row has a label that the training data lacks.
    """


class BelowGate(MlpkitError):
    """A model does not reach its `min_f1`; the message has the figure.

    What to do: Use a better model, or lower `min_f1` if this one is good enough.
    """


class PredictFailed(MlpkitError):
    """The user's `predict` failed, or answered what cannot be sent.

    What to do: Find the request id in the log of the service: the traceback is there. `mlpkit predict` runs the
    same call in your terminal.
    """

    def __init__(self, text: str) -> None:
        super().__init__(f"predict fail {text}")


class UserCodeError(MlpkitError):
    """Any exception that the author's code raised, BaseException too.

    `str()` is the exception's own text.
    `trace` holds the traceback from the user's first frame on; it is for the log, never for an answer.

    What to do: Read the traceback in the log; it begins in your code.
    """

    def __init__(self, text: str, *, kind: str = "", trace: str = "") -> None:
        super().__init__(text)
        self.kind = kind
        self.trace = trace


class AnswerError(MlpkitError):
    """An answer that does not fit the kind of the algorithm.

    The message starts with the path of the wrong field.

    What to do: Let `predict` return what the kind expects; the page *Formats* shows an example of each.
    """


class Overloaded(MlpkitError):
    """A queue is full, so the request was refused immediately.

    `retry_after` is in seconds.

    What to do: Wait for `Retry-After` seconds and try again. If it happens often, use more workers or replicas.
    """

    http_status = 503
    retry_after: int = 1

    def __init__(self, message: str, *, retry_after: int = 1) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class ServiceStopping(Overloaded):
    """The service is shutting down and takes no new work.

    What to do: Send the request to another replica, or again when the service has started.
    """


class WorkerLost(MlpkitError):
    """The worker process ended while it worked on the request.

    The message says how it ended.

    What to do: Send the request again: the worker is replaced. If it is lost again and again, the message and the
    log say why; most often memory is short.
    """

    http_status = 502


class WorkerNotReady(WorkerLost):
    """No worker took the request; the message says why.

    What to do: Try again in a few seconds. If it stays so, `GET /workers` and the log say why no worker starts.
    """


class TimeLimitExceeded(MlpkitError):
    """Something took longer than its time limit.

    The message names the limit and what was done about it.

    What to do: Make the work shorter, or raise the limit that the message names.
    """

    http_status = 504


class JobNotFound(MlpkitError):
    """No training job has this model id.

    What to do: Check the id with `GET /jobs`. Jobs of another replica, and those older than `MLPKIT_JOBS_KEEP`, are
    not known here.
    """

    http_status = 404

    def __init__(self, model_id: str) -> None:
        super().__init__(f"no job with model id [{model_id}]")


class NoPlace(MlpkitError):
    """The engine has stopped looking for a place for a job.

    The message says what was asked for, and what there is.

    What to do: Ask for less in `@app.train`, or add a node; look if the cluster can be reached.
    """

    http_status = 503


class JobConflict(MlpkitError):
    """The state of the job does not allow what was asked.

    What to do: Look at the state with `GET /jobs/{model_id}`; a job that has ended cannot be cancelled.
    """

    http_status = 409


class JournalError(MlpkitError):
    """The file of the training jobs cannot be read or written.

    What to do: Check that the disk of `MLPKIT_HOME` has room, that its files can be written, and that no other
    service uses it.
    """


class DataError(MlpkitError):
    """A row of training data that cannot be used.

    The message names the file, the line and, if it is known, the column.

    What to do: Correct the row. `mlpkit data check FILE` lists all rows that are broken.
    """

    http_status = 422


class StorageError(MlpkitError):
    """The store could not do what was asked.

    The message names the endpoint, the bucket and the key, never a secret.

    What to do: Read the store's own answer in the message. mlpkit has tried again already if that could help.
    """

    http_status = 502


class ObjectNotFound(StorageError):
    """The object, prefix or bucket does not exist.

    What to do: Check the bucket and the key; a location in a request is a key in the data bucket.
    """

    http_status = 404


class StorageDenied(StorageError):
    """The store refused the credentials, or they do not allow this.

    What to do: Check `MINIO_ACCESS_KEY` and `MINIO_SECRET_KEY`, and what this user may do in the bucket.
    """


class StorageUnavailable(StorageError):
    """The store could not be reached, or did not answer in time.

    What to do: Check `MINIO_HOST` and the network. The service goes on with what is loaded, and is well again when
    the store is.
    """

    http_status = 503


class ModelChanged(StorageError):
    """A model was deleted, or its files changed, while it was stored.

    The message names what changed.

    What to do: Send the request again, if the model should exist.
    """

    http_status = 409


class IncompleteModel(StorageError):
    """A model or checkpoint without its manifest, or with files missing.

    What to do: Train again, or upload the whole folder with its manifest `mlpkit.json`. For a model that was made
    elsewhere, send a `model_path`.
    """


class DatabaseError(MlpkitError):
    """The platform's database could not be asked, or refused.

    Neither the message nor the trace names its host or user.

    What to do: Check `DB_HOST`, `DB_USER` and `DB_PASS`, and that `mlpkit db init` has made the tables.
    """

    http_status = 503


class ServiceUnreachable(MlpkitError):
    """A client could not connect, or lost the connection too early.

    What to do: Check the address, and that the service runs: `GET /health/live` answers as soon as it listens.
    """

    http_status = 502


class UnexpectedAnswer(MlpkitError):
    """What a client received is not an answer of the platform's protocol.

    What to do: Check that the address and the prefix lead to a service of mlpkit, and not to a proxy or another
    program.
    """

    http_status = 502


class TrainingStopped(BaseException):
    """`Checkpoint.save` raises it if the job should end and has been saved.

    Let it pass: mlpkit ends the job. It is not an `Exception`, so `except Exception` does not catch it.
    """


class TrainFailed(MlpkitError):
    """A training job ended with `error`; the message is the reason.

    What to do: Read the message and the job's log: `mlpkit logs MODEL_ID`.
    """
