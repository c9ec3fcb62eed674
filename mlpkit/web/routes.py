"""The table of routes: which path is answered by which function.

The platform's routes are below the prefix; mlpkit's own are there and at the root.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from starlette.routing import Route, Router

from mlpkit.formats import EvaluationReport
from mlpkit.web.algorithms import AlgorithmRoutes
from mlpkit.web.answers import (
    AlgorithmPage,
    AliasLine,
    AliasPage,
    CancelledJob,
    Charts,
    JobDetails,
    JobPage,
    Liveness,
    MachineState,
    ModelPage,
    Placement,
    ReadyState,
    ServiceSummary,
    StoredFile,
    StoredModelPage,
    SubmittedJob,
    TrainingStatus,
    WorkerPage,
)
from mlpkit.web.events import EventRoutes
from mlpkit.web.jobs import JobRoutes
from mlpkit.web.monitoring import MonitoringRoutes, node_info
from mlpkit.web.openapi import DocumentRoutes
from mlpkit.web.page import PAGE_FILES, PageRoutes
from mlpkit.web.protocol import (
    ALIAS,
    CANCEL,
    DELETE,
    LOAD,
    PREDICT,
    STATUS,
    TRAIN,
    UNALIAS,
    UNLOAD,
    Arguments,
    Field,
    caller_uuid,
    check,
    query_values,
    read_values,
)
from mlpkit.web.request import HttpResponse, StreamedResponse, other_method, path_not_found, read_body, work_on
from mlpkit.web.uploads import UploadRoutes

if TYPE_CHECKING:
    from starlette.types import Receive, Scope, Send

    from mlpkit.algorithm import Algorithm
    from mlpkit.log import LogOutput
    from mlpkit.metrics import AuthorMetrics
    from mlpkit.platform.cluster import ReplicaSync
    from mlpkit.serving import Aliases, Models
    from mlpkit.settings import Settings
    from mlpkit.storage import Storage, StorageTotals, StoredModels
    from mlpkit.training import TrainingQueue
    from mlpkit.web.predict import PredictEndpoint
    from mlpkit.web.request import RequestContext, RequestCounts


@dataclass
class ServiceState:
    """The phase of a service's life, and its health.

    `Service` sets the phase when it opens and closes; new work is taken only while it is `ready`. `checks` are asked
    for readiness: each gives the problems that it knows, without waiting. `remarks` are asked for what is wrong
    although requests can be answered.
    """

    phase: Literal["starting", "ready", "draining"] = "starting"
    checks: list[Callable[[], list[str]]] = field(default_factory=list)
    remarks: list[Callable[[], list[str]]] = field(default_factory=list)

    def problems(self) -> list[str]:
        """Why the service should get no requests now; empty if it should."""
        found = [] if self.phase == "ready" else [self.phase]
        return found + [problem for check in self.checks for problem in check()]

    def warnings(self) -> list[str]:
        """What somebody should look at, although the service can do its work."""
        return [warning for remark in self.remarks for warning in remark()]


@dataclass(frozen=True)
class Dependencies:
    """What requests are answered with; `cluster` is None in standalone mode.

    `target` is by which another process imports the app.
    """

    algorithms: Mapping[str, Algorithm]
    settings: Settings
    models: Models
    aliases: Aliases
    training: TrainingQueue
    storage: Storage
    stored_models: StoredModels
    log: LogOutput
    state: ServiceState
    author_metrics: AuthorMetrics
    storage_totals: StorageTotals
    cluster: ReplicaSync | None = None
    target: str = ""


@dataclass(frozen=True)
class Request:
    """What the function of a route gets.

    `path` and `query` are decoded; `body` is empty if the route has no fields.

    `arguments` are the checked fields, empty if the function reads them itself. `receive` is the connection's, for
    functions that must know if the caller goes away.
    """

    context: RequestContext
    arguments: Arguments
    body: bytes
    path: Mapping[str, str]
    query: Mapping[str, str]
    receive: Receive


_RouteFunction = Callable[[Request], Awaitable[HttpResponse | StreamedResponse]]
"""Answers a request. The first line of its docstring is the summary in `/openapi.json`, its name the operation's id."""


@dataclass(frozen=True)
class RouteSpec:
    """One line of the table of routes.

    `fields` are the protocol's, `query` says what others in the query mean. `reads_body` is whether the function reads
    the fields from the body itself. `answers` are the types that the `data` of its answer can have; those of `predict`
    are the author's. `media_type` is that of the answer. Only a route that shows and changes nothing of models and jobs
    may do without a token (`needs_token`).
    """

    method: Literal["GET", "POST", "PUT"]
    path: str
    function: _RouteFunction
    fields: tuple[Field, ...] = ()
    answers: tuple[type, ...] = ()
    query: Mapping[str, str] = field(default_factory=dict)
    reads_body: bool = False
    media_type: str = "application/json"
    needs_token: bool = True


@dataclass(frozen=True)
class _Endpoint:
    """The ASGI application of one route; `limit` is in bytes."""

    spec: RouteSpec
    limit: int

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        context: RequestContext = scope["context"]
        context.route = self.spec.path
        response: HttpResponse | StreamedResponse | None = other_method(context.method, self.spec.method)
        if response is None:
            response = await self.spec.function(await self._request(context, scope, receive))
        if isinstance(response, StreamedResponse):
            await context.send_parts(response, scope, receive, send)
        else:
            await context.send(response, send)

    async def _request(self, context: RequestContext, scope: Scope, receive: Receive) -> Request:
        spec = self.spec
        body = await read_body(receive, self.limit) if spec.fields else b""
        arguments = Arguments({}, {})
        if spec.fields and not spec.reads_body:
            values = await work_on(body, lambda: read_values(context, body, spec.fields))
            context.adopt(caller_uuid(values))
            context.bind()
            arguments = await work_on(body, lambda: check(spec.fields, values))
            context.subject.update(arguments.subject())
        query = query_values(context.query_string)
        path = scope.get("path_params", {})
        context.subject.update(path)
        return Request(context, arguments, body, path, query, receive)


def build_router(
    dependencies: Dependencies, predict: PredictEndpoint, counts: RequestCounts, page: PageRoutes
) -> tuple[Router, frozenset[str]]:
    """All routes as one ASGI application, and paths without a token.

    It finds the request's context in `scope["context"]`.
    """
    settings = dependencies.settings
    not_found = path_not_found(settings)

    async def unknown(scope: Scope, receive: Receive, send: Send) -> None:
        context: RequestContext = scope["context"]
        await context.send(not_found, send)

    prefix = settings.api_prefix
    algorithms = AlgorithmRoutes(dependencies)
    own = _own_routes(dependencies, algorithms)
    described = [
        (prefix, _platform_routes(algorithms, predict)),
        (prefix, own),
        ("/", _root_routes(dependencies, counts, page)),
    ]
    documents = DocumentRoutes(dependencies.algorithms, described, has_token=bool(settings.token))
    document_routes = [
        RouteSpec("GET", "openapi.json", documents.openapi),
        RouteSpec("GET", "docs", documents.docs, media_type="text/html", needs_token=False),
    ]
    described.append(("/", document_routes))
    page_routes = [RouteSpec("GET", path, page.page, needs_token=False) for path in PAGE_FILES]
    tables = [*described, ("/", own), ("/", page_routes)]
    open_paths = frozenset(place + spec.path for place, table in tables for spec in table if not spec.needs_token)
    routes = [
        Route(place + spec.path, _Endpoint(spec, settings.max_body))
        for place, table in tables
        for spec in table
        if settings.page or table is not page_routes
    ]
    return Router(routes, redirect_slashes=False, default=unknown), open_paths


def _platform_routes(algorithms: AlgorithmRoutes, predict: PredictEndpoint) -> list[RouteSpec]:
    return [
        RouteSpec("POST", "predict", predict.predict, PREDICT, reads_body=True),
        RouteSpec("POST", "train", algorithms.train, TRAIN, (SubmittedJob,)),
        RouteSpec("GET", "status", algorithms.status, STATUS, (TrainingStatus,)),
        RouteSpec("POST", "load", algorithms.load, LOAD),
        RouteSpec("POST", "unload", algorithms.unload, UNLOAD),
        RouteSpec("POST", "delete", algorithms.delete, DELETE),
        RouteSpec("GET", "monitor", algorithms.monitor, answers=(Placement,)),
    ]


def _own_routes(dependencies: Dependencies, algorithms: AlgorithmRoutes) -> list[RouteSpec]:
    jobs = JobRoutes(dependencies)
    listening = EventRoutes(dependencies)
    choice = {
        "algorithm": "only the jobs of this algorithm",
        "state": "only the jobs in this state: init, training, completed or error",
        "limit": "how many jobs at most, up to 1000",
        "offset": "how many of the newest jobs to leave out",
        "since": "only jobs that were submitted at this time or later, in seconds since the epoch",
        "until": "only jobs that were submitted before this time",
        "find": "only jobs whose model id contains this text",
    }
    part = {
        "tail": "only this number of lines from the end",
        "from": "only what follows this number of bytes; the header X-Log-End of the last answer has it",
    }
    upload = {"algorithm": "check the file for this algorithm, and store it only if a training can use it"}
    stored = {
        "stored": "1 lists the models in the store, newest first",
        "algorithm": "with stored=1: only the models of this algorithm",
        "limit": "with stored=1: how many models a page has: 100, up to 500",
        "after": "with stored=1: the `next` of the page before",
    }
    return [
        RouteSpec("GET", "jobs", jobs.jobs, answers=(JobPage,), query=choice),
        RouteSpec("GET", "jobs/{model_id:path}/log", jobs.log, query=part, media_type="text/plain"),
        RouteSpec("GET", "jobs/{model_id:path}/stack", jobs.stack, media_type="text/plain"),
        RouteSpec("GET", "jobs/{model_id:path}/evaluation", jobs.evaluation, answers=(EvaluationReport,)),
        RouteSpec(
            "GET",
            "jobs/{model_id:path}/events",
            listening.job_events,
            query={"tail": "only this number of lines of the log that is there already"},
            media_type="text/event-stream",
        ),
        RouteSpec("GET", "jobs/{model_id:path}", jobs.job, answers=(JobDetails,)),
        RouteSpec("POST", "cancel", jobs.cancel, CANCEL, (CancelledJob,)),
        RouteSpec("GET", "models", jobs.models, answers=(StoredModelPage, ModelPage), query=stored),
        RouteSpec("GET", "workers", jobs.workers, answers=(WorkerPage,)),
        RouteSpec("GET", "events", listening.events, media_type="text/event-stream"),
        RouteSpec("POST", "alias", algorithms.alias, ALIAS, (AliasLine,)),
        RouteSpec("POST", "unalias", algorithms.unalias, UNALIAS),
        RouteSpec("GET", "aliases", algorithms.aliases, answers=(AliasPage,)),
        RouteSpec("PUT", "data/{key:path}", UploadRoutes(dependencies).upload, answers=(StoredFile,), query=upload),
    ]


def _root_routes(dependencies: Dependencies, counts: RequestCounts, page: PageRoutes) -> list[RouteSpec]:
    monitoring = MonitoringRoutes(dependencies, counts)
    return [
        RouteSpec("GET", "node_info", node_info, answers=(MachineState,)),
        RouteSpec("GET", "health/live", monitoring.live, answers=(Liveness,), needs_token=False),
        RouteSpec("GET", "health/ready", monitoring.ready, answers=(ReadyState,), needs_token=False),
        RouteSpec("GET", "metrics", monitoring.metrics, media_type="text/plain"),
        RouteSpec("GET", "summary", page.summary, answers=(ServiceSummary,)),
        RouteSpec("GET", "algorithms", page.algorithms, answers=(AlgorithmPage,)),
        RouteSpec("GET", "charts", page.charts, answers=(Charts,)),
    ]
