"""The figures of the last hour, and the times that are read from a histogram."""

from __future__ import annotations

import math

import pytest

from mlpkit.metrics import quantile
from mlpkit.web.request import DURATION_LIMITS
from tests.wire.replayer import Service


def test_a_quantile_is_between_the_limits_of_its_bucket() -> None:
    buckets = [0] * (len(DURATION_LIMITS) + 1)
    assert math.isnan(quantile(DURATION_LIMITS, buckets, 0.5))
    buckets[2] = 10
    assert quantile(DURATION_LIMITS, buckets, 0.5) == pytest.approx(0.00375)
    buckets[-1] = 10
    assert quantile(DURATION_LIMITS, buckets, 0.99) == DURATION_LIMITS[-1]


def test_charts_have_a_value_of_every_series_for_each_sample(plain: Service) -> None:
    charts = plain.get("/charts").json["data"]
    assert charts["step"] == 10
    assert len({len(values) for values in charts["series"].values()}) == 1
    assert {"requests", "failures", "predictions", "p50", "p99", "waiting", "memory"} <= set(charts["series"])
