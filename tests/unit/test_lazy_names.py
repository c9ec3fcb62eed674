"""The names of a package are imported when they are first used."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

PACKAGES = ["mlpkit", "mlpkit.formats", "mlpkit.serving", "mlpkit.training"]


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """A package with a name that its module `inner` has, and one that this does not have."""
    folder = tmp_path / "lazy_package"
    folder.mkdir()
    names = "lazy_names(__name__, {'lazy_package.inner': 'here missing'})"
    (folder / "__init__.py").write_text(f"from mlpkit import lazy_names\n__getattr__, __dir__, __all__ = {names}")
    (folder / "inner.py").write_text("here = object()")
    monkeypatch.syspath_prepend(tmp_path)
    yield importlib.import_module("lazy_package")
    for name in ("lazy_package", "lazy_package.inner"):
        sys.modules.pop(name, None)


@pytest.mark.parametrize("name", PACKAGES)
def test_every_name_of_a_package_can_be_imported(name: str) -> None:
    package = importlib.import_module(name)

    assert dir(package) == package.__all__
    for public in package.__all__:
        assert getattr(package, public) is not None


def test_module_is_imported_with_the_first_use_of_its_name(package: ModuleType) -> None:
    assert "lazy_package.inner" not in sys.modules

    first = package.here

    assert sys.modules["lazy_package.inner"].here is first is vars(package)["here"]


def test_name_that_does_not_exist_is_refused_as_python_does(package: ModuleType) -> None:
    with pytest.raises(AttributeError, match="module 'lazy_package' has no attribute 'other'"):
        _ = package.other
    with pytest.raises(AttributeError, match="missing"):
        _ = package.missing


def test_type_checker_finds_a_name_that_does_not_exist() -> None:
    # mypy tells if one of these comments is not needed.
    with pytest.raises(ImportError):
        from mlpkit import Progres  # type: ignore[attr-defined]  # noqa: F401
    with pytest.raises(ImportError):
        from mlpkit.formats import Labl  # type: ignore[attr-defined]  # noqa: F401
