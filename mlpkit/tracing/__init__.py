"""Spans of OpenTelemetry, if its own variables switch it on.

The trace of a request travels as its `traceparent` (`mlpkit.log`), also without OpenTelemetry.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any, Literal

from mlpkit.log import logger, trace_id_of, traceparent
from mlpkit.settings import proxy_for

_ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")


@contextmanager
def span(
    name: str, kind: Literal["server", "internal", "client"] = "internal", **attributes: str | int
) -> Iterator[Any]:
    """A span for the length of a block; gives None without OpenTelemetry.

    Its parent is the span that is current here, else the one that `traceparent` names. An exception marks it as failed.
    """
    if not is_on():
        yield None
        return
    from opentelemetry import trace
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    here = trace.get_current_span()
    known = traceparent.get()
    context = None
    # A thread that was made in `load` has the span of that load in its context, which is over.
    if known and not (here.is_recording() and f"{here.get_span_context().trace_id:032x}" == trace_id_of(known)):
        context = TraceContextTextMapPropagator().extract({"traceparent": known})
    found = {f"mlpkit.{key}": value for key, value in attributes.items()}
    with _tracer().start_as_current_span(
        name, context=context, kind=trace.SpanKind[kind.upper()], attributes=found
    ) as current:
        place = current.get_span_context()
        token = traceparent.set(f"00-{place.trace_id:032x}-{place.span_id:016x}-{place.trace_flags:02x}")
        try:
            yield current
        finally:
            traceparent.reset(token)


def note_failure(error: BaseException) -> None:
    """Marks the current span as failed, for an error that is answered."""
    if is_on():
        from opentelemetry import trace

        current = trace.get_current_span()
        current.record_exception(error)
        current.set_status(trace.StatusCode.ERROR, str(error))


@lru_cache(maxsize=1)
def is_on() -> bool:
    """Whether this process makes spans.

    An exporter must be set, and `OTEL_SDK_DISABLED` must not be true.
    """
    exporter = os.environ.get("OTEL_TRACES_EXPORTER", "")
    wanted = exporter not in ("", "none") or (exporter != "none" and any(map(os.environ.get, _ENDPOINTS)))
    if not wanted or os.environ.get("OTEL_SDK_DISABLED", "").lower() == "true":
        return False
    try:
        _tracer()
    except ImportError as error:
        logger.warning("traces are switched on, but {} is missing: pip install 'mlpkit[otel]'", error.name)
        return False
    return True


@lru_cache(maxsize=1)
def _tracer() -> Any:
    from opentelemetry import trace
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    if not isinstance(trace.get_tracer_provider(), TracerProvider):
        # Nobody else has set one up: neither the script nor OpenTelemetry's own start-up.
        provider = TracerProvider()
        provider.add_span_processor(BatchSpanProcessor(_exporter()))
        trace.set_tracer_provider(provider)
    return trace.get_tracer("mlpkit")


def _exporter() -> Any:
    if os.environ.get("OTEL_TRACES_EXPORTER") == "console":
        from opentelemetry.sdk.trace.export import ConsoleSpanExporter

        return ConsoleSpanExporter()
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

    return OTLPSpanExporter(session=_direct_session())


def _direct_session() -> Any:
    """What sends past the proxy; None if the exporter may decide.

    It reads the environment as the store does, but sends to this machine through the proxy too.
    """
    endpoint = next(filter(None, map(os.environ.get, reversed(_ENDPOINTS))), "http://localhost:4318")
    if proxy_for(endpoint) is not None:
        return None
    import urllib.request

    if not urllib.request.getproxies():
        return None
    import requests

    session = requests.Session()
    session.trust_env = False
    return session
