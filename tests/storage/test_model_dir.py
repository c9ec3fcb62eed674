"""Whole models: complete or none, whatever interrupts their upload, and never a mixture of two."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from mlpkit.errors import (
    IncompleteModel,
    ObjectNotFound,
    StorageDenied,
    StorageError,
    StorageUnavailable,
    UnsafePath,
)
from mlpkit.settings import Settings, encode_settings
from mlpkit.storage import (
    Manifest,
    ModelDir,
    Storage,
    begin_model,
    delete_model,
    discard_model,
    open_model,
    save_model,
    temporary_file,
)
from mlpkit.storage.model_dir import INCOMPLETE, MANIFEST
from tests.servers import LONG, Relay, refusing, wait_until
from tests.storage.conftest import OpenStorage

_SAVER = """
import sys
from pathlib import Path
from mlpkit.settings import decode_settings
from mlpkit.storage import Manifest, open_storage, save_model
settings = decode_settings(Path(sys.argv[1]).read_bytes())
manifest = Manifest(algorithm="a", kind="text_custom", model_id="m")
save_model(open_storage(settings), Path(sys.argv[2]), sys.argv[3], manifest)
"""


def _manifest(**changes: object) -> Manifest:
    fields: dict[str, object] = {"algorithm": "sentiment", "kind": "text_classification", "model_id": "m1", **changes}
    return Manifest(**fields)  # type: ignore[arg-type]


def _folder(path: Path, **files: bytes) -> Path:
    for name, content in files.items():
        file = path / name.replace("__", "/")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)
    return path


def _names(model: ModelDir) -> set[str]:
    return {each.relative_to(model).as_posix() for each in Path(model).rglob("*") if each.is_file()}


@pytest.fixture
def destination(settings: Settings) -> str:
    return f"{settings.model_bucket}/m1"


def test_a_saved_model_opens_with_its_files_and_manifest(
    storage: Storage, settings: Settings, destination: str, tmp_path: Path
) -> None:
    folder = _folder(tmp_path / "out", weights=b"w" * 1000, tokens__词表=b"t")
    save_model(storage, folder, destination, _manifest(parameters={"c": 1.5}, metrics={"f1": 0.9}))

    model = open_model(storage, settings, "m1", None)

    assert (model / "weights").read_bytes() == b"w" * 1000
    assert (model / "tokens/词表").read_bytes() == b"t"
    assert os.fspath(model) == str(model.path)
    assert model.model_id == "m1"
    assert model.manifest is not None
    assert model.manifest.files == {"weights": 1000, "tokens/词表": 1}
    assert (model.manifest.parameters, model.manifest.metrics) == ({"c": 1.5}, {"f1": 0.9})


@pytest.mark.parametrize("how", ["path", "path/"])
def test_a_model_may_be_saved_and_opened_elsewhere(
    storage: Storage, settings: Settings, tmp_path: Path, how: str
) -> None:
    elsewhere = f"{settings.data_bucket}/models/mine"
    save_model(storage, _folder(tmp_path / "out", weights=b"w"), elsewhere, _manifest())

    model = open_model(storage, settings, "any-id", elsewhere + how.removeprefix("path"))

    assert model.manifest is not None
    assert _names(model) == {"weights", "mlpkit.json"}


def test_a_model_made_elsewhere_is_a_prefix_or_one_object(storage: Storage, settings: Settings, tmp_path: Path) -> None:
    storage.save_dir(_folder(tmp_path / "out", a=b"a", b__c=b"c"), f"{settings.data_bucket}/foreign")

    whole = open_model(storage, settings, "id", f"{settings.data_bucket}/foreign")
    single = open_model(storage, settings, "id", f"{settings.data_bucket}/foreign/b/c")

    assert (_names(whole), whole.manifest) == ({"a", "b/c"}, None)
    assert (_names(single), single.manifest) == ({"c"}, None)
    with pytest.raises(ObjectNotFound, match="foreign/nothing"):
        open_model(storage, settings, "id", f"{settings.data_bucket}/foreign/nothing")


def test_a_model_nobody_saved_is_not_found(storage: Storage, settings: Settings, destination: str) -> None:
    with pytest.raises(ObjectNotFound, match=destination):
        open_model(storage, settings, "m1", "")


def test_a_folder_without_manifest_is_incomplete(
    storage: Storage, settings: Settings, destination: str, tmp_path: Path
) -> None:
    storage.save_dir(_folder(tmp_path / "out", weights=b"w"), destination)

    with pytest.raises(IncompleteModel, match=f"{destination}.*mlpkit.json"):
        open_model(storage, settings, "m1", None)


@pytest.mark.parametrize("content", [b"", b"{", b'{"algorithm": 1}', b'{"algorithm": "\xff"}'])
def test_a_broken_manifest_is_incomplete(
    storage: Storage, settings: Settings, destination: str, tmp_path: Path, content: bytes
) -> None:
    folder = _folder(tmp_path / "out", weights=b"w")
    (folder / "mlpkit.json").write_bytes(content)
    storage.save_dir(folder, destination)

    with pytest.raises(IncompleteModel, match=r"mlpkit\.json"):
        open_model(storage, settings, "m1", None)


def test_a_missing_file_and_a_file_of_another_size_are_incomplete(
    storage: Storage, settings: Settings, destination: str, tmp_path: Path
) -> None:
    save_model(storage, _folder(tmp_path / "out", weights=b"w", other=b"o"), destination, _manifest())
    storage.save(_folder(tmp_path, local=b"longer") / "local", f"{destination}/weights")
    with pytest.raises(IncompleteModel, match="weights has 6 bytes"):
        open_model(storage, settings, "m1", None)

    storage.delete(f"{destination}/weights")
    with pytest.raises(IncompleteModel, match="weights"):
        open_model(storage, settings, "m1", None)


def test_files_of_an_earlier_model_do_not_leak_into_the_new_one(
    storage: Storage, settings: Settings, destination: str, tmp_path: Path
) -> None:
    save_model(storage, _folder(tmp_path / "first", a=b"1", old=b"1"), destination, _manifest())
    save_model(storage, _folder(tmp_path / "second", a=b"2"), destination, _manifest())
    storage.save(_folder(tmp_path, stray=b"s") / "stray", f"{destination}/stray")

    model = open_model(storage, settings, "m1", None)

    assert _names(model) == {"a", "mlpkit.json"}
    assert (model / "a").read_bytes() == b"2"
    assert {each.key for each in storage.list(destination)} == {"m1/a", "m1/mlpkit.json", "m1/stray"}


def test_saving_a_model_leaves_other_objects_at_its_place_alone(
    storage: Storage, settings: Settings, destination: str, tmp_path: Path
) -> None:
    storage.save(_folder(tmp_path, theirs=b"t") / "theirs", f"{destination}/theirs")

    for number in ("first", "second"):
        save_model(storage, _folder(tmp_path / number, a=b"1"), destination, _manifest())

    assert {each.key for each in storage.list(destination)} == {"m1/a", "m1/mlpkit.json", "m1/theirs"}


def test_an_opened_model_can_be_saved_again(
    storage: Storage, settings: Settings, destination: str, tmp_path: Path
) -> None:
    save_model(storage, _folder(tmp_path / "out", weights=b"w"), destination, _manifest())
    opened = open_model(storage, settings, "m1", None)
    save_model(storage, opened.path, f"{settings.model_bucket}/m2", _manifest(model_id="m2"))

    again = open_model(storage, settings, "m2", None)

    assert again.manifest is not None
    assert again.manifest.model_id == "m2"
    assert again.manifest.files == {"weights": 1}


def test_a_model_without_files_is_a_model(
    storage: Storage, settings: Settings, destination: str, tmp_path: Path
) -> None:
    (tmp_path / "empty").mkdir()
    save_model(storage, tmp_path / "empty", destination, _manifest())

    assert _names(open_model(storage, settings, "m1", None)) == {"mlpkit.json"}


def test_a_deleted_model_is_gone_and_its_neighbour_is_not(
    storage: Storage, settings: Settings, destination: str, tmp_path: Path
) -> None:
    for place in (destination, f"{destination}0"):
        save_model(storage, _folder(tmp_path / "out", weights=b"w"), place, _manifest())

    delete_model(storage, settings, "m1")
    delete_model(storage, settings, "m1")

    with pytest.raises(ObjectNotFound):
        open_model(storage, settings, "m1", None)
    assert open_model(storage, settings, "m10", None)


@pytest.mark.parametrize("model_id", ["", "..", ".", "a/b", "a\\b", "a\x00", "a\n", " ", "x" * 201])
def test_a_model_id_that_is_no_name_is_refused(storage: Storage, settings: Settings, model_id: str) -> None:
    for use in (
        lambda: open_model(storage, settings, model_id, None),
        lambda: delete_model(storage, settings, model_id),
    ):
        with pytest.raises(UnsafePath):
            use()


@pytest.mark.parametrize("path", ["../x", "bucket/../x", "bucket/../../x", "/etc/x"])
def test_a_model_path_that_leaves_its_place_is_refused(
    storage: Storage, settings: Settings, tmp_path: Path, path: str
) -> None:
    with pytest.raises(UnsafePath):
        open_model(storage, settings, "m", path)
    with pytest.raises(UnsafePath):
        save_model(storage, _folder(tmp_path / "out", a=b"a"), path, _manifest())


def test_a_file_name_that_is_no_key_is_refused_before_anything_is_stored(
    storage: Storage, settings: Settings, destination: str, tmp_path: Path
) -> None:
    with pytest.raises(UnsafePath, match="back"):
        save_model(storage, _folder(tmp_path / "out", **{"a": b"a", "back\\slash": b"b"}), destination, _manifest())
    assert not storage.exists(f"{destination}/a")


def test_a_folder_that_cannot_be_saved_changes_nothing(
    storage: Storage, settings: Settings, destination: str, tmp_path: Path
) -> None:
    save_model(storage, _folder(tmp_path / "out", a=b"a"), destination, _manifest())
    (tmp_path / "out" / "broken").symlink_to(tmp_path / "nothing")
    for folder in (tmp_path / "out", tmp_path / "nothing"):
        with pytest.raises(FileNotFoundError, match=r"broken|nothing"):
            save_model(storage, folder, destination, _manifest())

    assert (open_model(storage, settings, "m1", None) / "a").read_bytes() == b"a"


@pytest.mark.parametrize("name", ["../x", "/etc/passwd", "a/../../x"])
def test_a_name_does_not_lead_out_of_the_model_folder(tmp_path: Path, name: str) -> None:
    with pytest.raises(UnsafePath):
        ModelDir(tmp_path, "m") / name


def _save_and_kill(settings: Settings, relay: Relay, tmp_path: Path, destination: str) -> None:
    """Saves a model in a process of its own, and kills that in the middle of the upload."""
    settings = settings.with_options(minio_host=relay.endpoint, storage_timeout=30.0)
    folder = _folder(tmp_path / "half", a=b"half", large=os.urandom(40 << 20))
    (tmp_path / "settings.json").write_bytes(encode_settings(settings))
    command = [sys.executable, "-c", _SAVER, str(tmp_path / "settings.json"), str(folder), destination]
    process = subprocess.Popen(command)
    try:
        wait_until(lambda: relay.count("PUT", "partNumber=") > 0 or process.poll() is not None, "parts are sent")
        process.send_signal(signal.SIGKILL)
    finally:
        process.kill()
        process.wait(LONG)
    assert process.returncode == -signal.SIGKILL


def test_an_upload_that_was_killed_leaves_no_model(
    s3_settings: Settings, opened: OpenStorage, relay: Relay, tmp_path: Path
) -> None:
    storage = opened(s3_settings)
    destination = f"{s3_settings.model_bucket}/m1"
    _save_and_kill(s3_settings, relay, tmp_path, destination)

    for path in (None, destination):
        with pytest.raises(IncompleteModel, match="upload never finished"):
            open_model(storage, s3_settings, "m1", path)

    save_model(storage, _folder(tmp_path / "whole", b=b"whole"), destination, _manifest())
    assert _names(open_model(storage, s3_settings, "m1", None)) == {"b", "mlpkit.json"}
    assert {each.key for each in storage.list(destination)} == {"m1/b", "m1/mlpkit.json"}


def test_an_upload_that_was_killed_over_an_older_model_leaves_no_mixture(
    s3_settings: Settings, opened: OpenStorage, relay: Relay, tmp_path: Path
) -> None:
    storage = opened(s3_settings)
    destination = f"{s3_settings.model_bucket}/m1"
    save_model(storage, _folder(tmp_path / "old", a=b"old!", large=b"l"), destination, _manifest())
    _save_and_kill(s3_settings, relay, tmp_path, destination)

    with pytest.raises(IncompleteModel):
        open_model(storage, s3_settings, "m1", None)


def test_an_upload_that_fails_leaves_no_model(
    s3_settings: Settings, opened: OpenStorage, relay: Relay, tmp_path: Path
) -> None:
    destination = f"{s3_settings.model_bucket}/m1"
    storage = opened(s3_settings)
    storage.save(_folder(tmp_path, warm=b"") / "warm", f"{s3_settings.model_bucket}/warm")
    relay.cut(times=1000, after=0, method="PUT /" + s3_settings.model_bucket + "/m1/weights")
    broken = opened(s3_settings.with_options(minio_host=relay.endpoint, storage_retries=1))

    with pytest.raises(StorageUnavailable):
        save_model(broken, _folder(tmp_path / "out", weights=b"w"), destination, _manifest())

    with pytest.raises(IncompleteModel):
        open_model(storage, s3_settings, "m1", None)


def test_a_known_model_opens_offline(s3_settings: Settings, opened: OpenStorage, relay: Relay, tmp_path: Path) -> None:
    settings = s3_settings.with_options(minio_host=relay.endpoint, cache_offline=True, storage_retries=0)
    storage = opened(settings)
    save_model(storage, _folder(tmp_path / "out", weights=b"w"), f"{settings.model_bucket}/m1", _manifest())
    storage.save_dir(tmp_path / "out", f"{settings.data_bucket}/foreign")
    open_model(storage, settings, "m1", None)
    open_model(storage, settings, "m2", f"{settings.data_bucket}/foreign")
    relay.close()

    assert _names(open_model(storage, settings, "m1", None)) == {"weights", "mlpkit.json"}
    assert _names(open_model(storage, settings, "m2", f"{settings.data_bucket}/foreign")) == {"weights"}


def _grow(file: Path) -> None:
    with file.open("ab") as content:
        content.write(b"more")


def _shrink(file: Path) -> None:
    os.truncate(file, 1)


def _rewrite(file: Path) -> None:
    size = file.stat().st_size
    file.write_bytes(b"?" * size)


def _add(file: Path) -> None:
    file.with_name("new").write_bytes(b"new")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (_grow, "weights changed from 7 to 11 bytes"),
        (_shrink, "weights changed from 7 to 1 bytes"),
        (_rewrite, "weights changed"),
        (Path.unlink, "weights is gone"),
        (_add, "new is new"),
    ],
)
def test_file_that_changes_while_the_model_is_stored_is_named_and_there_is_no_model(
    storage: Storage, settings: Settings, destination: str, tmp_path: Path, change: Callable[[Path], None], words: str
) -> None:
    folder = _folder(tmp_path / "out", first=b"f", weights=b"content")
    save_dir = storage.save_dir

    def save_while_it_changes(local: Path, prefix: str, *, only: list[str]) -> None:
        save_dir(local, prefix, only=only[:1])
        change(folder / "weights")
        save_dir(local, prefix, only=only[1:])

    storage.save_dir = save_while_it_changes  # type: ignore[method-assign, assignment]

    with pytest.raises(StorageError, match=f"the model was not stored: its file {words}.*before train returns"):
        save_model(storage, folder, destination, _manifest())

    assert storage.list(destination) == []


def test_model_that_is_deleted_while_it_is_stored_is_an_error_and_leaves_nothing(
    s3_settings: Settings, opened: OpenStorage, relay: Relay, tmp_path: Path
) -> None:
    destination = f"{s3_settings.model_bucket}/m1"
    storage, through = opened(s3_settings), opened(s3_settings.with_options(minio_host=relay.endpoint))
    folder = _folder(tmp_path / "out", large=os.urandom(40 << 20), small=b"s")
    failed: list[StorageError] = []

    def save() -> None:
        try:
            save_model(through, folder, destination, _manifest())
        except StorageError as error:
            failed.append(error)

    saving = threading.Thread(target=save)
    with relay.slowed(20 << 20):
        saving.start()
        wait_until(lambda: relay.count("PUT", "partNumber=") > 0, "parts are sent")
        delete_model(storage, s3_settings, "m1")
    saving.join(LONG)

    assert [str(error) for error in failed] == [f"the model {destination} was deleted while it was stored"]
    assert storage.list(destination) == []


def test_marker_of_a_model_is_written_first_and_can_be_taken_back(
    storage: Storage, settings: Settings, destination: str, tmp_path: Path
) -> None:
    begin_model(storage, destination)
    with pytest.raises(IncompleteModel):
        open_model(storage, settings, "m1", None)
    discard_model(storage, destination)
    discard_model(storage, destination)
    assert storage.list(destination) == []

    begin_model(storage, destination)
    save_model(storage, _folder(tmp_path / "out", a=b"1"), destination, _manifest())
    assert {stat.key for stat in storage.list(destination)} == {"m1/a", "m1/mlpkit.json"}

    begin_model(storage, destination)
    discard_model(storage, destination)
    assert (open_model(storage, settings, "m1", None) / "a").read_bytes() == b"1", "a complete model stays"


def test_right_that_is_missing_is_named_before_a_training(s3_settings: Settings, opened: OpenStorage) -> None:
    body = b"<Error><Code>AccessDenied</Code><Message>no</Message></Error>"
    with refusing(403, {"Content-Type": "application/xml"}, body=body) as store:
        storage = opened(s3_settings.with_options(minio_host=store.endpoint, storage_retries=0))
        with pytest.raises(StorageDenied, match="lack the right s3:"):
            begin_model(storage, f"{s3_settings.model_bucket}/m1")


@pytest.mark.parametrize(("method", "right"), [("DELETE", "s3:DeleteObject"), ("PUT", "s3:PutObject")])
def test_each_right_is_checked_before_a_training(
    s3_settings: Settings, opened: OpenStorage, method: str, right: str
) -> None:
    body = b"<Error><Code>AccessDenied</Code><Message>no</Message></Error>"
    with refusing(403, {"Content-Type": "application/xml"}, body=body, methods=(method,)) as store:
        storage = opened(s3_settings.with_options(minio_host=store.endpoint, storage_retries=0))
        with pytest.raises(StorageDenied, match=f"lack the right {right}"):
            begin_model(storage, f"{s3_settings.model_bucket}/m1")


def test_what_a_killed_upload_has_left_can_be_discarded(
    s3_settings: Settings, opened: OpenStorage, relay: Relay, tmp_path: Path
) -> None:
    storage, destination = opened(s3_settings), f"{s3_settings.model_bucket}/m1"
    _save_and_kill(s3_settings, relay, tmp_path, destination)
    assert storage.list(destination)

    discard_model(storage, destination)

    assert storage.list(destination) == []
    with pytest.raises(ObjectNotFound):
        open_model(storage, s3_settings, "m1", None)


def test_credentials_that_may_not_list_open_a_model_by_the_names_in_its_manifest(
    storage: Storage, settings: Settings, destination: str, tmp_path: Path
) -> None:
    save_model(storage, _folder(tmp_path / "out", a=b"a", b__c=b"c"), destination, _manifest())

    def denied(bucket: str, prefix: str) -> object:
        raise StorageDenied("they lack the right s3:ListBucket")

    storage._parts().store.list = denied  # type: ignore[method-assign, assignment]

    assert _names(open_model(storage, settings, "m1", None)) == {"a", "b/c", "mlpkit.json"}
    with pytest.raises(ObjectNotFound, match="there is no model"):
        open_model(storage, settings, "m2", None)


def test_what_reaches_the_store_after_the_kill_is_discarded_too(
    s3_settings: Settings, opened: OpenStorage, relay: Relay, tmp_path: Path
) -> None:
    direct = opened(s3_settings)
    destination = f"{s3_settings.model_bucket}/m1"
    looking = opened(s3_settings.with_options(minio_host=relay.endpoint))

    def arrive_after(method: str, arrive: Callable[[], None]) -> None:
        seen = relay.count(method, INCOMPLETE)

        def arrive_late() -> None:
            wait_until(lambda: relay.count(method, INCOMPLETE) > seen, "the first look")
            arrive()

        late = threading.Thread(target=arrive_late)
        late.start()
        discard_model(looking, destination, was_killed=True)
        late.join(LONG)
        assert direct.list(destination) == []

    arrive_after("HEAD", lambda: begin_model(direct, destination))

    save_model(direct, _folder(tmp_path / "out", a=b"1"), destination, _manifest())
    manifest = direct.fetch(f"{destination}/{MANIFEST}").read_bytes()
    delete_model(direct, s3_settings, "m1")
    with temporary_file(msgspec.json.encode(["a"])) as marker:
        direct.save(marker, f"{destination}/{INCOMPLETE}")
    with temporary_file(manifest) as written:
        arrive_after("DELETE", lambda: direct.save(written, f"{destination}/{MANIFEST}"))
