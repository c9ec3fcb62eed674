"""A process of its own that fetches: `python -m tests.storage.fetcher SETTINGS PATH [hold]`.

SETTINGS is a file with the settings as JSON. It prints the copy's path; with `hold` it goes on until its stdin ends.
"""

from __future__ import annotations

import sys
from pathlib import Path

from mlpkit.settings import decode_settings
from mlpkit.storage import open_storage


def main() -> None:
    """Fetches, prints the path of the copy, and holds it where told to."""
    settings, path, *options = sys.argv[1:]
    storage = open_storage(decode_settings(Path(settings).read_bytes()))
    print(storage.fetch(path), flush=True)
    if "hold" in options:
        sys.stdin.read()


if __name__ == "__main__":
    main()
