"""How a request gets to a service.

`Transport` is the seam; `HttpTransport` goes over the network with urllib3.
`mlpkit.testing` has a second transport, which calls a service in the same process.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping
from dataclasses import dataclass
from typing import BinaryIO, Protocol

import urllib3
from urllib3.exceptions import ConnectTimeoutError, HTTPError, LocationParseError, MaxRetryError, NewConnectionError
from urllib3.exceptions import TimeoutError as UrllibTimeout

from mlpkit.errors import ArgumentError, ServiceUnreachable, TimeLimitExceeded

_CONNECT_TIMEOUT = 5.0
_CONNECTIONS = 64
_PART = 64 << 10
_RETRIES = urllib3.Retry(
    total=None,
    connect=2,
    read=2,
    other=0,
    status=0,
    redirect=0,
    allowed_methods=frozenset({"GET"}),
    backoff_factor=0.1,
)
"""`connect` counts attempts that sent nothing and is safe for every method; `read` only applies to GET."""


@dataclass(frozen=True)
class Answer:
    """An HTTP answer; the names of its headers are in lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes


@dataclass(frozen=True)
class StreamedAnswer:
    """An HTTP answer whose body comes in parts.

    Closing `parts` ends it. They raise what the request raises, if the connection breaks or is silent.
    """

    status: int
    headers: Mapping[str, str]
    parts: Generator[bytes, None, None]


class Transport(Protocol):
    """Sends one request and gives the answer, whatever its status is."""

    def request(
        self, method: str, target: str, body: bytes | BinaryIO | None, headers: Mapping[str, str], timeout: float
    ) -> Answer:
        """`target` is path and query; a file is read to its end.

        Safe from every thread.

        Raises:
            ServiceUnreachable: no connection, or it broke before the answer was complete.
            TimeLimitExceeded: nothing came for `timeout` seconds.
        """

    def stream(self, target: str, headers: Mapping[str, str], timeout: float) -> StreamedAnswer:
        """The answer to a GET, in parts as it comes.

        `timeout` is the longest silence in seconds.

        Raises:
            ServiceUnreachable: no connection, or it broke.
            TimeLimitExceeded: nothing came for `timeout` seconds.
        """

    def close(self) -> None:
        """Gives back what the transport holds; it must not be used afterwards."""


class HttpTransport:
    """Requests over HTTP/1.1 with kept connections, at most 64 at rest.

    A GET is tried up to three times, anything else only as long as no connection could be made. Redirects are not
    followed, so that a token never goes to another host.
    """

    def __init__(self, url: str) -> None:
        if not url.startswith(("http://", "https://")):
            raise ArgumentError(f"{url!r} is not the address of a service: it must start with http:// or https://")
        self._url = url.rstrip("/")
        self._pool = urllib3.PoolManager(maxsize=_CONNECTIONS)

    def request(
        self, method: str, target: str, body: bytes | BinaryIO | None, headers: Mapping[str, str], timeout: float
    ) -> Answer:
        response = self._send(method, target, body, headers, timeout, preload_content=True)
        return Answer(response.status, _named(response), response.data)

    def stream(self, target: str, headers: Mapping[str, str], timeout: float) -> StreamedAnswer:
        response = self._send("GET", target, None, headers, timeout, preload_content=False)
        return StreamedAnswer(response.status, _named(response), self._parts(response, timeout))

    def close(self) -> None:
        self._pool.clear()

    def _send(
        self,
        method: str,
        target: str,
        body: bytes | BinaryIO | None,
        headers: Mapping[str, str],
        timeout: float,
        *,
        preload_content: bool,
    ) -> urllib3.BaseHTTPResponse:
        try:
            return self._pool.request(
                method,
                self._url + target,
                body=body,
                headers=dict(headers),
                timeout=urllib3.Timeout(connect=min(timeout, _CONNECT_TIMEOUT), read=timeout),
                retries=_RETRIES,
                redirect=False,
                preload_content=preload_content,
            )
        except LocationParseError as error:
            raise ArgumentError(f"{self._url!r} is not the address of a service: {error}") from error
        except HTTPError as error:
            raise self._translated(error, timeout) from error

    def _parts(self, response: urllib3.BaseHTTPResponse, timeout: float) -> Generator[bytes, None, None]:
        try:
            yield from response.stream(_PART)
        except HTTPError as error:
            raise self._translated(error, timeout) from error
        finally:
            # A connection whose answer was not read to its end cannot be used again.
            response.close()

    def _translated(self, error: HTTPError, timeout: float) -> ServiceUnreachable | TimeLimitExceeded:
        reason = error.reason if isinstance(error, MaxRetryError) and error.reason else error
        if isinstance(reason, (NewConnectionError, ConnectTimeoutError)):
            return ServiceUnreachable(f"no service answers at {self._url}: is it running, and is the port right?")
        if isinstance(reason, UrllibTimeout):
            return TimeLimitExceeded(f"{self._url} has not answered within {timeout:g} s; it may still be working")
        return ServiceUnreachable(f"the connection to {self._url} broke before the answer was complete: {reason}")


def _named(response: urllib3.BaseHTTPResponse) -> dict[str, str]:
    return {name.lower(): value for name, value in response.headers.items()}
