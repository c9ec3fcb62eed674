"""Which path is answered by what: the platform's routes below the prefix, mlpkit's own there and at the root."""

from __future__ import annotations

from typing import TYPE_CHECKING

from starlette.routing import Route, Router

from mlpkit.platform.node import node_info
from mlpkit.web.algorithms import AlgorithmRoutes
from mlpkit.web.answers import Answer, path_not_found, success
from mlpkit.web.endpoint import Endpoint, Entry, Request
from mlpkit.web.health import HealthRoutes
from mlpkit.web.jobs import JobRoutes
from mlpkit.web.metrics import MetricsRoute, RequestCounts
from mlpkit.web.openapi import DocumentRoutes
from mlpkit.web.protocol import CANCEL, DELETE, LOAD, STATUS, TRAIN, UNLOAD

if TYPE_CHECKING:
    from starlette.types import Receive, Scope, Send

    from mlpkit.web.exchange import Exchange
    from mlpkit.web.parts import Parts


def router(parts: Parts, counts: RequestCounts) -> Router:
    """All routes but `/predict`, which is answered ahead of them."""
    settings = parts.settings
    answer = path_not_found(settings)

    async def unknown(scope: Scope, receive: Receive, send: Send) -> None:
        exchange: Exchange = scope["exchange"]
        await exchange.send(answer, send)

    prefix = settings.api_prefix
    own = _own(parts)
    described = [(prefix, _platform(parts)), (prefix, own), ("/", _root(parts, counts))]
    tables = [*described, ("/", DocumentRoutes(parts, described).entries), ("/", own)]
    routes = [Route(place + each.path, Endpoint(each, settings.max_body)) for place, table in tables for each in table]
    return Router(routes, redirect_slashes=False, default=unknown)


def _platform(parts: Parts) -> list[Entry]:
    handlers = AlgorithmRoutes(parts)
    return [
        Entry("POST", "train", handlers.train, TRAIN),
        Entry("GET", "status", handlers.status, STATUS),
        Entry("POST", "load", handlers.load, LOAD),
        Entry("POST", "unload", handlers.unload, UNLOAD),
        Entry("POST", "delete", handlers.delete, DELETE),
        Entry("GET", "monitor", handlers.monitor),
    ]


def _own(parts: Parts) -> list[Entry]:
    handlers = JobRoutes(parts)
    choice = {
        "algorithm": "only the jobs of this algorithm",
        "state": "only the jobs in this state: init, training, completed or error",
        "limit": "how many jobs at most, up to 1000",
    }
    return [
        Entry("GET", "jobs", handlers.jobs, query=choice),
        Entry("GET", "jobs/{model_id:path}/log", handlers.log, query={"tail": "only so many lines at the end"}),
        Entry("GET", "jobs/{model_id:path}", handlers.job),
        Entry("POST", "cancel", handlers.cancel, CANCEL),
        Entry("GET", "models", handlers.models),
    ]


def _root(parts: Parts, counts: RequestCounts) -> list[Entry]:
    health = HealthRoutes(parts.state)
    return [
        Entry("GET", "node_info", _node_info),
        Entry("GET", "health/live", health.live),
        Entry("GET", "health/ready", health.ready),
        Entry("GET", "metrics", MetricsRoute(parts, counts).metrics),
    ]


async def _node_info(request: Request) -> Answer:
    """The machine of the service: memory, processors, and what went through network and disks since boot."""
    return success(await node_info())
