"""The nursery as a fresh interpreter: `python -m mlpkit.nursery SOCKET MODULE...`, started by `origin.fresh` only."""

from __future__ import annotations

import socket
import sys

from mlpkit.nursery.parent import has_threads, import_framework, run


def main() -> None:
    """Runs the nursery; in a child, the module that it is."""
    requests = socket.socket(fileno=int(sys.argv[1]))
    requests.set_inheritable(False)
    import_framework(sys.argv[2:])
    if has_threads():
        # Something that every interpreter of this machine imports has started one: no place for a fork.
        return
    run(requests)


if __name__ == "__main__":
    main()
