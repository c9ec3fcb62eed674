"""All settings of a service, and the only reader of the environment.

The names of the original SDK are kept (`ML_PLATFORM_CLIENT_API_PREFIX`, `MLP_*`, `MINIO_*`); new ones begin with
`MLPKIT_`. A value comes from the process environment, else from the file `.env` in the working directory, else it is
the default; an empty one counts as not set.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import Field, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import msgspec

from mlpkit import start_folder
from mlpkit.errors import SettingsError, did_you_mean
from mlpkit.settings.readers import (
    boolean,
    choice,
    choice_or_boolean,
    database,
    database_names,
    names,
    natural,
    networks,
    period,
    port,
    prefix,
    seconds,
    size,
    store_url,
    time_limit,
    webhook_secret,
    webhook_url,
)


def _default_workers() -> int:
    affinity = getattr(os, "sched_getaffinity", None)
    return max(1, min(4, len(affinity(0)) if affinity else os.cpu_count() or 1))


def _setting(
    env: str, default: Any, parse: Callable[[str], Any], doc: str, *, secret: bool = False, shown: str | None = None
) -> Any:
    """A setting; a text as `default` is what people would write.

    `shown` is the default in words, if its value does not tell.
    """
    if isinstance(default, str) and default:
        shown = shown or default
        default = parse(default)
    metadata = {"env": env, "parse": parse, "doc": doc, "secret": secret, "shown": shown}
    if callable(default):
        return field(default_factory=default, metadata=metadata, repr=not secret)
    return field(default=default, metadata=metadata, repr=not secret)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Every setting of a service, checked.

    Sizes are in bytes, times in seconds. Secrets are not in the `repr`.
    """

    api_prefix: str = _setting(
        "ML_PLATFORM_CLIENT_API_PREFIX", "/", prefix, "The path under which you find the platform's routes."
    )
    mode: str = _setting(
        "MLP_CLIENT_MODE",
        "standalone",
        choice("standalone", "cluster"),
        "Set `cluster` if the platform's database says which models to load. Trainings are then recorded in it too.",
    )
    workers: int = _setting(
        "MLP_CLIENT_WORKER",
        _default_workers,
        natural(0),
        "Number of worker processes that hold models. With 0, models are in the server process, for debugging.",
        shown="number of CPUs, at most 4",
    )
    train_task_num: int = _setting("MLP_TRAIN_TASK_NUM", 5, natural(1), "How many training jobs run at the same time.")
    train_queue_size: int = _setting("MLP_TRAIN_QUEUE_SIZE", 100, natural(0), "How many training jobs may wait.")
    train_fair: str = _setting(
        "MLP_TRAIN_FAIR",
        "off",
        choice("off", "app_id"),
        "With `app_id`, the next training belongs to the `extend.app_id` that has waited longest.",
    )
    checkpoint_period: float = _setting(
        "MLPKIT_CHECKPOINT_PERIOD",
        "5m",
        seconds,
        "The least time between two uploads of a training's checkpoint. 0 uploads each one.",
    )
    engine: str = _setting(
        "MLPKIT_ENGINE",
        "local",
        str.strip,
        "Where training jobs run: `local` (this machine), `ray` (a Ray cluster) or `launch` (`MLPKIT_LAUNCH`).",
    )
    place_timeout: float = _setting(
        "MLPKIT_PLACE_TIMEOUT",
        "10m",
        time_limit,
        "How long a job waits if no node of the cluster has what it asks for (while nodes are only busy, it waits on), "
        "and how long a load waits for a place there.",
    )
    launch: str = _setting(
        "MLPKIT_LAUNCH",
        "",
        str.strip,
        "For the engine `launch`: the command that starts a job somewhere, such as `sbatch --wrap {command}`.",
    )
    launch_cancel: str = _setting(
        "MLPKIT_LAUNCH_CANCEL", "", str.strip, "The command that ends what that has started: `scancel {id}`."
    )
    gpus: tuple[str, ...] = _setting(
        "MLPKIT_GPUS", (), names, "Numbers of the GPUs that jobs and models with `gpus=` share, separated by commas."
    )

    store_url: str = _setting(
        "MLPKIT_STORE",
        "",
        store_url,
        "URL of the store, such as `s3://minio:9000` or `folder:///srv/store`; use either this or `MINIO_HOST`.",
        shown="a folder in the home",
    )
    minio_host: str = _setting(
        "MINIO_HOST",
        "",
        str.strip,
        "Set it to the `host:port` or URL of an S3 store. You must then set the two keys too.",
    )
    minio_access_key: str = _setting("MINIO_ACCESS_KEY", "", str, "Access key of the S3 store.", secret=True)
    minio_secret_key: str = _setting("MINIO_SECRET_KEY", "", str, "Secret key of the S3 store.", secret=True)
    minio_session_token: str = _setting(
        "MINIO_SESSION_TOKEN", "", str, "Session token, if the keys of the S3 store are temporary.", secret=True
    )
    minio_secure: bool = _setting("MINIO_SECURE", False, boolean, "Use TLS for the S3 store.")
    s3_region: str = _setting("MLPKIT_S3_REGION", "us-east-1", str.strip, "Region for which requests are signed.")
    model_bucket: str = _setting("MLPKIT_MODEL_BUCKET", "ml-platform-model", str.strip, "Bucket that holds the models.")
    data_bucket: str = _setting(
        "MLPKIT_DATA_BUCKET",
        "ml-platform-data",
        str.strip,
        "Bucket of the training data: `data.location` of a train request is a path in it.",
    )
    storage_timeout: float = _setting(
        "MLPKIT_STORAGE_TIMEOUT", 30.0, time_limit, "How long an operation waits for a store that does not answer."
    )
    storage_retries: int = _setting(
        "MLPKIT_STORAGE_RETRIES", 4, natural(0), "How often a failed operation of the store is repeated."
    )

    store_retry: float = _setting(
        "MLPKIT_STORE_RETRY", "1h", seconds, "How long to repeat storing a trained model, if the store fails."
    )

    evaluate_timeout: float = _setting(
        "MLPKIT_EVALUATE_TIMEOUT",
        "10m",
        time_limit,
        "How long a training may evaluate its model. After that the model is stored without figures.",
    )

    checker: bool = _setting(
        "CHECKER_START", True, boolean, "In cluster mode: load and unload models on this replica as the database says."
    )
    checker_period: float = _setting("MLPKIT_CHECK_PERIOD", 5.0, period, "Seconds between two checks of the database.")
    sync: str = _setting(
        "MLPKIT_SYNC",
        "follow",
        choice("follow", "lead"),
        "In cluster mode: with `lead`, `/load` and `/unload` are written into the database for all replicas.",
    )
    db_type: str = _setting(
        "MLP_CLIENT_DB_TYPE",
        "mysql",
        database,
        "Kind of the platform's database: mysql, postgresql, sqlserver or sqlite.",
    )
    db_host: str = _setting("DB_HOST", "127.0.0.1", str.strip, "Host of the platform's database.")
    db_port: int | None = _setting(
        "DB_PORT", None, port, "Port of the platform's database.", shown="3306, 5432 or 1433"
    )
    db_user: str = _setting("DB_USER", "root", str, "User for the database.")
    db_password: str = _setting("DB_PASS", "", str, "Password of that user. It may contain any character.", secret=True)
    db_name: str = _setting(
        "ML_CLIENT_MLP_DB_NAME", "ml_platform", str.strip, "Name of the database. For sqlite, the path of its file."
    )
    db_schema: str = _setting(
        "MLP_CLIENT_DB_SCHEMA",
        "",
        str.strip,
        "Schema of the tables, for SQL Server and PostgreSQL.",
        shown="ml_platform for SQL Server",
    )
    db_names: tuple[tuple[str, str], ...] = _setting(
        "MLPKIT_DB_NAMES", (), database_names, "Your names of tables and columns: `model=models,model.path=location`."
    )
    db_timeout: float = _setting(
        "MLPKIT_DB_TIMEOUT", 5.0, period, "How long a request or the checker waits for the database."
    )

    remote_storage: bool = _setting(
        "MLPKIT_REMOTE_STORAGE",
        False,
        boolean,
        "Use the store of the platform that sent the request, for its trainings and models.",
    )
    remote_allow: tuple[str, ...] = _setting(
        "MLPKIT_REMOTE_ALLOW", (), networks, "Networks whose stores may be used, such as `10.0.0.0/8,192.168.1.7`."
    )

    home: Path = _setting(
        "MLPKIT_HOME", ".mlpkit", Path, "Folder of the service: its jobs, logs, cache and folder store."
    )
    cache_dir: Path | None = _setting(
        "MLPKIT_CACHE_DIR", None, Path, "Folder of the file cache. Several services may share it.", shown="<home>/cache"
    )
    cache_size: int = _setting(
        "MLPKIT_CACHE_SIZE",
        "10GiB",
        size,
        "How large the file cache may become. The least recently used files are removed first.",
    )
    cache_offline: bool = _setting(
        "MLPKIT_CACHE_OFFLINE", False, boolean, "Use a cached copy if the store cannot be reached, and log it."
    )
    cache_trust: float = _setting(
        "MLPKIT_CACHE_TRUST",
        "0",
        seconds,
        "How long a cached copy is used without asking the store if it has changed. 0 asks every time.",
    )

    max_body: int = _setting("MLPKIT_MAX_BODY", "64MiB", size, "Largest request body in bytes.")
    upload: bool = _setting(
        "MLPKIT_UPLOAD", False, boolean, "Take files for the data bucket with `PUT /data/{key}`, and on the page."
    )
    upload_size: int = _setting("MLPKIT_UPLOAD_SIZE", "1GiB", size, "Largest file that is taken.")
    max_answer: int = _setting("MLPKIT_MAX_ANSWER", "64MiB", size, "Largest answer of `predict` in bytes of JSON.")
    max_waiting: int = _setting(
        "MLPKIT_MAX_WAITING",
        1000,
        natural(1),
        "How many predictions may wait for one model. One more is refused immediately.",
    )
    model_memory: int = _setting(
        "MLPKIT_MODEL_MEMORY",
        0,
        size,
        "How much memory all loaded models may need. If a load does not fit, idle models are unloaded first.",
        shown="no limit",
    )
    start_timeout: float = _setting(
        "MLPKIT_START_TIMEOUT", 120.0, time_limit, "How long a worker may take to import the script."
    )
    load_timeout: float = _setting("MLPKIT_LOAD_TIMEOUT", 600.0, time_limit, "Time limit of `load` and `unload`.")
    predict_timeout: float = _setting(
        "MLPKIT_PREDICT_TIMEOUT", 60.0, time_limit, "Time limit of `predict`, if the decorator has no `timeout=`."
    )
    hook_timeout: float = _setting(
        "MLPKIT_HOOK_TIMEOUT", 30.0, time_limit, "Time limit of the hooks `status`, `model_id` and `delete`."
    )
    shutdown_grace: float = _setting(
        "MLPKIT_SHUTDOWN_GRACE", 30.0, seconds, "How long running work may take to finish after SIGTERM."
    )
    http_errors: str = _setting(
        "MLPKIT_HTTP_ERRORS",
        "platform",
        choice("platform", "http"),
        "With `platform`, failures are HTTP 200 with a `status` field. With `http`, they have codes such as 404.",
    )
    check_answers: bool = _setting(
        "MLPKIT_CHECK_ANSWERS", True, boolean, "Check if the answers of `predict` fit the kind of the algorithm."
    )
    predict_shortcut: bool = _setting(
        "MLPKIT_PREDICT_SHORTCUT",
        True,
        boolean,
        "Hand predictions from the connection directly to the model. With `off` they take the way of all other routes.",
    )
    server_timing: bool = _setting(
        "MLPKIT_SERVER_TIMING",
        False,
        boolean,
        "Tell in the header `Server-Timing` of a prediction its times: `wait`, `ipc` (the way) and `predict`.",
    )
    proxies: tuple[str, ...] = _setting(
        "MLPKIT_PROXIES",
        (),
        networks,
        "Networks of proxies whose `X-Forwarded-For` names the caller, such as `10.0.0.0/8`. Others are not believed.",
    )
    cors_origins: tuple[str, ...] = _setting(
        "MLPKIT_CORS_ORIGINS",
        (),
        names,
        "Origins of web pages that may call the service, separated by commas. `*` allows all.",
    )
    token: str = _setting(
        "MLPKIT_TOKEN",
        "",
        str.strip,
        "Bearer token that every request must carry. The probes are open, and the pages `/` and `/docs`, without data.",
        secret=True,
    )
    webhook: str = _setting(
        "MLPKIT_WEBHOOK",
        "",
        webhook_url,
        "URL that is told what happens to jobs and models, in the form of Standard Webhooks.",
        secret=True,
    )
    webhook_secret: str = _setting(
        "MLPKIT_WEBHOOK_SECRET",
        "",
        webhook_secret,
        "The secret that signs what is sent there: `whsec_` and then base64 of 24 to 64 random bytes.",
        secret=True,
    )
    webhook_allow: tuple[str, ...] = _setting(
        "MLPKIT_WEBHOOK_ALLOW",
        (),
        networks,
        "Networks to which events may be sent, such as `10.0.0.0/8`. `0.0.0.0/0,::/0` allows all.",
    )
    page: bool = _setting(
        "MLPKIT_PAGE", True, boolean, "Show a page about the service at `/`: its jobs, models and workers."
    )
    debug: bool = _setting("MLPKIT_DEBUG", False, boolean, "Add tracebacks to answers.")
    debugpy: int | None = _setting(
        "MLPKIT_DEBUGPY",
        None,
        port,
        "Port of 127.0.0.1 at which debugpy waits in each worker and job. Several processes take the next free ports.",
        shown="off",
    )
    log_level: str = _setting(
        "MLPKIT_LOG_LEVEL",
        "info",
        choice("trace", "debug", "info", "warning", "error"),
        "The lowest level that is logged.",
    )
    log_format: str = _setting(
        "MLPKIT_LOG_FORMAT",
        "text",
        choice("text", "json"),
        "Format of the log: text or json. Text has colours on a terminal, unless `NO_COLOR` is set.",
    )
    access_log: str = _setting(
        "MLPKIT_ACCESS_LOG",
        "on",
        choice_or_boolean("no-probes"),
        "Log one line for each request. With `no-probes`, successful requests to `/health/*` are left out.",
    )
    job_log_size: int = _setting(
        "MLPKIT_JOB_LOG_SIZE",
        "10MiB",
        size,
        "How large the log of a training job may become. Further lines are counted, but not kept.",
    )
    jobs_keep: float = _setting(
        "MLPKIT_JOBS_KEEP",
        "90d",
        seconds,
        "How long a training job and its log are kept after its end. 0 keeps all. Models are never removed.",
    )

    def __post_init__(self) -> None:
        """Makes paths absolute, so that `os.chdir` moves no file.

        A shell expands `~` only at the start of a word: not in `.env`, a Dockerfile or a unit file.
        """
        for setting in fields(self):
            value = getattr(self, setting.name)
            if isinstance(value, Path):
                object.__setattr__(self, setting.name, Path(start_folder, os.path.expanduser(value)))
        if self.db_type == "sqlite" and not self.db_name.startswith((":", "file:")):
            object.__setattr__(self, "db_name", os.path.join(start_folder, os.path.expanduser(self.db_name)))

    @property
    def cache_path(self) -> Path:
        """The cache's folder, whether it was set or not."""
        return self.cache_dir if self.cache_dir is not None else self.home / "cache"

    @property
    def store(self) -> str:
        """The URL of the store, without credentials: its identity.

        It is `MLPKIT_STORE`, or what `MINIO_HOST` and `MINIO_SECURE` say, or the folder `storage` in the home.
        """
        if self.store_url:
            return self.store_url.rstrip("/")
        if self.minio_host:
            scheme, _, host = self.minio_host.rpartition("://")
            if scheme not in ("", "http", "https"):
                host = self.minio_host
            secure = scheme == "https" or (scheme == "" and self.minio_secure)
            return f"s3://{host.rstrip('/')}" + ("?secure=on" if secure else "")
        return f"folder://{(self.home / 'storage').absolute()}"

    def with_options(self, **changes: Any) -> Settings:
        """A copy with other values; None changes nothing."""
        return replace(self, **{name: value for name, value in changes.items() if value is not None})


def encode_settings(settings: Settings) -> bytes:
    """The settings as JSON, with the secrets.

    It is only for the channel to a child, never for a file or a log.
    """
    return msgspec.json.encode(settings, enc_hook=str)


def decode_settings(data: bytes) -> Settings:
    """The settings that `encode_settings` wrote."""
    return msgspec.json.decode(data, type=Settings, dec_hook=lambda wanted, value: wanted(value))


ENV_FILE = Path(start_folder, ".env")

IGNORED = {
    "CONNECT_KAFKA": "mlpkit sends no Kafka events",
    "KAFKA_SERVERS": "mlpkit sends no Kafka events",
    "KAFKA_USERNAME": "mlpkit sends no Kafka events",
    "KAFKA_PASSWORD": "mlpkit sends no Kafka events",
    "MLP_CLIENT_THREAD": "threads are set per algorithm: @app.predict(threads=...)",
}
"""Names of the original that are accepted and have no effect, with the reason."""

_PLATFORM_PREFIXES = ("MLP_", "ML_PLATFORM_CLIENT_", "ML_CLIENT_", "MINIO_")
"""Other programs may use such names too, so an unknown one is a warning, and only if it is like one of ours."""
_ALIKE = 0.75
_LINK_NAME = r"_(SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)$"
_LINK_VALUE = r"(tcp|udp|sctp)://\S+:\d+$"
"""https://kubernetes.io/docs/concepts/services-networking/service/#environment-variables"""


def described() -> list[Field[Any]]:
    """The fields of `Settings`, in order.

    Their `metadata` has `env`, `parse`, `doc`, `secret` and `shown`, the default in words.
    """
    return list(fields(Settings))


def load_settings(environ: Mapping[str, str] | None = None, env_file: Path | None = ENV_FILE) -> Settings:
    """The settings of this process, from its environment and `.env`.

    Raises:
        SettingsError: a `MLPKIT_*` name does not exist, or a value cannot be used; the message has all mistakes.
    """
    found = _variables(environ, env_file)
    mistakes = _unknown_names(found)
    values: dict[str, Any] = {}
    for setting in described():
        name = setting.metadata["env"]
        secret = setting.metadata["secret"]
        text = found.get(name, "")
        # Container tools pass on variables that are not set as empty ones.
        if not text.strip() or _is_service_link(name, text):
            continue
        try:
            # Files of secrets mostly end with a newline, and so do the variables that are made from them.
            values[setting.name] = setting.metadata["parse"](text.rstrip("\r\n") if secret else text)
        except ValueError as error:
            # A URL may hold a password.
            shown = "(not shown)" if secret or "@" in text else repr(text)
            mistakes.append(f"{name} is {shown}: it must be {error}")
    if not mistakes:
        mistakes += _contradictions(values)
    if mistakes:
        raise SettingsError("\n".join(mistakes))
    return Settings(**values)


def environment_remarks(
    environ: Mapping[str, str] | None = None, env_file: Path | None = ENV_FILE
) -> list[tuple[str, str]]:
    """What to log about variables that have no effect.

    Each remark is a pair of a level and a sentence.
    """
    known = [setting.metadata["env"] for setting in described()] + list(IGNORED)
    found = _variables(environ, env_file)
    remarks = []
    for name in sorted(found):
        if _is_service_link(name, found[name]):
            if name in known or name.startswith("MLPKIT_"):
                remarks.append(("DEBUG", f"{name} is a service link of Kubernetes and was ignored"))
        elif name.startswith(_PLATFORM_PREFIXES) and name not in known:
            hint = did_you_mean(name, known, cutoff=_ALIKE)
            if hint:
                remarks.append(("WARNING", f"Unknown setting {name}{hint} It has no effect."))
    if found.get("MLPKIT_GPUS") and "CUDA_VISIBLE_DEVICES" in found:
        remarks.append(
            (
                "WARNING",
                "CUDA_VISIBLE_DEVICES is set and stays: all jobs and models see those GPUs, and MLPKIT_GPUS only "
                "counts them",
            )
        )
    return remarks


def _variables(environ: Mapping[str, str] | None, env_file: Path | None) -> dict[str, str]:
    found = dict(_read_env_file(env_file)) if env_file is not None else {}
    found.update(os.environ if environ is None else environ)
    return found


def _is_service_link(name: str, value: str) -> bool:
    """Whether Kubernetes made this variable for a Service such as `db`."""
    return bool(re.search(_LINK_NAME, name) or (name.endswith("_PORT") and re.match(_LINK_VALUE, value)))


def _contradictions(values: Mapping[str, Any]) -> list[str]:
    mistakes = []
    store_url = values.get("store_url", "")
    is_s3 = bool(values.get("minio_host")) or store_url.startswith("s3://")
    if values.get("minio_host") and store_url:
        mistakes.append("MINIO_HOST and MLPKIT_STORE both name the store: set one of them")
    if is_s3 and not (values.get("minio_access_key") and values.get("minio_secret_key")):
        mistakes.append(
            f"{'MLPKIT_STORE' if store_url else 'MINIO_HOST'} is set, so MINIO_ACCESS_KEY and MINIO_SECRET_KEY must be "
            "set: no credential has a default"
        )
    if values.get("remote_storage") and not (is_s3 and values.get("remote_allow")):
        mistakes.append("MLPKIT_REMOTE_STORAGE=on needs MLPKIT_REMOTE_ALLOW, and MINIO_HOST with its keys")
    if values.get("webhook") and not (values.get("webhook_secret") and values.get("webhook_allow")):
        mistakes.append("MLPKIT_WEBHOOK needs MLPKIT_WEBHOOK_SECRET and MLPKIT_WEBHOOK_ALLOW")
    if values.get("sync") == "lead" and values.get("mode") != "cluster":
        mistakes.append(
            "MLPKIT_SYNC=lead needs MLP_CLIENT_MODE=cluster, because only this mode has a database to write to"
        )
    return mistakes


def _unknown_names(found: Mapping[str, str]) -> list[str]:
    known = [setting.metadata["env"] for setting in described()]
    unknown = [name for name in sorted(found) if name.startswith("MLPKIT_") and name not in known]
    return [
        f"Unknown setting {name}{did_you_mean(name, known)}"
        for name in unknown
        if not name.startswith("MLPKIT_TEST_") and not _is_service_link(name, found[name])
    ]


def _read_env_file(path: Path) -> list[tuple[str, str]]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        return []
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"{path} cannot be read: {error}") from error
    pairs = []
    for number, line in enumerate(text.splitlines(), 1):
        line = line.strip().removeprefix("export ")
        if not line or line.startswith("#"):
            continue
        name, equals, value = line.partition("=")
        if not equals or not re.fullmatch(r"\w+", name.strip()):
            raise SettingsError(f"{path}, line {number}: NAME=value is expected")
        pairs.append((name.strip(), _unquoted(value.strip())))
    return pairs


def _unquoted(value: str) -> str:
    if len(value) >= 2 and value[0] == value[-1] and value[0] in "'\"":
        return value[1:-1]
    return re.sub(r"\s+#.*$", "", value)
