"""Child processes of the service."""

from mlpkit.processes.channel import LONG, AsyncChannel, BlockingChannel, Message
from mlpkit.processes.child import (
    Child,
    Exit,
    channel_of_child,
    leave_signals_to_the_server,
    memory_of,
    memory_of_each,
    prepare,
    start_child,
)
from mlpkit.processes.debugger import listen_for_debugger
from mlpkit.processes.output import LineStream, capture_output, flush_streams, log_prints, name_requests_in_loguru
from mlpkit.processes.resources import THREAD_SETTINGS, Devices, device_settings, gpus_in_words, thread_settings

__all__ = [
    "LONG",
    "THREAD_SETTINGS",
    "AsyncChannel",
    "BlockingChannel",
    "Child",
    "Devices",
    "Exit",
    "LineStream",
    "Message",
    "capture_output",
    "channel_of_child",
    "device_settings",
    "flush_streams",
    "gpus_in_words",
    "leave_signals_to_the_server",
    "listen_for_debugger",
    "log_prints",
    "memory_of",
    "memory_of_each",
    "name_requests_in_loguru",
    "prepare",
    "start_child",
    "thread_settings",
]
