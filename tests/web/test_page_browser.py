"""The page at `/` in a real browser: what operators and users see, with a token, 500 jobs and 300 models."""

from __future__ import annotations

import json
import os
import re
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from selenium.webdriver.common.keys import Keys

from mlpkit.formats.evaluation import EvaluationReport, Figures, WrongAnswer
from mlpkit.serving.model import LoadedModelRecord
from mlpkit.training import Job, Snapshot
from mlpkit.training.journal import Journal
from tests.acceptance.service import RunningService
from tests.secret import MARK
from tests.servers import LONG, Relay, wait_until
from tests.web.browser import Browser, opened
from tests.web.shown import HOSTILE
from tests.wire.replayer import Service

TOKEN = f"{MARK}-of-the-page"
AUTHORIZED = {"Authorization": f"Bearer {TOKEN}"}
SCRIPT = str(Path(__file__).parent / "shown.py")
COMMAND = ("-m", "mlpkit", "run", f"{SCRIPT}:both")
MIB = 1 << 20
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A service with a token that has 500 jobs and 300 models from its last run."""
    home = tmp_path_factory.mktemp("page") / "home"
    journal = Journal(home)
    now = time.time()
    for number in range(500):
        failed = number % 10 == 0
        journal.add(
            Job(
                model_id=f"job-{number:03}",
                algorithm="labels",
                state="error" if failed else "completed",
                message="row 381 has no label" if failed else "",
                progress=Snapshot(fraction=1.0, metrics={"accuracy": 0.9}),
                created=now - 500 + number,
                started=now - 400 + number,
                ended=now - 3600 if failed else now - 5000,
            )
        )
    report = EvaluationReport(
        rows=1000,
        source="reviews.tsv",
        average="macro",
        f1=0.75,
        created=now,
        labels={"praise": Figures(0.8, 0.7, 0.74666, 500)},
        errors=[WrongAnswer(1796, "tasty", "blame", "praise", 97.5)],
    )
    worse = msgspec.structs.replace(
        report, f1=0.7, accuracy=0.72, labels={"praise": Figures(0.6, 0.7, 0.64615, 500)}, milliseconds={"p50": 2.0}
    )
    better = msgspec.structs.replace(report, accuracy=0.75, milliseconds={"p50": 4.0, "p99": 9.0})
    for number, (model_id, found) in enumerate({"evaluated-before": worse, "evaluated": better}.items()):
        journal.add(
            Job(
                model_id=model_id,
                algorithm="labels",
                state="completed",
                progress=Snapshot(fraction=1.0, metrics={"accuracy": 0.9, "evaluation": found.summary()}),
                created=now + number,
                started=now - 9000,
                ended=now - 5000,
            )
        )
        place = home / "storage" / "ml-platform-model" / model_id / "evaluation.json"
        place.parent.mkdir(parents=True)
        place.write_bytes(msgspec.json.encode(msgspec.structs.replace(found, model_id=model_id)))
    journal.close()
    loaded = [LoadedModelRecord("labels", f"model-{number:03}") for number in range(296)]
    others = [LoadedModelRecord(name, f"{name}-1") for name in ("names", "talk", "links", "groups")]
    (home / "models.json").write_bytes(msgspec.json.encode([*loaded, *others]))
    running = Service(
        "default",
        command=COMMAND,
        MLP_CLIENT_WORKER="1",
        MLPKIT_TOKEN=TOKEN,
        MLPKIT_HOME=str(home),
        MLPKIT_UPLOAD="on",
        MLPKIT_SERVER_TIMING="on",
    )
    end = time.monotonic() + LONG
    while running.get("/summary", **AUTHORIZED).json["data"]["models"]["loaded"] < 300:
        assert time.monotonic() < end, running.log()
        time.sleep(0.1)
    yield running
    running.stop()


@pytest.fixture(scope="module")
def signed_out(service: Service, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with opened(f"http://127.0.0.1:{service.port}", tmp_path_factory.mktemp("browser")) as browser:
        yield browser


@pytest.fixture
def browser(signed_out: Browser) -> Browser:
    """The browser with the token, in English and light colours."""
    signed_out.open("docs")
    signed_out.driver.execute_script(
        "localStorage.clear(); localStorage.setItem('mlpkit-theme', 'light');"
        "sessionStorage.setItem('mlpkit-token', arguments[0])",
        TOKEN,
    )
    return signed_out


def test_token_is_asked_once_and_kept_in_the_tab(signed_out: Browser) -> None:
    signed_out.open()
    signed_out.wait_for("This service needs a token")
    signed_out.press("wrong", Keys.ENTER)
    signed_out.wait_for("The service refused this token")
    signed_out.press(TOKEN, Keys.ENTER)
    signed_out.wait_for("models are loaded in")
    signed_out.driver.refresh()
    signed_out.wait_for("models are loaded in")
    assert signed_out.run("localStorage.length") == 0
    assert TOKEN not in signed_out.run("location.href + document.documentElement.outerHTML")
    signed_out.run("sessionStorage.clear()")
    signed_out.open("#/models")
    signed_out.wait_for("This service needs a token")
    for _ in range(3):
        # Chromium closes a dialog at the second Escape, whatever the page does.
        signed_out.press(Keys.ESCAPE)
        signed_out.wait_until("document.activeElement.name === 'token'")
    signed_out.press(TOKEN, Keys.ENTER)
    signed_out.wait_for("1–25 of 300")
    signed_out.wait_until("!document.body.innerText.includes('needs a token')")


def test_first_line_says_what_an_operator_needs(browser: Browser) -> None:
    browser.open()
    browser.wait_for("50 failed in the last 24 hours, the latest 1 hour ago: row 381 has no label.")
    browser.wait_for("300 models are loaded in 1 worker.")
    browser.click("button", "Dark")
    assert browser.run("document.documentElement.dataset.theme") == "dark"
    browser.click("button", "中文")
    browser.wait_for("最近 24 小时有 50 个任务失败")
    assert browser.run("document.documentElement.lang") == "zh-CN"


def test_a_service_that_stops_says_so_once(signed_out: Browser, tmp_path: Path) -> None:
    stopping = RunningService(f"{SCRIPT}:app", tmp_path / "home", {"MLPKIT_SHUTDOWN_GRACE": "5m"})
    try:
        stopping.wait_ready()
        stopping.client.load("labels", "m")
        job = stopping.client.train("labels", parameters={"mode": "stuck"})
        wait_until(lambda: job.status().status == "training", "the job runs")
        os.kill(stopping.pid, signal.SIGTERM)
        signed_out.driver.get(f"{stopping.client.url}/#/")
        signed_out.wait_for("Stopping")
        assert signed_out.find("h1").text == "The service is stopping. 1 job is running."
        assert "draining" not in signed_out.text()
        assert signed_out.run("document.querySelector('.dot').className") == "dot busy"
        signed_out.click("a", "Try it")
        signed_out.wait_for("No model is loaded to try")
        assert signed_out.find(".note").text == "The service is stopping."
    finally:
        stopping.kill()


def test_jobs_are_filtered_and_shown_in_pages(browser: Browser) -> None:
    browser.open("#/jobs")
    browser.wait_for("job-499")
    browser.wait_until("document.querySelectorAll('tbody tr').length === 25")
    browser.click("button", "Next")
    browser.wait_for("job-474")
    browser.choose("state", "error")
    browser.wait_for("–25 of")
    browser.wait_for("row 381 has no label")
    browser.fill("find", "JOB-49")
    browser.wait_until("document.querySelectorAll('tbody tr').length === 1")
    browser.wait_for("job-490")
    browser.fill("find", "nobody")
    browser.wait_for("Nothing fits the filters")
    browser.click("button", "Clear the filters")
    browser.wait_for("job-499")


def test_a_job_is_trained_watched_and_cancelled_with_the_keyboard(browser: Browser) -> None:
    browser.open("#/jobs")
    browser.wait_for("job-499")
    browser.tab_to("Train")
    browser.press(Keys.ENTER)
    browser.wait_for("How many steps.")
    browser.fill("steps", "0")
    browser.wait_for("Must be ≥ 1.")
    browser.fill("steps", "4")
    browser.choose("mode", '"stuck"')
    browser.tab_to("Start training")
    browser.press(Keys.ENTER)
    browser.wait_for("it waits now")
    browser.wait_until("document.querySelectorAll('.chart path.s1').length === 1")
    browser.tab_to("Show stack")
    browser.press(Keys.ENTER)
    browser.wait_for("in waits_for_ever")
    browser.press(Keys.ESCAPE)
    browser.wait_until("!document.querySelector('dialog')")
    browser.tab_to("Cancel")
    browser.press(Keys.ENTER)
    browser.wait_for("It ends now")
    browser.press(Keys.TAB, Keys.ENTER)
    browser.wait_for("cancelled")
    browser.tab_to("Train again")
    browser.press(Keys.ENTER)
    browser.wait_for("How many steps.")
    assert browser.find("[name='steps']").get_attribute("value") == "4"


def test_a_waiting_job_says_when_it_will_probably_start(browser: Browser, service: Service) -> None:
    rest = '"model_path": "", "data": {}, "extend": {}'
    body = f'{{"algorithm": "labels", "parameter": {{"mode": "stuck", "steps": 1}}, {rest}}}'
    places = service.get("/summary", **AUTHORIZED).json["data"]["jobs"]["places"]
    ids = [service.post("/train", body, **AUTHORIZED).json["data"]["model_id"] for _ in range(places + 1)]
    browser.open(f"#/jobs/{ids[-1]}")
    browser.wait_for("starts in about")
    for model_id in reversed(ids):
        service.post("/cancel", f'{{"algorithm": "labels", "model_id": "{model_id}"}}', **AUTHORIZED)
    browser.wait_for("cancelled")


def test_what_a_reader_holds_stays_when_the_page_asks_again(browser: Browser, service: Service) -> None:
    body = '{"algorithm": "labels", "parameter": {"steps": 4}, "model_path": "", "data": {}, "extend": {}}'
    model_id = service.post("/train", body, **AUTHORIZED).json["data"]["model_id"]
    browser.open(f"#/jobs/{model_id}")
    browser.wait_for("completed")
    browser.tab_to("Log")
    browser.wait_until_drawn_again()
    assert browser.run("document.activeElement.className") == "log"
    point = (
        "const svg = document.querySelector('.chart svg'); const clientX = svg.getBoundingClientRect().left;"
        "svg.dispatchEvent(new PointerEvent('pointermove', {clientX}));"
        "return [svg.querySelector('.cursor').getAttribute('d'), document.querySelector('.keys').innerText]"
    )
    cursor, keys = browser.driver.execute_script(point)
    assert cursor == "M0.0 0V100"
    assert keys.split()[:4] == ["loss", "1", "val_loss", "1.2"]


def test_evaluation_is_shown_as_figures_and_errors(browser: Browser) -> None:
    browser.open("#/jobs/evaluated")
    browser.wait_for("Macro F1")
    browser.wait_for("0.747")
    browser.wait_for("often wrong labels")
    assert "1796" in browser.text()
    assert browser.run("[...document.querySelectorAll('h2')].map(title => title.innerText).join()") == (
        "Facts,Metrics,Evaluation,Log,What it was asked"
    )
    assert "{" not in browser.run("document.querySelector('main .facts:last-of-type').innerText")
    assert browser.run("getComputedStyle(document.querySelector('main')).outlineStyle") == "none"


def test_alias_is_set_in_a_form_that_shows_refusals(browser: Browser) -> None:
    browser.open("#/models")
    browser.click("button", "Set an alias")
    browser.fill("alias", "Not a name")
    browser.fill("model_id", "model-002")
    browser.press(Keys.ENTER)
    browser.wait_for("This did not work: ")
    browser.fill("alias", "current")
    browser.press(Keys.ENTER)
    browser.wait_for("labels@current")
    browser.click("button", "Move: labels@current")
    browser.wait_until("document.querySelector('dialog [name=alias]').value === 'current'")


def test_models_are_found_unloaded_and_loaded(browser: Browser) -> None:
    browser.open("#/models")
    browser.wait_for("1–25 of 300")
    browser.find("input[type=search]").send_keys("model-077")
    browser.wait_until("document.querySelectorAll('[aria-label=Models] tbody tr').length === 1")
    browser.click("button", "Unload: model-077")
    assert "model-077" in browser.find("dialog").text
    browser.click("dialog button.danger")
    browser.wait_for("Done")
    browser.wait_for("Nothing fits")
    browser.click("button", "Load a model")
    browser.fill("model_id", "model-077")
    browser.press(Keys.ENTER)
    browser.wait_until("document.querySelectorAll('[aria-label=Models] tbody tr').length === 1")
    browser.open("#/workers")
    browser.wait_for("300 models")
    browser.wait_for("pid ")


def test_a_missing_model_has_its_reason_and_can_be_unloaded(signed_out: Browser, tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    record = LoadedModelRecord("labels", "broken", given_up="its worker was killed")
    (home / "models.json").write_bytes(msgspec.json.encode([record]))
    running = RunningService(f"{SCRIPT}:app", home, {})
    try:
        running.wait_ready()
        signed_out.driver.get(f"{running.client.url}/#/models")
        signed_out.wait_for("given up: its worker was killed")
        cells = signed_out.run("[...document.querySelectorAll('tbody td.none')].map(cell => cell.innerText)")
        assert cells == ["–"] * 6, "it has no figures"
        signed_out.click("button", "Unload: broken")
        signed_out.click("dialog button.danger")
        signed_out.wait_for("No model is loaded")
        assert (home / "models.json").read_bytes() == b"[]"
    finally:
        running.stop()


def test_a_model_is_tried_with_the_form_of_its_types(browser: Browser) -> None:
    browser.open("#/tryit?model=model-001")
    browser.wait_until("document.querySelector('[name=sentence]')?.value === '味道很好'")
    browser.fill("count", "ten")
    browser.wait_for("Not a number.")
    browser.fill("count", "2")
    browser.fill("threshold", "30")
    browser.wait_for('"params":{"threshold":30}')
    browser.click("button", "Predict")
    browser.wait_for("好评")
    browser.wait_for("65")
    browser.wait_for("· predict ")
    assert len(browser.driver.find_elements("css selector", ".labels .track")) == 2
    browser.open("#/tryit?model=names-1")
    browser.click("button", "Predict")
    browser.wait_until("document.querySelectorAll('mark').length === 2")
    assert browser.run("[...document.querySelectorAll('mark')].map(each => each.firstChild.data).join()") == "李华,杭州"


def test_relations_and_clusters_are_drawn(browser: Browser) -> None:
    browser.open("#/tryit?model=links-1", 390)
    browser.click("button", "Predict")
    browser.wait_until("document.querySelectorAll('.triple').length === 1")
    shown = browser.find(".triple").text
    assert [part in shown for part in ("李华", "PER", "住在", "<script>", "LOC", "87.5")] == [True] * 6
    browser.open("#/tryit?model=groups-1", 390)
    browser.click("button", "Predict")
    browser.wait_until("document.querySelectorAll('.groups > li').length === 2")
    assert browser.find(".groups > li").text.split("\n") == ["退货", "92", "怎么退货", "我要退货"]
    assert not browser.is_too_wide()
    assert browser.problems() == []


def test_streamed_text_is_shown_as_it_arrives(browser: Browser, tmp_path: Path) -> None:
    browser.open("#/tryit?model=talk-1")
    browser.fill("Input", f'{{"file": "{tmp_path / "go"}"}}')
    browser.wait_for("Accept: text/event-stream")
    browser.click("button", "Predict")
    browser.wait_until("document.querySelector('.marked')?.innerText === 'Once'")
    assert "Waiting for the answer" in browser.text()
    (tmp_path / "go").touch()
    browser.wait_until("document.querySelector('.marked').innerText === 'Once upon a time'")
    browser.wait_for("in all, network included")
    assert "Waiting for the answer" not in browser.text()
    browser.fill("Input", '{"nothing": ""}')
    browser.click("button", "Predict")
    browser.wait_for("This did not work: predict fail")
    assert browser.find(".marked").text == "Once"
    assert "Waiting for the answer" not in browser.text()
    browser.fill("Input", f'{{"file": "{tmp_path / "go"}", "left": "{tmp_path / "left"}"}}')
    browser.click("button", "Predict")
    browser.wait_until("document.querySelector('.marked')?.innerText.startsWith('Once upon a time..')")
    browser.click("a", "Workers")
    wait_until((tmp_path / "left").exists, "the generator is closed when the view is left")


@pytest.fixture
def answering(tmp_path: Path) -> Iterator[RunningService]:
    """A service with a model that streams, and one that answers what it is told."""
    running = RunningService(f"{SCRIPT}:parts", tmp_path / "home", {})
    try:
        running.wait_ready()
        for name in ("talk", "free"):
            running.client.load(name, f"{name}-1")
        yield running
    finally:
        running.stop()


def test_a_stream_that_breaks_off_is_not_a_whole_answer(
    signed_out: Browser, answering: RunningService, tmp_path: Path
) -> None:
    signed_out.driver.get(f"{answering.client.url}/#/tryit?model=talk-1")
    signed_out.fill("Input", f'{{"file": "{tmp_path / "never"}"}}')
    signed_out.click("button", "Predict")
    signed_out.wait_until("document.querySelector('.marked')?.innerText === 'Once'")
    answering.kill()
    signed_out.wait_for("This did not work: The service does not answer.")
    assert signed_out.find(".marked").text == "Once"
    assert "Waiting for the answer" not in signed_out.text()


def test_an_answer_of_no_prescribed_shape_is_shown_once(signed_out: Browser, answering: RunningService) -> None:
    signed_out.open("docs", 390)
    signed_out.driver.get(f"{answering.client.url}/#/tryit?model=free-1")

    def answer(value: Any, **more: int) -> str:
        signed_out.fill("Input", json.dumps({"json": json.dumps(value), **more}))
        signed_out.click("button", "Predict")
        signed_out.wait_until("!document.querySelector('form .main').disabled")
        signed_out.wait_for("in all, network included")
        return str(signed_out.run("document.querySelector('[aria-live].stack').innerText"))

    assert answer("第一行\nsecond line").startswith("第一行\nsecond line\n")
    assert signed_out.find("summary").text == "as JSON"
    for value in ({"text": "a long text " * 9, "more": {"list": [1, None, True]}}, None, 2.5, [], [[1, "a"]]):
        shown = answer(value)
        assert json.dumps(value, indent=2) in shown
        assert "as JSON" not in shown, "it is JSON already"
        assert signed_out.run("document.querySelector('[aria-live] pre').scrollWidth <= 390")
    assert signed_out.problems() == []
    shown = answer({HOSTILE: [HOSTILE]})
    assert shown.count("<script>window.hacked=1</script>") == 2
    assert shown.count("\\u202e") == 2
    assert len(answer("x", times=1_000_000)) < 21_000
    assert not signed_out.is_too_wide()
    assert signed_out.run("window.hacked === undefined")


def test_a_model_shows_the_figures_of_its_predictions(browser: Browser, service: Service) -> None:
    bodies = ['{"model_id": "model-200", "features": {"sentence": "a"}}', '{"model_id": "model-200", "features": {}}']
    for body in bodies:
        service.post("/predict", body, **AUTHORIZED)
    browser.open("#/models")
    browser.find("input[type=search]").send_keys("model-200")
    browser.wait_until("document.querySelectorAll('[aria-label=Models] tbody tr').length === 1")
    browser.wait_for("2 in all")
    browser.wait_for("p99 ")
    row = browser.run("[...document.querySelectorAll('[aria-label=Models] td')].map(cell => cell.innerText)")
    heads = browser.run("[...document.querySelectorAll('[aria-label=Models] th')].map(head => head.innerText)")
    shown = dict(zip(heads, row, strict=True))
    assert (shown["Failures"], shown["Batch size"], shown["Waiting"]) == ("1", "1", "0")
    assert shown["Model"] == "model-200\nlabels · Worker 0", "nodes are shown only if there are any"


def test_two_evaluations_are_compared_and_the_differences_marked(browser: Browser) -> None:
    browser.open("#/jobs/evaluated-before")
    browser.wait_for("Macro F1")
    browser.click("a", "Compare")
    browser.wait_for("+0.050 better")
    browser.choose("A", "evaluated")
    browser.choose("B", "evaluated-before")
    browser.wait_for("−0.050 worse")
    rows = browser.run("[...document.querySelectorAll('tbody tr')].map(row => row.innerText.replaceAll('\\t', ' '))")
    assert rows == [
        "Rows 1,000 1,000 –",
        "Macro F1 0.750 0.700 −0.050 worse",
        "Accuracy 0.750 0.720 −0.030 worse",
        "Time per row 4 ms 2 ms −2 ms better",
        "praise 0.747 0.646 −0.101 worse",
    ]
    assert "a=evaluated&b=evaluated-before" in browser.run("location.hash")
    browser.open("#/compare?a=evaluated&b=job-001")
    browser.wait_for("There is no result: ")


def test_a_file_is_dropped_checked_and_trained_on(browser: Browser) -> None:
    browser.open("#/jobs")
    browser.wait_for("job-499")
    good = "".join(f"a {word} day\t{label}\t1\n" for word in "abcdefgh" for label in ("good", "bad"))
    drop = (
        "const files = new DataTransfer(); files.items.add(new File([arguments[0]], '<b>rows</b>.tsv'));"
        "document.querySelector('main').dispatchEvent("
        "new DragEvent('drop', {dataTransfer: files, bubbles: true, cancelable: true}))"
    )
    browser.driver.execute_script(drop, "only one column\n" * 60)
    browser.wait_for("This did not work: ")
    browser.wait_for("errors: 61")
    browser.wait_for("1–25 of 61")
    browser.click("button", "Next")
    browser.wait_until("document.querySelector('tbody td:nth-child(2)').innerText === '26'")
    assert "Train on it" not in browser.text()
    browser.driver.execute_script(drop, good)
    browser.wait_for("The file is in the data bucket: uploads/")
    browser.wait_for("rows: 16")
    assert browser.run("document.querySelectorAll('main b > *, main strong b').length") == 0
    browser.click("a", "Train on it")
    browser.wait_until("document.querySelector('[name=location]')?.value.endsWith('/<b>rows</b>.tsv')")
    browser.tab_to("Start training")
    browser.press(Keys.ENTER)
    browser.wait_for("16 rows were read")


def test_a_file_is_chosen_with_the_keyboard(browser: Browser, tmp_path: Path) -> None:
    file = tmp_path / "rows.tsv"
    file.write_text("good day\tgood\n", encoding="utf-8")
    browser.open("#/data")
    browser.wait_for("Drop a file here, or choose one")
    browser.tab_to("Drop a file here")
    browser.wait_until_drawn_again()
    assert browser.run("document.activeElement.type") == "file"
    for _ in range(2):
        browser.find("input[type=file]").send_keys(str(file))
        browser.wait_for("This did not work: ")
        browser.wait_until("document.querySelector('input[type=file]').value === ''")
    assert browser.problems() == []


def test_an_upload_shows_how_far_it_is_and_can_be_stopped(signed_out: Browser, tmp_path: Path) -> None:
    large, small = tmp_path / "large.tsv", tmp_path / "small.tsv"
    rows = "a good day\tgood\t1\na bad day\tbad\t1\n"
    large.write_text(rows * (MIB // 4), encoding="utf-8")
    small.write_text(rows, encoding="utf-8")
    command = ("-m", "mlpkit", "run", f"{SCRIPT}:rows")
    taking = Service("default", command=command, MLP_CLIENT_WORKER="1", MLPKIT_UPLOAD="on")
    home = Path(taking.folder.name) / "home"

    def kept() -> list[Path]:
        return [*(home / "uploads").glob("*"), *(home / "storage" / "ml-platform-data").rglob("*.tsv")]

    try:
        with Relay(f"127.0.0.1:{taking.port}") as relay, relay.slowed(MIB):
            signed_out.driver.get(f"http://{relay.endpoint}/#/data")
            signed_out.find("input[type=file]").send_keys(str(large))
            signed_out.wait_until("document.querySelector('progress')?.getAttribute('value') > 0")
            shown = signed_out.run(
                "[document.querySelector('progress').value, document.querySelector('main').innerText]"
            )
            assert 0 < shown[0] < 1
            assert re.search(r"Sending the file…\s+[1-9]\d? %", shown[1])
            wait_until(lambda: len(kept()) == 1, "the service receives it")
            signed_out.click("button", "Stop")
            signed_out.wait_for("The service keeps nothing")
            wait_until(lambda: kept() == [], "nothing is left")
            signed_out.find("input[type=file]").send_keys(str(small))
            signed_out.wait_for("The file is in the data bucket")
            assert [file.name for file in kept()] == ["small.tsv"]
    finally:
        taking.stop()


def test_page_says_how_to_allow_uploads(signed_out: Browser, plain: Service) -> None:
    signed_out.driver.get(f"http://127.0.0.1:{plain.port}/#/data")
    signed_out.wait_for("MLPKIT_UPLOAD=on")
    assert signed_out.driver.find_elements("css selector", "input[type=file]") == []


def test_docs_lists_every_route(signed_out: Browser, plain: Service) -> None:
    signed_out.driver.get(f"http://127.0.0.1:{plain.port}/docs")
    paths = plain.get("/openapi.json").json["paths"]
    signed_out.wait_until(f"document.querySelectorAll('#routes > details').length === {len(paths)}")
    assert [path for path in paths if path not in signed_out.text()] == []
    assert signed_out.run("document.querySelectorAll('input[type=file]').length") == 1


def test_hostile_text_is_only_text(browser: Browser, service: Service) -> None:
    rest = '"model_path": "", "data": {"<b>": "<i>"}, "extend": {}'
    body = f'{{"algorithm": "labels", "parameter": {{"mode": "hostile"}}, {rest}}}'
    model_id = service.post("/train", body, **AUTHORIZED).json["data"]["model_id"]
    browser.open(f"#/jobs/{model_id}")
    browser.wait_for("failed")
    browser.wait_until("document.querySelector('.log').innerText.includes('xxxx')")
    browser.wait_for("<script>window.hacked=1</script>")
    browser.wait_for("\\u202e")
    for place in ("#/jobs", "#/", "#/tryit?model=model-001"):
        browser.open(place)
        browser.wait_until("document.querySelector('main h1')")
    browser.click("button", "Predict")
    browser.wait_for("window.hacked=1")
    assert browser.run("window.hacked === undefined")
    assert "\u202e" not in browser.text()
    assert "\x1b" not in browser.text()
    assert browser.run("document.querySelectorAll('main script, main img, main b > *').length") == 0
    assert HOSTILE.startswith("<script>")


def test_a_service_that_is_gone_is_said_and_comes_back(browser: Browser) -> None:
    browser.open("#/workers")
    browser.wait_for("pid ")
    offline = {"offline": True, "latency": 0, "downloadThroughput": 0, "uploadThroughput": 0}
    browser.driver.execute_cdp_cmd("Network.enable", {})
    browser.driver.execute_cdp_cmd("Network.emulateNetworkConditions", offline)
    browser.wait_for("The service does not answer.")
    assert "pid " in browser.text()
    browser.click("a", "Models")
    browser.wait_until("document.querySelector('main h1')?.innerText === 'Models'")
    browser.wait_for("The service does not answer.")
    assert "You see the state of" not in browser.text(), "nothing is shown yet"
    online = {"offline": False, "latency": 0, "downloadThroughput": -1, "uploadThroughput": -1}
    browser.driver.execute_cdp_cmd("Network.emulateNetworkConditions", online)
    browser.wait_for("1–25 of 300")
    browser.wait_until("!document.body.innerText.includes('does not answer')")


@pytest.mark.parametrize(
    ("theme", "width", "places"),
    [
        ("light", 1280, ("#/", "#/jobs", "#/jobs/job-490", "#/tryit?model=model-001", "#/compare", "#/data")),
        ("dark", 390, ("#/jobs/evaluated", "#/train", "#/models", "#/workers", "#/compare", "#/data")),
        ("light", 390, ("#/jobs/none", "#/train?algorithm=rows")),
    ],
)
def test_every_view_is_accessible_and_fits(browser: Browser, theme: str, width: int, places: tuple[str, ...]) -> None:
    browser.driver.execute_script("localStorage.setItem('mlpkit-theme', arguments[0])", theme)
    found = {}
    for place in places:
        browser.open(place, width)
        browser.wait_until("document.querySelector('main h1') && !document.querySelector('[aria-busy]')")
        assert not browser.is_too_wide(), place
        assert browser.run("document.querySelector('[aria-current]').getBoundingClientRect().right <= innerWidth"), (
            place
        )
        if problems := browser.problems():
            found[place] = problems
    assert found == {}
