"""What is free within control groups, and by how much a process has grown."""

from __future__ import annotations

from pathlib import Path

import psutil
import pytest

from mlpkit.serving.memory import Growth, free_memory

GIB = 1 << 30


def group(folder: Path, limit: str, used: str, stat: str, *, v1: bool = False) -> None:
    """The files of a control group, as the kernel shows them."""
    folder.mkdir(parents=True, exist_ok=True)
    names = ("memory.limit_in_bytes", "memory.usage_in_bytes") if v1 else ("memory.max", "memory.current")
    (folder / names[0]).write_text(f"{limit}\n")
    (folder / names[1]).write_text(f"{used}\n")
    (folder / "memory.stat").write_text(stat)


@pytest.fixture
def membership(tmp_path: Path) -> Path:
    return tmp_path / "membership"


def test_limit_of_the_group_counts_and_page_cache_is_free(tmp_path: Path, membership: Path) -> None:
    membership.write_text("0::/a.slice/b.service\n")
    group(tmp_path / "a.slice" / "b.service", "1000000", "700000", "anon 5\ninactive_file 30000\nactive_file 2000\n")
    assert free_memory(tmp_path, membership) == 332_000


def test_tightest_group_above_counts(tmp_path: Path, membership: Path) -> None:
    membership.write_text("0::/a.slice/b.service\n")
    group(tmp_path / "a.slice" / "b.service", "max", "700000", "")
    group(tmp_path / "a.slice", "1000000", "999000", "")
    assert free_memory(tmp_path, membership) == 1000


def test_container_that_knows_only_the_hosts_path_has_its_limit_at_the_top(tmp_path: Path, membership: Path) -> None:
    membership.write_text("5:cpu,cpuacct:/docker/1f\n4:memory:/docker/1f\n0::/\n")
    stat = "inactive_file 7\ntotal_inactive_file 10\ntotal_active_file 1\n"
    group(tmp_path / "memory", "5000", "3000", stat, v1=True)
    assert free_memory(tmp_path, membership) == 2011


def test_without_limits_it_is_what_the_machine_has(tmp_path: Path, membership: Path) -> None:
    membership.write_text("4:memory:/x\n0::/\n")
    group(tmp_path, "max", "3000", "")
    group(tmp_path / "memory" / "x", "9223372036854771712", "3000", "", v1=True)
    assert abs(free_memory(tmp_path, membership) - psutil.virtual_memory().available) < GIB
    assert abs(free_memory(tmp_path / "none", tmp_path / "none") - psutil.virtual_memory().available) < GIB


def test_growth_is_known_of_a_load_that_was_alone() -> None:
    growth = Growth()
    with growth.measured(whole=False) as grown:
        held = b"x" * 200_000_000
        alone = grown()
    assert alone is not None
    assert 190_000_000 < alone < 260_000_000
    with growth.measured(whole=False) as first, growth.measured(whole=False) as second:
        assert (first(), second()) == (None, None)
    with growth.measured(whole=True) as grown:
        everything = grown()
    assert everything is not None
    assert everything > len(held)
