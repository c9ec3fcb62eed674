"""Fixtures that several subsystems share: the S3 server of the session, and a way to show measurements."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Generator, Iterator
from pathlib import Path

import hypothesis
import pytest

from tests.impossible import impossible
from tests.secret import files_with_secrets, tells_a_secret
from tests.servers import Relay, S3Server, Unavailable, s3_server

# How long an example takes says more about what else the machine does than about the code.
PATIENT = hypothesis.settings(deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow])
Report = Callable[[str], None]

hypothesis.settings.register_profile("patient", PATIENT)
# What CI says of a change must depend on the change alone; on a developer's machine, chance may find more.
hypothesis.settings.register_profile("same-every-time", PATIENT, derandomize=True)
hypothesis.settings.load_profile("same-every-time" if os.environ.get("CI") == "true" else "patient")

# A shell has its background jobs ignore Ctrl-C, and the commands that the tests start would inherit that.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_configure(config: pytest.Config) -> None:
    """Makes warnings errors with `WARNINGS=error`: something will stop working.

    With `WARNINGS=all`, also those of things that are left open. It is chance whether the garbage collector finds these
    within a test. Other versions of Python and of the packages have warnings of their own, which must not stop
    anybody's `make test`.
    """
    strict = os.environ.get("WARNINGS")
    if strict in ("error", "all"):
        found_by_chance = ("ResourceWarning", "pytest.PytestUnraisableExceptionWarning") if strict == "error" else ()
        config.getini("filterwarnings")[:0] = ["error", *(f"default::{name}" for name in found_by_chance)]


@pytest.fixture
def anyio_backend() -> str:
    """The event loop of tests with the mark `anyio`."""
    return "asyncio"


@pytest.fixture(scope="session")
def session_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that all workers of this test session share."""
    folder = tmp_path_factory.getbasetemp()
    return folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder


@pytest.fixture(scope="session", autouse=True)
def no_file_tells_a_secret(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Fails the run where a file that it has left holds a secret: logs, journals, models, arguments of processes."""
    yield
    assert files_with_secrets(tmp_path_factory.getbasetemp()) == []


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Fails a test that has written a secret to its terminal or its log."""
    report = yield
    told = [title for title, text in report.sections if tells_a_secret(text)]
    if told:
        report.outcome, report.longrepr = "failed", f"a secret is in the {', '.join(told)}"
    return report


@pytest.fixture(scope="session")
def s3(session_folder: Path) -> Iterator[S3Server]:
    """A real S3 server; `s3.environment` makes a service use it. Use buckets with names of your own."""
    try:
        with s3_server(session_folder) as server:
            yield server
    except Unavailable as reason:
        impossible(reason)


@pytest.fixture
def relay(s3: S3Server) -> Iterator[Relay]:
    """A relay in front of the S3 server."""
    if "://" in s3.endpoint:
        pytest.skip("the relay speaks no TLS and takes host:port only")
    with Relay(s3.endpoint) as running:
        yield running


@pytest.fixture
def report(capsys: pytest.CaptureFixture[str]) -> Report:
    """Shows a measurement, whether the test passes or not."""

    def show(line: str) -> None:
        with capsys.disabled():
            print(f"\n    measured: {line}")

    return show
