"""A rendered kustomization as a cluster sees it: resources by kind, selectors, and what network policies allow."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any

import yaml

Resource = dict[str, Any]
Labels = Mapping[str, str]

WORKLOADS = ("Deployment", "StatefulSet", "Job")


def render(command: list[str], folder: Path) -> Cluster:
    """Raises CalledProcessError, its stderr printed, where kustomize refuses."""
    done = subprocess.run([*command, str(folder)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return Cluster([resource for resource in yaml.safe_load_all(done.stdout) if resource])


def selects(selector: Mapping[str, Any], labels: Labels) -> bool:
    """A LabelSelector of matchLabels and In expressions; an empty one selects everything."""
    for name, value in selector.get("matchLabels", {}).items():
        if labels.get(name) != value:
            return False
    for expression in selector.get("matchExpressions", []):
        assert expression["operator"] == "In"
        if labels.get(expression["key"]) not in expression["values"]:
            return False
    return True


@dataclass
class Pod:
    """What a workload makes."""

    component: str
    kind: str
    labels: Labels
    spec: Resource

    @property
    def container(self) -> Resource:
        (container,) = self.spec["containers"]
        return container

    def secret_at(self, path: str) -> str | None:
        """The secret whose key is the file there, mounted as a folder, so that it is renewed; None: there is none."""
        folder = path.rpartition("/")[0]
        mount = next((m for m in self.container["volumeMounts"] if m["mountPath"] == folder), None)
        if mount is None or "subPath" in mount or not mount.get("readOnly"):
            return None
        (volume,) = (volume for volume in self.spec["volumes"] if volume["name"] == mount["name"])
        return volume.get("secret", {}).get("secretName")

    def port(self, name: str) -> int | None:
        return next((p["containerPort"] for p in self.container.get("ports", []) if p["name"] == name), None)


class Cluster:
    """All of it."""

    def __init__(self, resources: list[Resource]) -> None:
        self.resources = resources

    def of(self, *kinds: str) -> list[Resource]:
        return [resource for resource in self.resources if resource["kind"] in kinds]

    def pods(self) -> dict[str, Pod]:
        """By component."""
        found = {}
        for workload in self.of(*WORKLOADS):
            template = workload["spec"]["template"]
            labels = template["metadata"]["labels"]
            component = labels["app.kubernetes.io/component"]
            found[component] = Pod(component, workload["kind"], labels, template["spec"])
        return found

    def settings(self) -> dict[str, str]:
        """Of the ConfigMap."""
        (found,) = self.of("ConfigMap")
        return dict(found["data"])

    def allowed(self, direction: str, pod: Pod, port: int, other: Mapping[str, str] | str | None = None) -> bool:
        """Whether some policy lets the pod send ("Egress") or be reached ("Ingress") at the port.

        other: labels of the namespace at the other end, or an address that is no pod's; None: any such address.
        """
        applying = [policy["spec"] for policy in self.of("NetworkPolicy") if _applies(policy, direction, pod)]
        assert applying, f"no policy restricts {direction} of {pod.component}: everything is allowed"
        rules = [rule for spec in applying for rule in spec.get(direction.lower(), [])]
        return any(_lets(rule, direction, pod, port, other) for rule in rules)

    def environment(self, component: str) -> Iterator[tuple[str, str]]:
        """(variable, where it comes from) of a component's container; of a _FILE variable, the secret of the file."""
        pod = self.pods()[component]
        yield from ((name, "ConfigMap") for name in self.settings())
        for entry in pod.container.get("env", []):
            if "value" in entry:
                yield entry["name"], pod.secret_at(entry["value"]) or "value"
            else:
                yield entry["name"], entry["valueFrom"]["secretKeyRef"]["name"]


def _applies(policy: Resource, direction: str, pod: Pod) -> bool:
    spec = policy["spec"]
    return direction in spec["policyTypes"] and selects(spec["podSelector"], pod.labels)


def _lets(rule: Resource, direction: str, pod: Pod, port: int, other: Mapping[str, str] | str | None) -> bool:
    ports = [p["port"] if isinstance(p["port"], int) else pod.port(p["port"]) for p in rule.get("ports", [])]
    if ports and port not in ports:
        return False
    peers = rule.get("to" if direction == "Egress" else "from")
    if peers is None:
        return True
    return any(_is(peer, other) for peer in peers)


def _is(peer: Resource, other: Mapping[str, str] | str | None) -> bool:
    if "ipBlock" in peer:
        return isinstance(other, str) and ip_address(other) in ip_network(peer["ipBlock"]["cidr"])
    return isinstance(other, Mapping) and selects(peer["namespaceSelector"], other)
