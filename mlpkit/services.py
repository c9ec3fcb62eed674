"""`Log`: the logger that a handler gets by annotating it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mlpkit.injection import service

if TYPE_CHECKING:
    from loguru import Logger


@service()
class Log:
    """Writes lines into the log of the service (of a training job: also into the job's own log).

    Every line carries the request's uuid. A `Log` that knows its `uuid` puts it also into lines from threads that the
    handler starts itself. Arguments are filled in with `str.format`: `log.info("read {} rows", n)`.
    """

    def __init__(self, uuid: str | None = None) -> None:
        self._uuid = uuid

    def debug(self, message: str, /, *args: object) -> None:
        """Logs what only helps to find a fault."""
        self._logger.debug(message, *args)

    def info(self, message: str, /, *args: object) -> None:
        """Logs what an operator may want to know."""
        self._logger.info(message, *args)

    def warning(self, message: str, /, *args: object) -> None:
        """Logs what went on, although something is not as it should be."""
        self._logger.warning(message, *args)

    def error(self, message: str, /, *args: object) -> None:
        """Logs a failure."""
        self._logger.error(message, *args)

    def exception(self, message: str, /, *args: object) -> None:
        """Logs a failure together with the traceback of the exception that is being handled."""
        self._logger.opt(depth=1, exception=True).error(message, *args)

    @property
    def _logger(self) -> Logger:
        from mlpkit.log import logger

        bound = logger if self._uuid is None else logger.bind(uuid=self._uuid)
        return bound.opt(depth=1)
