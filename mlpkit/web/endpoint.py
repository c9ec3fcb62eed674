"""One path and method of the service: reads and checks the fields of a request, then asks its handler."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from mlpkit.web.answers import Answer, other_method
from mlpkit.web.protocol import Arguments, Field, caller_uuid, check, query_values, read_values

if TYPE_CHECKING:
    from starlette.types import Receive, Scope, Send

    from mlpkit.web.exchange import Exchange


@dataclass(frozen=True)
class Request:
    """What a handler gets: the checked fields, and where the request came from. `path` and `query` are decoded.

    `root_path` is what the server, or an application that this one is mounted in, has put before the path.
    """

    arguments: Arguments
    caller_uuid: str | None
    uuid: str
    peer: str
    path: Mapping[str, str]
    root_path: str
    query: Mapping[str, str]


Method = Literal["GET", "POST"]
Handler = Callable[[Request], Awaitable[Answer]]


@dataclass(frozen=True)
class Entry:
    """One line of the table of routes. `fields` are the protocol's, `query` says what others in the query mean."""

    method: Method
    path: str
    handler: Handler
    fields: tuple[Field, ...] = ()
    query: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Endpoint:
    """An ASGI callable for one path. `limit` is the largest body in bytes; without fields a body is not looked at."""

    entry: Entry
    limit: int

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        exchange: Exchange = scope["exchange"]
        exchange.route = self.entry.path
        answer = other_method(scope["method"], self.entry.method)
        if answer is None:
            answer = await self.entry.handler(await self._request(scope, receive))
        await exchange.send(answer, send)

    async def _request(self, scope: Scope, receive: Receive) -> Request:
        exchange: Exchange = scope["exchange"]
        fields = self.entry.fields
        values = await read_values(scope, receive, exchange.content_type, self.limit) if fields else {}
        exchange.adopt(caller_uuid(values))
        return Request(
            arguments=check(fields, values),
            caller_uuid=exchange.caller_uuid,
            uuid=exchange.uuid,
            peer=scope["client"][0] if scope.get("client") else "",
            path=scope.get("path_params", {}),
            root_path=scope.get("root_path", ""),
            query=query_values(scope["query_string"]),
        )
