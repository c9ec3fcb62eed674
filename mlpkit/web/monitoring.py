"""The probes of an orchestrator, the metrics for Prometheus, and the machine.

Requests are counted in plain numbers (`RequestCounts`); a scrape puts them into words.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import anyio
from anyio import CapacityLimiter, to_thread

from mlpkit import __version__
from mlpkit.web.request import HttpResponse, success, to_json

if TYPE_CHECKING:
    from mlpkit.metrics import Histogram
    from mlpkit.serving import Counts
    from mlpkit.storage import StorageCounts
    from mlpkit.web.request import RequestCounts
    from mlpkit.web.routes import Dependencies, Request

_GIB = 1 << 30
_SAMPLE_SECONDS = 0.5
_TEXT = b"text/plain; version=0.0.4; charset=utf-8"
_MOST_MODELS = 100
"""Models that have a line of their own, those that take most memory: a label must not have thousands of values."""
_Values = Mapping[Any, float]
"""The samples of a family: by the value of its label, by a tuple if it has several, by `()` if it has none."""
_HISTOGRAMS: Mapping[str, tuple[str, Callable[[Counts], Histogram]]] = {
    "mlpkit_prediction_wait_seconds": ("Time until a prediction is sent to a worker.", lambda counts: counts.wait),
    "mlpkit_prediction_transfer_seconds": (
        "Time of a message to a worker and back, with its wait there, without `predict`.",
        lambda counts: counts.transfer,
    ),
    "mlpkit_predict_call_seconds": ("Time of one call of `predict`.", lambda counts: counts.call),
    "mlpkit_batch_size": (
        "Predictions in one call of `predict`, for algorithms with batches.",
        lambda counts: counts.sizes,
    ),
}
"""The histograms of predictions, by algorithm."""


class MonitoringRoutes:
    """Answers the probes of an orchestrator, and scrapes."""

    def __init__(self, dependencies: Dependencies, counts: RequestCounts) -> None:
        self._dependencies = dependencies
        self._counts = counts
        self._threads = CapacityLimiter(1)

    async def live(self, request: Request) -> HttpResponse:
        """Always succeeds: any answer means that the process is alive."""
        return success({"phase": self._dependencies.state.phase})

    async def ready(self, request: Request) -> HttpResponse:
        """Whether to send requests: 200, or 503 with the reasons.

        `warnings` name what is wrong although requests are answered.
        """
        state = self._dependencies.state
        reasons = state.problems()
        if not reasons:
            return success({"phase": state.phase, "warnings": state.warnings()})
        content = {"status": "fail", "message": "; ".join(reasons), "trace": "", "reasons": reasons}
        return HttpResponse(to_json(content), 503, word="fail")

    async def metrics(self, request: Request) -> HttpResponse:
        """The metrics in Prometheus' text format."""
        from prometheus_client import CollectorRegistry, generate_latest

        pids = {worker.index: worker.pid for worker in self._dependencies.models.workers() if worker.pid is not None}
        registry = CollectorRegistry(auto_describe=False)
        registry.register(await to_thread.run_sync(self.read, pids, limiter=self._threads))
        registry.register(self._dependencies.author_metrics)
        return HttpResponse(generate_latest(registry), content_type=_TEXT)

    def read(self, pids: Mapping[int, int]) -> Metrics:
        """The metrics, and what must be read for them; `pids` by worker."""
        dependencies = self._dependencies
        storage = dependencies.storage_totals.counts()
        return Metrics(dependencies, self._counts, _memory_of(pids), storage, dependencies.storage.cached())


async def node_info(request: Request) -> HttpResponse:
    """The machine: memory, processors, network and disk traffic since boot."""
    return success(await machine())


async def machine() -> dict[str, float | int | str]:
    """The machine's memory, processors, network and disks.

    Memory is in GiB, idle rates are from 0 to 1, `sent/received` and `read/written` in GiB since boot.

    Takes half a second, to measure how idle the processors are. The protocol spells `totol_`; the answer has the right
    spelling too. Source: `tests/wire/PROTOCOL.md`, section 1.4.
    """
    import psutil  # here and below: the server starts sooner and smaller without it

    before = psutil.cpu_times()
    await anyio.sleep(_SAMPLE_SECONDS)
    memory = psutil.virtual_memory()
    gibibytes = memory.total / _GIB
    cpus = psutil.cpu_count() or 1
    return {
        "totol_memory": gibibytes,
        "totol_cpu": cpus,
        "idle_memory_rate": round(memory.available / memory.total, 2),
        "idle_cpu_rate": round(_idle_share(before, psutil.cpu_times()), 2),
        "net_io": _network(),
        "block_io": _disks(),
        "total_memory": gibibytes,
        "total_cpu": cpus,
    }


def _idle_share(before: tuple[float, ...], after: tuple[float, ...]) -> float:
    idle = getattr(after, "idle", 0.0) - getattr(before, "idle", 0.0)
    whole = sum(after) - sum(before)
    return min(1.0, max(0.0, idle / whole)) if whole > 0 else 1.0


def _network() -> str:
    import psutil

    counters = psutil.net_io_counters()
    return _both(counters.bytes_sent, counters.bytes_recv) if counters else _both(0, 0)


def _disks() -> str:
    import psutil

    counters = psutil.disk_io_counters()
    return _both(counters.read_bytes, counters.write_bytes) if counters else _both(0, 0)


def _both(out: int, into: int) -> str:
    return f"{out / _GIB:.1f}/{into / _GIB:.1f}"


@dataclass(frozen=True, eq=False)
class Metrics:
    """The metrics of one moment.

    `memory` is bytes by worker, `cached` the bytes in the cache, None if that is not known.
    """

    dependencies: Dependencies
    counts: RequestCounts
    memory: Mapping[int, int]
    storage: StorageCounts
    cached: int | None

    def collect(self) -> Iterator[Any]:
        """The metric families, as prometheus_client collects them."""
        yield from self._of_service()
        yield from self._of_requests()
        yield from self._of_models()
        yield from self._of_predictions()
        yield from self._of_loads()
        yield from self._of_workers()
        yield from self._of_jobs()
        yield from self._of_storage()

    def _of_service(self) -> Iterator[Any]:
        build = (__version__, platform.python_version())
        yield _gauge("mlpkit_build_info", "Always 1; the labels have the versions.", {build: 1}, "version", "python")
        state = self.dependencies.state
        text = "1 if the service should get requests, as `/health/ready` says, else 0."
        yield _gauge("mlpkit_ready", text, {(): int(not state.problems())})
        text = "Number of warnings in the answer of `/health/ready`."
        yield _gauge("mlpkit_warnings", text, {(): len(state.warnings())})

    def _of_requests(self) -> Iterator[Any]:
        text = "Requests answered, with the `status` of the answer."
        yield _counter("mlpkit_requests", text, self.counts.answers, "route", "status")
        text = "Time from a request to its answer."
        yield _histogram("mlpkit_request_seconds", text, self.counts.durations, "route")

    def _of_models(self) -> Iterator[Any]:
        views = self.dependencies.models.listed()
        names = self.dependencies.algorithms
        own = {name: [view for view in views if view.algorithm == name] for name in names}
        loaded = {name: sum(view.state == "loaded" for view in own[name]) for name in names}
        desired = self._desired()
        wanted = {name: desired[name] for name in names}
        waiting = {name: sum(view.waiting for view in own[name]) for name in names}
        flying = {name: sum(view.in_flight for view in own[name]) for name in names}
        largest = sorted(views, key=lambda view: view.memory or 0, reverse=True)[:_MOST_MODELS]
        memory = {(view.algorithm, view.model_id): view.memory for view in largest if view.memory is not None}
        yield _gauge("mlpkit_models_loaded", "Models that are loaded.", loaded, "algorithm")
        yield _gauge("mlpkit_models_wanted", "Models that should be loaded.", wanted, "algorithm")
        yield _gauge("mlpkit_predictions_waiting", "Predictions that wait for a worker.", waiting, "algorithm")
        yield _gauge("mlpkit_predictions_in_flight", "Predictions that workers hold.", flying, "algorithm")
        text = f"Memory that the last load of a model took, of the {_MOST_MODELS} largest that are loaded."
        yield _gauge("mlpkit_model_memory_bytes", text, memory, "algorithm", "model_id")

    def _desired(self) -> Mapping[str, int]:
        """How many models of each algorithm should be loaded."""
        models = self.dependencies.models
        ids = {name: set[str]() for name in self.dependencies.algorithms}
        for view in models.listed():
            if view.state != "unloading":
                ids[view.algorithm].add(view.model_id)
        for missing in models.missing():
            ids.setdefault(missing.algorithm, set()).add(missing.model_id)
        cluster = self.dependencies.cluster
        for desired in (cluster.desired_models if cluster is not None else None) or ():
            if desired.wanted:
                ids.setdefault(desired.algorithm, set()).add(desired.model_id)
        return {name: len(found) for name, found in ids.items()}

    def _of_predictions(self) -> Iterator[Any]:
        counts = {name: self.dependencies.models.counts(name) for name in self.dependencies.algorithms}
        done: dict[tuple[str, str], int] = {}
        for name, found in counts.items():
            done[name, "success"] = found.predictions - found.failures
            done[name, "fail"] = found.failures
        seconds = {name: found.seconds for name, found in counts.items()}
        batches = {name: found.batches for name, found in counts.items()}
        text = "Predictions made; outcome is `success` or `fail`."
        yield _counter("mlpkit_predictions", text, done, "algorithm", "outcome")
        yield _counter("mlpkit_predict_seconds", "Time spent in `predict`.", seconds, "algorithm")
        yield _counter("mlpkit_batches", "Calls of `predict`; a batch is one call.", batches, "algorithm")
        for family, (text, histogram_of) in _HISTOGRAMS.items():
            yield _histogram(family, text, {name: histogram_of(found) for name, found in counts.items()}, "algorithm")

    def _of_loads(self) -> Iterator[Any]:
        loads = self.dependencies.models.loads
        seconds = {name: found.seconds for name, found in loads.items()}
        failures = {name: found.failures for name, found in loads.items()}
        lazy = {name: found.lazy for name, found in loads.items()}
        evictions = {name: found.evictions for name, found in loads.items()}
        yield _histogram("mlpkit_load_seconds", "Time of loads that succeeded.", seconds, "algorithm")
        yield _counter("mlpkit_load_failures", "Loads that failed.", failures, "algorithm")
        yield _counter("mlpkit_lazy_loads", "Loads that predictions asked for.", lazy, "algorithm")
        yield _counter("mlpkit_model_evictions", "Models that left because memory was short.", evictions, "algorithm")

    def _of_workers(self) -> Iterator[Any]:
        models = self.dependencies.models
        ready = sum(worker.ready for worker in models.workers())
        yield _counter("mlpkit_worker_restarts", "Workers that ended and were replaced.", {(): models.restarts})
        yield _gauge("mlpkit_workers_ready", "Workers that take requests.", {(): ready})
        yield _gauge("mlpkit_worker_memory_bytes", "Resident memory of a worker.", self.memory, "worker")
        text = "Share of the workers that are busy, 0 to 1, over some 15 seconds: the figure by which to scale."
        yield _gauge("mlpkit_saturation", text, {(): models.saturation})

    def _of_jobs(self) -> Iterator[Any]:
        training = self.dependencies.training
        ended = {name: training.ended[name] for name in self.dependencies.algorithms}
        outcomes = {(name, outcome): count for name, jobs in ended.items() for outcome, count in jobs.outcomes.items()}
        running = {name: jobs.running for name, jobs in ended.items()}
        waiting = {name: jobs.waiting for name, jobs in ended.items()}
        text = "Training jobs that wait (`init`) or run (`training`)."
        yield _gauge("mlpkit_jobs", text, training.counts(), "state")
        text = "Training jobs that ended: `completed`, `error` or `cancelled`."
        yield _counter("mlpkit_jobs_ended", text, outcomes, "algorithm", "outcome")
        yield _histogram("mlpkit_job_seconds", "Time of a training job from start to end.", running, "algorithm")
        yield _histogram("mlpkit_job_wait_seconds", "Time that a training job waited.", waiting, "algorithm")

    def _of_storage(self) -> Iterator[Any]:
        storage = self.storage
        limit = self.dependencies.settings.cache_size
        text = "Objects and folders that were in the cache."
        yield _counter("mlpkit_cache_hits", text, {(): storage.cache["hit"]})
        text = "Objects and folders that had to be fetched."
        yield _counter("mlpkit_cache_misses", text, {(): storage.cache["miss"]})
        text = "Objects and folders that the cache removed to make room."
        yield _counter("mlpkit_cache_evictions", text, {(): storage.cache["eviction"]})
        yield _gauge("mlpkit_cache_bytes", "Bytes in the cache.", {(): self.cached or 0})
        yield _gauge("mlpkit_cache_limit_bytes", "Bytes that the cache may have.", {(): limit})
        text = "Time of an operation of the store, with its retries, in all processes on this machine."
        yield _histogram("mlpkit_store_seconds", text, storage.seconds, "operation")
        text = "Operations of the store that failed. That an object is missing is not an error."
        yield _counter("mlpkit_store_errors", text, storage.errors, "operation")


def _gauge(name: str, text: str, values: _Values, *labels: str) -> Any:
    from prometheus_client.core import GaugeMetricFamily

    return _with_samples(GaugeMetricFamily(name, text, labels=labels), values)


def _counter(name: str, text: str, values: _Values, *labels: str) -> Any:
    from prometheus_client.core import CounterMetricFamily

    return _with_samples(CounterMetricFamily(name, text, labels=labels), values)


def _with_samples(family: Any, values: _Values) -> Any:
    for key, value in values.items():
        family.add_metric(key if isinstance(key, tuple) else (str(key),), value)
    return family


def _histogram(name: str, text: str, histograms: Mapping[str, Histogram], label: str) -> Any:
    from prometheus_client.core import HistogramMetricFamily

    family = HistogramMetricFamily(name, text, labels=(label,))
    for key, histogram in histograms.items():
        family.add_metric((key,), histogram.lines(), histogram.sum)
    return family


def _memory_of(pids: Mapping[int, int]) -> dict[int, int]:
    """The resident bytes of each worker that is still there."""
    import psutil

    found = {}
    for index, pid in pids.items():
        try:
            found[index] = psutil.Process(pid).memory_info().rss
        except psutil.Error:
            continue
    return found
