"""Whether the service is alive, and whether it should get requests."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mlpkit.web.answers import Answer, success, to_json

if TYPE_CHECKING:
    from mlpkit.web.endpoint import Request
    from mlpkit.web.parts import ServiceState


class HealthRoutes:
    """Answers the probes of an orchestrator, from what is known already: they wait for nothing."""

    def __init__(self, state: ServiceState) -> None:
        self._state = state

    async def live(self, request: Request) -> Answer:
        """Always a success: that it is sent is the news."""
        return success({"phase": self._state.phase})

    async def ready(self, request: Request) -> Answer:
        """A success, or 503 with the reasons; `warnings` say what is wrong and keeps no request from its answer."""
        reasons = self._state.problems()
        if not reasons:
            return success({"phase": self._state.phase, "warnings": self._state.warnings()})
        content = {"status": "fail", "message": "; ".join(reasons), "trace": "", "reasons": reasons}
        return Answer(to_json(content), 503, word="fail")
