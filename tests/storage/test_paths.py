"""Locations in requests: as the platform writes them, and never out of their place."""

from __future__ import annotations

import pytest

from mlpkit.errors import UnsafePath
from mlpkit.storage import location


@pytest.mark.parametrize(
    ("text", "bucket", "path"),
    [
        ("path/to/data", "data", "data/path/to/data"),
        ("/path/to/your/data", "data", "data/path/to/your/data"),
        ("/models/m1", "", "models/m1"),
        ("models/bert/", "", "models/bert"),
        ("/数据/训练.csv", "data", "data/数据/训练.csv"),
    ],
)
def test_location_may_have_one_slash_first(text: str, bucket: str, path: str) -> None:
    assert location(text, "data.location", bucket=bucket) == path


@pytest.mark.parametrize("bucket", ["", "data"])
@pytest.mark.parametrize(
    "text",
    [
        "",
        "/",
        "//",
        "//path/k",
        "bucket//k",
        "/bucket/../k",
        "/../k",
        "bucket/./k",
        "a\\b/k",
        "bucket/k\n",
        "bucket/k//",
    ],
)
def test_location_that_cannot_be_a_path_is_refused_with_the_name_of_its_field(text: str, bucket: str) -> None:
    with pytest.raises(UnsafePath, match=r"^\[data\.location\] "):
        location(text, "data.location", bucket=bucket)


@pytest.mark.parametrize("text", ["m1", "/m1", "b*cket/k", "1.2.3.4/k"])
def test_location_without_a_bucket_of_its_own_must_begin_with_one(text: str) -> None:
    with pytest.raises(UnsafePath, match=r"^\[model_path\] "):
        location(text, "model_path")
