"""Tells a URL what happens to jobs and models, from the journal.

Format: Standard Webhooks 1.0 (https://www.standardwebhooks.com), with `webhook-id`, `webhook-timestamp` and
`webhook-signature`.
Events are sent in their order, one at a time. One that was not taken is sent again, with longer and longer pauses; one
that was answered with a 2xx is never sent again, because its number is on disk before the next is sent.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import hmac
import socket
import ssl
import time
from datetime import datetime, timezone
from ipaddress import ip_address, ip_network
from urllib.parse import urlsplit
from uuid import uuid4

import anyio
import anyio.to_thread
import msgspec
from anyio.abc import ByteStream
from anyio.streams.tls import TLSStream

from mlpkit import __version__
from mlpkit.errors import MlpkitError
from mlpkit.log import level_of_failure, logger
from mlpkit.settings import Proxy, Settings, proxy_for
from mlpkit.storage import decode_json, replace_file
from mlpkit.training.events import Event, Events

_TIMEOUT = 15.0
_FIRST_PAUSE = 1.0
_LONGEST_PAUSE = 300.0
_MOST_REFUSALS = 5
"""How often an event is sent to a receiver that answers with a 4xx, which will most likely not change."""
_TEMPORARY = (407, 408, 425, 429)
"""The first is of a proxy that does not know the service."""
_GONE = 410
_LONGEST_HEAD = 8 << 10
_IDLE_SECONDS = 60.0


class _Delivered(msgspec.Struct):
    """What is in `webhook.json`: the last event that was delivered.

    `sender` makes the ids of this home's events unlike those of others.
    """

    number: int
    sender: str = msgspec.field(default_factory=lambda: uuid4().hex)


class _Refused(Exception):
    """The receiver did not take an event.

    `code` is its HTTP status, 0 if it gave none.
    """

    def __init__(self, why: str, code: int = 0) -> None:
        super().__init__(why)
        self.code = code


class Webhook:
    """Sends the events of a service to `MLPKIT_WEBHOOK`.

    Args:
        first_pause: seconds until the second try; each further pause is twice as long.
        timeout: seconds that the receiver has for its answer.
    """

    def __init__(
        self, settings: Settings, events: Events, first_pause: float = _FIRST_PAUSE, timeout: float = _TIMEOUT
    ) -> None:
        self._events = events
        self._url = urlsplit(settings.webhook)
        self._proxy = proxy_for(settings.webhook)
        self._key = webhook_key(settings.webhook_secret)
        self._allowed = [ip_network(network) for network in settings.webhook_allow]
        self._timeout = timeout
        self._tls = ssl.create_default_context() if self._url.scheme == "https" else None
        self._path = settings.home / "webhook.json"
        self._first_pause = first_pause
        self._failures = 0
        self._problem = ""

    def warnings(self) -> list[str]:
        """That events are not taken, and why, if it is so."""
        return [f"the webhook takes no events: {self._problem}"] if self._problem else []

    async def run(self) -> None:
        """Sends what happens, until the service lets its listeners go."""
        delivered = await self._begin()
        closed = False
        while not closed:
            try:
                with self._events.listen() as listener:
                    while not (listener.closed or listener.lost):
                        listener.take()
                        if not await self._send_new(delivered):
                            return
                        await listener.wait(_IDLE_SECONDS)
                    closed = listener.closed
            except MlpkitError as error:
                # The journal cannot be read, or there are too many listeners.
                logger.warning("the webhook waits: {}", error)
                await anyio.sleep(_IDLE_SECONDS)

    async def _begin(self) -> _Delivered:
        """The last event that was delivered.

        At the first start it is the newest one.
        """
        try:
            return await anyio.to_thread.run_sync(lambda: decode_json(self._path.read_bytes(), _Delivered))
        except FileNotFoundError:
            pass
        except (OSError, msgspec.DecodeError) as error:
            logger.error("{} cannot be read ({}): the webhook begins with what happens now", self._path, error)
        _, newest = await self._events.known()
        delivered = _Delivered(newest)
        await self._keep(delivered)
        return delivered

    async def _keep(self, delivered: _Delivered) -> None:
        try:
            await anyio.to_thread.run_sync(replace_file, self._path, msgspec.json.encode(delivered))
        except OSError as error:
            logger.error("{} cannot be written ({}): a restart sends the last events again", self._path, error)

    async def _send_new(self, delivered: _Delivered) -> bool:
        """Sends the events that are not delivered yet.

        False if nobody wants them.
        """
        oldest, newest = await self._events.known()
        if delivered.number < oldest - 1:
            lost = oldest - 1 - delivered.number
            logger.error("{:,} events were removed from the journal before the webhook took them", lost)
            delivered.number = oldest - 1
        # A home whose journal was removed begins with 1 again.
        delivered.number = min(delivered.number, newest)
        while events := await self._events.after(delivered.number, None):
            for event in events:
                if not await self._deliver(event, delivered.sender):
                    return False
                delivered.number = event.number or delivered.number
                await self._keep(delivered)
        return True

    async def _deliver(self, event: Event, sender: str) -> bool:
        """Sends an event until it is taken or given up.

        False if the receiver is gone.
        """
        pause = self._first_pause
        refusals = 0
        while True:
            try:
                await self._post(event, sender)
            except _Refused as error:
                self._failures += 1
                self._problem = f"{error} ({self._failures} in a row)"
                if error.code == _GONE:
                    logger.error("the webhook answered HTTP 410 and gets no more events until the next start")
                    return False
                if 400 <= error.code < 500 and error.code not in _TEMPORARY:
                    refusals += 1
                    if refusals == _MOST_REFUSALS:
                        logger.error("event {} is given up: the webhook refused it: {}", event.number, error)
                        return True
                logger.log(level_of_failure(self._failures), "the webhook did not take an event: {}", self._problem)
            else:
                if self._failures:
                    logger.info("the webhook takes events again")
                self._failures = 0
                self._problem = ""
                return True
            await anyio.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE)

    async def _post(self, event: Event, sender: str) -> None:
        """Sends an event once.

        Raises:
            _Refused: it was not answered with a 2xx in time.
        """
        content = _content(event)
        webhook_id = f"evt_{sender}_{event.number}"
        timestamp = int(time.time())
        port = self._url.port or (443 if self._url.scheme == "https" else 80)
        target = (self._url.path or "/") + (f"?{self._url.query}" if self._url.query else "")
        headers: dict[str, str] = {}
        if self._proxy is not None and self._tls is None:
            target = f"http://{self._url.netloc}{target}"
            headers = self._proxy.headers
        head = {
            "Host": self._url.netloc,
            "User-Agent": f"mlpkit/{__version__}",
            "Content-Type": "application/json",
            "Content-Length": str(len(content)),
            "Connection": "close",
            "webhook-id": webhook_id,
            "webhook-timestamp": str(timestamp),
            "webhook-signature": signature(self._key, webhook_id, timestamp, content),
            **headers,
        }
        lines = "".join(f"{name}: {value}\r\n" for name, value in head.items())
        request = f"POST {target} HTTP/1.1\r\n{lines}\r\n".encode() + content
        try:
            # One limit for all of it: a receiver that sends a byte now and then hangs too.
            with anyio.fail_after(self._timeout):
                code = await self._status_of(await self._address(port), port, request)
        except TimeoutError:
            raise _Refused(f"it did not answer within {self._timeout:g} s") from None
        except (OSError, ValueError, anyio.EndOfStream, anyio.BrokenResourceError) as error:
            way = "" if self._proxy is None else f" through the proxy {self._proxy.url} (http_proxy, no_proxy)"
            raise _Refused(f"it cannot be reached{way}: {error or type(error).__name__}") from error
        if not 200 <= code < 300:
            raise _Refused(f"HTTP {code}", code)

    async def _address(self, port: int) -> str:
        """An address of the receiver that is allowed.

        Without a proxy, the connection is made to just this address, so that a name cannot lead to another one
        meanwhile. A proxy looks for it itself.
        """
        host = self._url.hostname or ""
        found = await anyio.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        for *_, place in found:
            address = ip_address(place[0])
            if any(address in network for network in self._allowed):
                return str(address)
        raise _Refused(f"no address of {host} is among MLPKIT_WEBHOOK_ALLOW: nothing was sent")

    async def _status_of(self, address: str, port: int, request: bytes) -> int:
        """The HTTP status that answers the request; redirects are not followed."""
        proxy = self._proxy
        plain: ByteStream = await anyio.connect_tcp(address, port) if proxy is None else await _connected(proxy)
        async with plain:
            stream: ByteStream = plain
            if self._tls is not None:
                if proxy is not None:
                    host = self._url.hostname or ""
                    await _open_tunnel(plain, proxy, f"[{host}]:{port}" if ":" in host else f"{host}:{port}")
                stream = await _encrypted(stream, self._url.hostname, self._tls)
            await stream.send(request)
            code = _status_in(await _received(stream, b"\r\n"))
            with contextlib.suppress(Exception):
                await stream.aclose()
            return code


async def _connected(proxy: Proxy) -> ByteStream:
    """A connection to the proxy."""
    place = urlsplit(proxy.url)
    encrypted = place.scheme == "https"
    stream: ByteStream = await anyio.connect_tcp(place.hostname or "", place.port or (443 if encrypted else 80))
    return await _encrypted(stream, place.hostname, ssl.create_default_context()) if encrypted else stream


async def _open_tunnel(stream: ByteStream, proxy: Proxy, place: str) -> None:
    """Asks the proxy to send on what follows, unread.

    Raises:
        _Refused: it does not.
    """
    head = {"Host": place, **proxy.headers}
    lines = "".join(f"{name}: {value}\r\n" for name, value in head.items())
    await stream.send(f"CONNECT {place} HTTP/1.1\r\n{lines}\r\n".encode())
    code = _status_in(await _received(stream, b"\r\n\r\n"))
    if not 200 <= code < 300:
        raise _Refused(f"the proxy {proxy.url} answered HTTP {code}")


async def _encrypted(stream: ByteStream, hostname: str | None, context: ssl.SSLContext) -> ByteStream:
    return await TLSStream.wrap(stream, hostname=hostname, ssl_context=context, standard_compatible=False)


async def _received(stream: ByteStream, end: bytes) -> bytes:
    """What arrives up to this end, and maybe more."""
    received = b""
    while end not in received:
        received += await stream.receive()
        if len(received) > _LONGEST_HEAD:
            raise ValueError("the answer is not HTTP")
    return received


def _status_in(answer: bytes) -> int:
    """The status in an answer's first line."""
    version, _, rest = answer.partition(b"\r\n")[0].partition(b" ")
    if not version.startswith(b"HTTP/1.") or not rest[:3].isdigit():
        raise ValueError("the answer is not HTTP")
    return int(rest[:3])


def webhook_key(secret: str) -> bytes:
    """The key in a secret of the form `whsec_<base64>`.

    Raises:
        ValueError: it does not have that form, or not 24 to 64 bytes.
    """
    key = base64.b64decode(secret.removeprefix("whsec_"), validate=True)
    if not secret.startswith("whsec_") or not 24 <= len(key) <= 64:
        raise ValueError("not a secret of Standard Webhooks")
    return key


def signature(key: bytes, webhook_id: str, timestamp: int, content: bytes) -> str:
    """The value of `webhook-signature`: HMAC-SHA256 over id, time and content."""
    signed = b"%b.%d.%b" % (webhook_id.encode(), timestamp, content)
    return "v1," + base64.b64encode(hmac.new(key, signed, hashlib.sha256).digest()).decode()


def _content(event: Event) -> bytes:
    """The body: `type`, such as `job.completed`, `timestamp` and `data`."""
    data = msgspec.json.decode(event.data)
    moment = datetime.fromtimestamp(data["time"], timezone.utc)
    return msgspec.json.encode({"type": f"{event.kind}.{data['state']}", "timestamp": moment.isoformat(), "data": data})
