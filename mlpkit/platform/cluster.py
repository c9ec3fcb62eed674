"""One replica of several: how it follows the platform's database.

Opened only with `MLP_CLIENT_MODE=cluster`; SQLAlchemy is imported only with this module.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractAsyncContextManager

import anyio
import anyio.to_thread

from mlpkit.algorithm import Algorithm
from mlpkit.log import logger
from mlpkit.platform.checker import AliasFollower, Checker, DesiredModel, GateCheck
from mlpkit.platform.database import Database
from mlpkit.platform.outbox import Notes, StatusOutbox
from mlpkit.serving import Alias, Aliases, Models
from mlpkit.settings import Settings
from mlpkit.storage import Storage
from mlpkit.training import Job, TrainingQueue


class ReplicaSync:
    """Keeps a replica and the platform's database in step.

    Opened and closed once; used on one event loop.
    """

    def __init__(
        self,
        settings: Settings,
        algorithms: Mapping[str, Algorithm],
        models: Models,
        aliases: Aliases,
        training: TrainingQueue,
        storage: Storage,
    ) -> None:
        self._settings = settings
        self._algorithms = algorithms
        self._models = models
        self._training = training
        self._leads = settings.sync == "lead"
        self._database = Database(settings)
        self._gate = GateCheck(algorithms, storage, settings)
        self._followed_aliases = AliasFollower(self._database, aliases, algorithms, self._gate, settings.checker_period)
        self._checker: Checker | None = None

    async def open(self) -> None:
        """Reads what an earlier service left in the home.

        Asks nothing of the database.

        Raises:
            JournalError: the notes in the home cannot be read.
        """
        if self._settings.db_type != "sqlite" and not self._settings.db_password:
            logger.warning("DB_PASS is not set: the database must let {} in without a password", self._settings.db_user)
        self._notes = await anyio.to_thread.run_sync(Notes, self._settings.home)
        self._outbox = StatusOutbox(self._database, self._notes, announce=self._leads)
        self._training.on_end = self._outbox.end
        await self._outbox.open(self._training.job)
        if self._settings.checker:
            self._checker = Checker(
                self._database,
                self._notes,
                self._models,
                self._followed_aliases,
                self._algorithms,
                self._gate,
                self._settings.checker_period,
            )

    async def run(self) -> None:
        """Follows the table and reports to it, until it is cancelled."""
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._outbox.run)
            if self._checker is not None:
                tasks.start_soon(self._checker.run)

    def stop_following(self) -> None:
        """Starts no more loads and unloads: the service is about to stop."""
        if self._checker is not None:
            self._checker.stop()

    async def close(self) -> None:
        """Tries once to write what the database does not know.

        What cannot be written within the timeout stays on disk.
        """
        await self._outbox.flush(everything=True)
        if waiting := self._outbox.waiting():
            logger.warning("{} trainings ended and the database does not know: the next start writes it", waiting)
        self._notes.close()
        self._database.close()

    def problems(self) -> list[str]:
        """Why this replica should get no requests yet."""
        return self._checker.problems() if self._checker is not None else []

    def warnings(self) -> list[str]:
        """What is wrong although requests can be answered.

        The database, rows of the table, models that cannot be loaded.
        """
        found = self._database.problems()
        if waiting := self._outbox.waiting():
            found.append(f"the ends of {waiting} trainings are still to be written into the database")
        if self._checker is not None:
            found += self._checker.row_problems.listed()
            found += self._followed_aliases.problems()
            failing = [desired.model_id for desired in self._checker.desired_models() if desired.error]
            if failing:
                what = "1 model is" if len(failing) == 1 else f"{len(failing)} models are"
                found.append(f"{what} not what the database wants, such as [{failing[0]}]: see /models")
        return found

    async def status(self, model_id: str) -> str:
        """The word for a training that this replica does not know.

        Raises:
            DatabaseError: the database could not be asked.
        """
        return await self._database.status(model_id)

    def reporting(self, job: Job) -> AbstractAsyncContextManager[None]:
        """Surrounds the acceptance of a job, whose end will be written.

        Asks nothing of the database.

        Raises:
            JournalError: the home cannot be written.
        """
        return self._outbox.expected(job)

    async def announce_load(self, model_id: str, path: str | None) -> None:
        """If this replica leads: makes all others load a model.

        Raises:
            DatabaseError: the others do not know of it.
        """
        algorithm = self._models.algorithm_of(model_id)
        if self._leads and algorithm is not None:
            await self._database.want(model_id, algorithm, path)

    async def announce_unload(self, model_id: str) -> None:
        """If this replica leads: makes all others unload a model.

        Raises:
            DatabaseError: the others do not know of it.
        """
        if self._leads:
            await self._database.unwant(model_id)
            if self._checker is not None:
                self._checker.disown(model_id)

    async def announce_alias(self, alias: Alias) -> None:
        """Makes all other replicas move an alias.

        Raises:
            DatabaseError: the others do not know of it.
        """
        await self._database.move_alias(alias.algorithm, alias.alias, alias.model_id)

    async def announce_no_alias(self, alias: Alias) -> None:
        """Makes all other replicas remove an alias.

        Raises:
            DatabaseError: the others do not know of it.
        """
        await self._database.remove_alias(alias.algorithm, alias.alias)

    @property
    def desired_models(self) -> list[DesiredModel] | None:
        """The models that the table wants here.

        None if this replica does not follow the table.
        """
        return self._checker.desired_models() if self._checker is not None else None

    @property
    def looked(self) -> float | None:
        """When the table was last read, in seconds since the epoch."""
        return self._checker.looked if self._checker is not None else None


__all__ = ["DesiredModel", "ReplicaSync"]
