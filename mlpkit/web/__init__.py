"""HTTP: the platform's protocol and mlpkit's own routes as one ASGI application."""

from __future__ import annotations

from mlpkit.web.application import Application, connections
from mlpkit.web.routes import Dependencies, ServiceState

__all__ = ["Application", "Dependencies", "ServiceState", "connections"]
