"""How long ended jobs are kept, and their removal with their logs."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from mlpkit.training.journal import Journal

_AT_ONCE = 500
_LEAST_PAUSE, _LONGEST_PAUSE = 0.1, 3600.0


class Retention:
    """Removes the jobs that ended more than `keep` seconds ago. `log_path` says where the log of a job is."""

    def __init__(self, journal: Journal, log_path: Callable[[str], Path], keep: float) -> None:
        self._journal, self._log_path, self._keep = journal, log_path, keep
        self.pause = min(max(keep / 10, _LEAST_PAUSE), _LONGEST_PAUSE)
        """After so many seconds it is worth to look again."""

    def remove_some(self) -> bool:
        """Removes some hundreds of them; False where none is left.

        Raises:
            JournalError, OSError: the journal or a log cannot be written.
        """
        before = time.time() - self._keep
        jobs = self._journal.oldest_ended(_AT_ONCE)
        old = [job.model_id for job in jobs if (job.ended or job.created) < before]
        for model_id in old:
            # First, so that no log remains that nobody knows of.
            self._log_path(model_id).unlink(missing_ok=True)
        if old:
            self._journal.remove(old)
        return bool(old)
