"""The life of an algorithm in a few seconds, over HTTP, on the embedded store: `make demo`; `make serve` goes on.

It puts the data file into the store, starts `python -m mlpkit run examples/sentiment.py:app`, trains, loads, asks three
sentences, unloads and stops. The client lines are what a program of yours would write.
"""

import argparse
import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from mlpkit.client import Client
from mlpkit.settings import load_settings
from mlpkit.storage import open_storage

EXAMPLES = Path(__file__).resolve().parent
SENTENCES = ("老板热情，味道也好，下次还来。", "等了一个小时，菜还是凉的，太失望了。", "手机很好用，就是物流太慢。")


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--serve", action="store_true", help="leave the service running until Ctrl-C")
    arguments.add_argument("--port", type=int, default=0, help="port of the service (default: a free one)")
    options = arguments.parse_args()
    with tempfile.TemporaryDirectory(prefix="mlpkit-demo-") as home:
        environment = os.environ | {"MLPKIT_HOME": home, "MINIO_HOST": "", "ML_PLATFORM_CLIENT_API_PREFIX": "/"}
        storage = open_storage(load_settings(environment))
        storage.save(EXAMPLES / "data" / "sentiment.tsv", "ml-platform-data/sentiment.tsv")
        with running_service(environment, options.port or free_port()) as (client, process):
            model_id = use(client)
            if options.serve:
                invite(client.url, model_id)
                process.wait()
            else:
                client.unload("sentiment", model_id)
                print("unloaded; the service stops")


def use(client: Client) -> str:
    """Trains a model, loads it and asks it; the service keeps it loaded."""
    job = client.train("sentiment", data="sentiment.tsv", parameters={"c": 2.0})
    job.wait(timeout=300, progress=True)
    client.load("sentiment", job.model_id)
    for sentence in SENTENCES:
        best, *_ = client.predict(job.model_id, {"sentence": sentence}, {"top_n": 1})
        print(f"  {best['label']} {best['score']:5.1f}  {sentence}")
    return job.model_id


@contextlib.contextmanager
def running_service(environment: dict[str, str], port: int) -> Iterator[tuple[Client, subprocess.Popen[bytes]]]:
    """The service of `sentiment.py`, ready for work; it is stopped with SIGTERM and must then end with 0."""
    command = [sys.executable, "-m", "mlpkit", "run", str(EXAMPLES / "sentiment.py:app"), "--port", str(port)]
    log_path = Path(environment["MLPKIT_HOME"], "service.log")
    with log_path.open("wb") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
    try:
        with Client(f"http://127.0.0.1:{port}") as client:
            client.wait_ready(timeout=60)
            print(f"service ready at {client.url}")
            yield client, process
    except Exception:
        print(log_path.read_text(errors="replace")[-4000:], file=sys.stderr)
        raise
    finally:
        process.send_signal(signal.SIGTERM)
        code = process.wait(timeout=60)
    if code != 0:
        raise SystemExit(f"the service ended with {code}")


def invite(url: str, model_id: str) -> None:
    body = f'{{"model_id": "{model_id}", "features": {{"sentence": "味道很好"}}}}'
    print("\nIt runs until Ctrl-C. Ask it something:\n")
    print(f"  curl -s {url}/predict -H 'Content-Type: application/json' -d '{body}'\n", flush=True)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


if __name__ == "__main__":
    # A SIGTERM ends this as Ctrl-C does: the service is stopped, its folder removed.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with contextlib.suppress(KeyboardInterrupt):
        main()
