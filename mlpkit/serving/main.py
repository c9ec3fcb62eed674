"""What runs in the process of a worker, `python -m mlpkit.serving`; `serving/worker.py` is the server's end of it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys

from mlpkit.errors import MlpkitError
from mlpkit.log import LogLine, capture_streams, configure_child
from mlpkit.processes import AsyncChannel, Message, channel_of_child
from mlpkit.serving.host import Host
from mlpkit.serving.messages import Broken, Log, Ready, Start, Stop, decode_request, encode
from mlpkit.settings import Settings, decode_settings

_STOP_SECONDS = 5.0
"""How long a worker gets to close its models after it was asked to stop."""
_KEPT = 4 << 20
"""Bytes; glibc then keeps up to twice as many that were freed."""


def main() -> None:
    """Runs a worker process until it is told to stop, or the server is gone."""
    # Ctrl-C goes to the whole terminal; the server decides when its workers end.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _keep_freed_memory()
    try:
        import uvloop
    except ImportError:
        asyncio.run(_serve())
    else:
        uvloop.run(_serve())


def _keep_freed_memory() -> None:
    """Lets the memory of one long request be used for the next, instead of being given back and cleared each time.

    glibc takes its limits for that from the largest block that was freed: mallopt(3), M_MMAP_THRESHOLD.
    """
    bytearray(_KEPT)


async def _serve() -> None:
    stopped = asyncio.Event()
    early: asyncio.Queue[Message] = asyncio.Queue()
    host: Host | None = None

    def on_messages(messages: list[Message]) -> None:
        for message in messages:
            if host is None:
                early.put_nowait(message)
                continue
            request = decode_request(message)
            if isinstance(request, Stop):
                stopped.set()
            elif not isinstance(request, Start):
                host.take(request)

    def on_close() -> None:
        stopped.set()
        early.put_nowait(b"")

    channel = await AsyncChannel.connect(channel_of_child(), on_messages, on_close)
    first = await early.get()
    if not first:
        # The server is gone already.
        return
    start = decode_request(first)
    assert isinstance(start, Start)
    loop = asyncio.get_running_loop()

    def send_record(record: LogLine) -> None:
        # Handlers log from threads too; the channel belongs to the loop.
        with contextlib.suppress(RuntimeError):
            loop.call_soon_threadsafe(channel.send, encode(Log(record)))

    settings = decode_settings(start.settings)
    configure_child(send_record, process=start.name, level=settings.log_level)
    capture_streams()
    sys.path[:] = start.sys_path
    host = await _host(start, settings, channel)
    if host is None:
        return
    while not early.empty() and (message := early.get_nowait()):
        on_messages([message])
    channel.send(encode(Ready()))
    await stopped.wait()
    with contextlib.suppress(asyncio.TimeoutError):
        await asyncio.wait_for(host.stop(), _STOP_SECONDS)
    channel.close()
    # Threads of handlers that never return must not keep the process.
    await asyncio.sleep(0)
    os._exit(0)


async def _host(start: Start, settings: Settings, channel: AsyncChannel) -> Host | None:
    from mlpkit.script import import_app

    try:
        host = Host(import_app(start.target), settings, lambda answer: channel.send(encode(answer)))
        await host.start()
    except MlpkitError as error:
        channel.send(encode(Broken(str(error))))
        channel.close()
        return None
    return host
