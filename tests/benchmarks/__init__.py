"""Benchmarks: ratios to a bare ASGI callable, measured side by side. `make bench` runs them; no test is timed."""
