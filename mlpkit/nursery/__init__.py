"""The nursery: a process that has imported the framework once, and of which the service's children are forked.

What: `Nursery` is the server's end; the process imports the framework, freezes its heap, and then forks whenever it is
asked to. It runs no code of the user's, no thread and no event loop, so that a child of it begins as a fresh
interpreter would, but at once, and shares the framework's memory with the others.
How: it is itself forked of a server that has run nothing but mlpkit yet, as `mlpkit run` has, and shares memory with
it too; everywhere else it is a fresh interpreter, `python -m mlpkit.nursery SOCKET MODULE...`. A request is one message
on a socket, with three descriptors: the `line` on which the child is followed, its channel and its output. On the line
come the child's pid and, at its end, its exit code. The dead child is collected when the server has closed the line, so
that its pid is nobody else's until then.
Who ends it: it ends when the server is gone, and the server's guard kills it if it does not.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mlpkit import front_door

if TYPE_CHECKING:
    from mlpkit.nursery.server import Forked, Nursery, NurseryGone
    from mlpkit.nursery.stack import at_the_foot

__all__ = ["Forked", "Nursery", "NurseryGone", "at_the_foot"]

# The command line needs the last of them only, and is there at once.
__getattr__ = front_door(
    __name__,
    {
        **dict.fromkeys(("Forked", "Nursery", "NurseryGone"), "mlpkit.nursery.server"),
        "at_the_foot": "mlpkit.nursery.stack",
    },
)
