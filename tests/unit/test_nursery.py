"""The nursery: its children are what fresh interpreters would be, and nothing depends on its own life."""

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
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from mlpkit import start_folder
from mlpkit.nursery import Forked, Nursery, NurseryGone
from mlpkit.processes import Child, start_child
from mlpkit.processes import child as process
from tests.unit.test_process import into

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="elsewhere children are fresh interpreters")

WAIT = 20.0


class Home:
    """A folder of modules, and what their processes have printed. `nursery` is one of its own."""

    def __init__(self, folder: Path, nursery: Nursery) -> None:
        self.folder, self.nursery = folder, nursery
        self.lines: list[str] = []

    async def start(self, text: str) -> Child:
        name = f"module_{len(list(self.folder.iterdir()))}"
        (self.folder / f"{name}.py").write_text(textwrap.dedent(text))
        return await start_child(name, on_lines=into(self.lines))

    async def printed(self, text: str) -> list[str]:
        self.lines.clear()
        child = await self.start(text)
        assert (await child.wait()).code == 0, self.lines
        child.channel.close()
        return self.lines


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Home]:
    nursery = Nursery("mlpkit.processes.channel", "random")
    monkeypatch.setattr("mlpkit.processes.child._nursery", nursery)
    monkeypatch.syspath_prepend(tmp_path)
    yield Home(tmp_path, nursery)
    nursery.kill()


def test_a_child_has_nothing_of_the_nursery_but_what_it_imported(home: Home) -> None:
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
                *open("/proc/self/cmdline").read().rstrip("\\0").split("\\0")[1:],
            )
        """)
        sleeper.kill()
        await sleeper.wait()
        assert line == "__main__ module_1.py 2 True True True True -1 1 module_1 -m module_1"

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


def test_a_nursery_that_cannot_fork_keeps_its_children_and_a_fresh_interpreter_does(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(home.folder))

    async def main() -> None:
        child = await home.start("import time; time.sleep(120)")
        first = home.nursery.pid
        assert first is not None
        limits = resource.prlimit(first, resource.RLIMIT_NOFILE)
        resource.prlimit(first, resource.RLIMIT_NOFILE, (psutil.Process(first).num_fds() + 1, limits[1]))
        assert await home.printed("print('fresh')") == ["fresh"]
        assert (child.running, home.nursery.pid) == (True, first)
        resource.prlimit(first, resource.RLIMIT_NOFILE, limits)
        assert await home.printed("print('forked')") == ["forked"]
        child.kill()
        await child.wait()

    asyncio.run(main())


def test_when_the_nursery_is_killed_its_children_end_and_others_can_be_started(home: Home) -> None:
    async def main() -> None:
        child = await home.start("import time; time.sleep(120)")
        first = home.nursery.pid
        assert first is not None
        os.kill(first, signal.SIGKILL)
        exit = await asyncio.wait_for(child.wait(), WAIT)
        assert exit.words == "was killed: the process that had started it has ended"
        deadline = time.monotonic() + WAIT
        while psutil.pid_exists(child.pid) and psutil.Process(child.pid).status() != psutil.STATUS_ZOMBIE:
            assert time.monotonic() < deadline
            await asyncio.sleep(0.01)
        assert await home.printed("import os; print(os.getppid())") == [str(home.nursery.pid)]
        assert home.nursery.pid != first

    asyncio.run(main())


def test_a_dead_child_keeps_its_pid_until_the_server_has_let_go_of_it(home: Home) -> None:
    async def main() -> None:
        (home.folder / "short.py").write_text("raise SystemExit(3)")
        home.nursery.start()
        ours, theirs = socket.socketpair()
        child = await home.nursery.fork("short", os.environ, theirs, 2)
        assert isinstance(child, Forked)
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


def test_the_nursery_ends_with_its_server() -> None:
    script = (
        "import os; from mlpkit.nursery import Nursery; n = Nursery(); n.start(); print(n.pid, flush=True); input()"
    )
    server = subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert server.stdout is not None
    nursery = psutil.Process(int(server.stdout.readline()))
    assert nursery.is_running()
    server.kill()
    server.communicate(timeout=WAIT)
    _, alive = psutil.wait_procs([nursery], WAIT)
    assert not alive


def test_more_children_than_the_socket_holds_requests_are_all_started(home: Home) -> None:
    async def main() -> None:
        (home.folder / "hello.py").write_text("print('hello')")
        environment = {"MLPKIT_TEST": "x" * 100_000}
        lines: list[str] = []

        async def one() -> None:
            child = await start_child("hello", on_lines=into(lines), environment=environment)
            await child.wait()
            child.channel.close()

        await asyncio.wait_for(asyncio.gather(*[one() for _ in range(12)]), 60)
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
    nursery = Nursery("culprit")
    monkeypatch.setattr("mlpkit.processes.child._nursery", nursery)

    async def main() -> None:
        text = f"import os; print(os.getppid() == {os.getpid()})"
        for _ in range(2):
            assert await home.printed(text) == ["True"]
        assert nursery.pid is not None
        # Its interpreter may still be ending.
        with contextlib.suppress(psutil.NoSuchProcess):
            await asyncio.to_thread(psutil.Process(nursery.pid).wait, WAIT)
        with pytest.raises(NurseryGone):
            nursery.start()

    asyncio.run(main())


def test_a_request_that_is_too_large_for_the_nursery_is_a_fresh_interpreters(home: Home) -> None:
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


FORKING = """
import asyncio, sys
from mlpkit.nursery import at_the_foot
from mlpkit.processes import prepare, start_child

def on_lines(lines):
    print(*[f"child: {line.message}" for line in lines], sep=chr(10), flush=True)

async def child():
    started = await start_child(sys.argv[1], on_lines=on_lines)
    print("code", (await started.wait()).code, flush=True)

def main():
    try:
        prepare(fork=True)
        asyncio.run(child())
    except BaseException as error:
        print("caught", repr(error), flush=True)
        raise
    finally:
        print("left", flush=True)
    sys.exit(5)

at_the_foot(main)
"""


@pytest.mark.parametrize(
    ("text", "code", "last"),
    [
        ("raise ValueError('mine')", 1, "child: ValueError: mine"),
        ("raise SystemExit(3)", 3, None),
        ("raise KeyboardInterrupt('mine')", -signal.SIGINT, "child: KeyboardInterrupt: mine"),
        ("open_for_ever = open('/proc/self/fd/1', 'w'); open_for_ever.write('flushed')", 0, "child: flushed"),
    ],
)
def test_a_child_of_a_forked_nursery_ends_as_a_program_does(
    tmp_path: Path, text: str, code: int, last: str | None
) -> None:
    (tmp_path / "ending.py").write_text(text)
    (tmp_path / "forking.py").write_text(FORKING)
    done = subprocess.run(
        [sys.executable, "forking.py", "ending"], cwd=tmp_path, capture_output=True, text=True, timeout=WAIT
    )
    lines = done.stdout.splitlines()
    assert (done.returncode, f"code {code}" in lines, lines.count("left")) == (5, True, 1), (lines, done.stderr)
    assert [line for line in lines if "During handling" in line or "caught" in line] == []
    told = [line for line in lines if line.startswith("child:")]
    assert (told[-1] if told else None) == last


def test_the_services_own_nursery_imports_all_that_it_names() -> None:
    for name in process._FRAMEWORK:
        __import__(name)
