"""How long `GET /models?stored=1` takes with 10,000 models in an S3 store: `python -m tests.benchmarks.stored`.

It takes some minutes: most of them to store the models, which are manifests alone.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import msgspec

from mlpkit.settings import Settings, load_settings
from mlpkit.storage import Manifest, StoredModels, open_storage
from tests.benchmarks.storage import seaweed_server

MODELS = 10_000
AT_ONCE = 8


def store(settings: Settings, folder: Path, count: int) -> None:
    storage = open_storage(settings)

    def put(number: int) -> None:
        manifest = Manifest(
            algorithm="a", kind="text_classification", model_id=f"m{number:05}", created=1e9 + number, files={"w": 1}
        )
        file = folder / f"manifest-{number}"
        file.write_bytes(msgspec.json.encode(manifest))
        storage.save(file, f"{settings.model_bucket}/{manifest.model_id}/mlpkit.json")
        file.unlink()

    put(0)
    with ThreadPoolExecutor(AT_ONCE) as threads:
        list(threads.map(put, range(1, count)))
    storage.close()


@contextmanager
def timed(what: str) -> Iterator[None]:
    began = time.perf_counter()
    yield
    print(f"{what}: {time.perf_counter() - began:.2f} s", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--models", type=int, default=MODELS)
    count = parser.parse_args().models
    with tempfile.TemporaryDirectory() as name, seaweed_server() as server:
        settings = load_settings({**server.environment, "MLPKIT_HOME": f"{name}/home"}, None)
        with timed(f"{count} models are stored"):
            store(settings, Path(name), count)
        for title in ("a service without an index", "a service with an index"):
            storage = open_storage(settings)
            models = StoredModels(storage, settings)
            with timed(f"{title}, first page"):
                page = models.page()
            print(f"  {len(page.models)} models, {page.unread} are not read yet")
            with timed(f"{title}, until all are read"):
                while models.page().unread:
                    time.sleep(0.1)
                # The index is written at the end.
                while models._filling is not None and not models._filling.done():
                    time.sleep(0.1)
            with timed(f"{title}, page again"):
                page = models.page()
            with timed(f"{title}, next page"):
                models.page(after=page.next)
            models.close()
            storage.close()


if __name__ == "__main__":
    main()
