"""Messages cross the channel whole and in order, however the bytes are cut, and its end is noticed."""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
import struct
import threading
from collections.abc import Callable, Iterator

import pytest
import uvloop

from mlpkit.processes import channel as channel_module
from mlpkit.processes.channel import AsyncChannel, BlockingChannel, Frames, Message
from tests.servers import LONG, SOON

BIG = 8 << 20
MESSAGES = [b"", b"a", b"hello", bytes(range(256)) * 3, b"\x00" * 10]

LOOPS: dict[str, Callable[[], asyncio.AbstractEventLoop]] = {
    "asyncio": asyncio.new_event_loop,
    "uvloop": uvloop.new_event_loop,
}


@pytest.fixture(params=LOOPS)
def loop(request: pytest.FixtureRequest) -> Iterator[asyncio.AbstractEventLoop]:
    loop = LOOPS[request.param]()
    yield loop
    loop.close()


def frame(message: bytes) -> bytes:
    """The message as it is sent: its length, big-endian, stands before it."""
    return struct.pack(">I", len(message)) + message


class Received:
    """What arrived at an end on a loop."""

    def __init__(self) -> None:
        self.messages: list[Message] = []
        self.closed = 0
        self._news = asyncio.Event()

    def take(self, messages: list[Message]) -> None:
        self.messages += messages
        self._news.set()

    def close(self) -> None:
        self.closed += 1
        self._news.set()

    async def until(self, condition: Callable[[], bool]) -> None:
        while not condition():
            self._news.clear()
            await asyncio.wait_for(self._news.wait(), 20)


def feed(frames: Frames, data: bytes) -> list[Message]:
    """The messages that `data` completes: the bytes of a long one are put where it stays, as they fit."""
    found: list[Message] = []
    while data and frames.awaits_long:
        space = frames.space()
        count = min(len(space), len(data))
        space[:count], data = data[:count], data[count:]
        found += frames.arrived(count)
    return found + frames.take(data) if data else found


def test_frames_may_be_split_at_every_byte() -> None:
    whole = b"".join(map(frame, MESSAGES))

    for cut in range(len(whole) + 1):
        frames = Frames()
        assert feed(frames, whole[:cut]) + feed(frames, whole[cut:]) == MESSAGES


def test_frames_may_come_byte_by_byte() -> None:
    frames = Frames()
    whole = b"".join(map(frame, MESSAGES))

    assert [message for byte in whole for message in feed(frames, bytes([byte]))] == MESSAGES


def test_a_big_message_may_come_in_pieces_with_small_ones_around_it() -> None:
    big = random.Random(1).randbytes(BIG)
    whole = frame(b"before") + frame(big) + frame(b"after")
    frames, found = Frames(), []
    for start in range(0, len(whole), 65_536):
        found += feed(frames, whole[start : start + 65_536])

    assert found == [b"before", big, b"after"]


@pytest.mark.parametrize("length", [65_531, 65_535, 65_536, 65_537, 65_540, 131_072])
def test_messages_about_as_long_as_the_space_for_short_ones_come_whole(length: int) -> None:
    sent = [b"s", bytes(length), b"t" * (length - 9), b"u", bytes(length)]
    whole = b"".join(map(frame, sent))
    for step in (1000, 65_536, 65_540, len(whole)):
        frames, found = Frames(), []
        for start in range(0, len(whole), step):
            found += feed(frames, whole[start : start + step])
        assert found == sent


def test_a_message_may_be_sent_in_parts(loop: asyncio.AbstractEventLoop) -> None:
    async def main() -> None:
        ours, theirs = socket.socketpair()
        here = Received()
        one = await AsyncChannel.connect(ours, lambda messages: None, lambda: None)
        two = await AsyncChannel.connect(theirs, here.take, here.close)
        one.send(b"a", memoryview(b"b" * BIG), b"c")
        await here.until(lambda: len(here.messages) == 1)
        assert here.messages == [b"a" + b"b" * BIG + b"c"]
        one.close()
        two.close()
        await here.until(lambda: here.closed == 1)

    loop.run_until_complete(main())


def test_bytes_that_are_no_frame_are_refused() -> None:
    with pytest.raises(ValueError, match="this is not a frame"):
        feed(Frames(), struct.pack(">I", 2**31) + b"x")


def test_a_message_over_the_limit_is_not_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(channel_module, "LONGEST_MESSAGE", 10)

    ours, theirs = socket.socketpair()
    with theirs, contextlib.closing(BlockingChannel(ours)) as channel:
        channel.send(b"x" * 10)
        with pytest.raises(ValueError, match="11 bytes cannot be sent"):
            channel.send(b"x" * 11)
        theirs.settimeout(SOON)
        assert theirs.recv(100) == frame(b"x" * 10)


def test_both_ends_on_one_loop_exchange_big_and_small_messages(loop: asyncio.AbstractEventLoop) -> None:
    async def main() -> None:
        ours, theirs = socket.socketpair()
        here, there = Received(), Received()
        one = await AsyncChannel.connect(ours, here.take, here.close)
        two = await AsyncChannel.connect(theirs, there.take, there.close)
        sent = [b"a", b"x" * BIG, b"b", b"", b"y" * BIG, *(str(number).encode() for number in range(1000))]
        for message in sent:
            one.send(message)
            two.send(message)
        await here.until(lambda: len(here.messages) == len(sent))
        await there.until(lambda: len(there.messages) == len(sent))
        assert here.messages == there.messages == sent

        one.send(b"last")
        one.close()
        one.send(b"too late")
        await there.until(lambda: there.closed > 0)
        await here.until(lambda: here.closed > 0)
        assert there.messages[-1] == b"last"
        two.send(b"nobody is there")
        two.close()
        await asyncio.sleep(0)
        assert (here.closed, there.closed) == (1, 1)

    loop.run_until_complete(main())


def test_a_blocking_end_and_one_on_a_loop_understand_each_other(loop: asyncio.AbstractEventLoop) -> None:
    ours, theirs = socket.socketpair()
    child = BlockingChannel(theirs)

    def echo() -> None:
        while (message := child.receive()) is not None:
            child.send(message)
        child.close()

    thread = threading.Thread(target=echo)
    thread.start()

    async def main() -> None:
        here = Received()
        end = await AsyncChannel.connect(ours, here.take, here.close)
        sent = [b"x" * BIG, *(bytes([number % 256]) * number for number in range(500))]
        for message in sent:
            end.send(message)
        await here.until(lambda: len(here.messages) == len(sent))
        assert here.messages == sent
        end.close()
        await here.until(lambda: here.closed == 1)

    loop.run_until_complete(main())
    thread.join(LONG)
    assert not thread.is_alive()


def test_messages_of_many_threads_stay_whole() -> None:
    ours, theirs = socket.socketpair()
    sender, receiver = BlockingChannel(ours), BlockingChannel(theirs)

    def send_fifty(letter: bytes) -> None:
        for _ in range(50):
            sender.send(letter * 5000)

    threads = [threading.Thread(target=send_fifty, args=(letter,)) for letter in (b"a", b"b", b"c", b"d")]
    for thread in threads:
        thread.start()
    found = [receiver.receive() for _ in range(200)]
    for thread in threads:
        thread.join(LONG)
    sender.close()

    assert all(message is not None and message == bytes(message[:1]) * 5000 for message in found)
    assert receiver.receive() is None
    receiver.close()


@pytest.mark.parametrize("rest", [b"", b"\x00\x00", b"\x00\x00\x00\x09half"])
def test_the_end_of_the_server_ends_the_channel_also_amid_a_message(rest: bytes) -> None:
    ours, theirs = socket.socketpair()
    child = BlockingChannel(theirs)
    ours.sendall(frame(b"whole") + rest)
    ours.close()

    assert child.receive() == b"whole"
    assert child.receive() is None
    child.send(b"to nobody")
    child.close()


def test_garbage_ends_the_channel(loop: asyncio.AbstractEventLoop) -> None:
    async def main() -> None:
        ours, theirs = socket.socketpair()
        here = Received()
        await AsyncChannel.connect(ours, here.take, here.close)
        theirs.sendall(b"\xff" * 100)
        await here.until(lambda: here.closed == 1)
        assert here.messages == []
        theirs.close()

    loop.run_until_complete(main())


@pytest.mark.parametrize("cut", [1, 3, 4, 5, 1000, 65_536, 262_143, 262_144, 262_145])
def test_a_blocking_end_gets_whole_messages_however_the_bytes_are_cut(cut: int) -> None:
    ours, theirs = socket.socketpair()
    lengths = [0, 1, 65_535, 65_536, 65_537, 262_139, 262_140, 262_141, 3, 70_000, 0, 2]
    sent = [random.Random(length).randbytes(length) for length in lengths]
    whole = b"".join(map(frame, sent))

    def write() -> None:
        for start in range(0, len(whole), cut) if cut > 100 else (0,):
            ours.sendall(whole[start : start + max(cut, 100)] if cut > 100 else whole[:cut])
        if cut <= 100:
            ours.sendall(whole[cut:])
        ours.close()

    thread = threading.Thread(target=write)
    thread.start()
    child = BlockingChannel(theirs)
    found = [child.receive() for _ in sent]
    assert found == sent
    assert child.receive() is None
    child.close()
    thread.join()


def test_messages_that_threads_send_at_the_same_time_are_not_mixed() -> None:
    ours, theirs = socket.socketpair()
    child, server = BlockingChannel(theirs), BlockingChannel(ours)

    def send(letter: bytes) -> None:
        for length in (1, 100_000, 10, 70_000) * 20:
            child.send(letter * length)

    threads = [threading.Thread(target=send, args=(letter,)) for letter in (b"a", b"b", b"c", b"d")]
    for thread in threads:
        thread.start()
    found = [bytes(server.receive() or b"") for _ in range(4 * 80)]
    for thread in threads:
        thread.join()
    assert all(message == bytes(message[:1]) * len(message) for message in found)
    for letter in (b"a", b"b", b"c", b"d"):
        assert [len(message) for message in found if message[:1] == letter] == [1, 100_000, 10, 70_000] * 20
    child.close()
    server.close()
