"""A webhook gets every event of the journal, signed, in order, until it has taken it, whatever it does meanwhile."""

from __future__ import annotations

import asyncio
import base64
import http.client
import json
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import pytest

from mlpkit.errors import SettingsError
from mlpkit.settings import Proxy as ProxyFound
from mlpkit.settings import Settings, load_settings, proxy_for
from mlpkit.training.events import Events
from mlpkit.training.journal import Journal
from mlpkit.training.webhook import Webhook, signature, webhook_key
from tests.secret import MARK
from tests.servers import LONG, SOON, until, wait_until
from tests.wire.replayer import Service

SECRET = "whsec_" + base64.b64encode(f"{MARK}-webhook-0123456789".encode()[:48].ljust(33, b"x")).decode()
ANYWHERE = ("127.0.0.0/8",)


class Receiver:
    """A real HTTP server that answers with the codes it is given, and then with 204; 0 means that it hangs."""

    def __init__(self) -> None:
        self.got: list[tuple[dict[str, str], bytes]] = []
        self.codes: list[int] = []
        self.hung = threading.Event()
        self.over = threading.Event()
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                receiver.got.append(({name.lower(): value for name, value in self.headers.items()}, body))
                code = receiver.codes.pop(0) if receiver.codes else 204
                if code == 0:
                    receiver.hung.set()
                    receiver.over.wait(LONG)
                    return
                self.send_response(code)
                if code == 302:
                    self.send_header("Location", "/elsewhere")
                self.end_headers()

            def log_message(self, *arguments: Any) -> None:
                """Prints nothing."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/hook?from=mlpkit"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def ids(self) -> list[str]:
        return [headers["webhook-id"] for headers, _ in self.got]

    def numbers(self) -> list[int]:
        return [int(name.rpartition("_")[2]) for name in self.ids()]


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    found = Receiver()
    yield found
    found.over.set()
    found.server.shutdown()
    found.server.server_close()


class Scene:
    """A journal with events, and the webhook that tells of them."""

    def __init__(self, home: Path, url: str, allow: tuple[str, ...] = ANYWHERE, timeout: float = LONG) -> None:
        self.journal = Journal(home)
        self.events = Events()
        self.events.open(self.journal)
        settings = Settings(home=home, webhook=url, webhook_secret=SECRET, webhook_allow=allow)
        self.webhook = Webhook(settings, self.events, first_pause=0.01, timeout=timeout)

    def note(self, *model_ids: str) -> None:
        for model_id in model_ids:
            self.events.note_model(model_id, {"algorithm": "mood", "state": "loaded"})


@asynccontextmanager
async def scene(*arguments: Any, **more: Any) -> AsyncIterator[Scene]:
    """A scene whose webhook runs within the block."""
    found = Scene(*arguments, **more)

    async def on_disk(call: Callable[[], Any]) -> Any:
        return await anyio.to_thread.run_sync(call)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(found.events.keep, on_disk)
        tasks.start_soon(found.webhook.run)
        await until(lambda: (found.journal.path.parent / "webhook.json").exists())
        yield found
        found.events.close()
        tasks.cancel_scope.cancel()
    found.journal.close()


@pytest.mark.parametrize("content", [b"{", b'{"number": 1, "sender": "\xff"}'])
def test_damaged_note_of_what_was_sent_is_written_anew(tmp_path: Path, receiver: Receiver, content: bytes) -> None:
    note = tmp_path / "webhook.json"
    note.write_bytes(content)

    async def run() -> None:
        async with scene(tmp_path, receiver.url) as here:
            await until(lambda: b'"number":0' in note.read_bytes())
            here.note("m1")
            await until(lambda: len(receiver.got) == 1)

    asyncio.run(run())
    assert json.loads(receiver.got[0][1])["data"]["model_id"] == "m1"


def test_events_arrive_signed_in_their_order(tmp_path: Path, receiver: Receiver) -> None:
    async def run() -> None:
        async with scene(tmp_path, receiver.url) as here:
            here.note("m1", "m2", "m3")
            await until(lambda: len(receiver.got) == 3)

    asyncio.run(run())
    bodies = [json.loads(body) for _, body in receiver.got]
    assert [body["data"]["model_id"] for body in bodies] == ["m1", "m2", "m3"]
    assert {body["type"] for body in bodies} == {"model.loaded"}
    assert bodies[0]["timestamp"].endswith("+00:00")
    headers, body = receiver.got[0]
    assert headers["content-type"] == "application/json"
    theirs = pytest.importorskip("standardwebhooks")
    assert theirs.Webhook(SECRET).verify(body, headers) == bodies[0]
    with pytest.raises(theirs.WebhookVerificationError):
        theirs.Webhook(SECRET).verify(body + b" ", headers)


def test_the_signature_is_that_of_the_specification() -> None:
    key = webhook_key("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")
    found = signature(key, "msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330, b'{"test": 2432232314}')
    assert found == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


@pytest.mark.parametrize("code", [500, 503, 302, 404, 429])
def test_an_event_that_is_not_taken_is_sent_again_with_the_same_id(
    tmp_path: Path, receiver: Receiver, code: int
) -> None:
    receiver.codes = [code, code, code]

    async def run() -> None:
        async with scene(tmp_path, receiver.url) as here:
            here.note("m1", "m2")
            await until(lambda: len(receiver.got) == 5)
            await until(lambda: here.webhook.warnings() == [])

    asyncio.run(run())
    assert receiver.numbers() == [1, 1, 1, 1, 2]
    assert len(set(receiver.ids())) == 2


def test_an_event_that_is_always_refused_does_not_stop_the_others(tmp_path: Path, receiver: Receiver) -> None:
    receiver.codes = [400] * 5

    async def run() -> None:
        async with scene(tmp_path, receiver.url) as here:
            here.note("m1", "m2")
            await until(lambda: len(receiver.got) == 6)

    asyncio.run(run())
    assert receiver.numbers() == [1] * 5 + [2]


def test_a_receiver_that_is_gone_gets_nothing_more(tmp_path: Path, receiver: Receiver) -> None:
    receiver.codes = [410]

    async def run() -> None:
        async with scene(tmp_path, receiver.url) as here:
            here.note("m1", "m2")
            await until(lambda: bool(here.webhook.warnings()))
            assert "410" in here.webhook.warnings()[0]

    asyncio.run(run())
    assert receiver.numbers() == [1]


def test_a_receiver_that_hangs_holds_up_nothing_and_is_asked_again(tmp_path: Path, receiver: Receiver) -> None:
    receiver.codes = [0]

    async def run() -> None:
        async with scene(tmp_path, receiver.url, timeout=0.5) as here:
            here.note("m1")
            await until(receiver.hung.is_set)
            with here.events.listen() as listener:
                here.note("m2")
                await until(lambda: bool(listener.take()))
            await until(lambda: receiver.numbers() == [1, 1, 2])

    asyncio.run(run())


def test_a_restart_goes_on_after_the_last_event_that_was_taken(tmp_path: Path, receiver: Receiver) -> None:
    async def first() -> None:
        async with scene(tmp_path, receiver.url) as here:
            here.note("m1")
            await until(lambda: b'"number":1' in (tmp_path / "webhook.json").read_bytes())
            receiver.codes = [500] * 1000
            here.note("m2")
            await until(lambda: len(receiver.got) > 2)

    async def second() -> None:
        async with scene(tmp_path, receiver.url) as here:
            here.note("m3")
            await until(lambda: len(receiver.got) == 2)

    asyncio.run(first())
    receiver.codes = []
    receiver.got.clear()
    asyncio.run(second())
    assert receiver.numbers() == [2, 3]


def test_the_first_start_sends_nothing_old(tmp_path: Path, receiver: Receiver) -> None:
    journal = Journal(tmp_path)
    journal.add_events([("model", "old", b'{"time":0,"state":"loaded"}')])
    journal.close()

    async def run() -> None:
        async with scene(tmp_path, receiver.url) as here:
            here.note("new")
            await until(lambda: len(receiver.got) == 1)

    asyncio.run(run())
    assert receiver.numbers() == [2]


def test_an_address_that_is_not_allowed_gets_nothing(tmp_path: Path, receiver: Receiver) -> None:
    async def run() -> None:
        async with scene(tmp_path, receiver.url.replace("127.0.0.1", "localhost"), allow=("10.0.0.0/8",)) as here:
            here.note("m1")
            await until(lambda: bool(here.webhook.warnings()))
            assert "MLPKIT_WEBHOOK_ALLOW" in here.webhook.warnings()[0]

    asyncio.run(run())
    assert receiver.got == []


class Proxy:
    """A real HTTP proxy that sends every request to one receiver, whatever host it names.

    Of a tunnel it keeps what is sent first, and closes it.
    """

    def __init__(self, receiver: Receiver) -> None:
        self.requests: list[str] = []
        self.credentials: set[str | None] = set()
        self.tunnelled: list[bytes] = []
        self.code = 200
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                proxy.requests.append(self.requestline)
                proxy.credentials.add(self.headers["Proxy-Authorization"])
                body = self.rfile.read(int(self.headers["Content-Length"]))
                connection = http.client.HTTPConnection("127.0.0.1", receiver.server.server_port, timeout=LONG)
                connection.request("POST", "/" + self.path.split("/", 3)[3], body, dict(self.headers.items()))
                self.send_response(connection.getresponse().status)
                self.end_headers()
                connection.close()

            def do_CONNECT(self) -> None:
                proxy.requests.append(self.requestline)
                proxy.credentials.add(self.headers["Proxy-Authorization"])
                self.send_response(proxy.code)
                self.end_headers()
                if proxy.code == 200:
                    proxy.tunnelled.append(self.connection.recv(3))
                self.close_connection = True

            def log_message(self, *arguments: Any) -> None:
                """Prints nothing."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://user:pass@127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()


@pytest.fixture
def proxy(receiver: Receiver, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    found = Proxy(receiver)
    for name in ("http_proxy", "https_proxy"):
        monkeypatch.setenv(name, found.url)
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    yield found
    found.server.shutdown()
    found.server.server_close()


def test_a_webhook_goes_through_the_proxy_of_the_environment(tmp_path: Path, receiver: Receiver, proxy: Proxy) -> None:
    async def run() -> None:
        async with scene(tmp_path, "http://10.1.2.3/hook?from=mlpkit", allow=("10.0.0.0/8",)) as here:
            here.note("m1")
            await until(lambda: len(receiver.got) == 1)

    asyncio.run(run())
    assert proxy.requests == ["POST http://10.1.2.3/hook?from=mlpkit HTTP/1.1"]
    assert proxy.credentials == {"Basic dXNlcjpwYXNz"}
    (headers, _), *_ = receiver.got
    assert headers["host"] == "10.1.2.3"


def test_an_encrypted_webhook_goes_through_a_tunnel_of_the_proxy(tmp_path: Path, proxy: Proxy) -> None:
    async def run() -> None:
        async with scene(tmp_path, "https://10.1.2.3/hook", allow=("10.0.0.0/8",)) as here:
            here.note("m1")
            await until(lambda: len(proxy.tunnelled) > 1)
            proxy.code = 407
            await until(lambda: "answered HTTP 407" in "".join(here.webhook.warnings()))
            assert "pass" not in here.webhook.warnings()[0]

    asyncio.run(run())
    assert set(proxy.requests) == {"CONNECT 10.1.2.3:443 HTTP/1.1"}
    assert proxy.credentials == {"Basic dXNlcjpwYXNz"}
    # A TLS handshake: the proxy can read nothing of the event.
    assert set(proxy.tunnelled) == {b"\x16\x03\x01"}


def test_a_proxy_gets_nothing_for_an_address_that_is_not_allowed_or_on_this_machine(
    tmp_path: Path, receiver: Receiver, proxy: Proxy
) -> None:
    async def refused() -> None:
        async with scene(tmp_path / "a", "http://192.0.2.1/hook", allow=("10.0.0.0/8",)) as here:
            here.note("m1")
            await until(lambda: "MLPKIT_WEBHOOK_ALLOW" in "".join(here.webhook.warnings()))

    async def direct() -> None:
        async with scene(tmp_path / "b", receiver.url) as here:
            here.note("m1")
            await until(lambda: len(receiver.got) == 1)

    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    asyncio.run(refused())
    asyncio.run(direct())
    assert proxy.requests == []


def test_no_proxy_names_what_is_asked_directly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("https_proxy", "proxy.example:3128")
    monkeypatch.setenv("no_proxy", "inside.example,10.1.2.3")
    assert proxy_for("https://outside.example/hook") == ProxyFound("http://proxy.example:3128")
    for host in ("inside.example", "a.inside.example", "10.1.2.3:8443", "localhost", "127.0.0.1:1", "[::1]"):
        assert proxy_for(f"https://{host}/hook") is None, host


def test_a_service_tells_its_webhook_how_a_training_goes(receiver: Receiver) -> None:
    service = Service(
        "default",
        command=("-m", "mlpkit", "run", "tests.servers.mood:app"),
        MLP_CLIENT_WORKER="1",
        MLPKIT_WEBHOOK=receiver.url,
        MLPKIT_WEBHOOK_SECRET=SECRET,
        MLPKIT_WEBHOOK_ALLOW=ANYWHERE[0],
    )
    try:
        body = '{"algorithm": "mood", "model_path": "", "data": {}, "parameter": {}, "extend": {}}'
        model_id = service.post("/train", body).json["data"]["model_id"]
        wait_until(lambda: len(receiver.got) == 3, "the webhook has heard of the end", SOON)
    finally:
        service.stop()
    told = [json.loads(body) for _, body in receiver.got]
    assert [event["type"] for event in told] == ["job.init", "job.training", "job.completed"]
    assert {event["data"]["model_id"] for event in told} == {model_id}


@contextmanager
def refused(text: str) -> Iterator[None]:
    with pytest.raises(SettingsError, match=text) as raised:
        yield
    assert MARK not in str(raised.value)


def test_a_webhook_needs_a_secret_and_an_allow_list() -> None:
    url = {"MLPKIT_WEBHOOK": "http://127.0.0.1/"}
    with refused("needs MLPKIT_WEBHOOK_SECRET and MLPKIT_WEBHOOK_ALLOW"):
        load_settings(url, None)
    with refused("MLPKIT_WEBHOOK_SECRET"):
        load_settings({**url, "MLPKIT_WEBHOOK_SECRET": f"{MARK}-not-whsec", "MLPKIT_WEBHOOK_ALLOW": "10.0.0.0/8"}, None)
    with refused("MLPKIT_WEBHOOK"):
        load_settings({"MLPKIT_WEBHOOK": f"http://user:{MARK}@127.0.0.1/"}, None)
