"""What only the folder store must see to: links, and names that a file system cannot have at the same time."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mlpkit.errors import StorageError, UnsafePath
from mlpkit.settings import Settings
from tests.servers import LONG, wait_until
from tests.storage.conftest import OpenStorage


@pytest.fixture
def local(tmp_path: Path) -> Path:
    (tmp_path / "local").write_bytes(b"content")
    return tmp_path / "local"


def test_a_symbolic_link_does_not_lead_out_of_the_folder_store(
    folder_settings: Settings, opened: OpenStorage, local: Path, tmp_path: Path
) -> None:
    storage = opened(folder_settings)
    storage.save(local, f"{folder_settings.data_bucket}/k")
    bucket = folder_settings.home / "storage" / folder_settings.data_bucket
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "secret").write_bytes(b"secret")
    (bucket / "link").symlink_to(tmp_path / "outside")
    (bucket / "file").symlink_to(tmp_path / "outside" / "secret")

    for path in ("link/secret", "file"):
        for use in (storage.fetch, storage.stat, storage.delete, lambda path: storage.save(local, path)):
            with pytest.raises(UnsafePath, match="symbolic link"):
                use(f"{folder_settings.data_bucket}/{path}")
    assert [each.key for each in storage.list(folder_settings.data_bucket)] == ["k"]
    with pytest.raises(UnsafePath):
        storage.list(f"{folder_settings.data_bucket}/link")
    assert (tmp_path / "outside" / "secret").read_bytes() == b"secret"


def test_a_key_below_another_object_is_refused_by_the_folder_store(
    folder_settings: Settings, opened: OpenStorage, local: Path
) -> None:
    storage = opened(folder_settings)
    storage.save(local, f"{folder_settings.data_bucket}/a")
    with pytest.raises(StorageError, match="another key"):
        storage.save(local, f"{folder_settings.data_bucket}/a/b")


def test_the_folder_store_shows_nothing_of_a_save_that_fails(
    folder_settings: Settings, opened: OpenStorage, local: Path, tmp_path: Path
) -> None:
    storage = opened(folder_settings)
    storage.save(local, f"{folder_settings.data_bucket}/a")
    with pytest.raises(StorageError):
        storage.save(local, f"{folder_settings.data_bucket}/a/b")

    assert [each.key for each in storage.list(folder_settings.data_bucket)] == ["a"]
    assert list((folder_settings.home / "storage" / ".writing").iterdir()) == []


def test_what_a_killed_save_has_left_goes_after_a_day(
    folder_settings: Settings, opened: OpenStorage, local: Path
) -> None:
    half_written = folder_settings.home / "storage" / ".writing"
    half_written.mkdir(parents=True)
    for name, hours in (("abandoned", 25), ("slow", 23)):
        (half_written / name).touch()
        os.utime(half_written / name, (time.time() - hours * 3600,) * 2)

    opened(folder_settings).save(local, f"{folder_settings.data_bucket}/k")

    assert [each.name for each in half_written.iterdir()] == ["slow"]


_SAVER = """
import sys
from pathlib import Path
from mlpkit.settings import Settings
from mlpkit.storage import open_storage

open_storage(Settings(home=Path(sys.argv[1]))).save(sys.argv[2], "ml-platform-data/k")
"""


def test_what_a_killed_save_has_left_goes_with_the_next_check_and_a_living_one_stays(
    folder_settings: Settings, opened: OpenStorage, tmp_path: Path
) -> None:
    storage, half_written = opened(folder_settings), folder_settings.home / "storage" / ".writing"
    storage.save(_small(tmp_path), "ml-platform-data/k")
    command = [sys.executable, "-c", _SAVER, str(folder_settings.home), str(tmp_path / "large")]
    with (tmp_path / "large").open("wb") as file:
        file.truncate(4 << 30)
    saving = subprocess.Popen(command)
    try:
        wait_until(lambda: any(half_written.iterdir()), "the save has begun")
        wait_until(lambda: all(each.name.startswith("locked-") for each in half_written.iterdir()), "it is locked")
        storage.check()
        assert len(list(half_written.iterdir())) == 1
    finally:
        saving.kill()
        saving.wait(LONG)
    assert len(list(half_written.iterdir())) == 1

    storage.check()
    assert list(half_written.iterdir()) == []


def _small(folder: Path) -> Path:
    (folder / "small").write_bytes(b"content")
    return folder / "small"


def test_a_folder_that_cannot_be_written_fails_the_check(
    folder_settings: Settings, opened: OpenStorage, tmp_path: Path
) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StorageError, match="file"):
        opened(folder_settings.with_options(home=tmp_path / "file", cache_dir=tmp_path / "cache")).check()


def test_empty_folders_go_with_their_last_object(folder_settings: Settings, opened: OpenStorage, local: Path) -> None:
    storage = opened(folder_settings)
    storage.save(local, f"{folder_settings.data_bucket}/a/b/c")
    storage.delete(f"{folder_settings.data_bucket}/a", recursive=True)

    assert list((folder_settings.home / "storage" / folder_settings.data_bucket).iterdir()) == []
