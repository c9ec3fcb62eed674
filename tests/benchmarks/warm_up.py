"""How much slower the first prediction after a load is: `python -m tests.benchmarks.warm_up`, about a minute.

The goal is at most three times the median of the following ones. Without a warm-up it shows what is saved.
"""

from __future__ import annotations

import shutil
import statistics
import tempfile
import time
from pathlib import Path

from tests.acceptance.service import RunningService
from tests.corpora import ROOT
from tests.servers import LONG

ROUNDS = 9
PREDICTIONS = 100
SENTENCE = {"sentence": "味道很好，下次还来。"}


def main() -> None:
    script = (ROOT / "examples" / "sentiment.py").read_text(encoding="utf-8")
    for title, options in (("with a warm-up", ""), ("without", "(warm_up=False)")):
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            (folder / "warm.py").write_text(script.replace("@app.load", f"@app.load{options}"), encoding="utf-8")
            data = folder / "home" / "storage" / "ml-platform-data"
            data.mkdir(parents=True)
            shutil.copy(ROOT / "examples" / "data" / "sentiment.tsv", data)
            settings = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MLPKIT_LOG_LEVEL": "warning"}
            service = RunningService(f"{folder / 'warm.py'}:app", folder / "home", settings)
            try:
                service.wait_ready()
                print(title, shown(service))
            finally:
                service.stop()


def shown(service: RunningService) -> str:
    """The first prediction of each round beside the median of the others; a new worker has never predicted."""
    client = service.client
    job = client.train("sentiment", "sentiment.tsv")
    job.wait(LONG)
    ratios = []
    for _ in range(ROUNDS):
        client.load("sentiment", job.model_id)
        seconds = []
        for _ in range(PREDICTIONS):
            began = time.perf_counter()
            client.predict(job.model_id, SENTENCE)
            seconds.append(time.perf_counter() - began)
        ratios.append(seconds[0] / statistics.median(seconds[1:]))
        client.unload("sentiment", job.model_id)
    return ", ".join(f"{ratio:.1f}" for ratio in ratios) + f" times the median; median {statistics.median(ratios):.1f}"


if __name__ == "__main__":
    main()
