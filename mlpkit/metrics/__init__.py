"""What is counted: values by size, and what scripts count themselves.

The front door of this folder.
"""

from __future__ import annotations

from mlpkit.metrics.authors import AuthorMetrics, metrics_environment
from mlpkit.metrics.histogram import HOURS, MOMENTS, SIZES, Histogram, quantile

__all__ = ["HOURS", "MOMENTS", "SIZES", "AuthorMetrics", "Histogram", "metrics_environment", "quantile"]
