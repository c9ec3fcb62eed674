"""`PUT /data/{key}`: puts a file into the data bucket, checked if asked.

The body is written to a file in the home as it comes. The check runs in a process of its own, so that a large file
holds up no prediction. A caller who goes away leaves nothing: neither that file nor, if the key is new, the stored one.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
import threading
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import anyio
import msgspec
from anyio import to_thread

from mlpkit.errors import (
    AlgorithmNotFound,
    BodyTooLarge,
    DataError,
    MalformedBody,
    Overloaded,
    StorageError,
    TimeLimitExceeded,
    UploadsOff,
)
from mlpkit.formats import KINDS, DataReport
from mlpkit.storage import in_time, location
from mlpkit.web.request import ClientGone, HttpResponse, failure, success, to_json, until_gone

if TYPE_CHECKING:
    from starlette.types import Receive

    from mlpkit.algorithm import Algorithm
    from mlpkit.settings import Settings
    from mlpkit.web.routes import Dependencies, Request

_MOST_UPLOADS = 4
_IDLE_SECONDS = 60.0
_CHECK_SECONDS = 600.0
_STORE_SECONDS = 600.0
_PIECE = 1 << 20


class UploadRoutes:
    """The function of uploads."""

    def __init__(self, dependencies: Dependencies) -> None:
        self._dependencies = dependencies
        self._settings = dependencies.settings
        self._folder = dependencies.settings.home / "uploads"
        self._running = 0
        self._is_clean = False
        self._lock = threading.Lock()
        self._threads = anyio.CapacityLimiter(_MOST_UPLOADS)
        self._checks = anyio.CapacityLimiter(1)

    async def upload(self, request: Request) -> HttpResponse:
        """Stores the body as a file of the data bucket.

        With `algorithm`, the file is checked before, and not stored if a training could not use it.
        """
        settings = self._settings
        if not settings.upload:
            raise UploadsOff("uploads are off: MLPKIT_UPLOAD=on allows them")
        place = location(request.path["key"], "key", bucket=settings.data_bucket)
        key = place.removeprefix(f"{settings.data_bucket}/")
        algorithm = self._algorithm(request.query.get("algorithm"))
        if self._running >= _MOST_UPLOADS:
            raise Overloaded(f"{_MOST_UPLOADS} uploads are under way already: try again later")
        self._running += 1
        try:
            with await to_thread.run_sync(self._new_file, limiter=self._threads) as file:
                path = Path(file.name)
                try:
                    size = await self._receive(request, file)
                    gone = asyncio.create_task(until_gone(request.receive))
                    try:
                        report = await self._checked(path, algorithm, key, gone) if algorithm is not None else None
                        if report is not None and report.fatal:
                            return _refused(report, settings)
                        await self._store(path, place, gone)
                    finally:
                        gone.cancel()
                finally:
                    os.unlink(path)
        except OSError as error:
            raise StorageError(f"the upload cannot be kept in the home: {error.strerror or error}") from error
        finally:
            self._running -= 1
        return success({"location": key, "size": size, "report": msgspec.to_builtins(report)})

    def _algorithm(self, name: str | None) -> Algorithm | None:
        if name is None:
            return None
        if name not in self._dependencies.algorithms:
            raise AlgorithmNotFound(name)
        return self._dependencies.algorithms[name]

    def _new_file(self) -> BinaryIO:
        with self._lock:
            if not self._is_clean:
                # What a killed service has left.
                shutil.rmtree(self._folder, ignore_errors=True)
                self._is_clean = True
            self._folder.mkdir(mode=0o700, exist_ok=True)
        return tempfile.NamedTemporaryFile(dir=self._folder, delete=False)  # type: ignore[return-value]

    async def _receive(self, request: Request, file: BinaryIO) -> int:
        """Writes the body to the file; gives its size."""
        limit = self._settings.upload_size
        too_large = BodyTooLarge(f"the file is larger than {limit:,} bytes (MLPKIT_UPLOAD_SIZE)")
        if _announced(request) > limit:
            raise too_large
        size = 0
        waiting = bytearray()
        more = True
        while more:
            part, more = await _next_part(request.receive)
            waiting += part
            size += len(part)
            if size > limit:
                raise too_large
            if len(waiting) >= _PIECE or not more:
                await to_thread.run_sync(file.write, waiting, limiter=self._threads)
                waiting = bytearray()
        await to_thread.run_sync(file.flush, limiter=self._threads)
        return size

    async def _checked(self, path: Path, algorithm: Algorithm, name: str, gone: asyncio.Task[None]) -> DataReport:
        """What is found in the file.

        Raises:
            DataError: it cannot be read.
            TimeLimitExceeded: the check takes too long.
            ClientGone: the caller has gone before its end.
        """
        command = [sys.executable, "-m", "mlpkit", "data", "check", str(path), "--json"]
        if algorithm.kind in KINDS:
            command += ["--kind", algorithm.kind]
        else:
            command += ["--app", self._dependencies.target, "--algorithm", algorithm.name]
        with anyio.CancelScope() as waiting:
            gone.add_done_callback(lambda _: waiting.cancel())
            found, problem = await self._output(command, name)
        if gone.done():
            raise ClientGone
        try:
            report = msgspec.json.decode(found, type=DataReport)
        except msgspec.DecodeError:
            text = problem.decode("utf-8", "replace").strip().rpartition("\n")[2]
            raise DataError(f"{name} cannot be checked: {text.replace(str(path), name)}") from None
        return msgspec.structs.replace(report, name=name)

    async def _output(self, command: list[str], name: str) -> tuple[bytes, bytes]:
        """The report that a check prints, and what went wrong."""
        async with self._checks:
            process = await asyncio.create_subprocess_exec(
                *command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE
            )
            try:
                with anyio.fail_after(_CHECK_SECONDS):
                    return await process.communicate()
            except TimeoutError:
                raise TimeLimitExceeded(f"the check of {name} took longer than {_CHECK_SECONDS:g} s") from None
            finally:
                if process.returncode is None:
                    with contextlib.suppress(ProcessLookupError):
                        process.kill()

    async def _store(self, path: Path, place: str, gone: asyncio.Task[None]) -> None:
        """Stores the file; removes a new one if the caller goes away."""
        storage = self._dependencies.storage
        late = f"the store did not take the file within {_STORE_SECONDS:g} s"
        in_store = partial(in_time, limit=_STORE_SECONDS, limiter=self._threads, late=late)
        try:
            is_new = not await in_store(storage.exists, place)
        except StorageError:
            is_new = False  # A service that may not look leaves what it has stored.
        await in_store(storage.save, path, place)
        if gone.done():
            if is_new:
                await in_store(storage.delete, place)
            raise ClientGone


async def _next_part(receive: Receive) -> tuple[bytes, bool]:
    """A part of the body, and whether more follows."""
    try:
        with anyio.fail_after(_IDLE_SECONDS):
            message = await receive()
    except TimeoutError:
        raise MalformedBody(f"nothing more of the file arrived within {_IDLE_SECONDS:g} s") from None
    if message["type"] == "http.disconnect":
        raise ClientGone
    return message.get("body", b""), message.get("more_body", False)


def _announced(request: Request) -> int:
    """The length that the request announces; 0 if it does not."""
    text = next((value for name, value in request.context.headers if name == b"content-length"), b"")
    return int(text) if text.isdigit() else 0


def _refused(report: DataReport, settings: Settings) -> HttpResponse:
    """The failure of a check, with its report."""
    response = failure(DataError(report.summary()), settings)
    content = {**msgspec.json.decode(response.body), "report": msgspec.to_builtins(report)}
    return msgspec.structs.replace(response, body=to_json(content))
