"""The list of loaded models on disk: written when it changes, and only then."""

from __future__ import annotations

from pathlib import Path

import pytest

from mlpkit.serving.model import LoadedModelRecord
from mlpkit.serving.recovery import Ledger


@pytest.mark.anyio
async def test_models_that_are_loaded_again_after_a_restart_write_nothing(tmp_path: Path) -> None:
    file, entries = tmp_path / "models.json", [LoadedModelRecord("a", f"m-{number}") for number in range(3)]
    first = Ledger(file)
    for entry in entries:
        await first.add(entry)
    written = file.stat().st_mtime_ns

    again = Ledger(file)
    for entry in again.read():
        await again.add(entry)
    assert file.stat().st_mtime_ns == written

    await again.add(LoadedModelRecord("a", "m-1", "another/place"))
    assert Ledger(file).read()[1].model_path == "another/place"


@pytest.mark.parametrize("content", [b"[{", b'[{"algorithm": "\xff", "model_id": "m"}]'])
def test_a_damaged_list_loads_no_model(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "models.json").write_bytes(content)
    assert Ledger(tmp_path / "models.json").read() == []


@pytest.mark.anyio
async def test_what_could_not_be_written_is_written_with_the_next_load(tmp_path: Path) -> None:
    file, entry = tmp_path / "home" / "models.json", LoadedModelRecord("a", "m")
    file.parent.write_text("a file where the folder should be")
    ledger = Ledger(file)
    await ledger.add(entry)
    assert len(ledger.warnings()) == 1

    file.parent.unlink()
    await ledger.add(entry)
    assert ledger.warnings() == []
    assert Ledger(file).read() == [entry]
