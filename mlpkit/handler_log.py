"""`Log`: the logger that a handler gets by annotating it."""

from __future__ import annotations

import sys

from mlpkit.injection import service
from mlpkit.log import logger


@service()
class Log:
    """Writes lines into the log of the service.

    The lines of a training job are in the job's own log too.
    Every line carries the request's uuid. A `Log` that knows its `uuid` puts it also into lines from threads that the
    handler starts itself. Arguments are filled in with `str.format`: `log.info("read {} rows", n)`.
    """

    def __init__(self, uuid: str | None = None) -> None:
        self._uuid = uuid

    def debug(self, message: str, /, *args: object) -> None:
        """Logs a detail that helps to find a fault."""
        self._write("DEBUG", message, args)

    def info(self, message: str, /, *args: object) -> None:
        """Logs what an operator may want to know."""
        self._write("INFO", message, args)

    def warning(self, message: str, /, *args: object) -> None:
        """Logs something that is wrong, although the work continues."""
        self._write("WARNING", message, args)

    def error(self, message: str, /, *args: object) -> None:
        """Logs a failure."""
        self._write("ERROR", message, args)

    def exception(self, message: str, /, *args: object) -> None:
        """Logs a failure with the traceback of the current exception."""
        self._write("ERROR", message, args, sys.exc_info()[1])

    def _write(
        self, level: str, message: str, args: tuple[object, ...], exception: BaseException | None = None
    ) -> None:
        logger.log(level, message, *args, exception=exception, uuid=self._uuid, depth=2)
