"""deploy/kubernetes: valid by the schemas, hardened throughout, and in agreement with the services' settings."""

from __future__ import annotations

import re
from functools import cache
from urllib.parse import urlsplit

import jsonschema
import kubernetes_validate
import pytest

from shared.adapters import settings
from tests import kubectl, prometheus_rules
from tests.servers import IN_CI, ROOT
from tests.unit.cluster import WORKLOADS, Cluster, render, selects
from tests.unit.custom_resources import SCHEMAS

FOLDER = ROOT / "deploy" / "kubernetes"
OVERLAYS = ("small", "production")
SERVICES = {"consumer": "consumer_port", "recommender": "http_port", "retrainer": "retrainer_port"}
KUBERNETES = ("1.28", "1.37")
"""The oldest and the newest that these files are checked against."""


@cache
def rendered(overlay: str) -> Cluster:
    command = kubectl.render_command()
    if command is None:
        why = "neither kubectl nor kustomize: python -m tests.kubectl fetches one"
        pytest.fail(why) if IN_CI else pytest.skip(why)
    return render(command, FOLDER / "overlays" / overlay)


@pytest.fixture(params=OVERLAYS)
def cluster(request: pytest.FixtureRequest) -> Cluster:
    return rendered(request.param)


def known_settings() -> dict[str, object]:
    """Variable -> default."""
    classes = [c for c in vars(settings).values() if isinstance(c, type) and hasattr(c, "model_fields")]
    return {name.upper(): field.default for c in classes for name, field in c.model_fields.items()}


@pytest.mark.parametrize("version", KUBERNETES)
def test_every_resource_is_valid(cluster: Cluster, version: str) -> None:
    for resource in cluster.resources:
        schema = SCHEMAS.get((resource["apiVersion"], resource["kind"]))
        if schema is not None:
            jsonschema.validate(resource, schema)
        else:
            kubernetes_validate.validate(resource, version, strict=True)


def test_the_validator_refuses_what_is_wrong() -> None:
    (deployment, *_) = [dict(r) for r in rendered("small").of("Deployment")]
    for broken in ({**deployment, "replicas": 2}, {**deployment, "spec": {**deployment["spec"], "replicas": "two"}}):
        with pytest.raises(kubernetes_validate.ValidationError):
            kubernetes_validate.validate(broken, KUBERNETES[0], strict=True)
    (scaled,) = rendered("production").of("ScaledObject")
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(
            {**scaled, "spec": {**scaled["spec"], "maxReplicas": 3}}, SCHEMAS["keda.sh/v1alpha1", "ScaledObject"]
        )


def test_every_variable_is_a_setting_and_no_secret_is_in_the_files(cluster: Cluster) -> None:
    known = known_settings()
    for component in cluster.pods():
        for name, source in cluster.environment(component):
            setting = name if name in known else name.removesuffix("_FILE")
            assert setting in known, f"{component}: {name} is no setting"
            if "SecretStr" in str(type(known[setting])) and name != "REDIS_URL":
                assert source.startswith("driftwood-"), f"{component}: {name} is not taken from a secret"
                assert name.endswith("_FILE"), f"{component}: in {name} a file's last line break would count"
    assert cluster.of("Secret") == []
    url = urlsplit(cluster.settings()["REDIS_URL"])
    assert (url.username, url.password) == (None, None)


def test_the_settings_are_ones_that_the_services_take(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in cluster.settings().items():
        monkeypatch.setenv(name, value)
    for kind in (settings.KafkaSettings, settings.RedisSettings, settings.RegistrySettings, settings.ConsumerSettings,
                 settings.RecommenderSettings, settings.RetrainerSettings, settings.TrainSettings):  # fmt: skip
        kind()


def test_one_image_for_all_by_version(cluster: Cluster) -> None:
    (image,) = {pod.container["image"] for pod in cluster.pods().values()}
    version = re.search(r'^version = "(.+)"$', (ROOT / "pyproject.toml").read_text(), re.M)
    assert version is not None
    assert image.rpartition(":")[2] == version[1]


def test_each_pod_runs_a_module_that_there_is(cluster: Cluster) -> None:
    assert set(cluster.pods()) == {*SERVICES, "topics"}
    for pod in cluster.pods().values():
        (module,) = pod.container["args"]
        path = ROOT / module.replace(".", "/")
        assert (path / "__main__.py").exists() or path.with_suffix(".py").exists(), module


def test_pods_have_no_rights_that_they_do_not_need(cluster: Cluster) -> None:
    for pod in cluster.pods().values():
        whole, own = pod.spec["securityContext"], pod.container["securityContext"]
        assert whole["runAsNonRoot"] is True
        assert whole["runAsUser"] >= 10_000
        assert whole["seccompProfile"] == {"type": "RuntimeDefault"}
        assert own == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert pod.spec["automountServiceAccountToken"] is False
        assert not {"hostNetwork", "hostPID", "hostIPC"} & set(pod.spec)
        assert not any("hostPath" in volume for volume in pod.spec["volumes"])
        assert all(volume["emptyDir"]["sizeLimit"] for volume in pod.spec["volumes"] if "emptyDir" in volume)
    (namespace,) = cluster.of("Namespace")
    assert namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"


def test_each_pod_has_requests_and_limits(cluster: Cluster) -> None:
    for pod in cluster.pods().values():
        for kind in ("requests", "limits"):
            assert set(pod.container["resources"][kind]) == {"cpu", "memory"}


@pytest.mark.parametrize("service", SERVICES)
def test_probes_ask_the_port_that_the_service_listens_on(cluster: Cluster, service: str) -> None:
    pod = cluster.pods()[service]
    name = SERVICES[service]
    port = int(cluster.settings().get(name.upper()) or str(known_settings()[name.upper()]))
    (listed,) = pod.container["ports"]
    assert listed["containerPort"] == port
    ready = "/readyz?for=traffic" if service == "recommender" else "/readyz"
    paths = {"startupProbe": "/healthz", "livenessProbe": "/healthz", "readinessProbe": ready}
    for probe, path in paths.items():
        assert pod.container[probe]["httpGet"] == {"path": path, "port": listed["name"]}
    assert pod.container["readinessProbe"]["timeoutSeconds"] > 2, "/readyz itself takes up to two seconds"


@pytest.mark.parametrize("service", SERVICES)
def test_a_pod_that_ends_has_the_time_to(cluster: Cluster, service: str) -> None:
    known = known_settings()
    needed = {
        # a commit that Kafka does not answer, the sweep, engagement
        "consumer": float(str(known["CONSUMER_STALL_S"])) + 10 + 5,
        # preStop, uvicorn, the emitter, the outbox
        "recommender": 5 + 10 + 15 + 10,
        "retrainer": float(str(known["RETRAINER_STALL_S"])) + 5,
    }
    assert cluster.pods()[service].spec["terminationGracePeriodSeconds"] > needed[service]


def test_what_is_written_to_is_a_volume(cluster: Cluster) -> None:
    """The root file system is read-only."""
    values, pods = cluster.settings(), cluster.pods()
    mounts = {name: {m["mountPath"]: m for m in pod.container["volumeMounts"]} for name, pod in pods.items()}
    assert all("/tmp" in mounted for mounted in mounts.values())
    assert not mounts["retrainer"][values["TRAIN_DIR"]].get("readOnly")
    for name in ("MODEL_URI", "SESSION_LOG_URI"):
        if "://" not in values[name]:
            assert not mounts["retrainer"][values[name]].get("readOnly")
    if "://" not in values["MODEL_URI"]:
        for name in ("consumer", "recommender"):
            assert mounts[name][values["MODEL_URI"]]["readOnly"] is True
    for name, pod in pods.items():
        named = {volume["name"] for volume in pod.spec["volumes"]}
        named |= {"training"} if pod.kind == "StatefulSet" else set()
        assert {mount["name"] for mount in mounts[name].values()} == named


def test_claims_that_are_mounted_exist(cluster: Cluster) -> None:
    claims = {claim["metadata"]["name"] for claim in cluster.of("PersistentVolumeClaim")}
    mounted = {
        volume["persistentVolumeClaim"]["claimName"]
        for pod in cluster.pods().values()
        for volume in pod.spec["volumes"]
        if "persistentVolumeClaim" in volume
    }
    assert mounted == claims


def test_selectors_select_their_own_pods_and_no_others(cluster: Cluster) -> None:
    pods = cluster.pods()
    for resource in cluster.of("Deployment", "StatefulSet", "PodDisruptionBudget", "Service"):
        selector = resource["spec"]["selector"]
        if resource["kind"] == "Service":
            selector = {"matchLabels": selector}
        chosen = {name for name, pod in pods.items() if selects(selector, pod.labels)}
        assert chosen == {resource["metadata"]["labels"]["app.kubernetes.io/component"]}, resource["metadata"]["name"]
    for pod in pods.values():
        for constraint in pod.spec.get("topologySpreadConstraints", []):
            assert [p for p in pods.values() if selects(constraint["labelSelector"], p.labels)] == [pod]


def test_each_service_has_a_disruption_budget_and_a_spread(cluster: Cluster) -> None:
    budgets = {budget["metadata"]["name"] for budget in cluster.of("PodDisruptionBudget")}
    assert budgets == {f"driftwood-{name}" for name in SERVICES}
    for name in SERVICES:
        keys = {c["topologyKey"] for c in cluster.pods()[name].spec["topologySpreadConstraints"]}
        assert keys == {"topology.kubernetes.io/zone", "kubernetes.io/hostname"}


def test_services_point_to_ports_that_the_pods_name(cluster: Cluster) -> None:
    for service in cluster.of("Service"):
        pod = cluster.pods()[service["metadata"]["labels"]["app.kubernetes.io/component"]]
        for port in service["spec"]["ports"]:
            assert pod.port(port["targetPort"]) is not None
    for stateful in cluster.of("StatefulSet"):
        assert stateful["spec"]["serviceName"] in {service["metadata"]["name"] for service in cluster.of("Service")}


def ports_of(cluster: Cluster) -> dict[str, int]:
    values = cluster.settings()
    servers = {int(address.rpartition(":")[2]) for address in values["KAFKA_BOOTSTRAP_SERVERS"].split(",")}
    (kafka,) = servers
    return {"kafka": kafka, "redis": urlsplit(values["REDIS_URL"]).port or 6379, "object store": 443}


def test_what_must_talk_may_and_nothing_else(cluster: Cluster) -> None:
    pods, ports = cluster.pods(), ports_of(cluster)
    remote = "://" in cluster.settings()["MODEL_URI"]
    dns = {"kubernetes.io/metadata.name": "kube-system"}
    for name, pod in pods.items():
        assert cluster.allowed("Egress", pod, 53, dns)
        assert cluster.allowed("Egress", pod, 53, "169.254.20.10")  # NodeLocal DNSCache: no pod
        assert cluster.allowed("Egress", pod, 5353, {"kubernetes.io/metadata.name": "openshift-dns"})
        assert cluster.allowed("Egress", pod, ports["kafka"])
        assert cluster.allowed("Egress", pod, ports["redis"]) is (name != "topics")
        assert cluster.allowed("Egress", pod, ports["object store"]) is (remote and name != "topics")
        assert not cluster.allowed("Egress", pod, 80)
        for address in ("169.254.169.254", "169.254.170.23", "fd00:ec2::23"):  # where a bound identity is had from
            assert cluster.allowed("Egress", pod, 80, address) is (remote and name != "topics")
        assert not cluster.allowed("Egress", pod, 80, "169.254.169.1")
    monitoring, client = {"kubernetes.io/metadata.name": "monitoring"}, {"driftwood-client": "true"}
    for name in SERVICES:
        port = pods[name].container["ports"][0]["containerPort"]
        assert cluster.allowed("Ingress", pods[name], port, monitoring)
        assert cluster.allowed("Ingress", pods[name], port, client) is (name == "recommender")
        assert not cluster.allowed("Ingress", pods[name], port, {"kubernetes.io/metadata.name": "default"})
    assert not cluster.allowed("Ingress", pods["topics"], 8080, client)


def test_autoscalers_scale_what_exists_and_nobody_else_says_how_many(cluster: Cluster) -> None:
    targets = {}
    for scaler in cluster.of("HorizontalPodAutoscaler", "ScaledObject"):
        target = scaler["spec"]["scaleTargetRef"]
        (found,) = [w for w in cluster.of(*WORKLOADS) if w["metadata"]["name"] == target["name"]]
        assert (found["apiVersion"], found["kind"]) == (target["apiVersion"], target["kind"])
        assert "replicas" not in found["spec"], "each apply would set it back"
        targets[target["name"]] = scaler
    assert "driftwood-recommender" in targets


def test_consumers_are_scaled_by_the_lag_of_their_own_group_up_to_its_partitions() -> None:
    cluster = rendered("production")
    (scaled,) = cluster.of("ScaledObject")
    (trigger,) = scaled["spec"]["triggers"]
    values = cluster.settings()
    assert scaled["spec"]["scaleTargetRef"]["envSourceContainerName"] == cluster.pods()["consumer"].container["name"]
    read = {name: trigger["metadata"][name] for name in trigger["metadata"] if name.endswith("FromEnv")}
    assert read == {
        "bootstrapServersFromEnv": "KAFKA_BOOTSTRAP_SERVERS",
        "consumerGroupFromEnv": "CONSUMER_GROUP",
        "topicFromEnv": "TOPIC_INTERACTIONS",
    }
    assert set(read.values()) <= set(values)
    assert scaled["spec"]["maxReplicaCount"] == int(values["KAFKA_PARTITIONS"])
    mechanism = values["KAFKA_SASL_MECHANISM"].lower().replace("-", "_").replace("sha_", "sha")
    assert (trigger["metadata"]["sasl"], trigger["metadata"]["tls"]) == (mechanism, "enable")
    (login,) = cluster.of("TriggerAuthentication")
    assert trigger["authenticationRef"]["name"] == login["metadata"]["name"]
    theirs = {(entry["name"], entry["key"]) for entry in login["spec"]["secretTargetRef"]}
    sources = dict(cluster.environment("consumer"))
    assert theirs == {(sources["KAFKA_SASL_USERNAME"], "username"), (sources["KAFKA_SASL_PASSWORD_FILE"], "password")}


def test_the_metrics_of_every_service_are_scraped() -> None:
    cluster = rendered("production")
    (monitor,) = cluster.of("ServiceMonitor")
    named = {endpoint["port"] for endpoint in monitor["spec"]["endpoints"]}
    assert named == {port["name"] for service in cluster.of("Service") for port in service["spec"]["ports"]}
    assert all(selects(monitor["spec"]["selector"], s["metadata"]["labels"]) for s in cluster.of("Service"))


def test_rules_and_alerts_are_those_of_the_compose_file() -> None:
    (rules,) = rendered("production").of("PrometheusRule")
    assert rules["spec"]["groups"] == prometheus_rules.groups()
    assert prometheus_rules.TARGET.read_text() == prometheus_rules.resource(), "old: python -m tests.prometheus_rules"
    names = [group["name"] for group in rules["spec"]["groups"]]
    assert len(names) == len(set(names)) > 5, "the operator refuses two groups of one name"


def test_secrets_go_to_those_who_need_them() -> None:
    cluster = rendered("production")
    for name in cluster.pods():
        secret = {source for _, source in cluster.environment(name)} - {"ConfigMap"}
        assert ("driftwood-http" in secret) is (name == "recommender")
        assert ("driftwood-redis" in secret) is (name != "topics")
        assert ("driftwood-kafka" in secret) is (name != "topics")
        assert ("driftwood-kafka-admin" in secret) is (name == "topics")


def test_the_secrets_of_the_readme_are_those_that_pods_ask_for() -> None:
    cluster, page = rendered("production"), (FOLDER / "README.md").read_text()
    made = set(re.findall(r"create secret generic (\S+)", page))
    asked = {source for name in cluster.pods() for _, source in cluster.environment(name)} - {"ConfigMap"}
    assert made == asked
    sources = [source for pod in cluster.pods().values() for source in pod.container.get("envFrom", [])]
    whole = {source["secretRef"]["name"] for source in sources if "secretRef" in source}
    assert set(re.findall(r"^\| `(driftwood-[a-z-]+)` \|", page, re.M)) == asked | whole
    assert page.index("namespace.yaml") < page.index("create secret")
