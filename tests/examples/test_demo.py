"""`make demo`, as a person runs it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from examples.demo import SENTENCES
from tests.servers import LONG

ROOT = Path(__file__).parents[2]


def test_demo_trains_asks_and_stops(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, ROOT / "examples" / "demo.py"],
        cwd=tmp_path,
        env=os.environ | {"TMPDIR": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=LONG,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    for sentence in SENTENCES:
        assert re.search(rf"[好差]评 +\d+\.\d  {sentence}", done.stdout), done.stdout
    assert list(tmp_path.iterdir()) == []
