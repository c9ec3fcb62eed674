"""mlpkit's own routes: jobs with logs and stacks, models, workers."""

from __future__ import annotations

import re
from collections import deque
from typing import TYPE_CHECKING, Any

import msgspec
from anyio import CapacityLimiter, to_thread

from mlpkit.errors import ArgumentError, JobNotFound, ObjectNotFound, did_you_mean
from mlpkit.processes import memory_of_each
from mlpkit.serving import MissingModel
from mlpkit.storage import in_time
from mlpkit.training import STATES, JobFilter, read_evaluation
from mlpkit.web.request import HttpResponse, success

if TYPE_CHECKING:
    from pathlib import Path

    from mlpkit.platform.cluster import DesiredModel
    from mlpkit.serving import Models
    from mlpkit.training import Job
    from mlpkit.web.answers import JobLine
    from mlpkit.web.routes import Dependencies, Request

_MOST_JOBS = 1000
_STORED = 100
_MOST_STORED = 500
_LARGEST_LOG = 16 << 20
_TEXT = b"text/plain; charset=utf-8"


class JobRoutes:
    """The functions of mlpkit's own routes."""

    def __init__(self, dependencies: Dependencies) -> None:
        self._settings = dependencies.settings
        self._models = dependencies.models
        self._training = dependencies.training
        self._cluster = dependencies.cluster
        self._aliases = dependencies.aliases
        self._stored_models = dependencies.stored_models
        self._timeout = dependencies.settings.hook_timeout
        self._threads = CapacityLimiter(4)
        self._store_threads = CapacityLimiter(4)

    async def jobs(self, request: Request) -> HttpResponse:
        """The newest jobs, filtered, and how many there are in `total`.

        At most `limit` jobs, 1000 by default, after the first `offset`.
        """
        limit = number_of(request, "limit", _MOST_JOBS)
        offset = int(_digits(request, "offset") or 0)
        chosen = JobFilter(
            state=_state(request),
            algorithm=request.query.get("algorithm"),
            since=_time(request, "since"),
            until=_time(request, "until"),
            find=request.query.get("find"),
        )

        def read() -> tuple[list[Job], int]:
            return self._training.jobs(limit, offset, chosen), self._training.count(chosen)

        jobs, total = await to_thread.run_sync(read, limiter=self._threads)
        return success({"jobs": [self._line(job) for job in jobs], "total": total})

    async def job(self, request: Request) -> HttpResponse:
        """Everything about one job, with its request."""
        model_id = request.path["model_id"]
        job = await self._whole_job(model_id)
        usage = await self._training.usage(model_id)
        more = {
            "model_path": job.model_path,
            "pid": usage.pid if usage is not None else None,
            "memory": usage.memory if usage is not None else None,
            "curves": await to_thread.run_sync(self._training.curves, model_id, limiter=self._threads),
        }
        known = success({**self._line(job), **more})
        # They are JSON already, and can be very long: decoding them would delay all other requests.
        asked = "".join(f', "{name}": {getattr(job, name)}' for name in ("data", "parameters", "extend"))
        return HttpResponse(known.body.removesuffix(b"}}") + asked.encode() + b"}}")

    async def log(self, request: Request) -> HttpResponse:
        """The job's log as text, or a part of it.

        Either the last `tail` lines, or what follows the byte `from`.

        At most 16 MiB. The header `X-Log-End` has the number of the byte that follows, for the next `from`.
        """
        model_id = request.path["model_id"]
        if self._training.summary(model_id) is None:
            raise JobNotFound(model_id)
        lines = number_of(request, "tail", None)
        start = _digits(request, "from")
        path = self._training.log_path(model_id)
        text, end = await to_thread.run_sync(_read_end, path, lines, start, limiter=self._threads)
        return HttpResponse(text, headers=((b"x-log-end", b"%d" % end),), content_type=_TEXT)

    async def evaluation(self, request: Request) -> HttpResponse:
        """The whole report of a job's evaluation, `evaluation.json`."""
        model_id = request.path["model_id"]
        job = await self._whole_job(model_id)
        if _evaluation_of(job) is None:
            raise ObjectNotFound(f"job [{model_id}] has no evaluation: its training had no test rows, or has not ended")
        limit = self._settings.hook_timeout
        late = f"the store did not answer within {limit:g} s about [{model_id}]"
        report = await in_time(read_evaluation, job, self._settings, limit=limit, limiter=self._threads, late=late)
        return HttpResponse(success().body.removesuffix(b"}") + b', "data": ' + report + b"}")

    async def stack(self, request: Request) -> HttpResponse:
        """Where each thread of a running job is now, as text."""
        return HttpResponse((await self._training.stack(request.path["model_id"])).encode(), content_type=_TEXT)

    async def cancel(self, request: Request) -> HttpResponse:
        """Ends a job, waiting or running.

        With `soft`, a running job may save a checkpoint first, and the answer does not wait for its end.
        """
        arguments = request.arguments
        job = await self._training.cancel(arguments.text("model_id"), soft=arguments.flag("soft"))
        return success({"model_id": job.model_id, "status": job.state, "message": job.note})

    async def models(self, request: Request) -> HttpResponse:
        """The models that are loaded, or, with `stored=1`, in the store.

        `missing` are those that should be loaded and are not, `evicted` those that a prediction loads again. In cluster
        mode it also says what the database wants.
        """
        if request.query.get("stored", "0") not in ("0", ""):
            return await self._stored(request)
        listed = msgspec.to_builtins(self._models.listed(), str_keys=True)
        desired_models = self._cluster.desired_models if self._cluster is not None else None
        missing = msgspec.to_builtins(missing_models(self._models, desired_models))
        evicted = msgspec.to_builtins(self._models.evicted())
        if self._cluster is None or desired_models is None:
            return success({"models": listed, "missing": missing, "evicted": evicted})
        checker = {"looked": self._cluster.looked, "warnings": self._cluster.warnings()}
        compared = _compared(listed, desired_models)
        return success({"models": compared, "missing": missing, "evicted": evicted, "checker": checker})

    async def workers(self, request: Request) -> HttpResponse:
        """The worker processes: memory, models, restarts, since when."""
        workers = self._models.workers()
        pids = [worker.pid for worker in workers if worker.pid is not None]
        memory = await to_thread.run_sync(memory_of_each, pids, limiter=self._threads)
        listed = [{**msgspec.to_builtins(worker), "memory": memory.get(worker.pid or 0)} for worker in workers]
        return success({"workers": listed, "restarts": self._models.restarts})

    async def _stored(self, request: Request) -> HttpResponse:
        """A page of the models in the store, newest first."""
        limit = min(number_of(request, "limit", None) or _STORED, _MOST_STORED)
        page = await in_time(
            self._stored_models.page,
            *(request.query.get("algorithm"), limit, request.query.get("after")),
            limit=self._timeout,
            limiter=self._store_threads,
            late=f"the store did not list its models within {self._timeout:g} s",
        )
        aliases: dict[str, list[str]] = {}
        for alias in self._aliases.listed():
            aliases.setdefault(alias.model_id, []).append(alias.name)
        models = [
            {
                **msgspec.to_builtins(model),
                "state": self._models.state_of(model.model_id),
                "aliases": aliases.get(model.model_id, []),
            }
            for model in page.models
        ]
        return success({"models": models, "total": page.total, "next": page.next, "unread": page.unread})

    async def _whole_job(self, model_id: str) -> Job:
        """The job with its request, which can be long."""
        job = await to_thread.run_sync(self._training.job, model_id, limiter=self._threads)
        if job is None:
            raise JobNotFound(model_id)
        return job

    def _line(self, job: Job) -> JobLine:
        return {
            "model_id": job.model_id,
            "algorithm": job.algorithm,
            "state": job.state,
            "message": job.note,
            "progress": msgspec.to_builtins(job.progress),
            "evaluation": _evaluation_of(job),
            "queue_position": self._training.position(job.model_id),
            "estimated_start": self._training.estimated_start(job.model_id),
            "reported": self._training.reported(job.model_id),
            "attempt": job.attempt,
            "created": job.created,
            "started": job.started,
            "ended": job.ended,
            "uuid": job.log_uuid,
        }


def missing_models(models: Models, desired_models: list[DesiredModel] | None) -> list[MissingModel]:
    """The models that should be loaded and are not, each once."""
    missing = {model.model_id: model for model in models.missing()}
    for desired in desired_models or ():
        if desired.wanted and desired.model_id not in models.states:
            known = missing.get(desired.model_id)
            reason = known.reason if known is not None else "the database names it; it is loaded soon"
            missing[desired.model_id] = MissingModel(
                desired.model_id, desired.algorithm, desired.path, desired.error or reason
            )
    return list(missing.values())


def _evaluation_of(job: Job) -> dict[str, Any] | None:
    """The summary of the job's evaluation, or None."""
    found = None if job.progress is None else job.progress.metrics.get("evaluation")
    # A train may give a metric of its own this name.
    return found if isinstance(found, dict) and found.keys() >= {"rows", "source"} else None


def _compared(listed: list[dict[str, Any]], desired_models: list[DesiredModel]) -> list[dict[str, Any]]:
    """The models, compared with what the database wants.

    Those that it wants and that are not here are listed too.
    """
    undesired = {"desired": None, "desired_since": None, "error": "", "load_failures": 0, "next_try": None}
    models = {model["model_id"]: {**model, **undesired} for model in listed}
    for desired in desired_models:
        absent = {
            "model_id": desired.model_id,
            "algorithm": desired.algorithm,
            "model_path": desired.path,
            "state": "unloaded",
        }
        models[desired.model_id] = {
            **models.get(desired.model_id, absent),
            "desired": "loaded" if desired.wanted else "unloaded",
            "desired_since": desired.since,
            "error": desired.error,
            "load_failures": desired.failures,
            "next_try": desired.next_try,
        }
    return list(models.values())


def _state(request: Request) -> str | None:
    state = request.query.get("state")
    if state is not None and state not in STATES:
        raise ArgumentError(f"[state] must be one of {', '.join(STATES)}{did_you_mean(state, STATES)}")
    return state


def number_of(request: Request, name: str, default: int | None) -> int | None:
    """A whole number of the query, at most the default."""
    text = request.query.get(name)
    if text is None:
        return default
    if not (text.isascii() and text.isdigit() and len(text) <= 9 and int(text) > 0):
        raise ArgumentError(f"[{name}] must be a whole number of at least 1")
    return int(text) if default is None else min(int(text), default)


def _digits(request: Request, name: str) -> int | None:
    text = request.query.get(name)
    if text is None:
        return None
    if not (text.isascii() and text.isdigit() and len(text) <= 15):
        raise ArgumentError(f"[{name}] must be a whole number of at least 0")
    return int(text)


def _time(request: Request, name: str) -> float | None:
    text = request.query.get(name)
    if text is None:
        return None
    if not re.fullmatch(r"\d{1,12}(\.\d{1,9})?", text, re.ASCII):
        raise ArgumentError(f"[{name}] must be a time in seconds since the epoch")
    return float(text)


def _read_end(path: Path, lines: int | None, start: int | None) -> tuple[bytes, int]:
    """A part of a log, and where it ends."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, 2)
            first = max(0, size - _LARGEST_LOG)
            # A log that is shorter than before is a new one: the job was submitted again.
            file.seek(first if start is None or start > size else max(first, start))
            if lines is None or start is not None:
                text = file.read(_LARGEST_LOG)
            else:
                text = b"".join(deque(file, maxlen=lines))
            return text, file.tell()
    except FileNotFoundError:
        # A job that waits has written nothing yet.
        return b"", 0
