"""A child process: how it ends is said in words, and nothing of it remains, however it ends."""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import psutil
import pytest
import uvloop

from mlpkit.log import LogLine
from mlpkit.processes import AsyncChannel, Child, Exit, Message, start_child
from mlpkit.processes.child import _guard as service_guard
from mlpkit.processes.forkserver import ForkServer, ForkServerGone
from tests.servers import LONG, SOON

WAIT = LONG

LOOPS: dict[str, Callable[[], asyncio.AbstractEventLoop]] = {
    "asyncio": asyncio.new_event_loop,
    "uvloop": uvloop.new_event_loop,
}

GRANDCHILD = """
import subprocess, sys, time
script = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True); time.sleep(120)"
grandchild = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE)
grandchild.stdout.readline()
print(f"grandchild {grandchild.pid}", flush=True)
"""


def into(messages: list[str]) -> Callable[[list[LogLine]], None]:
    """What adds the messages of lines to a list."""
    return lambda lines: messages.extend(line.message for line in lines)


class Modules:
    """A folder of modules that children can run."""

    def __init__(self, folder: Path, loop: asyncio.AbstractEventLoop) -> None:
        self.folder, self.loop = folder, loop
        self.lines: list[str] = []
        self.children: list[Child] = []

    async def start(self, text: str, drop: Callable[[int, int], bool] | None = None) -> Child:
        name = f"child_{len(list(self.folder.iterdir()))}"
        (self.folder / f"{name}.py").write_text(textwrap.dedent(text))
        child = await start_child(
            name,
            on_lines=into(self.lines),
            environment={"PYTHONPATH": str(self.folder)},
            drop=drop,
        )
        self.children.append(child)
        return child

    def run(self, main: Callable[[], Awaitable[None]]) -> None:
        self.loop.run_until_complete(asyncio.wait_for(main(), LONG))

    async def line(self, start: str) -> str:
        """The rest of the first line that starts so."""
        return await until(
            lambda: next((line[len(start) :].strip() for line in self.lines if line.startswith(start)), None)
        )


class NoForkServer(ForkServer):
    """What a system without one has."""

    def start(self) -> bool:
        raise ForkServerGone


@pytest.fixture(params=[f"{loop}-{origin}" for loop in LOOPS for origin in ("forked", "fresh")])
def modules(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Modules]:
    name, _, origin = request.param.partition("-")
    if origin == "fresh":
        monkeypatch.setattr("mlpkit.processes.child._fork_server", NoForkServer())
    monkeypatch.syspath_prepend(tmp_path)
    loop = LOOPS[name]()
    asyncio.set_event_loop(loop)
    modules = Modules(tmp_path, loop)
    yield modules
    loop.close()
    for child in modules.children:
        child.channel.close()
    asyncio.set_event_loop(None)


async def until(condition: Callable[[], str | None]) -> str:
    deadline = time.monotonic() + WAIT
    while (found := condition()) is None:
        assert time.monotonic() < deadline, "it did not happen in time"
        await asyncio.sleep(0.01)
    return found


def alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_output_that_nobody_keeps_is_counted_and_not_looked_at(modules: Modules) -> None:
    dropped: list[int] = []

    def drop(lines: int, size: int) -> bool:
        if len(modules.lines) < 10:
            return False
        dropped.append(lines)
        return True

    async def main() -> None:
        await (await modules.start("import os\nfor _ in range(200): os.write(1, b'y\\n' * 1000)", drop)).wait()

    modules.run(main)
    assert len(modules.lines) + sum(dropped) == 200_000
    assert len(modules.lines) < 1000


def zombies() -> list[psutil.Process]:
    return [each for each in psutil.Process().children() if each.status() == psutil.STATUS_ZOMBIE]


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("", "exited with code 0"),
        ("raise SystemExit(3)", "exited with code 3"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", "was killed by SIGKILL (most likely because the"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGTERM)", "was killed by SIGTERM"),
        ("import ctypes; ctypes.string_at(0)", "was killed by SIGSEGV"),
        ("import os; os.abort()", "was killed by SIGABRT"),
    ],
)
def test_how_a_child_ended_is_said_in_words(modules: Modules, script: str, words: str) -> None:
    async def main() -> None:
        child = await modules.start(script)
        exit = await child.wait()
        assert exit.words.startswith(words)
        assert not child.running

    modules.run(main)


def test_an_unknown_signal_has_its_number() -> None:
    assert Exit(-200).words == "was killed by signal 200"


def test_a_crash_in_c_code_leaves_its_python_stack_in_the_output(modules: Modules) -> None:
    async def main() -> None:
        await (await modules.start("import ctypes\ndef dive():\n    ctypes.string_at(0)\ndive()")).wait()
        assert any("in dive" in line for line in modules.lines)

    modules.run(main)


def test_a_child_is_asked_to_end_and_told_why_in_its_words(modules: Modules) -> None:
    async def main() -> None:
        child = await modules.start("""
            import signal, sys, time
            signal.signal(signal.SIGTERM, lambda *_: (print("asked"), sys.exit(0)))
            print("up", flush=True)
            time.sleep(120)
        """)
        await modules.line("up")
        started = time.monotonic()
        exit = await child.stop(LONG, "was cancelled")
        assert (exit.code, exit.words) == (0, "was cancelled")
        assert time.monotonic() - started < LONG
        await modules.line("asked")

    modules.run(main)


def test_a_child_that_will_not_end_is_killed_after_the_grace_with_its_grandchildren(modules: Modules) -> None:
    async def main() -> None:
        ignoring = "import signal\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)"
        child = await modules.start(f"{ignoring}\n{GRANDCHILD}\ntime.sleep(120)")
        grandchild = int(await modules.line("grandchild"))
        started = time.monotonic()
        exit = await child.stop(0.3, "was stopped")
        assert 0.3 <= time.monotonic() - started < SOON
        assert (exit.code, exit.words) == (-signal.SIGKILL, "was stopped")
        await until(lambda: None if alive(grandchild) else "gone")

    modules.run(main)


def test_grandchildren_do_not_outlive_a_child_that_ends_by_itself(modules: Modules) -> None:
    async def main() -> None:
        child = await modules.start(GRANDCHILD)
        exit = await child.wait()
        assert exit.words == "exited with code 0"
        grandchild = int(await modules.line("grandchild"))
        await until(lambda: None if alive(grandchild) else "gone")

    modules.run(main)


def test_a_cancelled_stop_kills_at_once(modules: Modules) -> None:
    async def main() -> None:
        ignoring = "import signal\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)"
        child = await modules.start(f"{ignoring}\nprint('up', flush=True)\nimport time\ntime.sleep(120)")
        await modules.line("up")
        stopping = asyncio.ensure_future(child.stop(60, "was stopped"))
        await asyncio.sleep(0.05)
        stopping.cancel()
        assert (await child.wait()).code == -signal.SIGKILL

    modules.run(main)


def test_a_child_does_not_outlive_the_event_loop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "sleeper.py").write_text("import time\ntime.sleep(120)")

    async def main() -> int:
        child = await start_child("sleeper", on_lines=print)
        child.channel.close()
        return child.pid

    pid = asyncio.run(main())

    deadline = time.monotonic() + WAIT
    while alive(pid) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not alive(pid)


def test_a_child_that_left_its_group_does_not_keep_its_end_from_being_noticed(modules: Modules) -> None:
    async def main() -> None:
        child = await modules.start("""
            import subprocess, sys
            runaway = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(120)"], start_new_session=True)
            print("runaway", runaway.pid, flush=True)
        """)
        await modules.line("runaway")
        descriptors, started = psutil.Process().num_fds(), time.monotonic()
        await child.wait()
        assert time.monotonic() - started < SOON
        await until(lambda: "closed" if psutil.Process().num_fds() < descriptors else None)
        # A fork server's keeper has ended it already.
        with contextlib.suppress(ProcessLookupError):
            os.kill(int(await modules.line("runaway")), signal.SIGKILL)

    modules.run(main)


def test_output_comes_line_by_line_and_long_lines_in_pieces(modules: Modules) -> None:
    async def main() -> None:
        child = await modules.start("""
            import os, sys
            print("first")
            sys.stdout.flush()
            os.write(2, b"to stderr\\r\\n")
            os.write(1, "你好, broken \\n".encode() + b"\\xff\\n")
            os.write(1, b"10%\\r20%\\r30%\\n\\n")
            sys.stdout.write("x" * 1_000_000 + "\\nlast, without an end")
        """)
        await child.wait()

    modules.run(main)
    assert modules.lines[:5] == ["first", "to stderr", "你好, broken ", "\ufffd", "30%"]
    assert modules.lines[-1] == "last, without an end"
    pieces = modules.lines[5:-1]
    assert "".join(pieces) == "x" * 1_000_000
    assert max(map(len, pieces)) <= 65_536


def test_the_channel_leads_to_the_child_and_ends_with_it(modules: Modules) -> None:
    async def main() -> None:
        child = await modules.start("""
            from mlpkit.processes import BlockingChannel, channel_of_child
            channel = BlockingChannel(channel_of_child())
            channel.send(bytes(channel.receive()) * 2)
        """)
        answers: list[Message] = []
        closed = asyncio.Event()
        channel = await AsyncChannel.connect(child.channel, answers.extend, closed.set)
        channel.send(b"x" * (1 << 20))
        await asyncio.wait_for(closed.wait(), WAIT)
        assert answers == [b"x" * (2 << 20)]
        await child.wait()

    modules.run(main)


def test_a_child_gets_its_environment_on_top_of_ours(modules: Modules, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLPKIT_TEST_OURS", "ours")

    async def main() -> None:
        child = await modules.start("import os; print(os.environ['MLPKIT_TEST_OURS'], os.environ['PYTHONPATH'])")
        await child.wait()

    modules.run(main)
    assert modules.lines == [f"ours {modules.folder}"]


def test_memory_counts_the_grandchildren_and_ends_with_the_child(modules: Modules) -> None:
    async def main() -> None:
        child = await modules.start(f"{GRANDCHILD}\ntime.sleep(120)")
        await modules.line("grandchild")
        own = psutil.Process(child.pid).memory_info().rss
        assert child.memory() > own + (1 << 20)
        child.kill("was too big")
        assert (await child.wait()).words == "was too big"
        assert child.memory() == 0
        child.kill("too late")
        assert (await child.wait()).words == "was too big"

    modules.run(main)


def test_thirty_children_leave_no_zombie_and_no_descriptor(modules: Modules) -> None:
    async def one() -> None:
        child = await modules.start("print('hello')")
        await child.wait()
        child.channel.close()

    async def main() -> None:
        await one()
        # From 3.12 on asyncio leaves one where a loop was closed before its child had ended, as another test does.
        before, others = psutil.Process().num_fds(), zombies()
        for _ in range(10):
            await asyncio.gather(one(), one(), one())
        await until(lambda: "closed" if psutil.Process().num_fds() <= before else None)
        assert [each for each in zombies() if each not in others] == []

    modules.run(main)
    assert modules.lines == ["hello"] * 31


def test_a_child_ends_well_while_its_guard_cannot_be_started_again(modules: Modules) -> None:
    async def main() -> None:
        child = await modules.start("import time; time.sleep(120)")
        guard = service_guard._shell
        assert guard is not None
        guard.kill()
        guard.wait(WAIT)
        limits = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (3, limits[1]))
        try:
            assert (await child.stop(WAIT, "was stopped")).words == "was stopped"
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        child.channel.close()
        await (await modules.start("")).wait()
        again = service_guard._shell
        assert again is not None
        assert again is not guard
        assert again.poll() is None

    modules.run(main)


SERVER = """
import asyncio, os, sys
from mlpkit.processes import child as process
from mlpkit.processes import start_child
from mlpkit.processes.child import _guard as guard

async def main():
    def on_lines(lines):
        print(*[line.message for line in lines], sep=chr(10), flush=True)
    children = [await start_child("family", on_lines=on_lines) for _ in range(2)]
    EARLY
    gone = await start_child("short", on_lines=on_lines)
    await gone.wait()
    LATE
    print("children", *[child.pid for child in children], process._fork_server.pid or "", flush=True)
    await asyncio.sleep(120)

asyncio.run(main())
"""


KILL_GUARD = "os.kill(guard._shell.pid, 9); guard._shell.wait()"
STOP_FORK_SERVER = "os.kill(process._fork_server.pid, 19)"


@pytest.mark.parametrize(
    ("early", "late"),
    [
        ("", ""),
        pytest.param(KILL_GUARD, "", id="guard was killed"),
        *([pytest.param("", STOP_FORK_SERVER, id="fork server is stuck")] if sys.platform == "linux" else []),
    ],
)
def test_when_the_server_is_killed_its_children_and_grandchildren_end(tmp_path: Path, early: str, late: str) -> None:
    (tmp_path / "family.py").write_text(f"{GRANDCHILD}\ntime.sleep(120)")
    (tmp_path / "short.py").write_text("")
    script = SERVER.replace("EARLY", early).replace("LATE", late)
    server = subprocess.Popen(
        [sys.executable, "-c", script],
        stdout=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
    )
    assert server.stdout is not None
    pids: list[int] = []
    while len(pids) < (5 if sys.platform == "linux" else 4):
        line = server.stdout.readline().split()
        assert line, "the server ended"
        pids += [int(each) for each in line[1:]]
    assert all(map(alive, pids))

    server.kill()
    server.wait(WAIT)

    deadline = time.monotonic() + SOON
    while any(map(alive, pids)) and time.monotonic() < deadline:
        time.sleep(0.01)
    server.stdout.close()
    assert not any(map(alive, pids))


def test_a_child_that_cannot_be_started_leaves_no_descriptor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    monkeypatch.setattr("mlpkit.processes.child._fork_server", ForkServer())

    async def main() -> int:
        with pytest.raises(FileNotFoundError):
            await start_child("x", on_lines=print)
        await asyncio.sleep(0.05)
        before = psutil.Process().num_fds()
        for _ in range(5):
            with pytest.raises(FileNotFoundError):
                await start_child("x", on_lines=print)
        await asyncio.sleep(0.05)
        return psutil.Process().num_fds() - before

    assert asyncio.run(main()) <= 0


def test_the_end_of_the_server_is_seen_by_a_child(modules: Modules) -> None:
    async def main() -> None:
        child = await modules.start("""
            from mlpkit.processes import BlockingChannel, channel_of_child
            assert BlockingChannel(channel_of_child()).receive() is None
            print("the server is gone", flush=True)
        """)
        child.channel.close()
        assert (await child.wait()).code == 0
        await modules.line("the server is gone")

    modules.run(main)
