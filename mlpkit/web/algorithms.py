"""The routes of algorithms and models: train, load, unload, delete, alias."""

from __future__ import annotations

import re
from contextlib import nullcontext, suppress
from typing import TYPE_CHECKING, Any

import anyio
import msgspec

from mlpkit.errors import (
    AlgorithmNotFound,
    ArgumentError,
    DatabaseError,
    ObjectNotFound,
    UserCodeError,
)
from mlpkit.injection import NULL
from mlpkit.processes import LONG
from mlpkit.serving import Alias, alias_name
from mlpkit.storage import Manifest, checkpoint_place, delete_checkpoint, delete_model, find_manifest, in_time
from mlpkit.training import LONGEST_ID, Job, check_job, new_model_id, takes_checkpoint, with_order
from mlpkit.web.request import HttpResponse, success, work_on

if TYPE_CHECKING:
    from collections.abc import Callable

    from mlpkit.algorithm import Algorithm
    from mlpkit.web.answers import TrainingStatus
    from mlpkit.web.routes import Dependencies, Request

_ALIAS = re.compile(r"[a-z0-9][a-z0-9._-]{0,30}")
"""With an algorithm's name and `@` it fits into the 64 characters of `model_id`; a database may ignore case."""
_object = msgspec.json.Decoder(dict[str, msgspec.Raw])


class AlgorithmRoutes:
    """The functions of the platform's routes, except `predict`, and of aliases."""

    def __init__(self, dependencies: Dependencies) -> None:
        self._dependencies = dependencies
        self._settings = dependencies.settings
        self._models = dependencies.models
        self._training = dependencies.training
        self._aliases = dependencies.aliases
        self._cluster = dependencies.cluster
        self._storage_threads = anyio.CapacityLimiter(4)

    async def train(self, request: Request) -> HttpResponse:
        """Queues a training job; it is on disk before the answer."""
        arguments = request.arguments
        context = request.context
        algorithm = self._algorithm(arguments.text("algorithm"))
        extend = await work_on(request.body, lambda: _with_peer(arguments.object("extend"), context.peer))
        model_id = context.subject["model_id"] = await self._new_model_id(algorithm, extend)

        def checked_job() -> Job:
            job = Job(
                model_id=model_id,
                algorithm=algorithm.name,
                model_path=arguments.text("model_path"),
                data=_as_text(arguments.object("data")),
                parameters=_as_text(arguments.object("parameter")),
                extend=_as_text(extend),
                uuid=context.caller_uuid,
                log_uuid=context.request_id,
                traceparent=context.traceparent,
            )
            check_job(algorithm, job, self._settings)
            return with_order(job)

        job = await work_on(request.body, checked_job)
        if not await self._training.has_accepted(job):
            async with self._cluster.reporting(job) if self._cluster is not None else nullcontext():
                await self._training.submit(job)
        return success({"model_id": job.model_id})

    async def status(self, request: Request) -> HttpResponse:
        """The state of a model's training, with its progress."""
        model_id = request.arguments.text("model_id")
        algorithm = self._algorithm(request.arguments.text("algorithm"))
        job = self._training.summary(model_id)
        word: object = job.state if job is not None else await self._word_of_others(model_id)
        if "status" in algorithm.hooks:
            fields = {"model_id": model_id, "default": word}
            word = await self._models.call(algorithm.name, "status", fields)
        data: TrainingStatus = {"status": word}
        if job is not None:
            data["message"] = job.note
            data["attempt"] = job.attempt
            data["progress"] = msgspec.to_builtins(job.progress)
            data["metrics"] = job.progress.metrics if job.progress is not None else {}
            data["queue_position"] = self._training.position(model_id)
            data["estimated_start"] = self._training.estimated_start(model_id)
        return success(data)

    async def load(self, request: Request) -> HttpResponse:
        """Loads a model; one that is loaded already stays as it is."""
        arguments = request.arguments
        algorithm = self._algorithm(arguments.text("algorithm"))
        model_id = arguments.text("model_id")
        path = arguments.optional("model_path")
        extend = arguments.object("extend")
        if extend != NULL:
            extend = _with_peer(extend, request.context.peer)
        was_here = self._models.algorithm_of(model_id) is not None
        await self._models.load(algorithm.name, model_id, path, extend, request.context.caller_uuid)
        if self._cluster is not None:
            try:
                await self._cluster.announce_load(model_id, path)
            except DatabaseError:
                # The answer says that the load failed, so it must not stay on this replica alone.
                if not was_here:
                    await self._models.unload(model_id)
                raise
        return success()

    async def unload(self, request: Request) -> HttpResponse:
        """Unloads a model; succeeds if it is not loaded.

        The algorithm that loaded it unloads it, even if the request names another.
        """
        self._algorithm(request.arguments.text("algorithm"))
        await self._unload(request.arguments.text("model_id"))
        return success()

    async def delete(self, request: Request) -> HttpResponse:
        """Unloads a model and deletes it.

        The algorithm's `delete` is called; without one, the model's folder is removed from the store.
        """
        model_id = request.arguments.text("model_id")
        algorithm = self._algorithm(request.arguments.text("algorithm"))
        self._training.check_deletable(model_id)
        await self._unload(model_id)
        if "delete" in algorithm.hooks:
            await self._models.call(algorithm.name, "delete", {"model_id": model_id})
            if takes_checkpoint(algorithm):
                place = checkpoint_place(self._settings, model_id)
                await self._in_store(model_id, delete_checkpoint, self._dependencies.storage, place)
        else:
            await self._in_store(model_id, delete_model, self._dependencies.storage, self._settings, model_id)
        # A prediction may have loaded it again before it was gone.
        await self._models.unload(model_id)
        return success()

    async def monitor(self, request: Request) -> HttpResponse:
        """Which workers hold which models, and the algorithms in order."""
        return success({"load": self._models.placement(), "algorithms": list(self._dependencies.algorithms)})

    async def alias(self, request: Request) -> HttpResponse:
        """Lets an alias lead to a model, which is loaded first.

        Predictions take `<algorithm>@<alias>` as `model_id`.
        """
        algorithm, alias = self._named(request)
        model_id = request.arguments.text("model_id")
        await self._check_alias(algorithm, alias_name(algorithm.name, alias), model_id)
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

    async def _word_of_others(self, model_id: str) -> str:
        return "unknown" if self._cluster is None else await self._cluster.status(model_id)

    async def _unload(self, model_id: str) -> None:
        # Before the other replicas hear of it.
        self._models.claims.check_unloadable(model_id)
        if self._cluster is not None:
            await self._cluster.announce_unload(model_id)
        await self._models.unload(model_id)

    def _algorithm(self, name: str) -> Algorithm:
        try:
            return self._dependencies.algorithms[name]
        except KeyError:
            raise AlgorithmNotFound(name) from None

    async def _new_model_id(self, algorithm: Algorithm, extend: msgspec.Raw) -> str:
        if "model_id" not in algorithm.hooks:
            return new_model_id()
        model_id = await self._models.call(algorithm.name, "model_id", {"extend": extend})
        if not isinstance(model_id, str) or not 1 <= len(model_id) <= LONGEST_ID:
            raise UserCodeError(
                f"model_id of algorithm [{algorithm.name}] returned {_shortened(model_id)}: "
                f"it must be a string of 1 to {LONGEST_ID} characters"
            )
        return model_id

    async def _in_store(self, model_id: str, delete: Callable[..., None], *arguments: object) -> None:
        limit = self._settings.hook_timeout
        late = f"the store did not delete model [{model_id}] within {limit:g} s"
        # The platform repeats calls: a model that is gone already counts as deleted.
        with suppress(ObjectNotFound):
            await in_time(delete, *arguments, limit=limit, limiter=self._storage_threads, late=late)

    def _named(self, request: Request) -> tuple[Algorithm, str]:
        """The algorithm and the alias of a request, checked."""
        algorithm = self._algorithm(request.arguments.text("algorithm"))
        alias = request.arguments.text("alias")
        if _ALIAS.fullmatch(alias) is None:
            raise ArgumentError(
                "[alias] must be 1 to 31 small letters (a to z), digits, dots, hyphens or underscores, "
                f"and begin with a letter or digit, not {alias[:31]!r}"
            )
        return algorithm, alias

    async def _check_alias(self, algorithm: Algorithm, name: str, model_id: str) -> None:
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
        return await find_manifest(self._dependencies.storage, self._settings, model_id, self._storage_threads)

    def _shown(self, alias: Alias) -> dict[str, Any]:
        return {"name": alias.name, **msgspec.to_builtins(alias), "state": self._models.state_of(alias.model_id)}


def _with_peer(extend: msgspec.Raw, peer: str) -> msgspec.Raw:
    if len(extend_bytes := bytes(extend)) > LONG:
        # Of two keys with this name the last one counts, so what the caller may have sent does not.
        inner = extend_bytes[1:-1].strip()
        return msgspec.Raw(b'{%b%b"remote_ip":%b}' % (inner, b"," if inner else b"", msgspec.json.encode(peer)))
    content = _object.decode(extend)
    content["remote_ip"] = msgspec.Raw(msgspec.json.encode(peer))
    return msgspec.Raw(msgspec.json.encode(content))


def _as_text(content: msgspec.Raw) -> str:
    return bytes(content).decode()


def _shortened(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:80]}…"


def _reads_folder(algorithm: Algorithm) -> bool:
    """Whether `load` needs the model's folder."""
    load = algorithm.plan("load")
    services = load.all_services() if load is not None else ()
    return any(service.type.__name__ == "ModelDir" and not service.optional for service in services)
