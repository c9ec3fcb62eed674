from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.servers.foreign import foreign_service


@pytest.fixture(scope="session")
def foreign() -> Iterator[str]:
    """The address of a running service that is not mlpkit."""
    with foreign_service() as url:
        yield url
