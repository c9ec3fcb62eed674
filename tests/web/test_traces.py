"""One trace leads from a request through the worker or the training process to the storage calls."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from mlpkit import tracing
from tests.servers import SOON, wait_until
from tests.web.test_jobs import job_in, train
from tests.wire.replayer import Service

pytest.importorskip("opentelemetry.sdk")
pytest.importorskip("opentelemetry.exporter.otlp.proto.http")
collector = pytest.importorskip("opentelemetry.proto.collector.trace.v1.trace_service_pb2")

MOOD = ("-m", "mlpkit", "run", "tests.servers.mood:app")


@dataclass(frozen=True)
class Span:
    """A span as the collector got it; `place` names its process."""

    trace: str
    id: str
    parent: str
    name: str
    failed: bool
    attributes: dict[str, Any]


class Collector:
    """A real OTLP receiver."""

    def __init__(self) -> None:
        self.spans: list[Span] = []
        found = self.spans

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                request = collector.ExportTraceServiceRequest.FromString(body)
                for resource in request.resource_spans:
                    for scope in resource.scope_spans:
                        found.extend(map(_read, scope.spans))
                self.send_response(200)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *arguments: Any) -> None:
                """Prints nothing."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def of(self, trace: str) -> list[Span]:
        return [span for span in self.spans if span.trace == trace]

    def tree(self, trace: str, parent: str, depth: int = 0) -> list[str]:
        """The names of the spans below one, each indented below its parent."""
        lines = []
        for span in self.of(trace):
            if span.parent == parent:
                lines += ["  " * depth + span.name, *self.tree(trace, span.id, depth + 1)]
        return lines


def _read(span: Any) -> Span:
    attributes = {each.key: each.value.string_value or each.value.int_value for each in span.attributes}
    failed = span.status.code == 2
    return Span(span.trace_id.hex(), span.span_id.hex(), span.parent_span_id.hex(), span.name, failed, attributes)


@pytest.fixture(scope="module")
def receiver() -> Iterator[Collector]:
    found = Collector()
    yield found
    found.server.shutdown()
    found.server.server_close()


@pytest.fixture(scope="module")
def traced(receiver: Collector) -> Iterator[Service]:
    service = Service(
        "default",
        command=MOOD,
        MLP_CLIENT_WORKER="1",
        OTEL_EXPORTER_OTLP_ENDPOINT=receiver.url,
        OTEL_BSP_SCHEDULE_DELAY="100",
        OTEL_SERVICE_NAME="mood",
    )
    yield service
    service.stop()


PARENT = "b7ad6b7169203331"


def asked(service: Service, trace: str, path: str, **fields: object) -> Any:
    return service.post(path, json.dumps(fields), traceparent=f"00-{trace}-{PARENT}-01").json


def trained(service: Service, trace: str, **parameter: object) -> str:
    answer = asked(service, trace, "/train", algorithm="mood", model_path="", data={}, parameter=parameter, extend={})
    model_id: str = answer["data"]["model_id"]
    return model_id


def test_a_training_is_one_trace_from_the_request_to_the_store(traced: Service, receiver: Collector) -> None:
    trace = "1" * 32
    trained(traced, trace)

    wait_until(lambda: "  train" in receiver.tree(trace, PARENT), "the training has ended", SOON)
    tree = receiver.tree(trace, PARENT)
    print("\n".join(tree))
    assert tree[:2] == ["POST train", "  train"]
    assert "    storage save_dir" in tree


def test_a_load_and_a_prediction_are_traces_from_the_request_to_the_worker(
    traced: Service, receiver: Collector
) -> None:
    model_id = trained(traced, "2" * 32)
    wait_until(lambda: "  train" in receiver.tree("2" * 32, PARENT), "the training has ended", SOON)
    asked(traced, "3" * 32, "/load", algorithm="mood", model_id=model_id)
    asked(traced, "4" * 32, "/predict", model_id=model_id, features={"sentence": "good"})

    wait_until(lambda: "  predict" in receiver.tree("4" * 32, PARENT), "the prediction was told", SOON)
    load = receiver.tree("3" * 32, PARENT)
    assert load[:2] == ["POST load", "  load"]
    assert any(line.startswith("    storage ") for line in load)
    assert receiver.tree("4" * 32, PARENT) == ["POST predict", "  predict"]
    (root,) = [span for span in receiver.of("4" * 32) if span.parent == PARENT]
    assert root.attributes["http.response.status_code"] == 200
    assert root.attributes["mlpkit.model_id"] == model_id


def test_a_failure_marks_its_span(traced: Service, receiver: Collector) -> None:
    trace = "5" * 32
    model_id = trained(traced, "6" * 32)
    wait_until(lambda: "  train" in receiver.tree("6" * 32, PARENT), "the training has ended", SOON)
    asked(traced, "7" * 32, "/load", algorithm="mood", model_id=model_id)
    asked(traced, trace, "/predict", model_id=model_id, features={"sentence": "boom"})

    wait_until(lambda: "  predict" in receiver.tree(trace, PARENT), "the prediction was told", SOON)
    assert [span.failed for span in receiver.of(trace) if span.name == "predict"] == [True]


def test_a_request_without_a_trace_begins_one(traced: Service, receiver: Collector) -> None:
    traced.post("/unload", '{"algorithm": "mood", "model_id": "alone", "uuid": "alone-1"}')

    def found() -> list[Span]:
        return [
            span
            for span in receiver.spans
            if span.attributes.get("mlpkit.request_id") == "alone-1"
            or span.attributes.get("mlpkit.model_id") == "alone"
        ]

    wait_until(lambda: bool(found()), "the span was told", SOON)
    assert found()[0].parent == ""


WATCHED = """
import atexit
import os
import sys
from pathlib import Path
from mlpkit import App, ModelDir
app = App("watched")

def tell() -> None:
    imported = sorted(name for name in sys.modules if name.partition(".")[0] == "opentelemetry")
    Path(os.environ["WATCHED"], str(os.getpid())).write_text("\\n".join(imported))

@app.train
def train(out: ModelDir) -> None:
    (out / "model").write_text("x")
    tell()

@app.load
def load(files: ModelDir) -> None: ...

@app.predict
def predict(features: dict) -> None:
    tell()

# The server ends by itself; it has imported the script too.
atexit.register(tell)
"""


def imported_by_its_processes(folder: Path, **settings: str) -> list[str]:
    """What of OpenTelemetry a server, a job and a worker have imported, one text for each process."""
    script = folder / "watched.py"
    script.write_text(WATCHED)
    told = folder / "told"
    told.mkdir()
    command = ("-m", "mlpkit", "run", f"{script}:app")
    service = Service("default", command=command, MLP_CLIENT_WORKER="1", WATCHED=str(told), **settings)
    try:
        model_id = train(service, "watched")
        job_in(service, model_id, "completed")
        for path, fields in (("load", {"algorithm": "watched"}), ("predict", {"features": {}})):
            assert service.post(f"/{path}", json.dumps({"model_id": model_id, **fields})).json["status"] == "success"
        server = told / str(service.pid)
        service.terminate()
        service.wait()
    finally:
        service.stop()
    assert server.exists()
    return [file.read_text() for file in told.iterdir()]


def test_without_its_variables_nothing_of_opentelemetry_is_imported(tmp_path: Path) -> None:
    imported = imported_by_its_processes(tmp_path)
    assert len(imported) >= 3
    assert set(imported) == {""}


def test_with_its_variables_all_processes_import_it(tmp_path: Path, receiver: Collector) -> None:
    imported = imported_by_its_processes(tmp_path, OTEL_EXPORTER_OTLP_ENDPOINT=receiver.url)
    assert sum("opentelemetry.sdk.trace" in text for text in imported) >= 3


def test_spans_go_through_the_proxy_of_the_environment_and_past_it_on_this_machine(
    monkeypatch: pytest.MonkeyPatch, receiver: Collector
) -> None:
    # The collector stands for the proxy: it gets whatever is sent to that.
    monkeypatch.setenv("http_proxy", receiver.url)
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)

    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor

    def sends_a_span(endpoint: str) -> bool:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", endpoint)
        before = len(receiver.spans)
        provider = TracerProvider()
        provider.add_span_processor(SimpleSpanProcessor(tracing._exporter()))
        with provider.get_tracer("test").start_as_current_span("proxied"):
            pass
        provider.shutdown()
        return len(receiver.spans) > before

    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "1")
    assert sends_a_span("http://collector.example:4318/v1/traces")
    with socket.create_server(("127.0.0.1", 0)) as nobody:
        port = nobody.getsockname()[1]
    assert not sends_a_span(f"http://127.0.0.1:{port}/v1/traces")
