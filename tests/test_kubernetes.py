"""deploy/kubernetes: rendered by the real kustomize, held to the published schemas, to itself and
to the gateway; and its pod started here, with its command, variables, files and probes."""

import base64
import json
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import image
import kubernetes_validate
import pytest
import yaml
from process import child, node_of
from prometheus_client.parser import text_string_to_metric_families
from redis_server import free_port

from gateway import __version__
from gateway.api.poll import MAX_WAIT
from gateway.config import KIB, MIB, Config
from gateway.server import stop_seconds
from gateway.settings import load
from gateway.supervisor import HUNG_ROUNDS, HUNG_SECONDS, START_ROUNDS

KUBERNETES = image.ROOT / "deploy" / "kubernetes"
KUBECTL = Path(sys.executable).with_name("kubectl")

OVERLAYS = ("development", "production")

OLDEST = "1.30.0"
"""For which the manifests are made: before it a preStop could not sleep."""

KEY = "k" * 40

NO_SCHEMA = {"ServiceMonitor"}
"""Kinds that are no part of Kubernetes."""

OF_A_POD = 128 * MIB
OF_A_CLIENT = 3 * KIB
"""What Python and an idle client need besides what the node bounds itself, generously measured."""

KERNEL = 256 * MIB
"""Of a production pod's memory, for the send buffers of clients that stall."""

Resource = dict[str, Any]


@pytest.fixture(scope="module", params=OVERLAYS)
def overlay(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> "Overlay":
    tree = tmp_path_factory.mktemp("kubernetes") / "kubernetes"
    shutil.copytree(KUBERNETES, tree)
    (tree / "overlays" / "development" / "jwt.key").write_text(KEY)
    return Overlay(request.param, tree)


class Overlay:
    """What ``kubectl apply -k`` would send, and of its pods what the tests ask for most."""

    def __init__(self, name: str, tree: Path) -> None:
        self.name = name
        command = [str(KUBECTL), "kustomize", str(tree / "overlays" / name)]
        text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        self.resources: list[Resource] = list(yaml.safe_load_all(text))
        self.deployment = self.get("Deployment", "gateway")["spec"]
        self.pod = self.deployment["template"]["spec"]
        [self.container] = self.pod["containers"]

    def get(self, kind: str, name: str) -> Resource:
        """The one whose name is that, perhaps with a hash behind it."""
        pattern = re.compile(rf"{re.escape(name)}(-[a-z0-9]{{10}})?")
        [found] = [
            each
            for each in self.resources
            if each["kind"] == kind and pattern.fullmatch(each["metadata"]["name"])
        ]
        return found

    @property
    def settings_file(self) -> str:
        text: str = self.get("ConfigMap", "gateway")["data"]["gateway.toml"]
        return text

    def config(self, directory: Path) -> Config:
        """Of a node, but for its secrets."""
        file = directory / f"{self.name}.toml"
        file.write_text(self.settings_file)
        variables = image.variables(GATEWAY_JWT_KEY_FILE="x", GATEWAY_REDIS="redis://redis")
        return load({}, variables | self.variables(), file).config

    def variables(self) -> dict[str, str]:
        """What is written in the pod itself."""
        return {each["name"]: each["value"] for each in self.container["env"] if "value" in each}

    def replicas(self) -> int:
        """How many pods there are at least."""
        if self.name == "production":
            assert "replicas" not in self.deployment, "an apply would undo the autoscaler"
            return int(self.get("HorizontalPodAutoscaler", "gateway")["spec"]["minReplicas"])
        return int(self.deployment["replicas"])


def quantity(text: str) -> float:
    """Of Kubernetes: 1Gi, 128Mi, 13k, 2."""
    units = {"": 1, "k": 1000, "Ki": KIB, "Mi": MIB, "Gi": 1024 * MIB}
    found = re.fullmatch(r"([\d.]+)([A-Za-z]*)", text)
    assert found is not None
    return float(found[1]) * units[found[2]]


only_production = pytest.mark.parametrize("overlay", ["production"], indirect=True)


# --- schemas --------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", [OLDEST, kubernetes_validate.latest_version()])
def test_every_resource_is_what_the_published_schema_allows(overlay: Overlay, version: str) -> None:
    for resource in overlay.resources:
        if resource["kind"] not in NO_SCHEMA:
            kubernetes_validate.validate(resource, version, strict=True)


def test_a_field_that_there_is_not_is_found(overlay: Overlay) -> None:
    typo = json.loads(json.dumps(overlay.get("Deployment", "gateway")))
    typo["spec"]["template"]["spec"]["terminationGracePeriodsSeconds"] = 60
    with pytest.raises(kubernetes_validate.ValidationError, match="terminationGracePeriodsSeconds"):
        kubernetes_validate.validate(typo, OLDEST, strict=True)


# --- numbers --------------------------------------------------------------------------------------


def test_a_pod_that_ends_has_the_time_that_its_drain_takes(
    overlay: Overlay, tmp_path: Path
) -> None:
    pre_stop = overlay.container["lifecycle"]["preStop"]["sleep"]["seconds"]
    needed = pre_stop + stop_seconds(overlay.config(tmp_path))
    assert needed < overlay.pod["terminationGracePeriodSeconds"]


def test_probes_ask_where_the_node_tells(overlay: Overlay) -> None:
    ports = {each["name"]: each["containerPort"] for each in overlay.container["ports"]}
    for name, setting in (("http", "GATEWAY_BIND"), ("admin", "GATEWAY_ADMIN_BIND")):
        assert image.ENVIRONMENT[setting] == f"0.0.0.0:{ports[name]}"
    asked = {
        probe: overlay.container[probe]["httpGet"]
        for probe in ("startupProbe", "readinessProbe", "livenessProbe")
    }
    assert {(probe["path"], probe["port"]) for probe in asked.values()} == {
        ("/healthz", "admin"),
        ("/readyz", "admin"),
    }
    assert asked["readinessProbe"]["path"] == "/readyz", "and it alone: the others would kill it"


def test_probes_have_the_patience_of_the_supervisor(overlay: Overlay) -> None:
    def patience(probe: str) -> float:
        told = overlay.container[probe]
        return float(told["periodSeconds"] * told["failureThreshold"])

    assert patience("startupProbe") >= HUNG_SECONDS / HUNG_ROUNDS * START_ROUNDS
    assert patience("livenessProbe") > HUNG_SECONDS, "who replaces one worker goes first"


@only_production
def test_a_balancer_that_asks_readyz_notices_within_the_grace(
    overlay: Overlay, tmp_path: Path
) -> None:
    probe = overlay.container["readinessProbe"]
    assert probe["periodSeconds"] * probe["failureThreshold"] < overlay.config(tmp_path).drain_grace


def test_disruptions_and_rollouts_leave_most_pods_where_they_are(overlay: Overlay) -> None:
    budget = overlay.get("PodDisruptionBudget", "gateway")["spec"]
    assert 1 <= budget["maxUnavailable"] < overlay.replicas()
    assert overlay.deployment["strategy"]["rollingUpdate"] == {"maxUnavailable": 0, "maxSurge": 1}


def test_everything_that_selects_pods_selects_these(overlay: Overlay) -> None:
    labels = overlay.deployment["template"]["metadata"]["labels"]
    selectors = [
        overlay.deployment["selector"]["matchLabels"],
        overlay.get("PodDisruptionBudget", "gateway")["spec"]["selector"]["matchLabels"],
        overlay.get("NetworkPolicy", "gateway")["spec"]["podSelector"]["matchLabels"],
        overlay.get("Service", "gateway")["spec"]["selector"],
        overlay.get("Service", "gateway-metrics")["spec"]["selector"],
        *(
            each["labelSelector"]["matchLabels"]
            for each in overlay.pod["topologySpreadConstraints"]
        ),
    ]
    assert selectors == [labels] * len(selectors)
    keys = {each["topologyKey"] for each in overlay.pod["topologySpreadConstraints"]}
    assert keys == {"kubernetes.io/hostname", "topology.kubernetes.io/zone"}


def test_every_port_that_is_named_is_one_of_the_pods(overlay: Overlay) -> None:
    ports = {each["name"] for each in overlay.container["ports"]}
    named = [
        port["targetPort"]
        for service in ("gateway", "gateway-metrics")
        for port in overlay.get("Service", service)["spec"]["ports"]
    ]
    policy = overlay.get("NetworkPolicy", "gateway")["spec"]
    named += [port["port"] for rule in policy["ingress"] for port in rule["ports"]]
    assert set(named) == ports


def test_a_pod_has_the_memory_that_it_is_told_to_use(overlay: Overlay, tmp_path: Path) -> None:
    config = overlay.config(tmp_path)
    assert config.worker_count == 1, "a count of a pod is that of one process"
    needed = 1.45 * config.memory_bytes + config.pending_bytes
    needed += OF_A_POD + config.max_clients * OF_A_CLIENT
    if overlay.name == "production":
        needed += KERNEL
    assert quantity(overlay.container["resources"]["limits"]["memory"]) >= needed
    assert "cpu" not in overlay.container["resources"]["limits"]


def test_a_pod_may_do_nothing(overlay: Overlay) -> None:
    """Pod Security Standards, restricted; and no file of its image changes."""
    for deployment in (each for each in overlay.resources if each["kind"] == "Deployment"):
        pod = deployment["spec"]["template"]["spec"]
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert pod["automountServiceAccountToken"] is False
        assert not {"hostNetwork", "hostPID", "hostIPC"} & pod.keys()
        assert {kind for each in pod["volumes"] for kind in each if kind != "name"} <= {
            *("configMap", "secret", "emptyDir")
        }
        for container in pod["containers"]:
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }
    user, group = image.USER.split(":")
    assert overlay.pod["securityContext"]["runAsUser"] == int(user)
    assert overlay.pod["securityContext"]["runAsGroup"] == int(group)


# --- production -----------------------------------------------------------------------------------


@only_production
def test_in_production_secrets_come_from_elsewhere(overlay: Overlay) -> None:
    assert {each["kind"] for each in overlay.resources} == {
        *("ConfigMap", "Service", "Deployment", "PodDisruptionBudget", "HorizontalPodAutoscaler"),
        *("Ingress", "NetworkPolicy", "ServiceMonitor"),
    }
    assert overlay.container["image"].endswith(f":{__version__}")


@only_production
def test_pods_are_added_before_they_are_full(overlay: Overlay, tmp_path: Path) -> None:
    scaler = overlay.get("HorizontalPodAutoscaler", "gateway")["spec"]
    assert scaler["scaleTargetRef"] == {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "name": "gateway",
    }
    target = quantity(scaler["metrics"][0]["pods"]["target"]["averageValue"])
    most = overlay.config(tmp_path).max_clients
    left = scaler["minReplicas"] - 1
    assert target * scaler["minReplicas"] <= most * left, "the others have room for those of one"
    down = scaler["behavior"]["scaleDown"]["policies"]
    assert [(each["type"], each["value"]) for each in down] == [("Pods", 1)]
    drain = overlay.pod["terminationGracePeriodSeconds"]
    assert down[0]["periodSeconds"] > drain, "one has gone before the next one goes"


@only_production
def test_the_autoscalers_number_is_one_that_prometheus_has(
    overlay: Overlay, tmp_path: Path
) -> None:
    """The adapter's query, filled in as the adapter does it, against series as a pod has them."""
    adapter = yaml.safe_load((KUBERNETES / "prometheus-adapter.yaml").read_text("utf-8"))
    [rule] = adapter["rules"]["custom"]
    [metric] = overlay.get("HorizontalPodAutoscaler", "gateway")["spec"]["metrics"]
    assert rule["name"]["as"] == metric["pods"]["metric"]["name"]
    assert re.fullmatch(rule["name"]["matches"], "gateway_clients")
    query = rule["metricsQuery"]
    for name, text in (
        ("Series", "gateway_clients"),
        ("LabelMatchers", 'namespace="sse-gateway",pod=~"a|b"'),
        ("GroupBy", "pod"),
    ):
        query = query.replace(f"<<.{name}>>", text)
    test = {
        "evaluation_interval": "1m",
        "tests": [
            {
                "input_series": [
                    {"series": f'gateway_clients{{namespace="{space}",pod="{pod}"}}', "values": n}
                    for space, pod, n in (
                        ("sse-gateway", "a", 7),
                        ("sse-gateway", "b", 9),
                        ("x", "a", 1),
                    )
                ],
                "promql_expr_test": [
                    {
                        "expr": query,
                        "eval_time": "0m",
                        "exp_samples": [
                            {"labels": '{pod="a"}', "value": 7},
                            {"labels": '{pod="b"}', "value": 9},
                        ],
                    }
                ],
            }
        ],
    }
    file = tmp_path / "adapter_test.yml"
    file.write_text(json.dumps(test))
    found = subprocess.run(
        ["promtool", "test", "rules", file], capture_output=True, text=True, check=False
    )
    assert found.returncode == 0, found.stdout


@only_production
def test_prometheus_finds_every_pod(overlay: Overlay) -> None:
    monitor = overlay.get("ServiceMonitor", "gateway")["spec"]
    service = overlay.get("Service", "gateway-metrics")
    labels = service["metadata"]["labels"]
    assert monitor["selector"]["matchLabels"].items() <= labels.items()
    assert labels[monitor["jobLabel"]] == "gateway"
    assert monitor["endpoints"][0]["port"] in {each["name"] for each in service["spec"]["ports"]}
    clients = overlay.get("Service", "gateway")["metadata"]["labels"]
    assert not monitor["selector"]["matchLabels"].items() <= clients.items()


@only_production
def test_the_ingress_is_sticky_and_waits_as_long_as_streams_are_silent(
    overlay: Overlay, tmp_path: Path
) -> None:
    ingress = overlay.get("Ingress", "gateway")
    config = overlay.config(tmp_path)
    told = {
        name.removeprefix("nginx.ingress.kubernetes.io/"): text
        for name, text in ingress["metadata"]["annotations"].items()
    }
    assert told["affinity"] == "cookie"
    assert told["proxy-buffering"] == "off"
    silence = max(config.keepalive, MAX_WAIT, config.publish_wait + config.redis_timeout)
    assert int(told["proxy-read-timeout"]) > silence
    assert quantity(told["proxy-body-size"].replace("m", "Mi")) == config.max_body_bytes
    assert "non_idempotent" not in told["proxy-next-upstream"]
    [path] = ingress["spec"]["rules"][0]["http"]["paths"]
    assert path["backend"]["service"] == {"name": "gateway", "port": {"name": "http"}}


def test_the_rules_are_applied_as_the_readme_has_it() -> None:
    text = (image.ROOT / "deploy" / "README.md").read_text("utf-8")
    found = re.search(r"(?ms)^ {4}(\{ printf.*\}) \| kubectl .* apply -f -$", text)
    assert found is not None
    made = subprocess.run(
        ["sh", "-c", found[1]], cwd=image.ROOT, capture_output=True, text=True, check=True
    )
    rules = yaml.safe_load((image.ROOT / "grafana" / "rules.yml").read_text("utf-8"))
    assert yaml.safe_load(made.stdout) == {
        "apiVersion": "monitoring.coreos.com/v1",
        "kind": "PrometheusRule",
        "metadata": {"name": "gateway"},
        "spec": rules,
    }


# --- started --------------------------------------------------------------------------------------


async def test_the_pod_of_an_overlay_starts_is_probed_and_ends(
    overlay: Overlay, tmp_path: Path, redis_port: int, new_prefix: str
) -> None:
    """With its command, its variables and its files; other are addresses and Redis."""
    (tmp_path / "gateway.toml").write_text(overlay.settings_file)
    (tmp_path / "jwt.key").write_text(KEY)
    paths = {each["mountPath"]: str(tmp_path) for each in overlay.container["volumeMounts"]}
    written = {
        name: text.replace("/run/secrets/gateway", str(tmp_path))
        for name, text in overlay.variables().items()
    }
    variables = image.variables(
        **written,
        GATEWAY_NODE_ID="gateway-7d9f-x1",
        GATEWAY_REDIS=f"redis://127.0.0.1:{redis_port}",
        GATEWAY_REDIS_PREFIX=new_prefix,
        GATEWAY_BIND="127.0.0.1:0",
        GATEWAY_ADMIN_BIND=f"127.0.0.1:{free_port()}",
        GATEWAY_DRAIN_GRACE="0",
    )
    assert variables.keys() >= {each["name"] for each in overlay.container["env"]}
    command = image.here([*image.ENTRYPOINT, *overlay.container["args"]], paths)
    async with node_of(*command, tls=None, **variables) as node, httpx.AsyncClient() as client:
        admin = f"http://127.0.0.1:{node.admin_port}"
        for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
            path = overlay.container[probe]["httpGet"]["path"]
            assert (await client.get(admin + path)).status_code == 200, probe
        families = text_string_to_metric_families((await client.get(f"{admin}/metrics")).text)
        assert "gateway_clients" in {family.name for family in families}, "what is scaled by"
        assert (await node.get("/events/a")).status_code == 401, "it has its secret"
        node.signal(signal.SIGTERM)
        assert await node.wait() == 0
    assert "node gateway-7d9f-x1 has drained" in node.output


async def test_without_its_secret_a_pod_does_not_start(overlay: Overlay, tmp_path: Path) -> None:
    (tmp_path / "gateway.toml").write_text(overlay.settings_file)
    paths = {"/etc/gateway": str(tmp_path)}
    command = image.here([*image.ENTRYPOINT, *overlay.container["args"]], paths)
    async with child(*command, **image.variables(**overlay.variables())) as node:
        assert await node.wait() == 2


@pytest.mark.parametrize("overlay", ["development"], indirect=True)
def test_a_try_has_a_secret_that_git_does_not_see(overlay: Overlay) -> None:
    secret = overlay.get("Secret", "gateway-keys")
    assert base64.b64decode(secret["data"]["jwt.key"]) == KEY.encode()
    ignored = (KUBERNETES / "overlays" / "development" / ".gitignore").read_text().split()
    assert ignored == ["jwt.key"]
