"""`TestService`: a whole service in the process of a test."""

from __future__ import annotations

import secrets
import sys
import tempfile
from collections.abc import Mapping
from contextlib import ExitStack
from importlib.machinery import PathFinder
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from anyio.from_thread import start_blocking_portal

from mlpkit.app import App
from mlpkit.client import Client, LocalFiles, upload
from mlpkit.errors import ArgumentError, TrainFailed
from mlpkit.log import LogOutput, add_loguru_output, logger
from mlpkit.script import target_of
from mlpkit.settings import Settings
from mlpkit.testing.transport import InProcessTransport

if TYPE_CHECKING:
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
            transport = InProcessTransport(service.web, portal)
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
