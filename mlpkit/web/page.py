"""The page at `/`, and what shows a service at a glance.

The page is plain files of the folder `page`: they hold no data, so they need no token. The browser asks the other
routes for everything that is shown.
"""

from __future__ import annotations

import contextlib
import hashlib
import platform
import shutil
import time
from array import array
from importlib.resources import files
from typing import TYPE_CHECKING, Any

import msgspec
from anyio import CapacityLimiter, to_thread

from mlpkit import __version__
from mlpkit.formats import kind_of, to_json
from mlpkit.metrics import quantile
from mlpkit.training import TrainData, takes
from mlpkit.web.jobs import missing_models
from mlpkit.web.openapi import author_types
from mlpkit.web.request import DURATION_LIMITS, HttpResponse, success

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mlpkit.algorithm import Algorithm
    from mlpkit.training import Job
    from mlpkit.web.answers import (
        AlgorithmDetails,
        AlgorithmPage,
        Charts,
        DiskUse,
        FailedJob,
        MemoryUse,
        ModelCounts,
        ServiceSummary,
        WorkerCounts,
    )
    from mlpkit.web.request import Header, RequestCounts
    from mlpkit.web.routes import Dependencies, Request

PAGE_FILES = {
    "": ("index.html", b"text/html; charset=utf-8"),
    "page/app.js": ("app.js", b"text/javascript; charset=utf-8"),
    "page/style.css": ("style.css", b"text/css; charset=utf-8"),
    "page/icon.svg": ("icon.svg", b"image/svg+xml"),
}
"""The files of the page by their paths, with their types."""
_POLICY = (
    b"default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    b"base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types"
)
"""Nothing from other hosts, no script or style inside the page, and no text that becomes HTML."""
_HEADERS: tuple[Header, ...] = (
    (b"content-security-policy", _POLICY),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-opener-policy", b"same-origin"),
    # The browser keeps the files and asks each time if they have changed.
    (b"cache-control", b"no-cache"),
)
STEP = 10.0
"""Seconds between two samples."""
_SAMPLES = 360
_LABEL_PARAMS = {
    "type": "object",
    "properties": {
        "threshold": {"type": "number", "minimum": 0, "maximum": 100},
        "top_n": {"type": "integer", "minimum": 0},
    },
}
"""The `params` that are applied to labels, if `predict` does not say what it takes."""
_SERIES = ("requests", "failures", "predictions", "p50", "p99", "waiting", "in_flight", "jobs", "queue", "memory")


class PageRoutes:
    """The functions of what shows the service at a glance."""

    def __init__(self, dependencies: Dependencies, counts: RequestCounts) -> None:
        self._dependencies = dependencies
        self._counts = counts
        self._started = time.time()
        self._files: dict[str, tuple[bytes, bytes]] = {}
        self._described: AlgorithmPage | None = None
        self._threads = CapacityLimiter(1)
        self.history = _History(dependencies, counts)

    async def page(self, request: Request) -> HttpResponse:
        """A page about the service, with its jobs, models and workers."""
        name, content_type = PAGE_FILES[request.context.path.lstrip("/")]
        if name not in self._files:
            content = (files("mlpkit.web") / "static" / name).read_bytes()
            self._files[name] = (content, b'"%b"' % hashlib.sha256(content).hexdigest()[:24].encode())
        content, etag = self._files[name]
        headers = (*_HEADERS, (b"etag", etag))
        if any(key == b"if-none-match" and etag in value for key, value in request.context.headers):
            return HttpResponse(b"", 304, headers, content_type)
        return HttpResponse(content, 200, headers, content_type)

    async def summary(self, request: Request) -> HttpResponse:
        """The service at a glance: phase, problems, jobs, models, resources."""
        failed, disk, cached, memory = await to_thread.run_sync(self._read, limiter=self._threads)
        dependencies = self._dependencies
        settings = dependencies.settings
        state = dependencies.state
        reasons = state.problems()
        jobs = dependencies.training.counts()
        place = settings.db_name if settings.db_type == "sqlite" else settings.db_host
        data: ServiceSummary = {
            "phase": state.phase,
            "ready": not reasons,
            "reasons": reasons,
            "warnings": state.warnings(),
            "version": __version__,
            "python": platform.python_version(),
            "started": self._started,
            "now": time.time(),
            "prefix": settings.api_prefix,
            "upload_size": settings.upload_size if settings.upload else None,
            "store": settings.store,
            "database": f"{settings.db_type}://{place}" if dependencies.cluster is not None else None,
            "jobs": {"waiting": jobs["init"], "running": jobs["training"], "places": settings.train_task_num},
            "models": self._models(),
            "workers": self._workers(),
            "algorithms": [
                {"name": algorithm.name, "kind": algorithm.kind} for algorithm in dependencies.algorithms.values()
            ],
            "failed": {"count": len(failed), "last": _failure(failed[0]) if failed else None},
            "disk": disk,
            "cache": {"used": cached, "limit": settings.cache_size},
            "memory": memory,
        }
        return success(data)

    async def algorithms(self, request: Request) -> HttpResponse:
        """The algorithms with their options, types and examples."""
        if self._described is None:
            self._described = describe_algorithms(list(self._dependencies.algorithms.values()))
        return success(self._described)

    async def charts(self, request: Request) -> HttpResponse:
        """The last hour in steps of 10 seconds; the newest is last."""
        return success(self.history.listed())

    def _read(self) -> tuple[list[Job], DiskUse | None, int | None, MemoryUse]:
        """What must be read from disks and the system.

        These are the jobs that failed lately, the disk of the home, the bytes in the cache, and the memory.
        """
        failed = self._dependencies.training.recent_failures()
        cached = self._dependencies.storage.cached()
        return failed, _disk(str(self._dependencies.settings.home)), cached, _memory()

    def _models(self) -> ModelCounts:
        models = self._dependencies.models
        views = models.listed()
        states = [view.state for view in views]
        desired = self._dependencies.cluster.desired_models if self._dependencies.cluster is not None else None
        return {
            "loaded": states.count("loaded"),
            "loading": states.count("loading"),
            "unloading": states.count("unloading"),
            "missing": len(missing_models(models, desired)),
            "waiting": sum(view.waiting for view in views),
            "in_flight": sum(view.in_flight for view in views),
        }

    def _workers(self) -> WorkerCounts:
        models = self._dependencies.models
        workers = models.workers()
        return {"ready": sum(worker.ready for worker in workers), "all": len(workers), "restarts": models.restarts}


class _History:
    """Figures of the last hour, a sample every 10 seconds.

    They take 30 kB, whatever happens.

    `requests`, `failures` and `predictions` are counts of the step, `p50` and `p99` the times of its predictions in
    seconds (nan if there was none), `memory` the resident bytes of the server; the others are as they were at its end.
    """

    def __init__(self, dependencies: Dependencies, counts: RequestCounts) -> None:
        self._dependencies = dependencies
        self._counts = counts
        self._series = {name: array("d") for name in _SERIES}
        self._end = time.time()
        self._answers: tuple[int, int] = (0, 0)
        self._buckets = [0] * (len(DURATION_LIMITS) + 1)

    def sample(self) -> None:
        """Adds a sample."""
        import psutil

        answers = (
            sum(self._counts.answers.values()),
            sum(count for (_, word), count in self._counts.answers.items() if word != "success"),
        )
        durations = self._counts.durations.get("predict")
        buckets = list(durations.counts) if durations is not None else self._buckets
        new = [after - before for after, before in zip(buckets, self._buckets, strict=True)]
        views = self._dependencies.models.listed()
        jobs = self._dependencies.training.counts()
        values = {
            "requests": answers[0] - self._answers[0],
            "failures": answers[1] - self._answers[1],
            "predictions": sum(new),
            "p50": quantile(DURATION_LIMITS, new, 0.5),
            "p99": quantile(DURATION_LIMITS, new, 0.99),
            "waiting": sum(view.waiting for view in views),
            "in_flight": sum(view.in_flight for view in views),
            "jobs": jobs["training"],
            "queue": jobs["init"],
            "memory": psutil.Process().memory_info().rss,
        }
        for name, value in values.items():
            series = self._series[name]
            series.append(value)
            del series[:-_SAMPLES]
        self._answers = answers
        self._buckets = buckets
        self._end = time.time()

    def listed(self) -> Charts:
        """All samples; None stands for what is not known."""
        series = {
            name: [None if value != value else value for value in values] for name, values in self._series.items()
        }
        return {"step": STEP, "end": self._end, "series": series}


def describe_algorithms(algorithms: Sequence[Algorithm]) -> AlgorithmPage:
    """What a form needs to train and to predict.

    `schemas` has what the types refer to.
    """
    types = author_types({algorithm.name: algorithm for algorithm in algorithms})
    described: list[AlgorithmDetails] = []
    for algorithm in algorithms:
        known = kind_of(algorithm.kind)
        plan = algorithm.plan("predict")
        params = types.of(algorithm.name, "predict", "params")
        described.append(
            {
                "name": algorithm.name,
                "kind": algorithm.kind,
                "hooks": sorted(algorithm.hooks),
                "examples": _as_json(algorithm.examples) or [dict(known.example)],
                "columns": known.columns,
                "max_batch_size": algorithm.predict_options.max_batch_size,
                "features": types.of(algorithm.name, "predict", "features"),
                "params": _LABEL_PARAMS if known.limit is not None and params == {"type": "object"} else params,
                "parameters": types.of(algorithm.name, "train", "parameters"),
                "takes_data": _takes_data(algorithm),
                "streams": plan is not None and plan.is_generator,
            }
        )
    return {"algorithms": described, "schemas": types.components}


def _as_json(examples: Sequence[object]) -> list[Any]:
    """The examples as JSON has them, without those that JSON cannot hold."""
    found = []
    for example in examples:
        with contextlib.suppress(TypeError, ValueError):
            found.append(msgspec.json.decode(to_json(example)))
    return found


def _takes_data(algorithm: Algorithm) -> bool:
    plan = algorithm.plan("train")
    return plan is not None and takes(plan, TrainData)


def _failure(job: Job) -> FailedJob:
    return {"model_id": job.model_id, "algorithm": job.algorithm, "message": job.message, "ended": job.ended}


def _disk(home: str) -> DiskUse | None:
    try:
        usage = shutil.disk_usage(home)
    except OSError:
        return None
    return {"total": usage.total, "free": usage.free}


def _memory() -> MemoryUse:
    import psutil

    machine = psutil.virtual_memory()
    return {"server": psutil.Process().memory_info().rss, "total": machine.total, "available": machine.available}
