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
from mlpkit.web.request import DURATION_LIMITS, HttpResponse, success, to_json

if TYPE_CHECKING:
    from mlpkit.metrics import Histogram
    from mlpkit.serving import Counts
    from mlpkit.storage import StorageCounts
    from mlpkit.web.request import RequestCounts
    from mlpkit.web.routes import Dependencies, Request, ServiceState

_GIB = 1 << 30
_SAMPLE_SECONDS = 0.5
_TEXT = b"text/plain; version=0.0.4; charset=utf-8"
_MOST_MODELS = 100
"""Models that have a line of their own, those that take most memory: a label must not have thousands of values."""
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


class HealthRoutes:
    """Answers the probes of an orchestrator, without waiting for anything."""

    def __init__(self, state: ServiceState) -> None:
        self._state = state

    async def live(self, request: Request) -> HttpResponse:
        """Always succeeds: any answer means that the process is alive."""
        return success({"phase": self._state.phase})

    async def ready(self, request: Request) -> HttpResponse:
        """Whether to send requests: 200, or 503 with the reasons.

        `warnings` name what is wrong although requests are answered.
        """
        reasons = self._state.problems()
        if not reasons:
            return success({"phase": self._state.phase, "warnings": self._state.warnings()})
        content = {"status": "fail", "message": "; ".join(reasons), "trace": "", "reasons": reasons}
        return HttpResponse(to_json(content), 503, word="fail")


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


class MetricsRoute:
    """Answers a scrape from the counts and the service's present state."""

    def __init__(self, dependencies: Dependencies, counts: RequestCounts) -> None:
        self._dependencies = dependencies
        self._counts = counts
        self._threads = CapacityLimiter(1)

    async def metrics(self, request: Request) -> HttpResponse:
        """The metrics in Prometheus' text format."""
        from prometheus_client import CollectorRegistry, generate_latest

        pids = {worker.index: worker.pid for worker in self._dependencies.models.workers() if worker.pid is not None}
        read = await to_thread.run_sync(self.read, pids, limiter=self._threads)
        registry = CollectorRegistry(auto_describe=False)
        registry.register(self.collector(read))
        registry.register(self._dependencies.author_metrics)
        return HttpResponse(generate_latest(registry), content_type=_TEXT)

    def read(self, pids: Mapping[int, int]) -> Measured:
        """What must be read for a scrape; `pids` is by worker."""
        dependencies = self._dependencies
        return Measured(_memory_of(pids), dependencies.storage_totals.counts(), dependencies.storage.cached())

    def collector(self, measured: Measured) -> _Collector:
        """The metric families of this moment."""
        return _Collector(self._dependencies, self._counts, measured)


@dataclass(frozen=True)
class Measured:
    """What a scrape has read.

    `memory` is bytes by worker, `cached` the bytes in the cache, None if that is not known.
    """

    memory: Mapping[int, int]
    storage: StorageCounts
    cached: int | None


class _Collector:
    """The numbers of one moment."""

    def __init__(self, dependencies: Dependencies, counts: RequestCounts, measured: Measured) -> None:
        self._dependencies = dependencies
        self._counts = counts
        self._measured = measured

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
        from prometheus_client.core import GaugeMetricFamily

        build = GaugeMetricFamily(
            "mlpkit_build_info", "Always 1; the labels have the versions.", labels=("version", "python")
        )
        build.add_metric((__version__, platform.python_version()), 1)
        yield build
        state = self._dependencies.state
        yield _gauge(
            "mlpkit_ready",
            "1 if the service should get requests, as `/health/ready` says, else 0.",
            int(not state.problems()),
        )
        yield _gauge("mlpkit_warnings", "Number of warnings in the answer of `/health/ready`.", len(state.warnings()))

    def _of_requests(self) -> Iterator[Any]:
        from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily

        answers = CounterMetricFamily(
            "mlpkit_requests", "Requests answered, with the `status` of the answer.", labels=("route", "status")
        )
        for (route, word), count in self._counts.answers.items():
            answers.add_metric((route, word), count)
        yield answers
        durations = HistogramMetricFamily(
            "mlpkit_request_seconds", "Time from a request to its answer.", labels=("route",)
        )
        for route, buckets in self._counts.durations.items():
            total = 0
            lines = []
            for limit, count in zip((*map(str, DURATION_LIMITS), "+Inf"), buckets, strict=True):
                total += count
                lines.append((limit, float(total)))
            durations.add_metric((route,), lines, self._counts.seconds[route])
        yield durations

    def _of_models(self) -> Iterator[Any]:
        from prometheus_client.core import GaugeMetricFamily

        loaded = GaugeMetricFamily("mlpkit_models_loaded", "Models that are loaded.", labels=("algorithm",))
        wanted = GaugeMetricFamily("mlpkit_models_wanted", "Models that should be loaded.", labels=("algorithm",))
        waiting = GaugeMetricFamily(
            "mlpkit_predictions_waiting", "Predictions that wait for a worker.", labels=("algorithm",)
        )
        flying = GaugeMetricFamily(
            "mlpkit_predictions_in_flight", "Predictions that workers hold.", labels=("algorithm",)
        )
        memory = GaugeMetricFamily(
            "mlpkit_model_memory_bytes",
            f"Memory that the last load of a model took, of the {_MOST_MODELS} largest that are loaded.",
            labels=("algorithm", "model_id"),
        )
        views = self._dependencies.models.listed()
        desired = self._desired()
        for name in self._dependencies.algorithms:
            present = [view for view in views if view.algorithm == name]
            loaded.add_metric((name,), sum(view.state == "loaded" for view in present))
            wanted.add_metric((name,), desired[name])
            waiting.add_metric((name,), sum(view.waiting for view in present))
            flying.add_metric((name,), sum(view.in_flight for view in present))
        for view in sorted(views, key=lambda view: view.memory or 0, reverse=True)[:_MOST_MODELS]:
            if view.memory is not None:
                memory.add_metric((view.algorithm, view.model_id), view.memory)
        yield from (loaded, wanted, waiting, flying, memory)

    def _desired(self) -> Mapping[str, int]:
        """How many models of each algorithm should be loaded."""
        models = self._dependencies.models
        ids = {name: set[str]() for name in self._dependencies.algorithms}
        for view in models.listed():
            if view.state != "unloading":
                ids[view.algorithm].add(view.model_id)
        for missing in models.missing():
            ids.setdefault(missing.algorithm, set()).add(missing.model_id)
        cluster = self._dependencies.cluster
        for desired in (cluster.desired_models if cluster is not None else None) or ():
            if desired.wanted:
                ids.setdefault(desired.algorithm, set()).add(desired.model_id)
        return {name: len(found) for name, found in ids.items()}

    def _of_predictions(self) -> Iterator[Any]:
        from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily

        done = CounterMetricFamily(
            "mlpkit_predictions", "Predictions made; outcome is `success` or `fail`.", labels=("algorithm", "outcome")
        )
        seconds = CounterMetricFamily("mlpkit_predict_seconds", "Time spent in `predict`.", labels=("algorithm",))
        batches = CounterMetricFamily(
            "mlpkit_batches", "Calls of `predict`; a batch is one call.", labels=("algorithm",)
        )
        histograms = {
            name: HistogramMetricFamily(name, text, labels=("algorithm",)) for name, (text, _) in _HISTOGRAMS.items()
        }
        for name in self._dependencies.algorithms:
            counts = self._dependencies.models.counts(name)
            done.add_metric((name, "success"), counts.predictions - counts.failures)
            done.add_metric((name, "fail"), counts.failures)
            seconds.add_metric((name,), counts.seconds)
            batches.add_metric((name,), counts.batches)
            for family, (_, histogram) in _HISTOGRAMS.items():
                _add(histograms[family], name, histogram(counts))
        yield from (done, seconds, batches, *histograms.values())

    def _of_loads(self) -> Iterator[Any]:
        from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily

        seconds = HistogramMetricFamily("mlpkit_load_seconds", "Time of loads that succeeded.", labels=("algorithm",))
        failures = CounterMetricFamily("mlpkit_load_failures", "Loads that failed.", labels=("algorithm",))
        lazy = CounterMetricFamily("mlpkit_lazy_loads", "Loads that predictions asked for.", labels=("algorithm",))
        evictions = CounterMetricFamily(
            "mlpkit_model_evictions", "Models that left because memory was short.", labels=("algorithm",)
        )
        for name, loads in self._dependencies.models.loads.items():
            _add(seconds, name, loads.seconds)
            failures.add_metric((name,), loads.failures)
            lazy.add_metric((name,), loads.lazy)
            evictions.add_metric((name,), loads.evictions)
        yield from (seconds, failures, lazy, evictions)

    def _of_workers(self) -> Iterator[Any]:
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

        models = self._dependencies.models
        restarts = CounterMetricFamily("mlpkit_worker_restarts", "Workers that ended and were replaced.")
        restarts.add_metric((), models.restarts)
        yield restarts
        workers = models.workers()
        yield _gauge("mlpkit_workers_ready", "Workers that take requests.", sum(worker.ready for worker in workers))
        memory = GaugeMetricFamily("mlpkit_worker_memory_bytes", "Resident memory of a worker.", labels=("worker",))
        for index, size in self._measured.memory.items():
            memory.add_metric((str(index),), size)
        yield memory
        yield _gauge(
            "mlpkit_saturation",
            "Share of the workers that are busy, 0 to 1, over some 15 seconds: the figure by which to scale.",
            models.saturation,
        )

    def _of_jobs(self) -> Iterator[Any]:
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily

        training = self._dependencies.training
        jobs = GaugeMetricFamily(
            "mlpkit_jobs", "Training jobs that wait (`init`) or run (`training`).", labels=("state",)
        )
        for state, count in training.counts().items():
            jobs.add_metric((state,), count)
        yield jobs
        ended = CounterMetricFamily(
            "mlpkit_jobs_ended",
            "Training jobs that ended: `completed`, `error` or `cancelled`.",
            labels=("algorithm", "outcome"),
        )
        running = HistogramMetricFamily(
            "mlpkit_job_seconds", "Time of a training job from start to end.", labels=("algorithm",)
        )
        waiting = HistogramMetricFamily(
            "mlpkit_job_wait_seconds", "Time that a training job waited.", labels=("algorithm",)
        )
        for name in self._dependencies.algorithms:
            counts = training.ended[name]
            for outcome, count in counts.outcomes.items():
                ended.add_metric((name, outcome), count)
            _add(running, name, counts.running)
            _add(waiting, name, counts.waiting)
        yield from (ended, running, waiting)

    def _of_storage(self) -> Iterator[Any]:
        from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily

        counts = self._measured.storage
        hits = CounterMetricFamily("mlpkit_cache_hits", "Objects and folders that were in the cache.")
        hits.add_metric((), counts.cache["hit"])
        misses = CounterMetricFamily("mlpkit_cache_misses", "Objects and folders that had to be fetched.")
        misses.add_metric((), counts.cache["miss"])
        evictions = CounterMetricFamily(
            "mlpkit_cache_evictions", "Objects and folders that the cache removed to make room."
        )
        evictions.add_metric((), counts.cache["eviction"])
        yield from (hits, misses, evictions)
        yield _gauge("mlpkit_cache_bytes", "Bytes in the cache.", self._measured.cached or 0)
        yield _gauge(
            "mlpkit_cache_limit_bytes", "Bytes that the cache may have.", self._dependencies.settings.cache_size
        )
        seconds = HistogramMetricFamily(
            "mlpkit_store_seconds",
            "Time of an operation of the store, with its retries, in all processes on this machine.",
            labels=("operation",),
        )
        errors = CounterMetricFamily(
            "mlpkit_store_errors",
            "Operations of the store that failed. That an object is missing is not an error.",
            labels=("operation",),
        )
        for operation, histogram in counts.seconds.items():
            _add(seconds, operation, histogram)
            errors.add_metric((operation,), counts.errors[operation])
        yield from (seconds, errors)


def _gauge(name: str, text: str, value: float) -> Any:
    from prometheus_client.core import GaugeMetricFamily

    return GaugeMetricFamily(name, text, value=value)


def _add(family: Any, label: str, histogram: Histogram) -> None:
    family.add_metric((label,), histogram.lines(), histogram.sum)


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
