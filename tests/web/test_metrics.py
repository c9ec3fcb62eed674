"""The metrics: what they count, that Prometheus can read them, and that dashboard and alerts name only what exists."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families

from tests.impossible import impossible
from tests.servers import LONG
from tests.web.test_events import load
from tests.web.test_jobs import job_in, train
from tests.wire.replayer import Service

DEPLOY = Path(__file__).parent.parent.parent / "examples" / "deploy"
BOUNDED = {
    "route",
    "status",
    "algorithm",
    "outcome",
    "state",
    "worker",
    "model_id",
    "le",
    "version",
    "python",
    "operation",
}


def scraped(service: Service) -> dict[str, Metric]:
    return {family.name: family for family in text_string_to_metric_families(service.get("/metrics").text)}


def value(service: Service, name: str, **labels: str) -> float:
    """The value of a sample; 0 if there is none."""
    samples = [sample for family in scraped(service).values() for sample in family.samples if sample.name == name]
    found = [sample.value for sample in samples if labels.items() <= sample.labels.items()]
    assert len(found) <= 1, found
    return found[0] if found else 0.0


def test_names_and_labels_follow_the_rules_of_prometheus(plain: Service) -> None:
    for name, family in scraped(plain).items():
        assert re.fullmatch(r"mlpkit_[a-z_]+", name)
        assert family.documentation.endswith(".")
        for sample in family.samples:
            assert set(sample.labels) <= BOUNDED
            assert sample.name.endswith("_total") == (family.type == "counter"), sample.name
    text = plain.get("/metrics").text
    assert "mlpkit_ready 1.0" in text
    assert re.search(r'mlpkit_build_info\{python="3\.\d+\.\d+",version="[^"]+"\} 1\.0', text)


def test_jobs_are_counted_by_their_outcome(plain: Service) -> None:
    names = {"completed": "echo", "error": "boom"}
    before = {
        outcome: value(plain, "mlpkit_jobs_ended_total", outcome=outcome, algorithm=names[outcome]) for outcome in names
    }
    job_in(plain, train(plain), "completed")
    job_in(plain, train(plain, "boom", '{"mode": "raise"}'), "error")
    for outcome, name in names.items():
        assert value(plain, "mlpkit_jobs_ended_total", outcome=outcome, algorithm=name) == before[outcome] + 1
        ended = sum(value(plain, "mlpkit_jobs_ended_total", outcome=each, algorithm=name) for each in names)
        assert value(plain, "mlpkit_job_seconds_count", algorithm=name) == ended
        assert value(plain, "mlpkit_job_wait_seconds_count", algorithm=name) >= ended


def test_loads_and_predictions_are_counted_with_their_times(plain: Service) -> None:
    before = {
        name: value(plain, name, algorithm="echo")
        for name in (
            "mlpkit_load_seconds_count",
            "mlpkit_load_failures_total",
            "mlpkit_prediction_wait_seconds_count",
            "mlpkit_predict_call_seconds_count",
            "mlpkit_models_wanted",
            "mlpkit_models_loaded",
        )
    }
    load(plain, "counted")
    assert plain.post("/load", '{"algorithm": "shapes", "model_id": "?", "model_path": "no-such/thing"}').json
    for _ in range(3):
        plain.post("/predict", '{"model_id": "counted", "features": {"sentence": "x"}}')
    after = {name: value(plain, name, algorithm="echo") - count for name, count in before.items()}
    load(plain, "counted", "unload")
    assert after == {
        "mlpkit_load_seconds_count": 1,
        "mlpkit_load_failures_total": 0,
        "mlpkit_prediction_wait_seconds_count": 3,
        "mlpkit_predict_call_seconds_count": 3,
        "mlpkit_models_wanted": 1,
        "mlpkit_models_loaded": 1,
    }
    assert value(plain, "mlpkit_prediction_transfer_seconds_sum", algorithm="echo") > 0
    assert value(plain, "mlpkit_worker_memory_bytes", worker="0") > 1 << 20
    assert 0 <= value(plain, "mlpkit_saturation") <= 1


def test_what_jobs_and_workers_do_with_the_store_and_the_cache_is_counted() -> None:
    service = Service("default", command=("-m", "mlpkit", "run", "tests.servers.mood:app"), MLP_CLIENT_WORKER="1")
    names = ("mlpkit_cache_hits_total", "mlpkit_cache_misses_total", "mlpkit_cache_evictions_total")
    uploads = {"name": "mlpkit_store_seconds_count", "operation": "upload"}
    try:
        before = [value(service, name) for name in names]
        assert value(service, **uploads) == 0
        model_id = train(service, "mood")
        job_in(service, model_id, "completed")
        # The file, its manifest, and perhaps what the check of rights writes: by a process that has ended since.
        assert value(service, **uploads) >= 2
        assert value(service, "mlpkit_store_seconds_sum", operation="upload") > 0
        for action in ("load", "unload", "load"):
            body = f'{{"algorithm": "mood", "model_id": "{model_id}"}}'
            assert service.post(f"/{action}", body).json["status"] == "success"
        hits, misses, evictions = (value(service, name) - old for name, old in zip(names, before, strict=True))
        assert (hits > 0, misses > 0, evictions) == (True, True, 0)
        assert 0 < value(service, "mlpkit_cache_bytes") < value(service, "mlpkit_cache_limit_bytes")
        # A model that is not stored is an answer, and no fault of the store.
        assert service.post("/load", '{"algorithm": "mood", "model_id": "no-such"}').json["status"] == "fail"
        assert {errors(service, name) for name in ("stat", "read", "download", "list")} == {0.0}
        Path(service.folder.name, "home/storage/ml-platform-model/circle").symlink_to("circle")
        assert service.post("/load", '{"algorithm": "mood", "model_id": "circle"}').json["status"] == "fail"
        assert sum(errors(service, name) for name in ("stat", "read", "download", "list")) > 0
    finally:
        service.stop()


def errors(service: Service, operation: str) -> float:
    return value(service, "mlpkit_store_errors_total", operation=operation)


def test_a_prediction_tells_where_its_time_went_if_it_is_asked_to(plain: Service) -> None:
    load(plain, "untimed")
    body = '{"model_id": "%s", "features": {"sentence": "x"}}'
    assert "server-timing" not in plain.post("/predict", body % "untimed").headers
    service = Service("default", MLP_CLIENT_WORKER="1", MLPKIT_SERVER_TIMING="on")
    try:
        load(service, "timed")
        timing = service.post("/predict", body % "timed").headers["server-timing"]
    finally:
        service.stop()
    parts = re.fullmatch(r"wait;dur=([\d.]+), ipc;dur=([\d.]+), predict;dur=([\d.]+)", timing)
    assert parts is not None, timing
    assert 0 < sum(map(float, parts.groups())) < LONG * 1000


@pytest.mark.parametrize("file", ["grafana.json", "alerts.yaml", "kubernetes/predict.yaml"])
def test_deployment_files_name_only_metrics_that_exist(plain: Service, file: str) -> None:
    job_in(plain, train(plain), "completed")
    load(plain, "named")
    plain.post("/predict", '{"model_id": "named", "features": {"sentence": "x"}}')
    families = scraped(plain)
    known = {sample.name for family in families.values() for sample in family.samples}
    # A family without a value has no samples.
    known |= set(families) | {
        f"{name}_{part}" for name, each in families.items() if each.type == "histogram" for part in PARTS
    }
    named = set(re.findall(r"\bmlpkit_\w+", (DEPLOY / file).read_text()))
    assert named
    assert named - known == set()
    if file == "grafana.json":
        assert all(panel["targets"] for panel in json.loads((DEPLOY / file).read_text())["panels"])


PARTS = ("bucket", "count", "sum")


def test_promtool_finds_no_fault(plain: Service) -> None:
    if shutil.which("promtool") is None:
        impossible("promtool is not installed (apt-get install prometheus)")
    rules = subprocess.run(["promtool", "check", "rules", str(DEPLOY / "alerts.yaml")], capture_output=True, text=True)
    assert rules.returncode == 0, rules.stdout + rules.stderr
    text = plain.get("/metrics").text
    metrics = subprocess.run(["promtool", "check", "metrics"], input=text, capture_output=True, text=True)
    assert (metrics.returncode, metrics.stderr) == (0, ""), metrics.stderr
