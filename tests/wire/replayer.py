"""Sends the recorded requests of `cases.jsonl` to a service and compares the answers. Format: `algorithms.md`."""

from __future__ import annotations

import base64
import http.client
import json
import math
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.secret import files_with_secrets
from tests.servers import LONG

HERE = Path(__file__).parent
PROFILES: dict[str, dict[str, str]] = {
    "default": {},
    # The original holds one job more than its queue size, and lets a caller wait if it is full; mlpkit refuses, so the
    # jobs of these recordings need a longer queue.
    "one_slot": {"MLP_TRAIN_TASK_NUM": "1", "MLP_TRAIN_QUEUE_SIZE": "4"},
    "two_slots": {"MLP_TRAIN_TASK_NUM": "2"},
    "one_worker": {"MLP_CLIENT_WORKER": "1"},
    "prefix": {"ML_PLATFORM_CLIENT_API_PREFIX": "/mlp/tagger"},
    "preload": {"WIRE_PRELOAD": "echo:pre-1,pre-2"},
    "preload_bad": {"WIRE_PRELOAD": "bare:pre-1"},
    "preload_unknown": {"WIRE_PRELOAD": "nope:pre-1"},
}
"""The environment of each profile that needs no database."""

_ENVIRONMENT = {"CONNECT_KAFKA": "false", "CHECKER_START": "false", "MLP_CLIENT_MODE": "standalone"}
_COMMAND = ("-m", "mlpkit", "run", "wire_algorithms:app")
_START_TIMEOUT, _STOP_TIMEOUT, _ANSWER_TIMEOUT = LONG, LONG, LONG
_HOLES = {"<generated id>": r"[0-9a-f]{32}_[0-9]{14}", "<trace>": r"(?s:.*)"}
_ANY_NUMBER = ("<worker index>", "<int>", "<float>")
Variables = dict[str, str]


@dataclass(frozen=True)
class Case:
    """One line of `cases.jsonl`."""

    id: str
    group: str
    profile: str
    fresh: bool
    setup: list[dict[str, Any]]
    request: dict[str, Any]
    response: dict[str, Any]
    match: str
    verdict: str
    notes: str = ""


@dataclass(frozen=True)
class Answer:
    """What came back; `json` is None where the body is no JSON, `status` 0 where no answer came."""

    status: int
    content_type: str = ""
    json: Any = None
    headers: Mapping[str, str] = field(default_factory=dict)
    text: str = ""


def read_cases() -> list[Case]:
    """The recorded cases, in their order."""
    fields = Case.__dataclass_fields__
    with (HERE / "cases.jsonl").open(encoding="utf-8") as lines:
        found = [json.loads(line) for line in lines]
    return [Case(**{name: value for name, value in case.items() if name in fields}) for case in found]


class Service:
    """A service with the scripted algorithms in the environment of a profile, in a process of its own."""

    def __init__(self, profile: str, *, command: Sequence[str] = _COMMAND, **environment: str) -> None:
        self.folder = tempfile.TemporaryDirectory(prefix="wire-")
        state = Path(self.folder.name) / "state"
        state.mkdir()
        self.port = _free_port()
        self._log = (state / "service.log").open("wb")
        places = {"MLPKIT_HOME": str(Path(self.folder.name) / "home"), "WIRE_STATE": str(state)}
        paths = {"PYTHONPATH": str(HERE.parent.parent), "PYTHONDONTWRITEBYTECODE": "1"}
        self._process = subprocess.Popen(
            [
                sys.executable,
                *command,
                "--host",
                "127.0.0.1",
                "--port",
                str(self.port),
            ],
            cwd=HERE,
            env={**os.environ, **_ENVIRONMENT, **places, **paths, **PROFILES[profile], **environment},
            stdout=self._log,
            stderr=self._log,
            start_new_session=True,
        )
        try:
            self._wait_ready()
        except BaseException:
            self.stop()
            raise

    @property
    def pid(self) -> int:
        """The process id of the server."""
        return self._process.pid

    def terminate(self) -> None:
        """Sends SIGTERM, and does not wait."""
        self._process.terminate()

    def wait(self) -> int:
        """The exit code of the service, which must end by itself."""
        return self._process.wait(_STOP_TIMEOUT)

    def stop(self) -> None:
        """Ends the service and what it started, and removes its folder."""
        try:
            self._process.terminate()
            self._process.wait(_STOP_TIMEOUT)
        except subprocess.TimeoutExpired:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
        self._log.close()
        with self.folder as folder:
            assert files_with_secrets(Path(folder)) == []

    def replay(self, case: Case) -> tuple[Answer, Variables]:
        """The answer to the case's request after its setup, and the variables that the setup captured."""
        variables: Variables = {}
        for step in case.setup:
            self.prepare(step, variables)
        return self.send(case.request, variables), variables

    def send(self, request: dict[str, Any], variables: Variables | None = None) -> Answer:
        """The answer to a request as the cases write it."""
        values = variables or {}
        target = filled(request["path"] + ("?" + request["query"] if "query" in request else ""), values)
        body = _body(request, values)
        headers = dict(request["headers"])
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=_ANSWER_TIMEOUT)
        try:
            if request.get("chunked"):
                headers["Transfer-Encoding"] = "chunked"
                connection.request(request["method"], target, iter([body or b""]), headers, encode_chunked=True)
            else:
                connection.request(request["method"], target, body, headers)
            response = connection.getresponse()
            content = response.read()
            found = {name.lower(): value for name, value in response.getheaders()}
            content_type = found.get("content-type", "").partition(";")[0]
            return Answer(response.status, content_type, _json(content), found, content.decode("utf-8", "replace"))
        except (http.client.RemoteDisconnected, ConnectionResetError):
            return Answer(0)
        finally:
            connection.close()

    def post(self, path: str, body: str = "{}", **headers: str) -> Answer:
        """The answer to a JSON body."""
        all_headers = {"Content-Type": "application/json", **headers}
        return self.send({"method": "POST", "path": path, "headers": all_headers, "body": body})

    def get(self, path: str, **headers: str) -> Answer:
        """The answer to a request without a body."""
        return self.send({"method": "GET", "path": path, "headers": headers})

    def prepare(self, step: dict[str, Any], variables: Variables) -> None:
        """Does one step of a case's setup."""
        if "sleep_s" in step:
            time.sleep(step["sleep_s"])
        elif "background" in step:
            request = step["background"]["request"]
            threading.Thread(target=self.send, args=(request, dict(variables)), daemon=True).start()
        elif "poll" in step:
            self._poll(step["poll"], variables)
        else:
            answer = self.send(step["request"], variables)
            for name, path in step.get("capture", {}).items():
                variables[name] = str(_at(answer.json, path))

    def _poll(self, poll: dict[str, Any], variables: Variables) -> None:
        end = time.monotonic() + poll["timeout_s"] + 10
        while (value := _at(self.send(poll["request"], variables).json, poll["path"])) not in poll["in"]:
            assert time.monotonic() < end, f"{poll['path']} is still {value!r}, not one of {poll['in']}"
            time.sleep(0.05)

    def _wait_ready(self) -> None:
        end = time.monotonic() + _START_TIMEOUT
        while True:
            assert self._process.poll() is None, f"the service ended at its start:\n{self.log()}"
            assert time.monotonic() < end, f"the service was not ready in time:\n{self.log()}"
            try:
                if self.get("/health/ready").status == 200:
                    return
            except OSError:
                pass
            time.sleep(0.05)

    def log(self) -> str:
        """What the service has written so far."""
        return Path(self._log.name).read_text(errors="replace")


def alike(want: Any, got: Any, *, any_order: bool = False) -> bool:
    """Whether `got` has all of `want`. Placeholders stand for any value of their type; objects may have more keys."""
    if isinstance(want, str):
        return _alike_text(want, got)
    if isinstance(want, dict):
        return isinstance(got, dict) and all(
            key in got and alike(value, got[key], any_order=any_order) for key, value in want.items()
        )
    if isinstance(want, list):
        if not isinstance(got, list) or len(want) != len(got):
            return False
        in_order = all(alike(one, other, any_order=any_order) for one, other in zip(want, got, strict=True))
        return in_order or (any_order and all(any(alike(one, other, any_order=True) for other in got) for one in want))
    if isinstance(want, bool) or want is None or isinstance(got, bool):
        return want is got
    if isinstance(want, (int, float)) and isinstance(got, (int, float)):
        return want == got or math.isclose(want, got, rel_tol=1e-12)
    return bool(want == got)


def filled(text: str, variables: Variables) -> str:
    """The text with its variables and repetitions put in."""
    text = re.sub(r"\{\{repeat:(.):(\d+)\}\}", lambda match: match[1] * int(match[2]), text)
    for name, value in variables.items():
        text = text.replace("{{" + name + "}}", value)
    return text


def _alike_text(want: str, got: Any) -> bool:
    if want in _ANY_NUMBER:
        return isinstance(got, (int, float) if want == "<float>" else int) and not isinstance(got, bool)
    if want == "<float>/<float>":
        return isinstance(got, str) and re.fullmatch(r"[0-9.]+/[0-9.]+", got) is not None
    pattern = re.escape(want)
    for hole, regex in _HOLES.items():
        pattern = pattern.replace(re.escape(hole), regex)
    return isinstance(got, str) and re.fullmatch(pattern, got) is not None


def _body(request: dict[str, Any], variables: Variables) -> bytes | None:
    if "body_base64" in request:
        return base64.b64decode(request["body_base64"])
    return filled(request["body"], variables).encode("utf-8", "surrogatepass") if "body" in request else None


def _json(body: bytes) -> Any:
    try:
        return json.loads(body)
    except ValueError:
        return None


def _at(value: Any, path: str) -> Any:
    for key in path.split("."):
        value = value[key]
    return value


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port
