"""Child processes of the service: how they are started, spoken to, watched and ended."""

from mlpkit.processes.channel import LONG, AsyncChannel, BlockingChannel, Message
from mlpkit.processes.child import Child, Exit, channel_of_child, memory_of, prepare, start_child

__all__ = [
    "LONG",
    "AsyncChannel",
    "BlockingChannel",
    "Child",
    "Exit",
    "Message",
    "channel_of_child",
    "memory_of",
    "prepare",
    "start_child",
]
