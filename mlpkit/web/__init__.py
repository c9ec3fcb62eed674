"""HTTP: the platform's protocol and mlpkit's own routes as one ASGI application."""

from __future__ import annotations

from mlpkit.web.application import Application, connections
from mlpkit.web.page import STEP as HISTORY_STEP
from mlpkit.web.routes import Dependencies, ServiceState

__all__ = ["HISTORY_STEP", "Application", "Dependencies", "ServiceState", "connections"]
