"""The composition root: builds, opens and closes a service's parts.

They are opened in order, and closed in the opposite one.

Order: home, log, store, training, models, database, web. Only `serve` listens on a port; `asgi`
leaves that to any ASGI server.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import gc
import math
import os
import platform
import signal
import socket
import sys
import threading
import time
from collections.abc import AsyncIterator, Coroutine
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

import anyio
import anyio.to_thread
import uvicorn

from mlpkit import __version__
from mlpkit.app import App
from mlpkit.errors import SettingsError
from mlpkit.log import LogOutput, configure, format_here, logger, printable
from mlpkit.metrics import AuthorMetrics
from mlpkit.processes import Devices, log_prints
from mlpkit.script import absolute_search_path, know_by_other_names, target_of
from mlpkit.serving import Aliases, Models
from mlpkit.settings import Settings, environment_remarks, load_settings
from mlpkit.storage import Storage, StorageTotals, StoredModels, open_storage
from mlpkit.training import LocalEngine, TrainingQueue
from mlpkit.web import HISTORY_STEP, Application, Dependencies, ServiceState, connections

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Receive, Scope, Send

    from mlpkit.platform.cluster import ReplicaSync
    from mlpkit.training import Webhook

_FLUSH_SECONDS = 1.0
_FLUSH_SECONDS_BEHIND = 0.05
_TICK_SECONDS = 1.0
"""How long a line of the access log may wait, to be written with others."""
_STORE_CHECK_SECONDS = 10.0
_NOT_CHECKED = "the store has not been checked yet"
_HURRIED_SECONDS = 0.2
"""How long workers get to close their models after a second signal."""


class Service:
    """A whole service, from the store to the application `web`.

    An async context manager that opens and closes it.

    Args:
        target: the target with which children import the app again; found out from the app if it is None.

    Raises:
        DeclarationError: the app has mistakes.
    """

    def __init__(self, app: App, settings: Settings, log: LogOutput, *, target: str | None = None) -> None:
        app.build()
        sys.path[:] = absolute_search_path()
        if app.origin.module in sys.modules:
            know_by_other_names(sys.modules[app.origin.module])
        self.app = app
        self.settings = settings
        self.log = log
        self.target = target or target_of(app)
        self.state = ServiceState()
        self.storage: Storage = open_storage(settings)
        self.stored_models = StoredModels(self.storage, settings)
        devices = Devices(settings.gpus)
        engine = LocalEngine(self.target, settings, devices) if settings.engine == "local" else None
        self.training = TrainingQueue(app.build(), self.target, settings, log, engine=engine)
        self.models = Models(app, self.target, settings, log, storage=self.storage, devices=devices)
        self.author_metrics = AuthorMetrics(settings.home)
        self.storage_totals = StorageTotals(settings.home)
        self.models.on_change = self.training.events.note_model
        self.aliases = Aliases(self.models, settings.home, settings.load_timeout)
        self.webhook = self._open_webhook() if settings.webhook else None
        self.cluster = self._open_cluster() if settings.mode == "cluster" else None
        self.web = Application(
            Dependencies(
                algorithms=app.build(),
                settings=settings,
                models=self.models,
                aliases=self.aliases,
                training=self.training,
                storage=self.storage,
                stored_models=self.stored_models,
                log=log,
                state=self.state,
                cluster=self.cluster,
                author_metrics=self.author_metrics,
                storage_totals=self.storage_totals,
                target=self.target,
            )
        )
        self._store_problem = _NOT_CHECKED
        self._store_warnings: list[str] = []
        self._draining: asyncio.Task[None] | None = None
        self._hurried = False
        self._exits = AsyncExitStack()

    async def __aenter__(self) -> Service:
        _make_home(self.settings.home)
        async with AsyncExitStack() as exits:
            exits.callback(self.log.flush)
            exits.callback(self.storage.close)
            exits.callback(self.stored_models.close)
            await self.training.open()
            # Only now this service is the only one of the home.
            self.author_metrics.open()
            exits.push_async_callback(self.training.close)
            self.aliases.open()
            await self.models.open()
            exits.push_async_callback(self._close_models)
            if self.cluster is not None:
                await self.cluster.open()
                exits.push_async_callback(self.cluster.close)
            await exits.enter_async_context(self._background())
            self._exits = exits.pop_all()
        self.state.checks += [self.models.problems, lambda: [self._store_problem] if self._store_problem else []]
        self.state.remarks += [self.models.warnings, self.aliases.warnings, lambda: self._store_warnings]
        if self.cluster is not None:
            self.state.checks.append(self.cluster.problems)
            self.state.remarks.append(self.cluster.warnings)
        if self.webhook is not None:
            self.state.remarks.append(self.webhook.warnings)
        self.state.phase = "ready"
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self.drain()
        await self._exits.aclose()

    async def drain(self) -> None:
        """Refuses new work; running work may end within `shutdown_grace`.

        Other requests are still answered.

        Can be called again; never raises.
        """
        if self._draining is None:
            self.state.phase = "draining"
            self._draining = asyncio.create_task(self._end_work(self.settings.shutdown_grace))
        await asyncio.wait([self._draining])

    def hurry(self) -> None:
        """Ends the grace of `drain` now."""
        self._hurried = True
        if self._draining is not None:
            self._draining.cancel()

    def _open_webhook(self) -> Webhook:
        from mlpkit.training import Webhook

        return Webhook(self.settings, self.training.events)

    def _open_cluster(self) -> ReplicaSync:
        try:
            from mlpkit.platform.cluster import ReplicaSync

            return ReplicaSync(self.settings, self.app.build(), self.models, self.aliases, self.training, self.storage)
        except ModuleNotFoundError as error:
            raise SettingsError(
                f"MLP_CLIENT_MODE=cluster needs the package {error.name}: pip install 'mlpkit[sql]'"
                + (" pymssql" if self.settings.db_type == "mssql" else "")
            ) from error

    async def _end_work(self, grace: float) -> None:
        started = time.monotonic()
        logger.info("stopping: running work has {:g} s to end", grace)
        if self.cluster is not None:
            self.cluster.stop_following()
        try:
            await asyncio.gather(self.training.drain(grace), self.models.drain(grace))
        except Exception:
            logger.exception("running work could not be ended in order")
        # Otherwise the HTTP server would wait for the listeners.
        self.training.events.release()
        logger.info("running work has ended after {:.1f} s", time.monotonic() - started)

    async def _close_models(self) -> None:
        await self.models.close(*([_HURRIED_SECONDS] if self._hurried else []))

    @asynccontextmanager
    async def _background(self) -> AsyncIterator[None]:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._flush_log)
            tasks.start_soon(self._check_store)
            tasks.start_soon(self._keep_history)
            if self.cluster is not None:
                tasks.start_soon(self.cluster.run)
            if self.webhook is not None:
                tasks.start_soon(self.webhook.run)
            yield
            tasks.cancel_scope.cancel()

    async def _flush_log(self) -> None:
        while True:
            # Lines wait here only while nobody reads the log.
            await asyncio.sleep(_FLUSH_SECONDS_BEHIND if self.log.behind else _FLUSH_SECONDS)
            self.log.flush()

    async def _keep_history(self) -> None:
        while True:
            await asyncio.sleep(HISTORY_STEP)
            self.web.history.sample()
            await anyio.to_thread.run_sync(self.author_metrics.fold, abandon_on_cancel=True)
            await anyio.to_thread.run_sync(self.storage_totals.counts, abandon_on_cancel=True)

    async def _check_store(self) -> None:
        limiter = anyio.CapacityLimiter(1)
        while True:
            problem = ""
            warnings = []
            try:
                warnings = await anyio.to_thread.run_sync(self.storage.check, limiter=limiter, abandon_on_cancel=True)
            except Exception as error:
                # A store or its client may raise anything: the other background tasks must continue.
                problem = f"the store cannot be used: {error}"
            if problem and problem != self._store_problem:
                logger.error(problem)
            elif not problem and self._store_problem not in ("", _NOT_CHECKED):
                logger.info("the store can be used again")
            for warning in set(warnings).difference(self._store_warnings):
                logger.warning(warning)
            self._store_problem = problem
            self._store_warnings = warnings
            await asyncio.sleep(_STORE_CHECK_SECONDS)


def asgi(app: App) -> ASGIApp:
    """The app's service as an ASGI application.

    It opens the service at the server's start-up, and closes it at its shutdown.
    """
    settings = load_settings()
    service: list[Service] = []

    async def application(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await _live(app, settings, service, receive, send)
        elif service:
            await service[0].web(scope, receive, send)
        else:
            raise RuntimeError(
                "the service was not started: the ASGI server must support lifespan events (lifespan='on')"
            )

    return application


async def _live(app: App, settings: Settings, service: list[Service], receive: Receive, send: Send) -> None:
    await receive()
    try:
        log = configure(level=settings.log_level, format=format_here(settings.log_format), waits=False)
        _log_environment()
        opened = await Service(app, settings, log).__aenter__()
    except Exception as error:
        await send({"type": "lifespan.startup.failed", "message": str(error)})
        return
    service.append(opened)
    await send({"type": "lifespan.startup.complete"})
    await receive()
    await opened.__aexit__(None, None, None)
    await send({"type": "lifespan.shutdown.complete"})


def serve(
    app: App,
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    workers: int | None = None,
    settings: Settings | None = None,
) -> None:
    """Serves the app until SIGTERM or Ctrl-C; returns when everything has ended.

    Raises:
        DeclarationError: the app has mistakes.
        SettingsError: a setting cannot be used, or the home or the port is used by another service.
    """
    _check_address(host, port)
    chosen = (settings or load_settings()).with_options(workers=workers)
    log = configure(level=chosen.log_level, format=format_here(chosen.log_format), waits=False)
    if chosen.workers == 0:
        log_prints("server")
    _log_environment()
    _run(_serve(app, chosen, log, host, port))


def _log_environment() -> None:
    """Logs which variables of the environment have no effect, and why."""
    for level, remark in environment_remarks():
        logger.log(level, remark)


def _check_address(host: str, port: int) -> None:
    """Checks that uvicorn will be able to listen, before anything is started.

    Raises:
        SettingsError: names the address and the reason.
    """
    place = f"{host}:{port}"
    problem = ""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except OSError as error:
        raise SettingsError(f"cannot listen on {place}: {error.strerror or error}") from None
    for family, kind, protocol, _, address in found:
        try:
            with socket.socket(family, kind, protocol) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                if family == socket.AF_INET6:
                    probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                probe.bind(address)
                return
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                raise SettingsError(f"cannot listen on {place}: is the port in use? --port chooses another") from None
            # A machine without IPv6 still has an address for `localhost` in it.
            problem = error.strerror or str(error)
    raise SettingsError(f"cannot listen on {place}: {problem}")


async def _serve(app: App, settings: Settings, log: LogOutput, host: str, port: int) -> None:
    async with Service(app, settings, log) as service:
        config = uvicorn.Config(
            service.web,
            host=host,
            port=port,
            http=connections(service.web),  # type: ignore[arg-type]
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=bool(settings.proxies),
            forwarded_allow_ips=list(settings.proxies),
            timeout_keep_alive=75,
            timeout_graceful_shutdown=1,
        )
        gc.collect()
        gc.freeze()
        await _Server(config, service).serve()


class _Server(uvicorn.Server):
    """uvicorn that drains the service before it stops listening."""

    def __init__(self, config: uvicorn.Config, service: Service) -> None:
        super().__init__(config)
        self._service = service
        self._loop = asyncio.get_running_loop()
        self._stopping: asyncio.Task[None] | None = None
        self._exits = asyncio.Event()

    async def main_loop(self) -> None:
        # uvicorn's own looks ten times a second whether to exit. Only the date of the responses needs a clock.
        while not await self.on_tick(0):
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._exits.wait(), _TICK_SECONDS)

    async def startup(self, sockets: list[object] | None = None) -> None:  # type: ignore[override]
        try:
            await super().startup()
            # uvicorn takes SIGINT and SIGTERM; a terminal that is closed must drain too. nohup has SIGHUP ignored.
            in_main_thread = threading.current_thread() is threading.main_thread()
            if in_main_thread and signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
                self._loop.add_signal_handler(signal.SIGHUP, self._stop)
        except SystemExit:
            # uvicorn has logged the system's own words.
            place = f"{self.config.host}:{self.config.port}"
            raise SettingsError(f"cannot listen on {place}: is the port in use? --port chooses another") from None
        url = url_of(self.servers[0].sockets[0].getsockname())
        names = ", ".join(self._service.app.build())
        logger.info("serving {} on {} (store: {})", names, url, self._service.settings.store)
        if self._service.settings.log_format == "text" and os.isatty(2):
            self._service.log.write_text(_banner(self._service, url))

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self._loop.call_soon_threadsafe(self._stop)

    def _stop(self) -> None:
        if self._stopping is None:
            self._stopping = self._loop.create_task(self._drain())
        else:
            logger.warning("a second signal: stopping at once")
            self.force_exit = self.should_exit = True
            self._exits.set()
            self._service.hurry()

    async def _drain(self) -> None:
        end = time.monotonic() + self._service.settings.shutdown_grace
        await self._service.drain()
        # Accepted requests that are neither predictions nor trainings, such as a delete, get the rest of the grace.
        if not self.force_exit:
            self.config.timeout_graceful_shutdown = max(1, math.ceil(end - time.monotonic()))
        self.should_exit = True
        self._exits.set()


def _banner(service: Service, url: str) -> str:
    """What a person at a terminal wants to know at the start."""
    settings = service.settings
    algorithms = [f"{name} ({algorithm.kind})" for name, algorithm in service.app.build().items()]
    lines = {
        "page": f"{url}/" if settings.page else "off (MLPKIT_PAGE)",
        "docs": f"{url}/docs",
        "store": settings.store,
        "home": str(settings.home),
        "workers": str(settings.workers) if settings.workers else "none: models are in this process",
        "algorithms": ", ".join(algorithms),
        "python": f"{platform.python_version()} ({sys.executable})",
    }
    shown = "".join(f"    {name:<12}{printable(text)}\n" for name, text in lines.items())
    return f"\n  mlpkit {__version__}\n\n{shown}\n"


def url_of(address: tuple[Any, ...]) -> str:
    """The URL of a socket's address, which begins with host and port."""
    host, port = address[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _make_home(home: Path) -> None:
    try:
        home.mkdir(parents=True, exist_ok=True, mode=0o700)
        with contextlib.suppress(PermissionError):
            home.chmod(0o700)
    except OSError as error:
        raise SettingsError(f"the home {home} (MLPKIT_HOME) cannot be made: {error}") from error


def _run(main: Coroutine[object, object, None]) -> None:
    try:
        import uvloop
    except ImportError:
        asyncio.run(main)
    else:
        uvloop.run(main)
