"""Whose store may be used in place of the service's own: by the address that a request came from."""

from __future__ import annotations

import json

import pytest

from mlpkit.errors import ArgumentError
from mlpkit.settings import Settings
from mlpkit.storage import settings_for

ALLOWING = Settings(
    minio_host="store.example:9100",
    minio_access_key="key",
    minio_secret_key="secret",
    remote_storage=True,
    remote_allow=("10.0.0.0/8", "2001:db8::/32"),
)


@pytest.mark.parametrize(
    ("peer", "endpoint"),
    [
        ("10.1.2.3", "10.1.2.3:9100"),
        ("::ffff:10.1.2.3", "10.1.2.3:9100"),
        ("2001:db8::7", "[2001:db8::7]:9100"),
    ],
)
def test_store_of_an_allowed_caller_is_used_however_his_address_is_written(peer: str, endpoint: str) -> None:
    assert settings_for(ALLOWING, json.dumps({"remote_ip": peer})).minio_host == endpoint


@pytest.mark.parametrize("peer", ["11.0.0.1", "::ffff:11.0.0.1", "::1", "::10.1.2.3", "2001:db9::7", "store.example"])
def test_store_of_anybody_else_is_refused(peer: str) -> None:
    with pytest.raises(ArgumentError, match=r"remote_ip|MLPKIT_REMOTE_ALLOW"):
        settings_for(ALLOWING, json.dumps({"remote_ip": peer}))
