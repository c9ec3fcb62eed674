"""The pytest plugin, in a pytest of its own, on the file of an author."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.cli.conftest import MOOD, environment_of
from tests.servers import LONG

AUTHOR = """
import mood


def test_it_answers(mlpkit_service):
    service = mlpkit_service(mood.app)
    model_id = service.trained("mood")
    service.client.load("mood", model_id)
    assert service.client.predict(model_id, {"sentence": "a"})[0]["label"] == "good"


def test_train_by_hand(mlpkit_model_dir, mlpkit_progress, mlpkit_log):
    mood.train(mood.Course(), mlpkit_model_dir, mlpkit_progress, mlpkit_log)
    assert (mlpkit_model_dir / "model.json").exists()
    assert mlpkit_log.lines


def test_store(mlpkit_storage, tmp_path):
    (tmp_path / "a").write_text("a")
    mlpkit_storage.save(tmp_path / "a", "ml-platform-data/a")
    assert mlpkit_storage.exists("ml-platform-data/a")
"""


def test_an_author_s_tests_use_the_fixtures_in_every_import_mode(tmp_path: Path) -> None:
    (tmp_path / "mood.py").write_text(MOOD.read_text(encoding="utf-8"), encoding="utf-8")
    (tmp_path / "test_author.py").write_text(AUTHOR, encoding="utf-8")
    for mode in ("prepend", "importlib"):
        options = ["-q", "-p", "mlpkit.testing.plugin", "-p", "no:cacheprovider", f"--import-mode={mode}"]
        ended = subprocess.run(
            [sys.executable, "-m", "pytest", *options],
            cwd=tmp_path,
            env=environment_of(tmp_path / "home"),
            capture_output=True,
            text=True,
            timeout=LONG,
        )
        assert "3 passed" in ended.stdout, ended.stdout + ended.stderr


ALONE = """
from mlpkit import App, ModelDir

app = App("alone")


@app.train
def train(out: ModelDir) -> None:
    (out / "trained").touch()


def test_it_trains(mlpkit_service):
    assert mlpkit_service(app).trained("alone")
"""


def test_an_app_in_a_test_file_is_found_by_the_training_process_though_no_path_leads_to_it(tmp_path: Path) -> None:
    folder = tmp_path / "elsewhere"
    other = tmp_path / "working-directory"
    folder.mkdir()
    other.mkdir()
    (folder / "test_alone.py").write_text(ALONE, encoding="utf-8")
    options = [
        "-q",
        "-p",
        "mlpkit.testing.plugin",
        "-p",
        "no:cacheprovider",
        "--import-mode=importlib",
        f"--rootdir={folder}",
    ]
    code = f"import sys, pytest; sys.path.remove(''); sys.exit(pytest.main({[*options, str(folder)]!r}))"
    ended = subprocess.run(
        [sys.executable, "-c", code],
        cwd=other,
        env=environment_of(tmp_path / "home"),
        capture_output=True,
        text=True,
        timeout=LONG,
    )
    assert "1 passed" in ended.stdout, ended.stdout + ended.stderr
