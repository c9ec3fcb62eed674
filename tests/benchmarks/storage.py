"""The storage beside what it could be compared with, as ratios of one run: `python -m tests.benchmarks.storage`.

A hit and a download are measured against nginx, which costs so little that what is seen is mlpkit's own part; `curl`
fetches the same object to the same disk in turn. Then the same with many other objects in the cache.

Uploads are measured against two whole S3 servers, beside `fput_object` in a loop, each with its files on a disk: Swift
as an operator runs it, with a worker for each core and a memcached (without one it asks for account and container with
every request, which doubles its work), and SeaweedFS. Here they have no machine of their own: they do most of the work,
and keep more than one core busy beside the loop already, so that on two cores hardly anybody is twice as fast. What a
client that costs nothing could reach at most is measured with it: the time of the loop, by the CPU time of the server
for `save_dir`, over all cores. Then the same with a network before them (`distance.py`), as a store mostly has.
"""

from __future__ import annotations

import argparse
import contextlib
import getpass
import os
import shutil
import signal
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import psutil
from minio import Minio

from mlpkit.settings import Settings, decode_settings, encode_settings
from mlpkit.storage import Storage, open_storage
from mlpkit.storage.cache import FileCache
from tests.benchmarks.distance import away
from tests.servers import S3Server, free_port, swift, wait_until
from tests.servers.ports import accepts
from tests.servers.seaweed import ACCESS_KEY, SECRET_KEY, seaweed

MIB = 1 << 20
BUCKET = "benchmark"
NEW = 400
"""Objects that are new to the caches in each round."""
ROUND_TRIPS = (1, 5)
"""Milliseconds to a store in the same data center, and in another of the region."""
_NGINX = """
daemon off;
pid {folder}/nginx.pid;
error_log {folder}/error.log;
worker_processes 1;
{user}
events {{ worker_connections 256; }}
http {{
    access_log off;
    sendfile on;
    keepalive_requests 1000000;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    server {{ listen 127.0.0.1:{port}; root {folder}; }}
}}
"""


@contextlib.contextmanager
def nginx(folder: Path) -> Iterator[int]:
    """Serves the files of a folder; its port."""
    program = shutil.which("nginx", path="/usr/sbin:/usr/local/sbin:/usr/bin:/usr/local/bin")
    if program is None or shutil.which("curl") is None:
        raise SystemExit("nginx and curl are needed: apt-get install nginx curl")
    port = free_port()
    user = f"user {getpass.getuser()};" if getpass.getuser() == "root" else ""
    (folder / "nginx.conf").write_text(_NGINX.format(folder=folder, port=port, user=user))
    process = subprocess.Popen(
        [program, "-e", str(folder / "error.log"), "-p", str(folder), "-c", str(folder / "nginx.conf")]
    )
    try:
        wait_until(lambda: accepts(port) or process.poll() is not None, "nginx listens")
        yield port
    finally:
        process.terminate()
        process.wait(10)


def seconds(run: Callable[[], object]) -> float:
    began = time.perf_counter()
    run()
    return time.perf_counter() - began


def write_random(file: Path, count: int) -> None:
    with file.open("wb") as content:
        for _ in range(count // MIB):
            content.write(os.urandom(MIB))


def settings_of(home: Path, server: S3Server, **options: object) -> Settings:
    return Settings(
        home=home,
        minio_host=server.endpoint,
        minio_access_key=server.access_key,
        minio_secret_key=server.secret_key,
        model_bucket=BUCKET,
    ).with_options(**options)


def grown(settings: Settings, method: str, *arguments: str) -> float:
    """By how many MiB a process of its own grows at most while it calls that method of the storage."""
    with tempfile.NamedTemporaryFile() as file:
        file.write(encode_settings(settings))
        file.flush()
        command = [sys.executable, "-m", "tests.benchmarks.storage", "--child", file.name, method, *arguments]
        return float(subprocess.run(command, check=True, capture_output=True, text=True, timeout=300).stdout)


def child(file: str, method: str, *arguments: str) -> None:
    storage = open_storage(decode_settings(Path(file).read_bytes()))
    with contextlib.suppress(Exception):
        storage.stat(f"{BUCKET}/small")  # Imports the client.
    before = highest()
    getattr(storage, method)(*arguments)
    print(highest() - before)


def highest() -> float:
    """The most memory that this process has had, in MiB; `ru_maxrss` would count its parent's before the exec."""
    line = next(each for each in Path("/proc/self/status").read_text().splitlines() if each.startswith("VmHWM"))
    return int(line.split()[1]) / 1024


def hit(settings: Settings, times: int) -> float:
    """Milliseconds of a fetch of what is in the cache: the median."""
    with contextlib.closing(open_storage(settings)) as storage:
        taken = []
        for _ in range(times):
            taken.append(seconds(partial(_fetch, storage, "small")))
    return statistics.median(taken) * 1000


def download(settings: Settings, scratch: Path, rounds: int) -> list[tuple[float, float]]:
    """Seconds of curl and of the first fetch of the same object, for each round."""
    path = f"{BUCKET}/large"

    def curl() -> float:
        target = scratch / "curl"
        command = ["curl", "-s", "-f", "-o", str(target), f"http://{settings.minio_host}/{path}"]
        taken = seconds(partial(subprocess.run, command, check=True))
        target.unlink()
        return taken

    def fetch() -> float:
        with contextlib.closing(open_storage(settings.with_options(home=scratch / "fetch"))) as storage:
            storage.fetch(f"{BUCKET}/small")
            taken = seconds(partial(storage.fetch, path))
        shutil.rmtree(scratch / "fetch")
        return taken

    figures = []
    for turn in range(rounds):
        # Whoever is second finds the memory of the first one free already.
        taken = {each: each() for each in ((curl, fetch) if turn % 2 else (fetch, curl))}
        figures.append((taken[curl], taken[fetch]))
    return figures


def upload(settings: Settings, tree: Path, rounds: int, server: Path) -> tuple[list[tuple[float, float]], list[float]]:
    """Seconds of `fput_object` in a loop and of `save_dir`, for each round; and how often as fast any client could be.

    That is what the loop takes, by what the server's processes work for `save_dir`, spread over all cores.
    """
    client = Minio(
        endpoint=settings.minio_host,
        access_key=settings.minio_access_key,
        secret_key=settings.minio_secret_key,
        secure=False,
        region=settings.s3_region,
    )
    files = sorted(tree.iterdir())
    figures, bounds = [], []
    with contextlib.closing(open_storage(settings)) as storage:
        storage.save(files[0], f"{BUCKET}/warm")
        for number in range(rounds):
            first = seconds(partial(_loop, client, files, f"loop-{number}"))
            before = worked(server)
            figures.append((first, seconds(partial(storage.save_dir, tree, f"{BUCKET}/dir-{number}"))))
            bounds.append(first / (worked(server) - before) * (os.cpu_count() or 1))
            for each in ("loop", "dir"):
                storage.delete(f"{BUCKET}/{each}-{number}", recursive=True)
    return figures, bounds


def worked(server: Path) -> float:
    """The CPU seconds so far of all processes whose command line names the folder of that server."""
    total = 0.0
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if any(str(server) in each for each in process.cmdline()):
                used = process.cpu_times()
                total += used.user + used.system
    return total


def _loop(client: Minio, files: list[Path], prefix: str) -> None:
    for file in files:
        client.fput_object(bucket_name=BUCKET, object_name=f"{prefix}/{file.name}", file_path=str(file))


def fill(folder: Path, count: int) -> Path:
    """Puts so many entries of 1 KiB into a cache."""

    def make(files: Path) -> dict[str, str]:
        (files / "file").write_bytes(b"x" * 1024)
        return {"file": "0" * 64}

    cache = FileCache(folder, 1 << 40)
    for number in range(count):
        cache.release(cache.obtain(f"entry {number}", subject=f"subject {number}", source="benchmark", make=make))
    cache.close()
    return folder


def with_many(settings: Settings, caches: dict[str, Path], rounds: int) -> dict[str, dict[str, float]]:
    """Milliseconds with each of the caches, in turn: medians, or the longest where it is called so."""
    figures: dict[str, dict[str, list[float]]] = {name: defaultdict(list) for name in caches}
    for turn in range(rounds):
        for name, folder in caches.items():
            roomy = settings.with_options(cache_dir=folder, cache_size=1 << 40)
            taken, new = figures[name], [f"{number}" for number in range(turn * NEW, (turn + 1) * NEW)]
            with contextlib.closing(open_storage(roomy)) as storage:
                taken["start and first hit"].append(seconds(partial(_fetch, storage, "small")))
                taken["hit"] += [seconds(partial(_fetch, storage, "small")) for _ in range(200)]
                taken["fetch"] += [seconds(partial(_fetch, storage, key)) for key in new[:100]]
            # It is too much from the first fetch on.
            with contextlib.closing(open_storage(roomy.with_options(cache_size=_total(folder)))) as storage:
                taken["start, too much in it"].append(seconds(partial(_fetch, storage, "small")))
                several = [seconds(partial(_fetch, storage, key)) for key in new[100:]]
            taken["fetch and evict"] += several
            taken["longest fetch and evict"].append(max(several))
    return {
        name: {
            what: 1000 * (max(times) if what.startswith("longest") else statistics.median(times))
            for what, times in found.items()
        }
        for name, found in figures.items()
    }


def _total(folder: Path) -> int:
    """The bytes that the cache holds, as its index says."""
    with contextlib.closing(sqlite3.connect(folder / "index.db")) as database:
        (total,) = database.execute("SELECT total FROM account").fetchone()
    return int(total)


def _fetch(storage: Storage, key: str) -> None:
    storage.release(storage.fetch(f"{BUCKET}/{key}"))


def report_pairs(title: str, figures: list[tuple[float, float]]) -> None:
    ratios = sorted(first / second for first, second in figures)
    first, second = (statistics.median(each) for each in zip(*figures, strict=True))
    print(f"| {title} | {first:.2f} s | {second:.2f} s | {statistics.median(ratios):.2f} ", end="")
    print(f"({ratios[0]:.2f}-{ratios[-1]:.2f}) |", flush=True)


def measure(options: argparse.Namespace, folder: Path) -> None:
    served = folder / "served"
    (served / BUCKET).mkdir(parents=True)
    (served / BUCKET / "small").write_bytes(b"x" * 1000)
    print("| what | other | mlpkit | times as fast (least-most) |\n| --- | --- | --- | --- |", flush=True)
    with nginx(served) as port:
        server = S3Server(f"127.0.0.1:{port}", "benchmark", "benchmark")
        settings = settings_of(folder / "home", server)
        if "hit" in options.only:
            asked = [hit(settings, 500) for _ in range(options.rounds)]
            trusted = [hit(settings.with_options(cache_trust=3600.0), 500) for _ in range(options.rounds)]
            print(f"| a hit, one request | | {statistics.median(asked):.2f} ms | |")
            print(f"| a hit with MLPKIT_CACHE_TRUST | | {statistics.median(trusted):.3f} ms | |", flush=True)
        if "download" in options.only:
            write_random(served / BUCKET / "large", options.megabytes * MIB)
            title = f"first download of {options.megabytes} MiB, curl"
            report_pairs(title, download(settings, folder, options.rounds))
            print(f"| memory that it took | | {grown(settings, 'fetch', f'{BUCKET}/large'):.0f} MiB | |", flush=True)
            (served / BUCKET / "large").unlink()
            shutil.rmtree(folder / "home", ignore_errors=True)
        if "many" in options.only:
            report_many(options, settings, folder, served)
    if "upload" in options.only:
        tree = folder / "tree"
        tree.mkdir()
        for number in range(options.files):
            write_random(tree / f"{number:04}", max(1, options.megabytes // options.files) * MIB)
        for name, store in (("Swift", swift_server), ("SeaweedFS", seaweed_server)):
            with store() as server:
                report_upload(options, tree, name, server)


def report_many(options: argparse.Namespace, settings: Settings, folder: Path, served: Path) -> None:
    for number in range(options.rounds * NEW):
        (served / BUCKET / f"{number}").write_bytes(b"y" * 1024)
    caches = {"few": fill(folder / "few", 0), "many": fill(folder / "many", options.objects)}
    figures = with_many(settings, caches, options.rounds)
    for what, few in figures["few"].items():
        many = figures["many"][what]
        print(f"| {what}: empty cache, one with {options.objects} objects | {few:.2f} ms | {many:.2f} ms ", end="")
        print(f"| {few / many:.2f} |", flush=True)
    shutil.rmtree(folder / "many")


@contextlib.contextmanager
def swift_server() -> Iterator[S3Server]:
    with swift.operated() as folder:
        yield S3Server(f"127.0.0.1:{swift.port_of(folder, 'proxy')}", swift.ACCESS_KEY, swift.SECRET_KEY, folder)


@contextlib.contextmanager
def seaweed_server() -> Iterator[S3Server]:
    place = next(filter(swift.is_on_disk, swift.ON_DISK), None)
    if place is None:
        raise SystemExit("neither the folder for temporary files nor the home is on a disk")
    with (
        tempfile.TemporaryDirectory(prefix="mlpkit-seaweed-", dir=place) as folder,
        seaweed(Path(folder), volume=1024) as endpoint,
    ):
        yield S3Server(endpoint, ACCESS_KEY, SECRET_KEY, Path(folder))


def report_upload(options: argparse.Namespace, tree: Path, name: str, server: S3Server) -> None:
    assert server.folder is not None
    settings = settings_of(tree.with_name(f"uploads to {name}"), server)
    figures, bounds = upload(settings, tree, options.rounds, server.folder)
    report_pairs(f"{options.files} files saved to {name}, fput_object in a loop", figures)
    print(f"| any client at most, on {os.cpu_count()} cores | | | {statistics.median(bounds):.2f} |")
    taken = grown(settings, "save_dir", str(tree), f"{BUCKET}/grown")
    print(f"| memory that it took | | {taken:.0f} MiB | |", flush=True)
    for milliseconds in ROUND_TRIPS:
        with away(server.endpoint, milliseconds / 1000) as endpoint:
            distant = settings.with_options(minio_host=endpoint)
            figures, _ = upload(distant, tree, options.rounds, server.folder)
        report_pairs(f"the same, {name} {milliseconds} ms away", figures)


def main() -> None:
    if sys.argv[1:2] == ["--child"]:
        child(*sys.argv[2:])
        return
    # The servers are ended on the way out.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--megabytes", type=int, default=1024)
    parser.add_argument("--files", type=int, default=1000)
    parser.add_argument("--objects", type=int, default=100_000)
    parser.add_argument("--only", nargs="+", default=["hit", "download", "upload", "many"])
    options = parser.parse_args()
    # In memory where there is some: how fast a disk writes back would say nothing of either.
    memory = "/dev/shm" if os.path.isdir("/dev/shm") else None
    with tempfile.TemporaryDirectory(prefix="mlpkit-bench-", dir=memory) as folder:
        # nginx serves as another user where it was started by root.
        os.chmod(folder, 0o755)
        measure(options, Path(folder))


if __name__ == "__main__":
    main()
