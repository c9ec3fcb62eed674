"""Runs everything at once against one service for some minutes: `python -m tests.soak --minutes 10`.

Users predict, load, unload, train, cancel and delete; meanwhile workers are killed, the store hangs or is gone, and, in
the first quarter, fork server and server are killed, the server at the end too. Then the accounts must add up, and
between the second and the last quarter neither memory nor descriptors may have grown. Exit code 1, and what is wrong,
where that is not so.
"""

from __future__ import annotations

import argparse
import random
import resource
import sys
import tempfile
import time
import traceback
from collections import Counter, defaultdict
from collections.abc import Callable
from functools import partial
from pathlib import Path

import psutil

from tests.servers import s3_server
from tests.soak.accounts import settle
from tests.soak.gauge import Gauge
from tests.soak.record import Record
from tests.soak.scene import Scene, Store
from tests.soak.users import Users

PROGRESS_SECONDS = 30.0
WORKER_KILLS, STORE_STOPS, SERVER_KILLS = 30.0, 45.0, 120.0
"""Seconds between two troubles of a kind, on average; the server is killed in the first quarter only."""
Plan = list[tuple[float, Callable[[], None]]]


def plan(scene: Scene, seconds: float) -> Plan:
    """When which trouble is made, in seconds from the start; the seed decides.

    After the first quarter the eldest worker is spared, as the server is: their memory is compared.
    """
    chance = random.Random(f"{scene.seed} troubles")
    quarter = seconds / 4
    times = [(chance.uniform(0.2, 0.7) * quarter, each) for each in (scene.kill_server, scene.kill_fork_server)]
    times += [(chance.uniform(0.1, 0.7) * quarter, scene.kill_server) for _ in range(int(quarter / SERVER_KILLS))]
    for _ in range(max(1, int(seconds / WORKER_KILLS))):
        at = chance.uniform(0, seconds)
        times.append((at, partial(scene.kill_worker, chance, spare_the_eldest=at > quarter * 0.7)))
    for _ in range(max(1, int(seconds / STORE_STOPS))):
        times.append((chance.uniform(0, seconds), partial(scene.stop_store, chance)))
    return sorted(times, key=lambda each: each[0])


def run(scene: Scene, seconds: float) -> Gauge:
    """Lets users and troubles loose; returns when the time is over and the last answer has come."""
    users, gauge, began = Users(scene), Gauge(scene), time.monotonic()
    troubles, next_line = plan(scene, seconds), PROGRESS_SECONDS
    users.start()
    gauge.start()
    while (now := time.monotonic() - began) < seconds:
        if troubles and now >= troubles[0][0]:
            make(scene, troubles.pop(0)[1])
        if now >= next_line:
            print(progress(scene, gauge, now), flush=True)
            next_line += PROGRESS_SECONDS
        time.sleep(0.05)
    scene.over.set()
    users.join(130)
    return gauge


def make(scene: Scene, trouble: Callable[[], None]) -> None:
    """Makes one trouble; where it cannot even be ended, that is wrong too."""
    try:
        trouble()
    except Exception:
        scene.record.blame(f"a trouble did not end: {traceback.format_exc(limit=-3)}")


def progress(scene: Scene, gauge: Gauge, now: float) -> str:
    """One line about a soak that goes on."""
    record = scene.record
    text = (
        f"{now:5.0f} s: {len(record.asks)} requests, {len(record.trainings)} jobs, {len(record.troubles)} troubles, "
        f"{len(record.wrong)} wrong"
    )
    if gauge.samples:
        last = gauge.samples[-1]
        text += f"; server {last.server_memory:.0f} MiB, eldest worker {last.worker_memory:.0f} MiB"
    return text


def report(scene: Scene, gauge: Gauge, jobs: Counter[str], seconds: float) -> None:
    """Prints the table of figures, and blames what is not flat."""
    record = scene.record
    outcomes: dict[str, Counter[str]] = defaultdict(Counter)
    longest: dict[str, float] = defaultdict(float)
    for ask in record.asks:
        outcomes[ask.route][ask.outcome] += 1
        longest[ask.route] = max(longest[ask.route], ask.ended - ask.began)
    print("\n| request | asked | longest | outcomes |\n|---|---|---|---|")
    for route, counts in outcomes.items():
        words = ", ".join(f"{name} {count}" for name, count in counts.most_common())
        print(f"| {route} | {counts.total()} | {longest[route]:.1f} s | {words} |")
    print("\n| job ended | count |\n|---|---|")
    for state, count in jobs.most_common():
        print(f"| {state} | {count} |")
    print("\n| trouble | count | longest until all was well |\n|---|---|---|")
    for what in sorted({each.what for each in record.troubles}):
        took = [each.ended - each.began for each in record.troubles if each.what == what]
        print(f"| {what} | {len(took)} | {max(took):.1f} s |")
    print("\n| level (median) | second quarter | last quarter | may grow by |\n|---|---|---|---|")
    for level in gauge.levels(seconds):
        print(f"| {level.name} | {level.second:.1f} | {level.last:.1f} | {level.allowed:.1f} |")
        if not level.is_flat:
            record.blame(f"{level.name} is not flat: {level.second:.1f}, then {level.last:.1f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--seed", type=int, default=random.randrange(10**6))
    options = parser.parse_args()
    seconds, record = options.minutes * 60, Record()
    print(f"soak of {options.minutes:g} minutes, --seed {options.seed}", flush=True)
    with tempfile.TemporaryDirectory(prefix="mlpkit-soak-") as name, s3_server(Path(name)) as server:
        store = Store(server)
        scene = Scene(Path(name), store, record, options.seed)
        try:
            scene.prepare()
            gauge = run(scene, seconds)
            jobs = settle(scene)
            report(scene, gauge, jobs, seconds)
        finally:
            scene.service.stop()
            store.stop()
    used = resource.getrusage(resource.RUSAGE_SELF)
    print(f"\nthe users took {used.ru_utime + used.ru_stime:.0f} s of CPU, on {psutil.cpu_count()} CPUs")
    if record.wrong:
        print("\n".join(["", *record.wrong, ""]))
    print("nothing is wrong" if not record.wrong else f"{len(record.wrong)} things are wrong")
    sys.exit(bool(record.wrong))


if __name__ == "__main__":
    main()
