"""Callers who wait for a prediction: one who goes away gives its place in the queue free."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from mlpkit.web.body import ClientGone

if TYPE_CHECKING:
    from starlette.types import Receive

_LOOK_SECONDS = 0.25


class Callers:
    """Fails the future of a caller who has gone, with ClientGone; whoever holds a failed future begins nothing for it.

    Only those are watched who have waited for a while: the others cost an entry in a dictionary.
    """

    def __init__(self) -> None:
        self._waiting: dict[asyncio.Future[bytes], Receive] = {}
        self._watches: dict[asyncio.Future[bytes], asyncio.Task[None]] = {}
        self._seen: list[asyncio.Future[bytes]] = []
        self._looking = False

    def enter(self, future: asyncio.Future[bytes], receive: Receive) -> None:
        """Begins to look after a caller, whose body has been read."""
        self._waiting[future] = receive
        if not self._looking:
            self._look_later()

    def leave(self, future: asyncio.Future[bytes]) -> None:
        """Ends it."""
        if self._waiting.pop(future, None) is None:
            self._watches.pop(future).cancel()

    def _look_later(self) -> None:
        self._looking = True
        asyncio.get_running_loop().call_later(_LOOK_SECONDS, self._look)

    def _look(self) -> None:
        """Watches those who were there at the last look already."""
        self._looking = False
        for future in self._seen:
            receive = self._waiting.pop(future, None)
            if receive is not None:
                self._watches[future] = asyncio.ensure_future(_watch(future, receive))
        self._seen = list(self._waiting)
        if self._seen:
            self._look_later()


async def _watch(future: asyncio.Future[bytes], receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    if not future.done():
        future.set_exception(ClientGone())
