"""The storage's own memory: a few parts or chunks at a time, however large the objects are."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from mlpkit.settings import Settings, encode_settings
from tests.conftest import Report
from tests.servers import LONG

MIB = 1 << 20
SIZE = 256 * MIB

_GROWN = """
import sys
from pathlib import Path

from mlpkit.settings import decode_settings
from mlpkit.storage import open_storage

def highest():
    status = Path("/proc/self/status").read_text().splitlines()
    return int(next(each for each in status if each.startswith("VmHWM")).split()[1]) / 1024

settings, large, path = sys.argv[1:]
storage = open_storage(decode_settings(Path(settings).read_bytes()))
storage.save(settings, path)
storage.release(storage.fetch(path))
start = highest()
storage.save(large, path)
saved = highest()
storage.fetch(path)
storage.delete(path)
print(saved - start, highest() - start)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux says how much memory a process has had at most")
def test_memory_stays_flat_while_a_large_object_is_saved_and_fetched(
    s3_settings: Settings, tmp_path: Path, report: Report
) -> None:
    (tmp_path / "settings.json").write_bytes(encode_settings(s3_settings.with_options(storage_timeout=30.0)))
    with (tmp_path / "large").open("wb") as file:
        file.truncate(SIZE)
    files = [str(tmp_path / each) for each in ("settings.json", "large")]
    command = [sys.executable, "-c", _GROWN, *files, f"{s3_settings.data_bucket}/large"]

    try:
        done = subprocess.run(command, check=True, timeout=LONG, capture_output=True, text=True)
    finally:
        (tmp_path / "large").unlink()
        shutil.rmtree(s3_settings.cache_path, ignore_errors=True)

    saved, both = (float(each) for each in done.stdout.split())
    report(f"{SIZE // MIB} MiB: {saved:.0f} MiB of memory to save it, {both:.0f} with fetching it")
    assert both < 176, "at most ten parts of 16 MiB at a time"
