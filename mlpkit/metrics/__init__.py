"""What is counted: values by size, and what scripts count themselves.

The front door of this folder.
"""

from __future__ import annotations

from mlpkit.metrics.authors import AuthorMetrics, metrics_environment, metrics_folder
from mlpkit.metrics.histogram import HOURS, MOMENTS, SIZES, Histogram, quantile
from mlpkit.metrics.shared import SharedNumbers, SumOfNumbers, numbers_of_process

__all__ = [
    "HOURS",
    "MOMENTS",
    "SIZES",
    "AuthorMetrics",
    "Histogram",
    "SharedNumbers",
    "SumOfNumbers",
    "metrics_environment",
    "metrics_folder",
    "numbers_of_process",
    "quantile",
]
