"""Load from `wrk` (Debian package of that name): keep-alive connections that each send the next request at once."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import time
from pathlib import Path

import msgspec

from tests.benchmarks.peer import Peer
from tests.benchmarks.server import CLIENT_CPU, Server, Unavailable, pinned
from tests.benchmarks.workloads import IDENTICAL

_LOOK_SECONDS, _IDLE_SHARE = 0.1, 0.25
_REST_SECONDS = 3.0


class Run(msgspec.Struct, frozen=True):
    """What one run found: requests per second, p50 and p99 in ms, CPU of all the server's processes in us a request."""

    rate: float
    p50: float
    p99: float
    cpu: float
    requests: int
    errors: int


def require_wrk() -> None:
    """Ends the program where there is no `wrk`."""
    if shutil.which("wrk") is None:
        raise SystemExit("wrk is needed: apt-get install wrk")


def write_script(peer: Peer, workload: str, folder: Path) -> Path:
    """The script by which `wrk` sends a workload to a peer.

    The bodies follow each other in turn; each request has a new `X-Request-ID` and `traceparent`, unless the workload
    is one of identical requests.
    """
    name = f"{workload}-{peer.folder}"
    bodies = folder / f"{name}.jsonl"
    bodies.write_text("".join(f"{body}\n" for body in peer.bodies(workload)))
    script = folder / f"{name}.lua"
    sending = _SAME_REQUEST if workload in IDENTICAL else _NEW_REQUEST
    script.write_text(sending.replace("BODIES", json.dumps(str(bodies))) + _DONE)
    return script


_SAME_REQUEST = """
wrk.method = "POST"
wrk.body = io.lines(BODIES)()
wrk.headers["Content-Type"] = "application/json"
"""
_NEW_REQUEST = r"""
local heads, bodies, count, number = {}, {}, 0, 0
local run = string.format("%08x%08x", os.time(), math.floor(os.clock() * 1e9) % 2 ^ 32)
function init(arguments)
  for body in io.lines(BODIES) do
    count = count + 1
    heads[count] = "POST " .. wrk.path .. " HTTP/1.1\r\nHost: " .. wrk.host .. ":" .. wrk.port
      .. "\r\nContent-Type: application/json\r\nContent-Length: " .. #body .. "\r\nX-Request-ID: " .. run
    bodies[count] = "\r\n\r\n" .. body
  end
end
function request()
  number = number + 1
  local id = string.format("%016x", number)
  local turn = number % count + 1
  return heads[turn] .. id .. "\r\ntraceparent: 00-" .. run .. id .. "-" .. id .. "-01" .. bodies[turn]
end
"""
_DONE = r"""
function done(summary, latency, requests)
  local e = summary.errors
  io.write(string.format("FIGURES %d %d %f %f %d\n", summary.requests, summary.duration,
    latency:percentile(50), latency:percentile(99), e.connect + e.read + e.write + e.status + e.timeout))
end
"""


def load(server: Server, path: str, script: Path, connections: int, seconds: int) -> Run:
    """Keeps a server busy for some seconds; returns when it has worked off what the client left behind.

    That would be taken from whoever is measured next: 64 requests of some milliseconds are a fifth of a second of CPU.

    Raises:
        Unavailable: it takes no connections any more.
    """
    wrk = ["wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "--timeout", "20s", "--latency", "-s", str(script)]
    command = [*pinned(CLIENT_CPU), *wrk, f"http://127.0.0.1:{server.port}{path}"]
    before = server.cpu_seconds()
    done = subprocess.run(command, capture_output=True, text=True, timeout=seconds + 60, check=False)
    used = server.cpu_seconds() - before
    _wait_for_rest(server)
    found = re.search(r"FIGURES (\d+) (\d+) ([\d.]+) ([\d.]+) (\d+)", done.stdout)
    if found is None:
        raise Unavailable(f"wrk failed with {connections} connections: {done.stdout} {done.stderr}")
    requests, microseconds = int(found[1]), int(found[2])
    return Run(
        rate=requests / microseconds * 1e6,
        p50=float(found[3]) / 1000,
        p99=float(found[4]) / 1000,
        cpu=used / max(requests, 1) * 1e6,
        requests=requests,
        errors=int(found[5]),
    )


def _wait_for_rest(server: Server) -> None:
    """Waits until the server hardly works any more; some never rest."""
    end = time.monotonic() + _REST_SECONDS
    before = server.cpu_seconds()
    while time.monotonic() < end:
        time.sleep(_LOOK_SECONDS)
        now = server.cpu_seconds()
        if now - before < _IDLE_SHARE * _LOOK_SECONDS:
            return
        before = now
