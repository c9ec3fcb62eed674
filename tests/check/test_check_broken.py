"""`mlpkit check` on algorithms that are broken on purpose: each kind of failure is found, and said in a sentence."""

from __future__ import annotations

import pytest

from tests.check.conftest import Check

pytestmark = pytest.mark.slow


def test_a_training_that_raises_is_found_with_its_reason(check: Check) -> None:
    checked = check(train="@app.train\ndef train(out: ModelDir) -> None:\n    raise ValueError('no such column')\n")
    assert "no such column" in checked.failed["status"]
    assert checked.steps["predict"].verdict == "skipped"
    assert not checked.report.passed


def test_a_training_that_says_false_is_found(check: Check) -> None:
    assert "False" in check(train="@app.train\ndef train(out: ModelDir) -> bool:\n    return False\n").failed["status"]


def test_a_training_that_kills_itself_is_found(check: Check) -> None:
    killed = check(train="@app.train\ndef train(out: ModelDir) -> None:\n    os.kill(os.getpid(), signal.SIGSEGV)\n")
    assert "SIGSEGV" in killed.failed["status"]


def test_a_training_that_never_ends_is_given_up(check: Check) -> None:
    checked = check(train="@app.train\ndef train(out: ModelDir) -> None:\n    time.sleep(600)\n", timeout=2)
    assert "has not ended within 2 s" in checked.failed["status"]


def test_a_model_that_does_not_load_is_found(check: Check) -> None:
    checked = check(load="@app.load\ndef load(files: ModelDir) -> str:\n    return (files / 'other.bin').read_text()\n")
    assert "other.bin" in checked.failed["load"]
    assert set(checked.failed) == {"load"}


def test_a_prediction_that_raises_is_found(check: Check) -> None:
    broken = "@app.predict\ndef predict(model: Any, features: Sentence) -> list[Label]:\n    return model['labels']\n"
    assert "labels" in check(predict=broken).failed["predict"]


def test_an_answer_of_another_kind_is_found_with_its_field(check: Check) -> None:
    broken = "@app.predict\ndef predict(model: Any, features: Any) -> Any:\n    return [{'label': 'a', 'score': 'b'}]\n"
    assert "predictions[0].score" in check(predict=broken).failed["predict"]


def test_an_answer_that_changes_is_found(check: Check) -> None:
    changing = """
    calls = [0]

    @app.predict
    def predict(model: Any, features: Sentence) -> list[Label]:
        calls[0] += 1
        return [Label("good", float(calls[0] % 90))]
    """
    assert "the same features got" in check(predict=changing).failed["same answer twice"]


def test_a_model_that_mixes_up_concurrent_requests_is_found(check: Check) -> None:
    shared = """
    seen = {}

    @app.predict(threads=8)
    def predict(model: Any, features: Sentence) -> list[Label]:
        seen["sentence"] = features.sentence
        time.sleep(0.02)
        return [Label(seen["sentence"], 50.0)]
    """
    assert "got another answer than alone" in check(predict=shared).failed["32 at once"]


def test_a_model_that_fails_under_company_is_found(check: Check) -> None:
    exclusive = """
    busy = threading.Lock()

    @app.predict(threads=8)
    def predict(model: Any, features: Sentence) -> list[Label]:
        if not busy.acquire(blocking=False):
            raise RuntimeError("two at a time")
        try:
            time.sleep(0.02)
            return [Label("good", 50.0)]
        finally:
            busy.release()
    """
    assert "predictions at once failed: predict fail two at a time" in check(predict=exclusive).failed["32 at once"]


def test_a_process_that_dies_of_bad_input_is_found(check: Check) -> None:
    fragile = """
    @app.predict
    def predict(model: Any, features: Any) -> list[Label]:
        if "sentence" not in features:
            os._exit(3)
        return [Label("good", 50.0)]
    """
    assert "exited with code 3" in check(predict=fragile).failed["bad input"]


def test_memory_that_unload_does_not_give_back_is_found(check: Check) -> None:
    leaking = """
    kept = []

    @app.load
    def load(files: ModelDir) -> dict[str, Any]:
        kept.append(bytearray(os.urandom(1 << 20)) * 64)
        return json.loads((files / "model.json").read_text())
    """
    checked = check(load=leaking)
    assert "MiB more are in use than after the first one" in checked.failed["memory"]
    assert set(checked.failed) == {"memory"}


def test_a_model_that_is_another_after_loading_again_is_found(check: Check) -> None:
    counting = """
    loads = [0]

    @app.load
    def load(files: ModelDir) -> dict[str, Any]:
        loads[0] += 1
        return {"top": 50.0 + loads[0]}
    """
    checked = check(load=counting)
    assert "before it was unloaded it answered" in checked.failed["load again"]
    assert checked.steps["delete"].verdict == "passed"


def test_a_delete_that_raises_is_found(check: Check) -> None:
    broken = "@app.delete\ndef delete(model_id: str) -> None:\n    raise RuntimeError('not mine to delete')\n"
    assert "not mine to delete" in check(more=broken).failed["delete"]


def test_a_delete_that_leaves_the_model_is_a_warning(check: Check) -> None:
    checked = check(more="@app.delete\ndef delete(model_id: str) -> None:\n    pass\n")
    assert checked.steps["delete"].verdict == "warning"
    assert checked.report.passed


def test_broken_data_is_found_before_it_is_uploaded(check: Check) -> None:
    checked = check(data="a good day\tgood\t1\nno label here\n")
    assert "line 2" in checked.failed["data"]
