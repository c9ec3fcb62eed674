"""The fork server: its children are what fresh interpreters would be, and nothing depends on its own life."""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import signal
import socket
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from mlpkit import start_folder
from mlpkit.processes import Child, start_child
from mlpkit.processes import child as process
from mlpkit.processes.forkserver import ForkedChild, ForkServer, ForkServerGone
from tests.servers import LONG
from tests.unit.test_process import alive, into

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="elsewhere children are fresh interpreters")

WAIT = LONG


class Home:
    """A folder of modules, and what their processes have printed. `fork_server` is one of its own."""

    def __init__(self, folder: Path, fork_server: ForkServer) -> None:
        self.folder, self.fork_server = folder, fork_server
        self.lines: list[str] = []
        self.children: list[Child] = []

    async def start(self, text: str) -> Child:
        name = f"module_{len(list(self.folder.iterdir()))}"
        (self.folder / f"{name}.py").write_text(textwrap.dedent(text))
        child = await start_child(name, on_lines=into(self.lines))
        self.children.append(child)
        return child

    def pids(self) -> list[int]:
        """The numbers of the lines `pid N`."""
        return [int(line.split()[1]) for line in self.lines if line.startswith("pid ")]

    async def until(self, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + WAIT
        while not condition():
            assert time.monotonic() < deadline
            await asyncio.sleep(0.01)

    async def printed(self, text: str) -> list[str]:
        self.lines.clear()
        child = await self.start(text)
        assert (await child.wait()).code == 0, self.lines
        return self.lines


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Home]:
    fork_server = ForkServer("mlpkit.processes.channel", "random")
    monkeypatch.setattr("mlpkit.processes.child._fork_server", fork_server)
    monkeypatch.syspath_prepend(tmp_path)
    home = Home(tmp_path, fork_server)
    yield home
    fork_server.kill()
    fork_server.close()
    for child in home.children:
        child.channel.close()


def test_a_child_has_nothing_of_the_fork_server_but_what_it_imported(home: Home) -> None:
    async def main() -> None:
        sleeper = await home.start("import time; time.sleep(120)")
        (line,) = await home.printed("""
            import os, signal, sys, threading
            print(
                __name__, os.path.basename(sys.argv[0]), len(sys.argv), "mlpkit.processes.channel" in sys.modules,
                {int(each) for each in os.listdir("/proc/self/fd") if os.path.exists(f"/proc/self/fd/{each}")}
                == {0, 1, 2, int(sys.argv[1])},
                os.getsid(0) == os.getpgid(0) == os.getpid(), signal.getsignal(signal.SIGCHLD) == signal.SIG_DFL,
                signal.set_wakeup_fd(-1), len(os.listdir("/proc/self/task")), open("/proc/self/comm").read().strip(),
            )
        """)
        sleeper.kill()
        await sleeper.wait()
        assert line == "__main__ module_1.py 2 True True True True -1 1 module_1"

    asyncio.run(main())


def test_a_child_begins_where_the_server_began_with_its_environment_of_now(
    home: Home, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    async def main() -> None:
        text = "import os; print(os.getcwd(), os.environ.get('MLPKIT_TEST'), os.environb.get(b'MLPKIT_RAW'))"
        monkeypatch.setenv("MLPKIT_TEST", "before")
        await home.printed(text)
        monkeypatch.delenv("MLPKIT_TEST")
        monkeypatch.setenv("MLPKIT_RAW", "\udcff")
        monkeypatch.chdir(tmp_path)
        assert await home.printed(text) == [f"{start_folder} None " + repr(b"\xff")]

    asyncio.run(main())


def test_children_draw_different_random_numbers(home: Home) -> None:
    async def main() -> None:
        text = "import random; print(random.random())"
        drawn = [(await home.printed(text))[0] for _ in range(3)]
        assert len(set(drawn)) == 3

    asyncio.run(main())


def test_a_fork_server_that_cannot_fork_keeps_its_children_and_a_fresh_interpreter_does(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(home.folder))

    async def main() -> None:
        child = await home.start("import time; time.sleep(120)")
        first = home.fork_server.pid
        assert first is not None
        limits = resource.prlimit(first, resource.RLIMIT_NOFILE)
        resource.prlimit(first, resource.RLIMIT_NOFILE, (psutil.Process(first).num_fds() + 1, limits[1]))
        assert await home.printed("print('fresh')") == ["fresh"]
        assert (child.running, home.fork_server.pid) == (True, first)
        resource.prlimit(first, resource.RLIMIT_NOFILE, limits)
        assert await home.printed("print('forked')") == ["forked"]
        child.kill()
        await child.wait()

    asyncio.run(main())


def test_when_the_fork_server_is_killed_its_children_end_and_others_can_be_started(home: Home) -> None:
    async def main() -> None:
        child = await home.start("import time; time.sleep(120)")
        first = home.fork_server.pid
        assert first is not None
        os.kill(first, signal.SIGKILL)
        exit = await asyncio.wait_for(child.wait(), WAIT)
        assert exit.words == "was killed: the process that had started it has ended"
        deadline = time.monotonic() + WAIT
        while psutil.pid_exists(child.pid) and psutil.Process(child.pid).status() != psutil.STATUS_ZOMBIE:
            assert time.monotonic() < deadline
            await asyncio.sleep(0.01)
        assert await home.printed("import os, psutil; print(psutil.Process(os.getppid()).ppid())") == [
            str(home.fork_server.pid)
        ]
        assert home.fork_server.pid != first

    asyncio.run(main())


def test_a_dead_child_keeps_its_pid_until_the_server_has_let_go_of_it(home: Home) -> None:
    async def main() -> None:
        (home.folder / "short.py").write_text("raise SystemExit(3)")
        home.fork_server.start()
        ours, theirs = socket.socketpair()
        child = await home.fork_server.fork("short", os.environ, os.getcwd(), theirs, 2)
        assert isinstance(child, ForkedChild)
        assert await asyncio.wait_for(child.wait(), WAIT) == child.returncode == 3
        assert psutil.Process(child.pid).status() == psutil.STATUS_ZOMBIE
        child.close()
        deadline = time.monotonic() + WAIT
        while psutil.pid_exists(child.pid):
            assert time.monotonic() < deadline
            await asyncio.sleep(0.01)
        ours.close()
        theirs.close()

    asyncio.run(main())


def test_the_fork_server_ends_with_its_server() -> None:
    script = (
        "from mlpkit.processes.forkserver import ForkServer; server = ForkServer(); server.start(); "
        "print(server.pid, flush=True); input()"
    )
    server = subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert server.stdout is not None
    fork_server = psutil.Process(int(server.stdout.readline()))
    assert fork_server.is_running()
    server.kill()
    server.communicate(timeout=WAIT)
    _, alive = psutil.wait_procs([fork_server], WAIT)
    assert not alive


RUNAWAYS = """
import os, subprocess, sys, time
sleep = [sys.executable, "-c", "import time; time.sleep(120)"]
print("pid", subprocess.Popen(sleep, start_new_session=True).pid, flush=True)
read, write = os.pipe()
if not os.fork():
    # A daemon: its parent has ended, and it is in a session of its own.
    daemon = subprocess.Popen(sleep, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    os.write(write, str(daemon.pid).encode())
    os._exit(0)
os.wait()
print("pid", os.read(read, 10).decode(), flush=True)
"""


async def runaways_of(home: Home, ending: str) -> tuple[Child, list[int]]:
    """A child, and the pids of what it has started in other sessions."""
    child = await home.start(RUNAWAYS + ending)
    await home.until(lambda: len(home.pids()) == 2)
    return child, home.pids()


@pytest.mark.parametrize("ending", ["", "os._exit(3)", "import ctypes; ctypes.string_at(0)"])
def test_descendants_in_other_sessions_end_with_a_child_that_ends(home: Home, ending: str) -> None:
    async def main() -> None:
        child, runaways = await runaways_of(home, ending)
        await child.wait()
        assert not any(map(alive, runaways))

    asyncio.run(main())


@pytest.mark.parametrize("killed", ["child", "keeper", "fork server"])
def test_descendants_in_other_sessions_end_whatever_is_killed(home: Home, killed: str) -> None:
    async def main() -> None:
        child, runaways = await runaways_of(home, "time.sleep(120)")
        keeper = psutil.Process(child.pid).parent()
        assert keeper is not None
        assert keeper.name() == "mlpkit.keeper"
        assert home.fork_server.pid is not None
        os.kill({"child": child.pid, "keeper": keeper.pid, "fork server": home.fork_server.pid}[killed], signal.SIGKILL)
        await asyncio.wait_for(child.wait(), WAIT)
        await home.until(lambda: not any(map(alive, runaways)))

    asyncio.run(main())


def test_signals_that_reach_every_process_do_not_end_what_starts_children(home: Home) -> None:
    async def main() -> None:
        child = await home.start("import time; print('up', flush=True); time.sleep(120)")
        await home.until(lambda: bool(home.lines))
        keeper = psutil.Process(child.pid).parent()
        assert keeper is not None
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            for pid in (keeper.pid, home.fork_server.pid):
                assert pid is not None
                os.kill(pid, number)
        await asyncio.sleep(0.2)
        assert child.running
        assert await home.printed("print('another')") == ["another"]
        child.kill()
        await child.wait()

    asyncio.run(main())


def test_more_children_than_the_socket_holds_requests_are_all_started(home: Home) -> None:
    async def main() -> None:
        (home.folder / "hello.py").write_text("print('hello')")
        environment = {"MLPKIT_TEST": "x" * 100_000}
        lines: list[str] = []

        async def one() -> None:
            child = await start_child("hello", on_lines=into(lines), environment=environment)
            await child.wait()
            child.channel.close()

        await asyncio.wait_for(asyncio.gather(*[one() for _ in range(12)]), LONG)
        assert lines == ["hello"] * 12

    asyncio.run(main())


@pytest.mark.parametrize(
    "culprit",
    ["import threading, time; threading.Thread(target=time.sleep, args=(60,), daemon=True).start()", "exit(1)"],
)
def test_where_nothing_can_be_forked_children_are_fresh_interpreters(
    home: Home, monkeypatch: pytest.MonkeyPatch, culprit: str
) -> None:
    (home.folder / "culprit.py").write_text(culprit)
    monkeypatch.setenv("PYTHONPATH", str(home.folder))
    fork_server = ForkServer("culprit")
    monkeypatch.setattr("mlpkit.processes.child._fork_server", fork_server)

    async def main() -> None:
        text = f"import os; print(os.getppid() == {os.getpid()})"
        for _ in range(2):
            assert await home.printed(text) == ["True"]
        assert fork_server.pid is not None
        # Its interpreter may still be ending.
        with contextlib.suppress(psutil.NoSuchProcess):
            await asyncio.to_thread(psutil.Process(fork_server.pid).wait, WAIT)
        with pytest.raises(ForkServerGone):
            fork_server.start()

    asyncio.run(main())
    fork_server.close()


def test_a_request_that_is_too_large_for_the_fork_server_is_a_fresh_interpreters(home: Home) -> None:
    async def main() -> None:
        names = {f"MLPKIT_TEST_{number}": "x" * 100_000 for number in range(5)}
        (home.folder / "child.py").write_text("import os; print(len(os.environ['MLPKIT_TEST_4']), os.getppid())")
        child = await start_child(
            "child",
            on_lines=into(home.lines),
            environment={**names, "PYTHONPATH": str(home.folder)},
        )
        await child.wait()
        child.channel.close()
        assert home.lines == [f"100000 {os.getpid()}"]

    asyncio.run(main())


def test_the_services_own_fork_server_imports_all_that_it_names() -> None:
    for name in process._FRAMEWORK:
        __import__(name)
