"""The probes of an orchestrator, and the metrics for Prometheus.

Requests are counted in plain numbers (`RequestCounts`); a scrape puts them into words.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from mlpkit.web.request import DURATION_LIMITS, HttpResponse, success, to_json

if TYPE_CHECKING:
    from mlpkit.web.request import RequestCounts
    from mlpkit.web.routes import Dependencies, Request, ServiceState

_TEXT = b"text/plain; version=0.0.4; charset=utf-8"


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


class MetricsRoute:
    """Answers a scrape from the counts and the service's present state."""

    def __init__(self, dependencies: Dependencies, counts: RequestCounts) -> None:
        self._dependencies = dependencies
        self._counts = counts

    async def metrics(self, request: Request) -> HttpResponse:
        """The metrics in Prometheus' text format."""
        from prometheus_client import CollectorRegistry, generate_latest

        registry = CollectorRegistry(auto_describe=False)
        registry.register(self)
        return HttpResponse(generate_latest(registry), content_type=_TEXT)

    def collect(self) -> Iterator[Any]:
        """The metric families, as prometheus_client collects them."""
        yield from self._of_requests()
        yield from self._of_models()
        yield from self._of_jobs()

    def _of_requests(self) -> Iterator[Any]:
        from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily

        answers = CounterMetricFamily("mlpkit_requests", "Requests answered.", labels=("route", "status"))
        for (route, word), count in self._counts.answers.items():
            answers.add_metric((route, word), count)
        yield answers
        durations = HistogramMetricFamily("mlpkit_request_seconds", "Time until the answer.", labels=("route",))
        for route, buckets in self._counts.durations.items():
            total = 0
            lines = []
            for limit, count in zip((*map(str, DURATION_LIMITS), "+Inf"), buckets, strict=True):
                total += count
                lines.append((limit, float(total)))
            durations.add_metric((route,), lines, self._counts.seconds[route])
        yield durations

    def _of_models(self) -> Iterator[Any]:
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

        loaded = GaugeMetricFamily("mlpkit_models_loaded", "Models that are loaded.", labels=("algorithm",))
        waiting = GaugeMetricFamily("mlpkit_predictions_waiting", "Predictions that wait.", labels=("algorithm",))
        flying = GaugeMetricFamily("mlpkit_predictions_in_flight", "Requests that workers hold.", labels=("algorithm",))
        done = CounterMetricFamily("mlpkit_predictions", "Predictions made.", labels=("algorithm", "outcome"))
        seconds = CounterMetricFamily("mlpkit_predict_seconds", "Time in the users' predict.", labels=("algorithm",))
        batches = CounterMetricFamily("mlpkit_batches", "Calls of the users' predict.", labels=("algorithm",))
        models = self._dependencies.models
        views = models.listed()
        for name in self._dependencies.algorithms:
            present = [view for view in views if view.algorithm == name]
            loaded.add_metric((name,), sum(view.state == "loaded" for view in present))
            waiting.add_metric((name,), sum(view.waiting for view in present))
            flying.add_metric((name,), sum(view.in_flight for view in present))
            counts = models.counts(name)
            done.add_metric((name, "success"), counts.predictions - counts.failures)
            done.add_metric((name, "fail"), counts.failures)
            seconds.add_metric((name,), counts.seconds)
            batches.add_metric((name,), counts.batches)
        yield from (loaded, waiting, flying, done, seconds, batches)
        restarts = CounterMetricFamily("mlpkit_worker_restarts", "Workers that ended and were replaced.")
        restarts.add_metric((), models.restarts)
        yield restarts

    def _of_jobs(self) -> Iterator[Any]:
        from prometheus_client.core import GaugeMetricFamily

        jobs = GaugeMetricFamily("mlpkit_jobs", "Training jobs that wait or run.", labels=("state",))
        for state, count in self._dependencies.training.counts().items():
            jobs.add_metric((state,), count)
        yield jobs
