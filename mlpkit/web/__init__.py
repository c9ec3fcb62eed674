"""HTTP: the platform's protocol and mlpkit's own routes as one ASGI application. The front door is `build`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mlpkit.web.parts import Parts, ServiceState

if TYPE_CHECKING:
    from starlette.types import ASGIApp

__all__ = ["Parts", "ServiceState", "build"]


def build(parts: Parts) -> ASGIApp:
    """The finished application; it answers `http` connections and leaves the lifespan to the service."""
    from mlpkit.web.metrics import RequestCounts
    from mlpkit.web.middleware import Edge
    from mlpkit.web.predict import Predict
    from mlpkit.web.routes import router

    counts = RequestCounts()
    return Edge(parts, counts, predict=Predict(parts), router=router(parts, counts))
