"""The storages of a process that holds models.

Its own, and those of callers for as long as a model of theirs lives.
"""

from __future__ import annotations

import threading
from collections import Counter

from mlpkit.settings import Settings
from mlpkit.storage import Storage, open_storage, settings_for


class Stores:
    """Opens each store once. Safe from every thread."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._lock = threading.Lock()
        self._open: dict[str, Storage] = {}
        self._users: Counter[Storage] = Counter()

    def own(self) -> Storage:
        """The storage of the settings; it stays until `close`."""
        return self._opened(self._settings)

    def borrow(self, extend: bytes) -> Storage:
        """The storage for a request with this `extend`.

        It may be the caller's own, and needs a `give_back`.

        Raises:
            ArgumentError: it names a store that may not be used.
        """
        return self._opened(settings_for(self._settings, extend), users=1)

    def give_back(self, storage: Storage) -> None:
        """Closes a caller's storage with its last user.

        There may be as many callers as there are addresses.
        """
        with self._lock:
            self._users[storage] -= 1
            if self._users[storage] > 0:
                return
            del self._users[storage]
            if storage is self._open.get(self._settings.store):
                return
            self._open = {url: other for url, other in self._open.items() if other is not storage}
        storage.close()

    def close(self) -> None:
        """Closes all of them."""
        with self._lock:
            storages = list(self._open.values())
            self._open = {}
        for storage in storages:
            storage.close()

    def _opened(self, settings: Settings, users: int = 0) -> Storage:
        with self._lock:
            storage = self._open.get(settings.store)
            if storage is None:
                storage = self._open[settings.store] = open_storage(settings)
            self._users[storage] += users
            return storage
