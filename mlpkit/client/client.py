"""`Client` has a method for each route; `JobHandle` is one training job."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar
from urllib.parse import quote, urlencode

import msgspec

from mlpkit.client.answers import (
    AliasView,
    JobStatus,
    JobView,
    ModelsView,
    ModelView,
    Monitor,
    NodeInfo,
    Readiness,
    StoredModelsView,
    UploadedFile,
    data_of,
    typed,
)
from mlpkit.client.events import JobEvent, ProgressEvent, ServiceEvent, follow
from mlpkit.client.transport import Answer, HttpTransport, StreamedAnswer, Transport
from mlpkit.errors import (
    ArgumentError,
    JobNotFound,
    MlpkitError,
    ServiceUnreachable,
    TimeLimitExceeded,
    TrainFailed,
    UnexpectedAnswer,
)

T = TypeVar("T")

_POLL_INTERVAL = 0.1
_FIRST_PAUSE = 0.05
_LONGEST_PAUSE = 2.0
_UNKNOWN_SECONDS = 10.0


class Client:
    """Calls a service that speaks the platform's protocol; safe from every thread.

    Every method raises the exception of `mlpkit.errors` for the service's refusal (`ArgumentError`,
    `AlgorithmNotFound`, `ModelNotLoaded`, `LoadFailed`, `PredictFailed`, `Overloaded`, ...; `UserCodeError` if a
    refusal has no class of its own), `ServiceUnreachable` or `TimeLimitExceeded` if no answer came, and
    `UnexpectedAnswer` if what came is not this protocol. A request that reads is tried again after a network
    fault; one that changes something only if no connection could be made.

    Args:
        url: the service's root, such as `http://127.0.0.1:8000`.
        prefix: the service's `ML_PLATFORM_CLIENT_API_PREFIX`.
        token: the service's `MLPKIT_TOKEN`, if it has one.
        timeout: longest silence of the service in seconds, if a method does not have its own limit.
        transport: another way to the service, in place of HTTP; `mlpkit.testing` has one.
    """

    def __init__(
        self,
        url: str,
        prefix: str = "/",
        token: str | None = None,
        timeout: float = 60.0,
        *,
        transport: Transport | None = None,
    ) -> None:
        self.url = url
        self.prefix = "/" + prefix.strip("/") + "/" * bool(prefix.strip("/"))
        self.timeout = timeout
        self._transport = HttpTransport(url) if transport is None else transport
        self._headers = {"Accept": "application/json"}
        if token:
            self._headers["Authorization"] = f"Bearer {token}"

    def __repr__(self) -> str:
        return f"Client({self.url!r}, prefix={self.prefix!r})"

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Closes the kept connections."""
        self._transport.close()

    def train(
        self,
        algorithm: str,
        data: Mapping[str, Any] | str | None = None,
        parameters: object = None,
        extend: Mapping[str, Any] | None = None,
        *,
        test: str | None = None,
        model_path: str = "",
        uuid: str | None = None,
    ) -> JobHandle:
        """Submits a training job.

        The job is on the service's disk when this returns. `data` is the request's object, or the location of
        the training data in the data bucket; `test` is the location of test rows, with which the model is evaluated.
        `parameters` is anything that JSON can express, a Struct or dataclass too.
        """
        location = {"location": data} if isinstance(data, str) else data
        if test is not None:
            location = {**(location or {}), "test_location": test}
        answer = self._post(
            "train",
            algorithm=algorithm,
            model_path=model_path,
            data={} if location is None else location,
            parameter={} if parameters is None else parameters,
            extend={} if extend is None else extend,
            uuid=uuid,
        )
        if not isinstance(answer, dict) or not isinstance(answer.get("model_id"), str):
            raise UnexpectedAnswer(f"the answer to train has no model_id: {answer!r}")
        return JobHandle(self, algorithm, answer["model_id"])

    def upload(
        self, file: str | Path, key: str | None = None, *, algorithm: str | None = None, timeout: float = 1200.0
    ) -> UploadedFile:
        """Puts a file into the service's data bucket.

        The service must have `MLPKIT_UPLOAD=on`. `key` is the location there, the file's name by default. With
        `algorithm` the file is checked first, and not stored if a training could not use it.

        Raises:
            DataError: the check refuses the file; nothing was stored.
        """
        source = Path(file)
        target = f"{self.prefix}data/{quote(source.name if key is None else key)}"
        if algorithm is not None:
            target += "?" + urlencode({"algorithm": algorithm})
        try:
            with source.open("rb") as content:
                length = str(source.stat().st_size)
                headers = {**self._headers, "Content-Type": "application/octet-stream", "Content-Length": length}
                answer = self._transport.request("PUT", target, content, headers, timeout)
        except OSError as error:
            raise ArgumentError(f"{source} cannot be read: {error.strerror or error}") from error
        return typed(data_of(answer), UploadedFile)

    def job(self, algorithm: str, model_id: str) -> JobHandle:
        """A handle of a job that was submitted before; nothing is sent."""
        return JobHandle(self, algorithm, model_id)

    def status(self, algorithm: str, model_id: str) -> JobStatus:
        """The state of the job of this model."""
        query = urlencode({"model_id": model_id, "algorithm": algorithm})
        return self._get(f"{self.prefix}status?{query}", JobStatus)

    def cancel(self, algorithm: str, model_id: str, *, soft: bool = False) -> None:
        """Ends a job, waiting or running; its status becomes `error`.

        With `soft`, a running job is only asked to end: it may save a checkpoint, or make a model of what it has.
        """
        self._post("cancel", algorithm=algorithm, model_id=model_id, soft=True if soft else None)

    def load(
        self,
        algorithm: str,
        model_id: str,
        model_path: str | None = None,
        *,
        uuid: str | None = None,
        timeout: float = 600.0,
    ) -> None:
        """Loads a model; returns when it can answer.

        A model that is loaded already stays as it is.
        """
        self._post("load", timeout, algorithm=algorithm, model_id=model_id, model_path=model_path, uuid=uuid)

    def unload(self, algorithm: str, model_id: str, *, uuid: str | None = None, timeout: float = 600.0) -> None:
        """Unloads a model; one that is not loaded is not an error."""
        self._post("unload", timeout, algorithm=algorithm, model_id=model_id, uuid=uuid)

    def predict(
        self,
        model_id: str,
        features: object,
        params: object = None,
        *,
        uuid: str | None = None,
        timeout: float | None = None,
    ) -> Any:
        """The model's answer to `features`.

        `params` are the handler's, such as `{"top_n": 3}`.
        """
        answer = self._post("predict", timeout, model_id=model_id, features=features, params=params, uuid=uuid)
        if not isinstance(answer, dict) or "predictions" not in answer:
            raise UnexpectedAnswer(f"the answer to predict has no predictions: {answer!r}")
        return answer["predictions"]

    def alias(
        self, algorithm: str, alias: str, model_id: str, *, uuid: str | None = None, timeout: float = 600.0
    ) -> AliasView:
        """Lets an alias lead to a model, which is loaded first.

        `predict` then takes `<algorithm>@<alias>` as the model id. No prediction fails while the alias moves.
        """
        answer = self._post("alias", timeout, algorithm=algorithm, alias=alias, model_id=model_id, uuid=uuid)
        return typed(answer, AliasView)

    def unalias(self, algorithm: str, alias: str, *, uuid: str | None = None, timeout: float = 600.0) -> None:
        """Removes an alias; one that does not exist is not an error."""
        self._post("unalias", timeout, algorithm=algorithm, alias=alias, uuid=uuid)

    def aliases(self) -> list[AliasView]:
        """The aliases, and the models that they lead to."""
        return self._get(f"{self.prefix}aliases", list[AliasView], "aliases")

    def delete(self, algorithm: str, model_id: str, *, uuid: str | None = None, timeout: float = 600.0) -> None:
        """Unloads a model and removes it from the store."""
        self._post("delete", timeout, algorithm=algorithm, model_id=model_id, uuid=uuid)

    def monitor(self) -> Monitor:
        """Which models are loaded where, and the service's algorithms."""
        return self._get(f"{self.prefix}monitor", Monitor)

    def node_info(self) -> NodeInfo:
        """The machine of the service. The original takes a second to answer."""
        return self._get("/node_info", NodeInfo)

    def jobs(self) -> list[JobView]:
        """The jobs of the service, newest first."""
        return self._get(f"{self.prefix}jobs", list[JobView], "jobs")

    def job_view(self, model_id: str) -> JobView:
        """All that the service knows about one job.

        Raises:
            JobNotFound: the service has no such job.
        """
        return self._get(f"{self.prefix}jobs/{quote(model_id, safe='')}", JobView)

    def log(self, model_id: str) -> str:
        """The job's own log so far.

        Raises:
            JobNotFound: the service has no such job.
        """
        return self._text_of(model_id, "log")

    def stack(self, model_id: str) -> str:
        """Where each thread of a running job is now, as text.

        Raises:
            JobNotFound: the service has no such job.
            MlpkitError: the job does not run, or its process does not answer.
        """
        return self._text_of(model_id, "stack")

    def events(
        self, model_id: str | None = None, *, last: str | None = None, timeout: float = 3600.0
    ) -> Generator[ServiceEvent, None, None]:
        """What happens to one job until it has ended, or to everything.

        A connection that breaks is made again, and nothing is lost: a service may be away for a minute. `last` is the
        `id` of the last event that you know, from an earlier call. An event may come twice. The events of one job
        begin with its present state and the log that is there.

        Raises:
            TimeLimitExceeded: it has not ended within `timeout` seconds, give or take 15, or the service is silent.
            JobNotFound: the service has no such job.
        """
        place = "events" if model_id is None else f"jobs/{quote(model_id, safe='')}/events"

        def connect(last: str | None, silence: float) -> StreamedAnswer:
            headers = {**self._headers, "Accept": "text/event-stream"}
            if last is not None:
                headers["Last-Event-ID"] = last
            return self._transport.stream(self.prefix + place, headers, silence)

        return follow(connect, last, timeout)

    def evaluation(self, model_id: str) -> dict[str, Any]:
        """The whole report of a job's evaluation, as `evaluation.json` has it.

        Raises:
            JobNotFound: the service has no such job.
            ObjectNotFound: the job has no evaluation, or its model was deleted.
        """
        return self._get(f"{self.prefix}jobs/{quote(model_id, safe='')}/evaluation", dict)

    def models(self) -> list[ModelView]:
        """The models that are loaded, or should be.

        Those that are not loaded are `unloaded`, and their `problem` says why.
        """
        found = self._get(f"{self.prefix}models", ModelsView)
        # In cluster mode they are in both lists.
        listed = {model.model_id: model for model in found.models}
        for model in found.missing:
            known = listed.get(model.model_id) or ModelView(
                model_id=model.model_id, algorithm=model.algorithm, model_path=model.model_path, state="unloaded"
            )
            listed[model.model_id] = msgspec.structs.replace(known, problem=model.reason)
        return list(listed.values())

    def stored_models(
        self, algorithm: str | None = None, *, limit: int = 100, after: str | None = None
    ) -> StoredModelsView:
        """A page of the models in the store, newest first.

        `after` is the `next` of the page before it. A page has at most 500 models.
        """
        choice = {"stored": 1, "limit": limit, "algorithm": algorithm, "after": after}
        query = urlencode({name: value for name, value in choice.items() if value is not None})
        return self._get(f"{self.prefix}models?{query}", StoredModelsView)

    def live(self) -> bool:
        """Whether the service's process answers at all."""
        try:
            return self._request("GET", "/health/live").status == 200
        except (ServiceUnreachable, TimeLimitExceeded):
            return False

    def ready(self) -> Readiness:
        """Whether the service takes work now, and if not, why.

        No answer at all is a reason too.
        """
        try:
            answer = self._request("GET", "/health/ready")
        except (ServiceUnreachable, TimeLimitExceeded) as error:
            return Readiness(False, [str(error)])
        return Readiness(answer.status == 200, [] if answer.status == 200 else _reasons(answer))

    def wait_ready(self, timeout: float = 120.0) -> None:
        """Returns when the service takes work.

        Raises:
            TimeLimitExceeded: it does not within `timeout` seconds; the message has its reasons.
        """
        deadline = time.monotonic() + timeout
        while not (readiness := self.ready()).ready:
            if time.monotonic() > deadline:
                raise TimeLimitExceeded(f"{self.url} is not ready after {timeout:g} s: {'; '.join(readiness.reasons)}")
            time.sleep(_POLL_INTERVAL)

    def request(
        self, method: str, target: str, content: bytes | None = None, content_type: str = "application/json"
    ) -> Answer:
        """Sends any request and gives the answer as it came."""
        headers = {**self._headers, "Content-Type": content_type} if content is not None else self._headers
        return self._transport.request(method, target, content, headers, self.timeout)

    def _get(self, target: str, wanted: type[T], part: str = "") -> T:
        """The data of an answer, or this `part` of it.

        Services that are not mlpkit may send the part alone.
        """
        data = data_of(self._request("GET", target))
        return typed(data.get(part, data) if part and isinstance(data, dict) else data, wanted)

    def _request(self, method: str, target: str) -> Answer:
        return self._transport.request(method, target, None, self._headers, self.timeout)

    def _text_of(self, model_id: str, part: str) -> str:
        """The log or the stack of a job."""
        answer = self._request("GET", f"{self.prefix}jobs/{quote(model_id, safe='')}/{part}")
        if answer.headers.get("content-type", "").startswith("application/json"):
            return str(data_of(answer))
        if answer.status == 404:
            raise JobNotFound(model_id)
        if answer.status != 200:
            raise UnexpectedAnswer(f"HTTP {answer.status} for the {part} of {model_id}")
        return answer.body.decode("utf-8", "replace")

    def _post(self, route: str, timeout: float | None = None, **fields: object) -> Any:
        body = _encoded({name: value for name, value in fields.items() if value is not None})
        headers = {**self._headers, "Content-Type": "application/json"}
        limit = self.timeout if timeout is None else timeout
        return data_of(self._transport.request("POST", self.prefix + route, body, headers, limit))


class JobHandle:
    """A job that was submitted; `model_id` is the model that it makes."""

    def __init__(self, client: Client, algorithm: str, model_id: str) -> None:
        self._client = client
        self.algorithm = algorithm
        self.model_id = model_id

    def __repr__(self) -> str:
        return f"JobHandle({self.algorithm!r}, {self.model_id!r})"

    def status(self) -> JobStatus:
        """The state of the job now."""
        return self._client.status(self.algorithm, self.model_id)

    def wait(self, timeout: float = 3600.0, *, progress: bool | Callable[[JobStatus], None] = False) -> JobStatus:
        """Returns when the job is completed.

        `progress=True` draws a bar on the terminal; a callable gets every status that was seen. It follows the job's
        events. From a service without events it asks for the status every 2 seconds, and more often at first.

        Raises:
            TrainFailed: the job ended with `error`; the message is the reason.
            TimeLimitExceeded: it has not ended within `timeout` seconds, give or take 15; it continues.
            JobNotFound: the service has not known it for 10 seconds.
        """
        deadline = time.monotonic() + timeout
        with _reporter(progress, f"{self.algorithm} {_shortened(self.model_id)}") as report:
            # Whatever goes wrong there, polling says what it is.
            with contextlib.suppress(MlpkitError):
                self._follow(timeout, report)
            status = self._poll(deadline, timeout, report)
        if status.status == "error":
            raise TrainFailed(status.message or f"job {self.model_id} ended with error; the service gives no reason")
        return status

    def cancel(self, *, soft: bool = False) -> None:
        """Ends the job, as `Client.cancel` does it."""
        self._client.cancel(self.algorithm, self.model_id, soft=soft)

    def log(self) -> str:
        """The job's own log so far."""
        return self._client.log(self.model_id)

    def events(self, *, timeout: float = 3600.0) -> Generator[ServiceEvent, None, None]:
        """State, progress and log until the job ends, as `Client.events`."""
        return self._client.events(self.model_id, timeout=timeout)

    def _follow(self, timeout: float, report: Callable[[JobStatus], None]) -> None:
        """Reports what the job's events tell until it has ended."""
        status = self.status()
        if status.ended or status.status == "unknown":
            return
        report(status)
        with contextlib.closing(self.events(timeout=timeout)) as events:
            for event in events:
                if isinstance(event, ProgressEvent):
                    report(msgspec.structs.replace(status, progress=event.progress))
                elif isinstance(event, JobEvent) and event.state != status.status:
                    # Without a request: a crowded service may not take a second connection.
                    status = msgspec.structs.replace(
                        status,
                        status=event.state,
                        message=event.message or None,
                        attempt=event.attempt or None,
                        queue_position=None,
                        estimated_start=None,
                    )
                    report(status)

    def _poll(self, deadline: float, timeout: float, report: Callable[[JobStatus], None]) -> JobStatus:
        pause = _FIRST_PAUSE
        known = time.monotonic()
        while True:
            status = self.status()
            now = time.monotonic()
            report(status)
            if status.ended:
                return status
            known = now if status.status != "unknown" else known
            if now - known > _UNKNOWN_SECONDS:
                raise JobNotFound(self.model_id)
            if now > deadline:
                raise TimeLimitExceeded(
                    f"job {self.model_id} has not ended within {timeout:g} s; its status is {status.status}"
                )
            time.sleep(min(pause, max(0.0, deadline - now)))
            pause = min(pause * 1.5, _LONGEST_PAUSE)


def _encoded(fields: Mapping[str, object]) -> bytes:
    try:
        return msgspec.json.encode(fields)
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise ArgumentError(f"the request cannot be written as JSON: {error}") from None


def _reasons(answer: Answer) -> list[str]:
    try:
        content = json.loads(answer.body)
    except ValueError:
        content = None
    reasons = content.get("reasons") if isinstance(content, dict) else None
    return [str(reason) for reason in reasons] if isinstance(reasons, list) else [f"HTTP {answer.status}"]


def _shortened(model_id: str) -> str:
    """The id, cut if it would fill half of a terminal's line."""
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
