"""`os.chdir` in the author's code moves nothing of the service: its paths are absolute before that code runs."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from mlpkit.testing import TestService
from tests.acceptance.service import RunningService
from tests.servers import LONG

SCRIPT = Path(__file__).parent / "scripts" / "wanderer.py"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The working directory of the service: the script, a module beside it, training data, settings."""
    folder = tmp_path / "here"
    folder.mkdir()
    shutil.copy(SCRIPT, folder)
    (folder / "beside_the_script.py").write_text("NAME = 'beside: '\n")
    (folder / "data.txt").write_text("trained")
    (folder / ".env").write_text("MLPKIT_HOME=home\nMLPKIT_CACHE_DIR=cache\n")
    (tmp_path / "there").mkdir()
    return folder


@pytest.mark.parametrize("hook", ["import", "train", "load", "predict"])
def test_the_files_of_a_service_stay_where_they_are(folder: Path, hook: str) -> None:
    there = folder.parent / "there"
    with contextlib.ExitStack() as exits:
        service = RunningService(
            "wanderer:app",
            folder / "home",
            {"WANDER_IN": hook, "WANDER_TO": str(there), "MLPKIT_HOME": "home", "MLPKIT_SHUTDOWN_GRACE": "2"},
        )
        exits.callback(service.stop)
        service.wait_ready()
        data = folder / "home" / "storage" / "ml-platform-data" / "data.txt"
        data.parent.mkdir(parents=True)
        shutil.copy(folder / "data.txt", data)

        for _ in range(2):
            job = service.client.train("wanderer", "data.txt")
            job.wait(LONG)
            service.client.load("wanderer", job.model_id)
            for _ in range(2):
                assert service.client.predict(job.model_id, {})[0] == "beside: trained"

    assert list(there.iterdir()) == []
    assert {path.name for path in folder.iterdir()} >= {"home", "cache"}


@pytest.mark.parametrize("hook", ["import", "train", "load"])
def test_the_files_of_the_commands_stay_where_they_are(folder: Path, hook: str) -> None:
    there = folder.parent / "there"
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("MLPKIT_", "MLP_", "MINIO_"))}

    def mlpkit(*arguments: str) -> str:
        command = [sys.executable, "-m", "mlpkit", *arguments]
        environment = {**kept, "WANDER_IN": hook, "WANDER_TO": str(there)}
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=LONG)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    (folder / "parameters.json").write_text("{}")
    model = mlpkit("train", "wanderer.py", "--data", "data.txt", "--parameters", "@parameters.json")
    predicted = mlpkit("predict", "wanderer.py", "--model", os.path.relpath(model, folder), "--features", "{}")

    assert "beside: trained" in predicted
    assert model.startswith(str(folder / "home" / "storage"))
    assert list(there.iterdir()) == []


@pytest.mark.parametrize("hook", ["train", "load", "predict"])
def test_the_files_of_the_test_kit_stay_where_they_are(
    folder: Path, monkeypatch: pytest.MonkeyPatch, hook: str
) -> None:
    from mlpkit.script import import_app

    monkeypatch.setenv("WANDER_IN", hook)
    monkeypatch.setenv("WANDER_TO", str(folder.parent / "there"))
    monkeypatch.setattr(sys, "path", [str(folder), *sys.path])
    monkeypatch.chdir(folder)
    for name in ("wanderer", "beside_the_script"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    with TestService(import_app("wanderer.py"), cache_dir=folder / "cache") as service:
        for _ in range(2):
            model_id = service.trained("wanderer", folder / "data.txt")
            service.client.load("wanderer", model_id)
            assert service.client.predict(model_id, {})[0] == "beside: trained"

    assert list((folder.parent / "there").iterdir()) == []
