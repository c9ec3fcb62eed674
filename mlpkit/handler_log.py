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
        logger.log("DEBUG", message, *args, uuid=self._uuid, depth=1)

    def info(self, message: str, /, *args: object) -> None:
        """Logs what an operator may want to know."""
        logger.log("INFO", message, *args, uuid=self._uuid, depth=1)

    def warning(self, message: str, /, *args: object) -> None:
        """Logs something that is wrong, although the work continues."""
        logger.log("WARNING", message, *args, uuid=self._uuid, depth=1)

    def error(self, message: str, /, *args: object) -> None:
        """Logs a failure."""
        logger.log("ERROR", message, *args, uuid=self._uuid, depth=1)

    def exception(self, message: str, /, *args: object) -> None:
        """Logs a failure with the traceback of the current exception."""
        logger.log("ERROR", message, *args, exception=sys.exc_info()[1], uuid=self._uuid, depth=1)
