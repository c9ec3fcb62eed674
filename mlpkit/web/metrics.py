"""`GET /metrics` for Prometheus: plain numbers, counted while requests are answered and put into words on a scrape."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from mlpkit.web.answers import Answer

if TYPE_CHECKING:
    from mlpkit.web.endpoint import Request
    from mlpkit.web.parts import Parts

_LIMITS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 60.0)
"""Upper limits of the buckets of request durations, in seconds."""
_TEXT = b"text/plain; version=0.0.4; charset=utf-8"


class RequestCounts:
    """How many requests each route has answered, with which word, and how long that took."""

    def __init__(self) -> None:
        self.answers: dict[tuple[str, str], int] = {}
        self.durations: dict[str, list[int]] = {}
        self.seconds: dict[str, float] = {}

    def add(self, route: str, word: str, seconds: float) -> None:
        """Counts one request."""
        key = (route, word)
        self.answers[key] = self.answers.get(key, 0) + 1
        buckets = self.durations.get(route)
        if buckets is None:
            buckets = self.durations[route] = [0] * (len(_LIMITS) + 1)
            self.seconds[route] = 0.0
        buckets[bisect_left(_LIMITS, seconds)] += 1
        self.seconds[route] += seconds


class MetricsRoute:
    """Answers a scrape from the counts and from what the parts say of themselves at that moment."""

    def __init__(self, parts: Parts, counts: RequestCounts) -> None:
        self._parts, self._counts = parts, counts

    async def metrics(self, request: Request) -> Answer:
        """The metrics in Prometheus' text format."""
        from prometheus_client import CollectorRegistry, generate_latest

        registry = CollectorRegistry(auto_describe=False)
        registry.register(self)
        return Answer(generate_latest(registry), content_type=_TEXT)

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
            total, lines = 0, []
            for limit, count in zip((*map(str, _LIMITS), "+Inf"), buckets, strict=True):
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
        models = self._parts.models
        views = models.listed()
        for name in self._parts.algorithms:
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
        for state, count in self._parts.training.counts().items():
            jobs.add_metric((state,), count)
        yield jobs
