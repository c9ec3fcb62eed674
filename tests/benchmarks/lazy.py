"""How 200 models do with memory for 20, under skewed traffic: `python -m tests.benchmarks.lazy`, about two minutes.

Models are in an S3 store. Each request asks for one of them; how often, follows Zipf's law: the model of rank r is
asked for in proportion to 1/r. A hit is a request whose model was loaded when it came.
"""

from __future__ import annotations

import asyncio
import json
import random
import re
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from mlpkit.settings import load_settings
from mlpkit.storage import Manifest, open_storage, save_model
from tests.acceptance.service import RunningService
from tests.benchmarks.asked import SIZE
from tests.benchmarks.storage import seaweed_server
from tests.servers import S3Server

MODELS = 200
ROOM = 20
REQUESTS = 5_000
CONNECTIONS = 16


def store(server: S3Server, folder: Path) -> list[str]:
    """Stores the models; gives their ids."""
    storage = open_storage(load_settings({**server.environment, "MLPKIT_HOME": str(folder / "home")}, None))
    files = folder / "files"
    files.mkdir()
    (files / "weights").write_bytes(random.Random(0).randbytes(SIZE))
    ids = [f"model-{number}" for number in range(MODELS)]
    for model_id in ids:
        save_model(
            storage, files, f"ml-platform-model/{model_id}", Manifest(algorithm="asked", kind="", model_id=model_id)
        )
    storage.close()
    return ids


async def ask(port: int, ids: Sequence[str]) -> list[float]:
    """The seconds that each request took, the models in this order."""
    left = iter(ids)
    seconds: list[float] = []

    async def call() -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for model_id in left:
            body = json.dumps({"model_id": model_id, "features": {}}).encode()
            began = time.perf_counter()
            writer.write(b"POST /predict HTTP/1.1\r\nHost: s\r\nContent-Type: application/json\r\n")
            writer.write(b"Content-Length: %d\r\n\r\n%b" % (len(body), body))
            head = (await reader.readuntil(b"\r\n\r\n")).lower()
            answer = await reader.readexactly(int(head.partition(b"content-length: ")[2].partition(b"\r\n")[0]))
            seconds.append(time.perf_counter() - began)
            if json.loads(answer) != {"status": "success", "data": {"predictions": SIZE}}:
                raise SystemExit(f"{model_id}: {answer!r}")
        writer.close()

    await asyncio.gather(*(call() for _ in range(CONNECTIONS)))
    return seconds


def counter(text: str, name: str) -> int:
    return int(sum(float(value) for value in re.findall(rf"^{name}{{.*}} (\S+)$", text, re.MULTILINE)))


def percentile(seconds: Sequence[float], share: float) -> str:
    ordered = sorted(seconds)
    return f"{ordered[min(len(ordered) - 1, int(share * len(ordered)))] * 1000:.1f} ms"


def main() -> None:
    with tempfile.TemporaryDirectory() as name, seaweed_server() as server:
        folder = Path(name)
        ids = store(server, folder)
        print(f"{MODELS} models are stored", flush=True)
        weights = [1 / rank for rank in range(1, MODELS + 1)]
        order = random.Random(1).choices(ids, weights, k=REQUESTS)
        settings = {
            **server.environment,
            "MLPKIT_MODEL_MEMORY": str(ROOM * SIZE),
            "MLP_CLIENT_WORKER": "2",
            "MLPKIT_ACCESS_LOG": "off",
            "MLPKIT_LOG_LEVEL": "warning",
        }
        service = RunningService(str(Path(__file__).with_name("asked.py")) + ":app", folder / "service", settings)
        try:
            service.wait_ready()
            began = time.perf_counter()
            seconds = asyncio.run(ask(service.port, order))
            taken = time.perf_counter() - began
            text = service.client.request("GET", "/metrics").body.decode()
        finally:
            service.stop()
    loads, evictions = counter(text, "mlpkit_lazy_loads_total"), counter(text, "mlpkit_model_evictions_total")
    print(f"{MODELS} models, memory for {ROOM}, {REQUESTS} requests over {CONNECTIONS} connections in {taken:.0f} s")
    print(f"hits {1 - loads / REQUESTS:.1%} at most, loads {loads}, evictions {evictions}, no failure")
    print(f"time of a request: p50 {percentile(seconds, 0.5)}, p90 {percentile(seconds, 0.9)}", end=", ")
    print(f"p99 {percentile(seconds, 0.99)}, longest {percentile(seconds, 1)}")


if __name__ == "__main__":
    main()
