"""The foot of the stack, where a forked process begins: outside of all that its parent was in the middle of.

What it runs there ends as a program does: no handler and no `with` of the parent's sees its exceptions, and the
interpreter ends in full after it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NoReturn

_above_the_foot = False


class _Descent(BaseException):
    """On its way down, in the new process. Nothing that catches an `Exception` may stop it."""

    def __init__(self, run: Callable[[], NoReturn]) -> None:
        super().__init__()
        self.run = run


def at_the_foot(main: Callable[[], NoReturn]) -> NoReturn:
    """Runs a whole program, at the foot of the stack; what that forks above may then `descend` to here."""
    global _above_the_foot
    _above_the_foot = True
    try:
        main()
    except _Descent as descent:
        run = descent.run
    finally:
        _above_the_foot = False
    # Here the descent is no longer the context of what is raised from now on.
    run()


def can_descend() -> bool:
    """Whether there is a foot to descend to."""
    return _above_the_foot


def descend(run: Callable[[], NoReturn]) -> NoReturn:
    """Leaves all that is on the stack, in a process that was just forked, and runs this at its foot.

    What has a `finally` on the way down runs it here too.
    """
    raise _Descent(run)
