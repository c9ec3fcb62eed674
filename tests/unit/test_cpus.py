"""The container's CPUs are shared among its processes, and what the user has set stays."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from mlpkit.processes.resources import THREAD_SETTINGS, _quota, available_cpus, thread_settings


@pytest.mark.parametrize(
    ("membership", "files", "cpus"),
    [
        ("0::/", {"cpu.max": "250000 100000"}, 2.5),
        ("0::/", {"cpu.max": "max 100000"}, 1e6),
        ("0::/pod/box", {"pod/cpu.max": "300000 100000", "pod/box/cpu.max": "max 100000"}, 3),
        ("0::/pod/box", {"pod/cpu.max": "300000 100000", "pod/box/cpu.max": "200000 100000"}, 2),
        ("4:cpu,cpuacct:/", {"cpu/cpu.cfs_quota_us": "150000", "cpu/cpu.cfs_period_us": "100000"}, 1.5),
        ("4:cpu:/box", {"cpu/box/cpu.cfs_quota_us": "-1", "cpu/box/cpu.cfs_period_us": "100000"}, 1e6),
        ("3:memory:/\n4:cpu:/", {"cpu/cpu.cfs_quota_us": "50000", "cpu/cpu.cfs_period_us": "100000"}, 0.5),
        ("0::/", {"cpu.max": "nonsense"}, 1e6),
        ("nonsense", {}, 1e6),
    ],
)
def test_quota_of_cgroups_of_both_versions(tmp_path: Path, membership: str, files: dict[str, str], cpus: float) -> None:
    (tmp_path / "membership").write_text(membership)
    for name, text in files.items():
        path = tmp_path / "root" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")

    assert _quota(tmp_path / "membership", tmp_path / "root") == cpus


def test_there_is_no_more_than_the_affinity_allows() -> None:
    assert 1 <= available_cpus() <= (os.cpu_count() or 1)
    assert _quota(Path("/nowhere"), Path("/nowhere")) == 1e6


def test_cpus_are_shared_and_each_process_has_one() -> None:
    cpus = available_cpus()
    assert thread_settings(1, {}) == dict.fromkeys(THREAD_SETTINGS, str(cpus))
    assert thread_settings(cpus, {}) == dict.fromkeys(THREAD_SETTINGS, "1")
    assert thread_settings(100 * cpus, {}) == dict.fromkeys(THREAD_SETTINGS, "1")


def test_what_the_user_has_set_stays() -> None:
    assert thread_settings(1, {"OMP_NUM_THREADS": "7"}) == {}
    assert "MKL_NUM_THREADS" not in thread_settings(1, {"MKL_NUM_THREADS": "7"})
    assert "OMP_NUM_THREADS" in thread_settings(1, {"MKL_NUM_THREADS": "7"})
