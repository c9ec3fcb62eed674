"""The list of stored models: what is in the store, in pages, whatever the index says."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from mlpkit.errors import ArgumentError
from mlpkit.settings import Settings
from mlpkit.storage import Manifest, Storage, StoredModels, delete_model, save_model
from tests.servers import wait_until


@pytest.fixture
def stored(storage: Storage, settings: Settings) -> Iterator[StoredModels]:
    models = StoredModels(storage, settings)
    yield models
    models.close()


def put(
    storage: Storage, settings: Settings, folder: Path, model_id: str, created: float, algorithm: str = "a"
) -> None:
    folder = folder / model_id
    folder.mkdir(exist_ok=True)
    (folder / "model").write_bytes(b"12345")
    manifest = Manifest(
        algorithm=algorithm, kind="text_custom", model_id=model_id, created=created, evaluation={"f1": 0.9}
    )
    save_model(storage, folder, f"{settings.model_bucket}/{model_id}", manifest)


def ids(stored: StoredModels, **choice: object) -> list[str]:
    """The ids of a page whose folders were all looked at."""
    wait_until(lambda: stored.page().unread == 0, "all manifests are read")
    return [model.model_id for model in stored.page(**choice).models]  # type: ignore[arg-type]


def listed_anew(storage: Storage, settings: Settings) -> list[str]:
    """What another service lists, which has seen nothing yet."""
    models = StoredModels(storage, settings)
    try:
        return ids(models)
    finally:
        models.close()


def test_pages_have_the_newest_models_first(
    storage: Storage, settings: Settings, stored: StoredModels, tmp_path: Path
) -> None:
    for number in range(5):
        put(storage, settings, tmp_path, f"m{number}", created=100.5 + number // 2, algorithm="ab"[number % 2])
    assert ids(stored) == ["m4", "m2", "m3", "m0", "m1"]

    first = stored.page(limit=2)
    second = stored.page(limit=2, after=first.next)
    third = stored.page(limit=2, after=second.next)
    pages = [[model.model_id for model in page.models] for page in (first, second, third)]
    assert pages == [["m4", "m2"], ["m3", "m0"], ["m1"]]
    assert (first.total, third.next) == (5, None)
    assert ids(stored, algorithm="b") == ["m3", "m1"]
    model = first.models[0]
    assert (model.algorithm, model.created, model.size, model.evaluation) == ("a", 102.5, 5, {"f1": 0.9})


def test_a_store_without_the_bucket_has_no_models(stored: StoredModels) -> None:
    page = stored.page()
    assert (page.models, page.total, page.next, page.unread) == ([], 0, None, 0)


def test_only_whole_models_are_listed(
    storage: Storage, settings: Settings, stored: StoredModels, tmp_path: Path
) -> None:
    put(storage, settings, tmp_path, "whole", 1.0)
    broken = {"broken/mlpkit.json": b"[]", "damaged/mlpkit.json": b'{"algorithm": "\xff"}'}
    for name, content in {"half/mlpkit.incomplete": b"[]", **broken, "single.bin": b"[]"}.items():
        (tmp_path / "object").write_bytes(content)
        storage.save(tmp_path / "object", f"{settings.model_bucket}/{name}")
    assert ids(stored) == ["whole"]
    # Its upload ends: it is there with one of the next lists.
    put(storage, settings, tmp_path, "half", 2.0)
    wait_until(lambda: ids(stored) == ["half", "whole"], "the upload that has ended is listed")


def test_a_model_that_is_replaced_or_deleted_is_shown_as_it_is(
    storage: Storage, settings: Settings, stored: StoredModels, tmp_path: Path
) -> None:
    put(storage, settings, tmp_path, "one", 1.0)
    put(storage, settings, tmp_path, "two", 2.0)
    assert ids(stored) == ["two", "one"]
    put(storage, settings, tmp_path, "one", 3.0, algorithm="b")
    delete_model(storage, settings, "two")
    wait_until(
        lambda: [(model.model_id, model.algorithm) for model in stored.page().models] == [("one", "b")],
        "what is shown is no longer old",
    )


def test_an_index_helps_and_is_never_trusted(
    storage: Storage, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mlpkit.storage.stored._WORTH_WRITING", 2)
    index = f"{settings.model_bucket}/mlpkit.index.json"
    put(storage, settings, tmp_path, "one", 1.0)
    put(storage, settings, tmp_path, "two", 2.0)
    models = StoredModels(storage, settings)
    wait_until(lambda: models.page().unread == 0 and storage.exists(index), "the index is written")
    models.close()
    assert len(msgspec.json.decode(storage.read(index, 1 << 20)[1])) == 2

    # Old: it names what is gone, does not know what is new, and has another version of what was replaced.
    delete_model(storage, settings, "two")
    put(storage, settings, tmp_path, "three", 3.0)
    put(storage, settings, tmp_path, "one", 4.0)
    other = StoredModels(storage, settings)
    wait_until(lambda: {model.model_id for model in other.page().models} == {"one", "three"}, "both are listed")
    assert {model.model_id: model.created for model in other.page().models} == {"one": 4.0, "three": 3.0}
    other.close()

    for broken in (b"", b"{}", b'[["etag", {}]]', b'[["\xff", {}]]'):
        (tmp_path / "object").write_bytes(broken)
        storage.save(tmp_path / "object", index)
        assert set(listed_anew(storage, settings)) == {"one", "three"}


@pytest.mark.parametrize("after", ["", "m4", "x_m4", "nan"])
def test_a_place_that_no_page_has_named_is_refused(stored: StoredModels, after: str) -> None:
    with pytest.raises(ArgumentError, match=r"\[after\] must be the `next` of a page"):
        stored.page(after=after)
