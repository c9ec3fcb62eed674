"""What the web layer is built from: the parts that the service opened, and in which phase of its life it is."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from mlpkit.algorithm import Algorithm
    from mlpkit.log import LogOutput
    from mlpkit.platform.cluster import Cluster
    from mlpkit.serving import Models
    from mlpkit.settings import Settings
    from mlpkit.storage import Storage
    from mlpkit.training import TrainingQueue


@dataclass
class ServiceState:
    """The phase of a service's life, set by whoever opens and closes it; new work is taken only while it is `ready`.

    `checks` are asked for readiness: each gives the problems that it knows, at once. `remarks` are asked for what is
    wrong although requests can be answered.
    """

    phase: Literal["starting", "ready", "draining"] = "starting"
    checks: list[Callable[[], list[str]]] = field(default_factory=list)
    remarks: list[Callable[[], list[str]]] = field(default_factory=list)

    def problems(self) -> list[str]:
        """Why the service should get no requests now; nothing where it should."""
        found = [] if self.phase == "ready" else [self.phase]
        return found + [problem for check in self.checks for problem in check()]

    def warnings(self) -> list[str]:
        """What somebody should look at, although the service can do its work."""
        return [warning for remark in self.remarks for warning in remark()]


@dataclass(frozen=True)
class Parts:
    """Everything that requests are answered with; `cluster` is None in a service that stands alone."""

    algorithms: Mapping[str, Algorithm]
    settings: Settings
    models: Models
    training: TrainingQueue
    storage: Storage
    log: LogOutput
    state: ServiceState
    cluster: Cluster | None = None
