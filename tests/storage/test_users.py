"""A cache that two system users share: it works, or each has one of its own and a warning says so."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from mlpkit.settings import Settings, encode_settings
from mlpkit.storage import open_storage
from tests.servers import LONG

_ONE, _OTHER, _GROUP = 65534, 54321, 54322

_USES = """
import os, sys
from pathlib import Path

# Before the change of user, who may not be allowed to read the interpreter's files.
import mlpkit.storage.copies
import mlpkit.storage.folder
from mlpkit.settings import decode_settings
from mlpkit.storage import open_storage

user, group, umask, settings, *paths = sys.argv[1:]
os.setgroups([])
os.setgid(int(group))
os.setuid(int(user))
os.umask(int(umask, 8))

storage = open_storage(decode_settings(Path(settings).read_bytes()))
for path in paths:
    copy = storage.fetch(path)
    assert copy.read_bytes() == path.rpartition("/")[2].encode() * 1000, copy
    storage.release(copy)
print(copy)
"""

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root can be two users")


@pytest.fixture
def shared() -> Iterator[Path]:
    """A folder that everybody can reach; pytest's own belongs to root alone."""
    with tempfile.TemporaryDirectory(prefix="mlpkit-users-") as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


@pytest.fixture
def settings(shared: Path) -> Settings:
    """A store with ten objects that everybody may read, and a cache that three of them fit into."""
    settings = Settings(
        home=shared / "home-of-root", store_url=f"folder://{shared}/store", cache_dir=shared / "cache", cache_size=3500
    )
    for number in range(10):
        (shared / "local").write_bytes(str(number).encode() * 1000)
        storage = open_storage(settings.with_options(cache_dir=shared / "cache-of-root"))
        storage.save(shared / "local", f"ml-platform-data/{number}")
        storage.close()
    for folder in (shared / "store", shared / "store" / "ml-platform-data"):
        folder.chmod(0o755)
    return settings


def _use(settings: Settings, folder: Path, user: int, umask: str, *numbers: int, group: int = 0) -> tuple[Path, str]:
    """Fetches as that user, into a home of its own; the last copy, and what was logged."""
    home = folder / f"home-{user}"
    home.mkdir(exist_ok=True)
    shutil.chown(home, user, group or user)
    written = folder / f"settings-{user}.json"
    written.write_bytes(encode_settings(settings.with_options(home=home)))
    paths = [f"ml-platform-data/{number}" for number in numbers]
    command = [sys.executable, "-c", _USES, str(user), str(group or user), umask, str(written), *paths]
    done = subprocess.run(command, check=True, timeout=LONG, capture_output=True, text=True)
    return Path(done.stdout.strip()), done.stderr


def _make_cache(settings: Settings, mode: int, group: int = 0) -> None:
    assert settings.cache_dir is not None
    settings.cache_dir.mkdir()
    shutil.chown(settings.cache_dir, 0, group)
    settings.cache_dir.chmod(mode)


@pytest.mark.untraced
def test_second_user_of_a_cache_has_one_of_its_own_and_a_warning(settings: Settings, shared: Path) -> None:
    _make_cache(settings, 0o777)
    first, said = _use(settings, shared, _ONE, "022", *range(5))
    assert first.is_relative_to(shared / "cache")
    assert "belongs to another user" not in said

    second, said = _use(settings, shared, _OTHER, "022", *range(5))
    assert second.is_relative_to(shared / f"home-{_OTHER}" / f"cache-{_OTHER}")
    assert f"the file cache {shared}/cache belongs to another user" in said

    again, said = _use(settings, shared, _ONE, "022", *range(5, 10))
    assert again.is_relative_to(shared / "cache"), "the first user is not disturbed"
    assert said == ""


def test_root_does_not_write_into_the_cache_of_a_user(settings: Settings, shared: Path) -> None:
    _make_cache(settings, 0o777)
    _use(settings, shared, _ONE, "022", *range(3))
    storage = open_storage(settings)
    copy = storage.fetch("ml-platform-data/7")
    storage.close()

    assert copy.is_relative_to(settings.home / "cache-0")
    assert {file.stat().st_uid for file in (shared / "cache").rglob("*")} == {_ONE}


@pytest.mark.untraced
def test_users_of_one_group_share_a_cache(settings: Settings, shared: Path) -> None:
    _make_cache(settings, 0o2775, _GROUP)
    for user, numbers in ((_ONE, range(5)), (_OTHER, range(3, 8)), (_ONE, range(10)), (_OTHER, range(10))):
        copy, said = _use(settings, shared, user, "002", *numbers, group=_GROUP)
        assert copy.is_relative_to(shared / "cache")
        assert said == ""
    kept = [file for file in (shared / "cache" / "entries").glob("*/files/*") if file.is_file()]
    assert sum(file.stat().st_size for file in kept) <= 3500
