"""The routes of aliases: make or move one, remove one, list all."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import anyio
import msgspec
from anyio import to_thread

from mlpkit.errors import AlgorithmNotFound, ArgumentError, ObjectNotFound, TimeLimitExceeded
from mlpkit.serving import Alias, alias_name
from mlpkit.storage import Manifest, read_manifest
from mlpkit.web.request import HttpResponse, success

if TYPE_CHECKING:
    from mlpkit.algorithm import Algorithm
    from mlpkit.web.routes import Dependencies, Request

_ALIAS = re.compile(r"[a-z0-9][a-z0-9._-]{0,30}")
"""With an algorithm's name and `@` it fits into the 64 characters of `model_id`; a database may ignore case."""


class AliasRoutes:
    """The functions of aliases."""

    def __init__(self, dependencies: Dependencies) -> None:
        self._dependencies = dependencies
        self._aliases = dependencies.aliases
        self._cluster = dependencies.cluster
        self._threads = anyio.CapacityLimiter(4)

    async def alias(self, request: Request) -> HttpResponse:
        """Lets an alias lead to a model, which is loaded first.

        Predictions take `<algorithm>@<alias>` as `model_id`.
        """
        algorithm, alias = self._named(request)
        model_id = request.arguments.text("model_id")
        await self._check_model(algorithm, alias_name(algorithm.name, alias), model_id)
        announce = self._cluster.announce_alias if self._cluster is not None else None
        return success(self._shown(await self._aliases.move(algorithm.name, alias, model_id, announce)))

    async def unalias(self, request: Request) -> HttpResponse:
        """Removes an alias; succeeds if there is none."""
        algorithm, alias = self._named(request)
        announce = self._cluster.announce_no_alias if self._cluster is not None else None
        await self._aliases.remove(algorithm.name, alias, announce)
        return success()

    async def aliases(self, request: Request) -> HttpResponse:
        """The aliases, the models that they lead to, and their states."""
        return success({"aliases": [self._shown(alias) for alias in self._aliases.listed()]})

    def _named(self, request: Request) -> tuple[Algorithm, str]:
        """The algorithm and the alias of a request, checked."""
        name = request.arguments.text("algorithm")
        alias = request.arguments.text("alias")
        algorithm = self._dependencies.algorithms.get(name)
        if algorithm is None:
            raise AlgorithmNotFound(name)
        if _ALIAS.fullmatch(alias) is None:
            raise ArgumentError(
                "[alias] must be 1 to 31 small letters (a to z), digits, dots, hyphens or underscores, "
                f"and begin with a letter or digit, not {alias[:31]!r}"
            )
        return algorithm, alias

    async def _check_model(self, algorithm: Algorithm, name: str, model_id: str) -> None:
        """Checks that the alias may lead to the model.

        Raises:
            ObjectNotFound, IncompleteModel: the model is not stored, and its algorithm stores models.
            ArgumentError: it is of another algorithm or below its gate, or a model has the name of the alias.
        """
        if await self._manifest(name) is not None:
            raise ArgumentError(f"there is a model with the id [{name}]: an alias needs another name")
        manifest = await self._manifest(model_id)
        if manifest is not None:
            if manifest.algorithm != algorithm.name:
                raise ArgumentError(
                    f"model [{model_id}] is of algorithm [{manifest.algorithm}], not [{algorithm.name}]"
                )
            if manifest.below_gate:
                raise ArgumentError(f"model [{model_id}] is below its gate: {manifest.below_gate}")
        elif _reads_folder(algorithm):
            place = f"{self._dependencies.settings.model_bucket}/{model_id}"
            raise ObjectNotFound(f"model [{model_id}] is not stored: there is no model {place}")

    async def _manifest(self, model_id: str) -> Manifest | None:
        """The manifest of a stored model; None if there is none."""
        dependencies = self._dependencies
        limit = dependencies.settings.hook_timeout
        try:
            with anyio.fail_after(limit):
                return await to_thread.run_sync(
                    read_manifest,
                    dependencies.storage,
                    dependencies.settings,
                    model_id,
                    limiter=self._threads,
                    abandon_on_cancel=True,
                )
        except TimeoutError:
            raise TimeLimitExceeded(f"the store did not answer within {limit:g} s about [{model_id}]") from None
        except ObjectNotFound:
            return None

    def _shown(self, alias: Alias) -> dict[str, Any]:
        states = {model.model_id: model.state for model in self._dependencies.models.listed()}
        state = states.get(alias.model_id, "unloaded")
        return {"name": alias.name, **msgspec.to_builtins(alias), "state": state}


def _reads_folder(algorithm: Algorithm) -> bool:
    """Whether `load` needs the model's folder."""
    load = algorithm.plan("load")
    services = load.all_services() if load is not None else ()
    return any(service.type.__name__ == "ModelDir" and not service.optional for service in services)
