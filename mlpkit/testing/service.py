"""`TestService`: a whole service in the process of a test."""

from __future__ import annotations

import secrets
import sys
import tempfile
from collections.abc import Awaitable, Callable, Generator, Mapping
from contextlib import ExitStack
from importlib.machinery import PathFinder
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, BinaryIO
from urllib.parse import unquote

import anyio
from anyio.from_thread import start_blocking_portal

from mlpkit.app import App
from mlpkit.client import Answer, Client, LocalFiles, StreamedAnswer, upload
from mlpkit.errors import ArgumentError, ServiceUnreachable, TimeLimitExceeded, TrainFailed
from mlpkit.log import LogOutput, add_loguru_output, logger
from mlpkit.script import target_of
from mlpkit.settings import Settings

if TYPE_CHECKING:
    from anyio.from_thread import BlockingPortal
    from starlette.types import ASGIApp, Message, Scope

    from mlpkit.service import Service
    from mlpkit.storage import Storage

_READY_SECONDS = 60.0
_GRACE_SECONDS = 2.0


class TestService:
    """A whole service without a port; use it in a `with` block.

    It has a temporary home and the folder store.

    Models live in this process, so breakpoints, `app.dependency_overrides` and monkeypatches work in `load` and
    `predict`. A training runs in its own process, as always: the app must be a global of a module or script, which
    is imported there again (with this process's `sys.path`), and what the test has patched is not patched there. To
    see a `train` function under a debugger call it with the fakes of this package.

    Args:
        app: the app to serve.
        workers: worker processes; with more than 0 models live in them, as in production.
        options: further fields of `mlpkit.settings.Settings`, such as `train_task_num=1`.

    Raises:
        DeclarationError: the app has mistakes, or no module has it as a global.
    """

    __test__ = False

    client: Client
    """A client of the service; it raises an exception for each refusal."""
    storage: Storage
    """The service's store."""
    settings: Settings
    """The service's settings; `settings.home` is removed at the end."""

    def __init__(self, app: App, *, workers: int = 0, **options: Any) -> None:
        self._app = app
        self._options: Mapping[str, Any] = {
            "shutdown_grace": _GRACE_SECONDS,
            "checkpoint_period": 0.0,
            **options,
            "workers": workers,
        }
        self._exits = ExitStack()

    def __enter__(self) -> TestService:
        from mlpkit.service import Service

        with ExitStack() as exits:
            home = Path(exits.enter_context(tempfile.TemporaryDirectory(prefix="mlpkit-test-")))
            self.settings = Settings(home=home, **self._options)
            self._log_file = home / "service.log"
            stream = exits.enter_context(self._log_file.open("a", encoding="utf-8"))
            log = LogOutput(stream, level="debug")
            exits.enter_context(logger.also_to(log.write))
            exits.callback(add_loguru_output(log.write))
            portal = exits.enter_context(start_blocking_portal())
            service: Service = Service(self._app, self.settings, log, target=_target(self._app))
            exits.enter_context(portal.wrap_async_context_manager(service))
            transport = _InProcessTransport(service.web, portal)
            self.client = Client("http://testservice", self.settings.api_prefix, transport=transport)
            self.storage = service.storage
            self.client.wait_ready(_READY_SECONDS)
            self._exits = exits.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._exits.close()

    @property
    def log(self) -> str:
        """All that the service, its children and the handlers have logged."""
        return self._log_file.read_text(encoding="utf-8")

    def upload(self, file: str | Path) -> str:
        """Puts a file into the data bucket, and gives its location."""
        path = Path(file)
        if not path.is_file():
            raise ArgumentError(f"there is no file {path} to upload (working directory: {Path.cwd()})")
        location = f"test/{secrets.token_hex(8)}/{path.name}"
        self.storage.save(path, f"{self.settings.data_bucket}/{location}")
        return location

    def trained(
        self,
        algorithm: str,
        data: str | Path | None = None,
        parameters: object = None,
        *,
        extend: object = None,
        dictionary: str | Path | None = None,
        extra: str | Path | None = None,
        pretrained: str | Path | None = None,
        timeout: float = 300.0,
    ) -> str:
        """Uploads the files, trains on them and gives the model's id.

        `pretrained` may be a folder.

        Raises:
            ArgumentError: a file does not exist.
            TrainFailed: with the reason and the job's log.
        """
        files = LocalFiles.of(data, dictionary, extra, pretrained)
        request = upload(files, self.storage, self.settings.data_bucket, "test", parameters, extend)
        job = self.client.train(algorithm, request.data, request.parameters, request.extend)
        try:
            job.wait(timeout)
        except TrainFailed as error:
            raise TrainFailed(f"{error}\n{job.log()}") from None
        return job.model_id


def _target(app: App) -> str:
    """The import string of an app.

    It names the file if the folder of the module is not on `sys.path`, as in pytest's importlib mode.
    """
    target = target_of(app)
    name, _, attribute = target.rpartition(":")
    module = sys.modules.get(name)
    if module is None or not module.__file__ or PathFinder.find_spec(name.partition(".")[0]) is not None:
        return target
    return f"{module.__file__}:{attribute}"


class _InProcessTransport:
    """A `Transport` without a network, on the service's loop.

    The requests' peer is 127.0.0.1.
    """

    def __init__(self, web: ASGIApp, portal: BlockingPortal) -> None:
        self._web = web
        self._portal = portal

    def request(
        self, method: str, target: str, body: bytes | BinaryIO | None, headers: Mapping[str, str], timeout: float
    ) -> Answer:
        content = body if isinstance(body, bytes) else body.read() if body is not None else b""
        return self._portal.call(self._request, method, target, content, headers, timeout)

    def stream(self, target: str, headers: Mapping[str, str], timeout: float) -> StreamedAnswer:
        # The application waits when one message has not been taken.
        sending, taking = self._portal.call(anyio.create_memory_object_stream["Message"], 1)

        async def serve() -> None:
            async with sending:
                await self._web(_scope("GET", target, b"", headers), _Body(b"").receive, sending.send)

        async def take() -> Message | None:
            with anyio.fail_after(timeout):
                try:
                    return await taking.receive()
                except anyio.EndOfStream:
                    return None

        serving = self._portal.start_task_soon(serve)

        def end() -> None:
            serving.cancel()
            try:
                self._portal.call(taking.close)
            except RuntimeError:  # The loop of the service has ended.
                taking.close()

        def parts() -> Generator[bytes, None, None]:
            try:
                while (message := self._taken(take, target, timeout)) is not None:
                    yield message.get("body", b"")
            finally:
                end()

        try:
            start = self._taken(take, target, timeout)
        except TimeLimitExceeded:
            end()
            raise
        if start is None:
            end()
            raise ServiceUnreachable(f"GET {target} was not answered")
        return StreamedAnswer(start["status"], _named(start), parts())

    def close(self) -> None:
        pass

    def _taken(self, take: Callable[[], Awaitable[Message | None]], target: str, limit: float) -> Message | None:
        try:
            return self._portal.call(take)
        except TimeoutError:
            raise TimeLimitExceeded(f"GET {target} sent nothing for {limit:g} s") from None

    async def _request(self, method: str, target: str, body: bytes, headers: Mapping[str, str], limit: float) -> Answer:
        sent: list[Message] = []

        async def send(message: Message) -> None:
            sent.append(message)

        try:
            with anyio.fail_after(limit):
                await self._web(_scope(method, target, body, headers), _Body(body).receive, send)
        except TimeoutError:
            raise TimeLimitExceeded(f"{method} {target} was not answered within {limit:g} s") from None
        start, *parts = sent
        return Answer(start["status"], _named(start), b"".join(part.get("body", b"") for part in parts))


class _Body:
    """The body of a request, as the application receives it."""

    def __init__(self, body: bytes) -> None:
        self._waiting: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive(self) -> Message:
        if not self._waiting:
            # An application that asks again waits for the client to disconnect, which it does not do.
            await anyio.sleep_forever()
        return self._waiting.pop()


def _named(start: Message) -> dict[str, str]:
    return {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in start["headers"]}


def _scope(method: str, target: str, body: bytes, headers: Mapping[str, str]) -> Scope:
    path, _, query = target.partition("?")
    every = {"host": "testservice", "content-length": str(len(body)), **headers}
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": method,
        "scheme": "http",
        "path": unquote(path),
        "raw_path": path.encode("ascii"),
        "query_string": query.encode("ascii"),
        "root_path": "",
        "headers": [(name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in every.items()],
        "client": ("127.0.0.1", 0),
        "server": ("testservice", 80),
    }
