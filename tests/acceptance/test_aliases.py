"""An alias moves ten times under load, and no prediction fails."""

from __future__ import annotations

import asyncio
import json
from collections import Counter

import pytest

from tests.acceptance.conftest import Start
from tests.servers import LONG, wait_until

pytestmark = pytest.mark.slow

CONNECTIONS = 64
REQUESTS = 10_000
MOVES = 10
MODELS = 3


async def ask(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, body: bytes) -> bytes:
    """The body of the answer on a connection that stays open."""
    writer.write(b"POST /predict HTTP/1.1\r\nHost: s\r\nContent-Type: application/json\r\n")
    writer.write(b"Content-Length: %d\r\n\r\n%b" % (len(body), body))
    head = (await reader.readuntil(b"\r\n\r\n")).lower()
    return await reader.readexactly(int(head.partition(b"content-length: ")[2].partition(b"\r\n")[0]))


async def load(port: int, answers: Counter[bytes], moved: asyncio.Event) -> None:
    """Sends requests until there were enough of them and the moves are over."""
    body = json.dumps({"model_id": "named@current", "features": {}}).encode()

    async def call() -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        while not moved.is_set() or answers.total() < REQUESTS:
            answers[await ask(reader, writer, body)] += 1
        writer.close()

    await asyncio.wait_for(asyncio.gather(*(call() for _ in range(CONNECTIONS))), LONG)


async def more(answers: Counter[bytes]) -> None:
    """Waits until a twentieth of the requests was answered."""
    wanted = answers.total() + REQUESTS // 20
    while answers.total() < wanted:  # noqa: ASYNC110 - no event comes from there
        await asyncio.sleep(0.001)


def test_ten_moves_under_load_fail_no_request(start: Start) -> None:
    service = start("named", {"MLP_CLIENT_WORKER": "2", "MLPKIT_ACCESS_LOG": "off"})
    client = service.client
    models = []
    for number in range(MODELS):
        job = client.train("named", parameters={"word": f"word {number}"})
        job.wait(LONG)
        models.append(job.model_id)
    client.alias("named", "current", models[0])
    answers: Counter[bytes] = Counter()

    async def both() -> None:
        moved = asyncio.Event()
        loading = asyncio.ensure_future(load(service.port, answers, moved))
        for number in range(1, MOVES + 1):
            await asyncio.wait_for(more(answers), LONG)
            await asyncio.to_thread(client.alias, "named", "current", models[number % MODELS])
        await asyncio.wait_for(more(answers), LONG)
        moved.set()
        await loading

    asyncio.run(both())
    predicted = {f"word {number}" for number in range(MODELS)}
    wanted = {json.dumps({"status": "success", "data": {"predictions": word}}).encode() for word in predicted}
    assert set(answers) == wanted, answers.most_common(20)
    assert answers.total() >= REQUESTS
    wait_until(
        lambda: [model.model_id for model in client.models()] == [models[MOVES % MODELS]],
        "only the last model is loaded",
    )
