"""HTTP: the platform's protocol and mlpkit's own routes as one ASGI application. The front door is `build`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mlpkit.web.parts import Parts, ServiceState

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

    from mlpkit.web.middleware import Edge

__all__ = ["Parts", "ServiceState", "build", "connections"]


def build(parts: Parts) -> Edge:
    """The finished application; it answers `http` connections and leaves the lifespan to the service."""
    from mlpkit.web.metrics import RequestCounts
    from mlpkit.web.middleware import Edge
    from mlpkit.web.predict import Predict
    from mlpkit.web.routes import router

    counts = RequestCounts()
    return Edge(parts, counts, predict=Predict(parts), router=router(parts, counts))


def connections(application: Edge) -> Callable[..., asyncio.Protocol]:
    """What uvicorn makes its HTTP connections with (`http=`): predictions take the short way to the application."""
    from functools import partial

    from mlpkit.web.connection import Connection
    from mlpkit.web.express import Express

    return partial(Connection, Express(application))
