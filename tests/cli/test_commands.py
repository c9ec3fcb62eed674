"""The commands that need no service: what they print, and with which code they exit."""

from __future__ import annotations

import json
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

import mlpkit as mlpkit_package
from tests.cli.conftest import Run, environment_of
from tests.servers import LONG

PACKAGE = Path(mlpkit_package.__file__).parent

COMMANDS = (
    *("run", "new", "train", "predict", "evaluate", "compare", "check"),
    *("jobs", "status", "logs", "stack", "cancel", "models", "load", "unload", "alias", "version"),
)
GOOD = "a good day\tgood\t1\nbad weather\tbad\t1\n"
TALKATIVE = """
import subprocess
from mlpkit import App, ModelDir, TrainData

print("imported")
app = App("talkative", kind="text_classification")

@app.train
def train(data: TrainData, out: ModelDir):
    print("training")
    subprocess.run(["echo", "from a child"])

@app.load
def load():
    print("loading")

@app.predict
def predict(model):
    print("predicting")
    return []
"""

READING = """
import json
from mlpkit import App, ModelDir, TrainData

app = App("reading", kind="text_classification", examples=[{"sentence": "a"}])

@app.train
def train(data: TrainData, extend: dict, out: ModelDir):
    pretrained = data.pretrained()
    weights = pretrained / "weights.txt" if pretrained.is_dir() else pretrained
    seen = {"rows": len(list(data.rows())), "keep": extend.get("keep")}
    files = {"dictionary": data.dictionary(), "extra": data.extra(), "pretrained": weights}
    seen |= {name: file.read_text(encoding="utf-8") for name, file in files.items()}
    (out / "seen.json").write_text(json.dumps(seen))

@app.load
def load(files: ModelDir):
    return None

@app.predict
def predict(model):
    return [{"label": "a", "score": 1.0}]
"""


def test_the_command_line_loads_nothing_heavy_before_the_command_is_known() -> None:
    heavy = "{'rich', 'starlette', 'uvicorn', 'minio', 'urllib3', 'asyncio', 'psutil', 'loguru', 'anyio'}"
    code = f"import sys, mlpkit.cli; print(sorted({heavy} & set(sys.modules)))"
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
    )


def test_help_lists_the_commands_in_the_order_in_which_they_are_needed(mlpkit: Run) -> None:
    shown = mlpkit("--help", COLUMNS="80").stdout
    listed = [line.split()[0] for line in shown.partition("Commands:\n")[2].splitlines()]
    assert listed == [*COMMANDS, "data", "db"]
    assert "..." not in shown.partition("Commands:")[2], "a sentence is cut off"
    assert mlpkit("-h").stdout == mlpkit("--help").stdout


@pytest.mark.parametrize(
    "command", [[name] for name in COMMANDS] + [["data", "check"], ["data", "convert"], ["db", "init"]], ids=" ".join
)
def test_help_of_a_command_explains_its_arguments_and_shows_an_example(mlpkit: Run, command: list[str]) -> None:
    shown = mlpkit(*command, "--help")
    assert shown.returncode == 0
    usage, _, rest = shown.stdout.partition("\n")
    text, _, options = rest.partition("\nOptions:\n")
    assert re.search(rf"^  Examples?:\n    .*mlpkit {' '.join(command)}", text, re.MULTILINE), text
    assert all(argument in text for argument in re.findall(r"(?<= )[A-Z]+\b", usage)), usage
    assert "-h, --help" in options


def test_no_command_at_all_shows_the_help_and_is_a_mistake(mlpkit: Run) -> None:
    for group in ([], ["data"], ["db"]):
        ended = mlpkit(*group)
        assert (ended.returncode, ended.stdout) == (2, "")
        assert ended.stderr == mlpkit(*group, "--help").stdout


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["trian", "mood.py"], "No such command 'trian'. Did you mean 'train'?"),
        (["data", "chek"], "No such command 'chek'. Did you mean 'check'?"),
        (["训练"], "No such command '训练'."),
        (["run", "mood.py", "--wokers", "2"], "No such option '--wokers'. Did you mean '--workers'?"),
        (["run"], "Missing argument 'TARGET'."),
        (["predict", "mood.py"], "Missing option '--model'."),
        (["run", "mood.py", "--port", "65536"], "Invalid value for '--port': 65536 is not in the range 0<=x<=65535."),
        (
            ["check", "mood.py", "--timeout", "soon"],
            "Invalid value for '--timeout': 'soon' is not a valid float range.",
        ),
    ],
)
def test_a_wrong_command_line_ends_with_one_message_and_the_help_to_ask_for(
    mlpkit: Run, arguments: list[str], sentence: str
) -> None:
    ended = mlpkit(*arguments)
    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr.endswith(f"Error: {sentence}\n")
    assert "--help' for help." in ended.stderr


def test_reload_without_its_package_says_what_to_install(mlpkit: Run, folder: Path) -> None:
    (folder / "watchfiles.py").write_text("raise ImportError", encoding="utf-8")
    ended = mlpkit("run", "mood.py", "--reload")
    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr == "error: --reload needs the package watchfiles: pip install 'mlpkit[reload]'\n"


def test_ctrl_c_ends_a_command_with_130(folder: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        silent.settimeout(LONG)
        process = subprocess.Popen(
            [sys.executable, "-m", "mlpkit", "jobs", "--url", f"http://127.0.0.1:{silent.getsockname()[1]}"],
            env=environment_of(folder / "home"),
            stderr=subprocess.PIPE,
        )
        with silent.accept()[0]:
            process.send_signal(signal.SIGINT)
            _, error = process.communicate(timeout=LONG)
    assert (process.returncode, error.strip()) == (130, b"")


def test_version_names_python_and_the_packages(mlpkit: Run) -> None:
    shown = mlpkit("version")
    assert shown.returncode == 0
    assert shown.stdout.startswith("mlpkit 0.")
    assert "starlette" in shown.stdout


@pytest.mark.parametrize(
    ("script", "sentence"),
    [
        ("from mlpkit import App\napp = App('a')\n@app.train\ndef train(dta): pass\n", "did you mean 'data'"),
        ("from mlpkit import App\napp = App('a')\n", "has no algorithm"),
        ("import nosuchmodule\n", "No module named 'nosuchmodule'; is it installed for"),
        ("from mlpkit import Ap\n", "did you mean 'App'"),
        ("from mlpkit import App\napp = Ap('a')\n", "'Ap' is not defined, did you mean 'App'"),
        ("x = 1\n", "has no app"),
    ],
)
def test_a_mistake_in_the_script_ends_run_with_one_message(
    mlpkit: Run, folder: Path, script: str, sentence: str
) -> None:
    (folder / "mistaken.py").write_text(script, encoding="utf-8")
    ended = mlpkit("run", "mistaken.py")
    assert ended.returncode == 2
    assert sentence in ended.stderr
    assert "Traceback" not in ended.stderr


def test_a_wrong_setting_ends_run_with_one_message(mlpkit: Run) -> None:
    for name, value, sentence in [("MLPKIT_HOEM", "x", "did you mean"), ("MLP_TRAIN_TASK_NUM", "0", "at least 1")]:
        ended = mlpkit("run", "mood.py", **{name: value})
        assert (ended.returncode, sentence in ended.stderr, "Traceback" in ended.stderr) == (2, True, False)
    assert "one of trace, debug" in mlpkit("run", "mood.py", "--log-level", "loud").stderr


def test_train_and_predict_run_in_the_foreground(mlpkit: Run, folder: Path) -> None:
    trained = mlpkit(
        "train", "mood.py", "-a", "mood", "--parameters", '{"steps": 3, "seconds": 1}', "--model-id", "m-1"
    )
    assert trained.returncode == 0, trained.stderr
    place = Path(trained.stdout.strip())
    assert (place / "model.json").is_file()
    assert (place / "mlpkit.json").is_file()
    assert "training count" in trained.stderr
    assert "a line of the job" in trained.stderr
    copy = folder / "copied-model"
    place.rename(copy)
    for model in (str(copy), "missing"):
        predicted = mlpkit("predict", "mood.py", "-a", "mood", "--model", model, "--features", '{"sentence": "好"}')
        if model == "missing":
            assert predicted.returncode == 1
            assert predicted.stderr.startswith(
                "error: model 'missing' does not exist: there is no such folder here, and"
            )
            assert predicted.stderr.count("\n") == 1
        else:
            assert json.loads(predicted.stdout)[0] == {"label": "good", "score": 80.0}
    assert not any((folder / "home" / "storage" / "ml-platform-model").rglob("*.json"))


def test_only_the_result_goes_to_stdout_whatever_the_script_prints(mlpkit: Run, folder: Path) -> None:
    script = folder / "talkative.py"
    script.write_text(TALKATIVE, encoding="utf-8")
    (folder / "rows.tsv").write_text(GOOD, encoding="utf-8")
    trained = mlpkit("train", "talkative.py", "--data", "rows.tsv", "--model-id", "m-2")
    place = trained.stdout.rstrip("\n")
    assert Path(place).is_dir(), trained.stdout
    assert {"imported", "training", "from a child"} <= set(trained.stderr.splitlines())
    assert "rows.tsv, line 1: the label 'good' has 1 example" in trained.stderr
    predicted = mlpkit("predict", "talkative.py", "--model", place, "--features", "{}")
    assert predicted.stdout == "[]\n"
    missing = mlpkit("train", "talkative.py")
    assert (missing.returncode, "give it with --data FILE" in missing.stderr) == (2, True)


def test_a_training_takes_local_files(mlpkit: Run, folder: Path) -> None:
    (folder / "reading.py").write_text(READING, encoding="utf-8")
    pretrained = folder / "pretrained"
    pretrained.mkdir()
    (pretrained / "weights.txt").write_text("权重", encoding="utf-8")
    # The same name in two roles: neither may replace the other.
    (folder / "words.txt").write_text("词典", encoding="utf-8")
    (folder / "other").mkdir()
    (folder / "other" / "words.txt").write_text("额外", encoding="utf-8")
    (folder / "rows.tsv").write_text(GOOD, encoding="utf-8")
    files = ["--data", "rows.tsv", "--dictionary", "words.txt", "--extra", "other/words.txt"]
    expected = {"rows": 2, "dictionary": "词典", "extra": "额外", "pretrained": "权重", "keep": "x"}
    trained = mlpkit(
        *["train", "reading.py", *files, "--pretrained", "pretrained", "--extend", '{"keep": "x"}'],
    )
    assert trained.returncode == 0, trained.stderr
    assert json.loads((Path(trained.stdout.strip()) / "seen.json").read_text(encoding="utf-8")) == expected
    assert not [file for file in (folder / "home" / "storage" / "ml-platform-data").rglob("*") if file.is_file()]
    checked = mlpkit("check", "reading.py", *files, "--pretrained", "pretrained/weights.txt", "--json")
    assert checked.returncode == 0, checked.stdout + checked.stderr


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--dictionary", "nosuch.txt"], "error: dictionary: there is no file /"),
        (["--extra", "."], "is a folder; it must be a file"),
        (["--pretrained", "nosuch"], "error: pretrained: there is no file or folder /"),
        (["--dictionary", "mood.py", "--extend", '{"dict_location": "a"}'], "extend already has dict_location: 'a'"),
        (["--pretrained", "mood.py", "--parameters", "[]"], "parameters must be an object"),
    ],
)
def test_local_files_that_cannot_be_taken_are_refused(mlpkit: Run, arguments: list[str], sentence: str) -> None:
    refused = mlpkit("train", "mood.py", "-a", "mood", *arguments)
    assert (refused.returncode, sentence in refused.stderr) == (2, True), refused.stderr
    assert "Traceback" not in refused.stderr


def test_an_empty_model_is_no_folder(mlpkit: Run) -> None:
    # `--model "$MODEL"` after `MODEL=$(mlpkit train ...)` has failed.
    asked = mlpkit("predict", "mood.py", "-a", "mood", "--model", "", "--features", "{}")
    assert (asked.returncode, asked.stderr.startswith("error: the model is empty")) == (2, True), asked.stderr


def test_a_failed_training_shows_the_traceback_and_exits_with_1(mlpkit: Run) -> None:
    failed = mlpkit("train", "mood.py", "-a", "mood", "--parameters", '{"fail": "no such column"}')
    assert failed.returncode == 1
    assert "in train" in failed.stderr
    assert failed.stderr.endswith("error: ValueError: no such column\n")
    assert "mlpkit/cli" not in failed.stderr


def test_wrong_arguments_of_a_training_are_refused(mlpkit: Run) -> None:
    for arguments, sentence in [
        (["-a", "mood", "--parameters", '{"steps": "x"}'], "[parameter"),
        (["-a", "mood", "--parameters", "{"], "is not valid JSON"),
        (["-a", "mood", "--parameters", "@nosuch.json"], "cannot be read"),
        (["-a", "mood", "--data", "nosuch.tsv"], "there is no file"),
        (["-a", "moody"], "no algorithm 'moody', did you mean 'mood'"),
        ([], "name one with --algorithm"),
    ]:
        refused = mlpkit("train", "mood.py", *arguments)
        assert (refused.returncode, sentence in refused.stderr) == (2, True), refused.stderr


def test_parameters_in_a_file_that_is_not_utf8_are_refused(mlpkit: Run, folder: Path) -> None:
    (folder / "gb.json").write_bytes('{"fail": "好"}'.encode("gb18030"))
    refused = mlpkit("train", "mood.py", "-a", "mood", "--parameters", "@gb.json")
    assert (refused.returncode, "Traceback" in refused.stderr) == (2, False), refused.stderr
    assert "--parameters '@gb.json' is not valid JSON" in refused.stderr


def test_a_breakpoint_in_train_gets_the_terminal(mlpkit: Run, folder: Path) -> None:
    script = folder / "mood.py"
    text = script.read_text(encoding="utf-8").replace(
        "    if parameters.fail:", "    breakpoint()\n    if parameters.fail:"
    )
    script.write_text(text, encoding="utf-8")
    ended = mlpkit("train", "mood.py", "-a", "mood", input="p parameters\nc\n")
    assert ended.returncode == 0, ended.stderr
    assert "Course(fail='', seconds=0.0, steps=0, metrics={}, files={})" in ended.stderr


def test_data_check_shows_every_broken_row(mlpkit: Run, folder: Path) -> None:
    (folder / "good.tsv").write_text(GOOD, encoding="utf-8")
    (folder / "broken.tsv").write_text(GOOD + "no label\na day\tgood\t7\n", encoding="utf-8")
    good = mlpkit("data", "check", "good.tsv", "--kind", "text_classification")
    assert (good.returncode, "it can be trained on" in good.stdout) == (0, True)
    broken = mlpkit("data", "check", "broken.tsv", "--kind", "text_classification")
    assert (broken.returncode, "it cannot be trained on" in broken.stdout) == (1, True)
    report = json.loads(mlpkit("data", "check", "broken.tsv", "-k", "text_classification", "--json").stdout)
    assert [each["line"] for each in report["findings"] if each["severity"] == "error"] == [3, 4]
    assert report["labels"]["good"]["positive"] == 1
    wrong = mlpkit("data", "check", "good.tsv", "--kind", "text_clasification")
    assert (wrong.returncode, "did you mean 'text_classification'" in wrong.stderr) == (2, True)


def test_data_check_looks_at_test_rows_beside_the_training_data(mlpkit: Run, folder: Path) -> None:
    (folder / "good.tsv").write_text(GOOD, encoding="utf-8")
    (folder / "tests.tsv").write_text(GOOD.splitlines()[0] + "\n", encoding="utf-8")
    (folder / "broken.tsv").write_text("no label\n", encoding="utf-8")
    command = ("data", "check", "good.tsv", "--kind", "text_classification", "--test")

    good = mlpkit(*command, "tests.tsv")
    assert (good.returncode, good.stdout.count("it can be trained on")) == (0, 2)
    report = json.loads(mlpkit(*command, "tests.tsv", "--json").stdout)
    assert (report["rows"], report["test"]["rows"], report["test"]["warnings"] > 0) == (2, 1, True)
    assert mlpkit(*command, "broken.tsv").returncode == 1


def test_data_check_takes_the_kind_from_the_app(mlpkit: Run, folder: Path) -> None:
    (folder / "talk.py").write_text(TALKATIVE, encoding="utf-8")
    (folder / "good.tsv").write_text(GOOD, encoding="utf-8")

    assert "2 rows" in mlpkit("data", "check", "good.tsv", "--app", "talk.py").stdout
    assert "2 rows" in mlpkit("data", "check", "good.tsv", "--app", "talk:app", "--kind", "text_custom").stdout
    wrong = mlpkit("data", "check", "good.tsv")
    assert (wrong.returncode, "--kind KIND, or --app TARGET" in wrong.stderr) == (2, True)


def test_engine_that_does_not_exist_is_one_line(mlpkit: Run, folder: Path) -> None:
    (folder / "talk.py").write_text(TALKATIVE, encoding="utf-8")

    wrong = mlpkit("run", "talk.py", "--engine", "locale", "--port", "0")

    assert wrong.returncode == 2
    assert "unknown engine 'locale', did you mean 'local'?: one of local" in wrong.stderr
    assert "Traceback" not in wrong.stderr


def test_data_check_names_another_format_and_data_convert_reads_it(mlpkit: Run, folder: Path) -> None:
    (folder / "train.bio").write_text("李 B-PER\n华 I-PER\n住 O\n\n杭 I-LOC\n州 I-LOC\n", encoding="utf-8")
    checked = mlpkit("data", "check", "train.bio", "--kind", "text_sequence_labeling", "--json")
    assert checked.returncode == 1
    (finding,) = json.loads(checked.stdout)["findings"]
    assert (finding["code"], "mlpkit data convert FILE train.txt --from bio" in finding["message"]) == (
        "other-format",
        True,
    )
    refused = mlpkit("data", "convert", "train.bio", "train.txt")
    assert (refused.returncode, "--repair" in refused.stderr, (folder / "train.txt").exists()) == (1, True, False)
    done = mlpkit("data", "convert", "train.bio", "train.txt", "--repair")
    assert (done.returncode, done.stdout) == (0, "train.txt: 2 sentences, 2 entities, 1 sentence repaired\n")
    assert (folder / "train.txt").read_text(encoding="utf-8") == "<START:PER>李华<END>住\n<START:LOC>杭州<END>\n"
    assert mlpkit("data", "convert", "train.txt", "back.bio", "--from", "markup", "--to", "bio").returncode == 0
    assert (folder / "back.bio").read_text(encoding="utf-8").startswith("李 B-PER\n华 I-PER\n住 O\n\n杭 B-LOC\n")
    assert mlpkit("data", "convert", "train.txt", "back.bio", "--to", "iob").returncode == 2


@pytest.mark.parametrize("kind", ["text_classification", "text_sequence_labeling"])
def test_a_new_project_works_as_it_is(mlpkit: Run, folder: Path, kind: str) -> None:
    assert mlpkit("new", "my-mood", "--kind", kind).returncode == 0
    project = folder / "my-mood"
    made = {file.relative_to(project).as_posix() for file in project.rglob("*") if file.is_file()}
    (wheel,) = project.glob("wheels/*.whl")
    assert made == {
        "my_mood.py",
        "test_my_mood.py",
        "data/train.tsv",
        "Dockerfile",
        "requirements.txt",
        "wheels/README.md",
        f"wheels/{wheel.name}",
    }
    # Its own test asks about English and Chinese sentences.
    tested = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"],
        cwd=project,
        env=environment_of(project),
        capture_output=True,
        text=True,
        timeout=LONG,
    )
    assert "1 passed" in tested.stdout, tested.stdout + tested.stderr
    checked = mlpkit("data", "check", str(project / "data" / "train.tsv"), "--kind", kind)
    assert "0 errors, 0 warnings" in checked.stdout
    again = mlpkit("new", "my-mood")
    assert (again.returncode, "exists already" in again.stderr) == (2, True)


def files_of(package: Path) -> set[Path]:
    """Without folders: one that had modules in an older commit may be left, with what Python has compiled."""
    found = (file for file in package.rglob("*") if file.is_file() and "__pycache__" not in file.parts)
    return {file.relative_to(package) for file in found}


def test_a_new_project_can_be_installed_without_an_index_that_has_mlpkit(mlpkit: Run, folder: Path) -> None:
    assert mlpkit("new", "mood-2").returncode == 0
    project = folder / "mood-2"
    place = folder / "installed"
    # As the Dockerfile does, but without the dependencies, which every index has.
    options = ["--no-index", "--no-deps", "--find-links", "wheels", "--target", str(place), "-r", "requirements.txt"]
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *options]
    installed = subprocess.run(command, cwd=project, capture_output=True, text=True, timeout=LONG)
    assert installed.returncode == 0, installed.stderr
    shown = mlpkit("version", PYTHONPATH=str(place))
    assert shown.stdout == mlpkit("version").stdout
    assert files_of(place / "mlpkit") == files_of(PACKAGE)
    dockerfile = (project / "Dockerfile").read_text(encoding="utf-8")
    assert "--find-links wheels -r requirements.txt" in dockerfile


def test_a_project_of_a_kind_without_a_template_is_refused(mlpkit: Run, folder: Path) -> None:
    refused = mlpkit("new", "mood-3", "--kind", "text_clasification")
    assert (refused.returncode, "did you mean 'text_classification'?" in refused.stderr) == (2, True), refused.stderr
    assert not (folder / "mood-3").exists()


@pytest.mark.parametrize("name", ["class", "1st", "a b", "../up", "x" * 33, "random", "MLPkit"])
def test_a_project_needs_a_name_that_python_can_import(mlpkit: Run, name: str) -> None:
    refused = mlpkit("new", name)
    assert (refused.returncode, "not a name for a project" in refused.stderr) == (2, True)


def test_check_exits_with_its_verdict(mlpkit: Run, folder: Path) -> None:
    checked = mlpkit("check", "mood.py", "-a", "mood", "--json", "--junit", "check.xml")
    assert checked.returncode == 0, checked.stdout + checked.stderr
    report = json.loads(checked.stdout)
    assert (report["passed"], report["algorithm"]) == (True, "mood")
    assert (folder / "check.xml").is_file()
    failed = mlpkit("check", "mood.py", "-a", "mood", "--features", '{"sentence": "boom"}')
    assert failed.returncode == 1
    assert "division by zero" in failed.stdout
    assert "1 failed" in failed.stdout
