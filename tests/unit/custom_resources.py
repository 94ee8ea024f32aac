"""Schemas of the custom resources in deploy/kubernetes, for the fields used there: nothing else may be set.

Kubernetes' own kinds are checked by the schemas of a package; nobody ships those of KEDA and the Prometheus operator in
one that Python can read. Written from KEDA 2.x (ScaledObject, TriggerAuthentication) and the operator's API
(ServiceMonitor, PrometheusRule).
"""

from __future__ import annotations

from typing import Any

Schema = dict[str, Any]

TEXT: Schema = {"type": "string", "minLength": 1}
COUNT: Schema = {"type": "integer", "minimum": 0}


def _object(required: dict[str, Schema], optional: dict[str, Schema] | None = None) -> Schema:
    return {
        "type": "object",
        "properties": {**required, **(optional or {})},
        "required": list(required),
        "additionalProperties": False,
    }


def _resource(api: str, kind: str, spec: Schema) -> Schema:
    labels = {"type": "object", "additionalProperties": TEXT}
    metadata = _object({"name": TEXT}, {"namespace": TEXT, "labels": labels})
    return _object({"apiVersion": {"const": api}, "kind": {"const": kind}, "metadata": metadata, "spec": spec})


def _list(of: Schema) -> Schema:
    return {"type": "array", "items": of, "minItems": 1}


_POLICY = _object({"type": {"enum": ["Pods", "Percent"]}, "value": COUNT, "periodSeconds": COUNT})
_BEHAVIOUR = _object({"policies": _list(_POLICY)}, {"stabilizationWindowSeconds": {**COUNT, "maximum": 3600}})
_FLAG: Schema = {"enum": ["true", "false"]}
_KAFKA = _object(
    {"bootstrapServersFromEnv": TEXT, "consumerGroupFromEnv": TEXT, "topicFromEnv": TEXT},
    {
        "lagThreshold": {"type": "string", "pattern": "^[1-9][0-9]*$"},
        "offsetResetPolicy": {"enum": ["earliest", "latest"]},
        "allowIdleConsumers": _FLAG,
        "sasl": {"enum": ["none", "plaintext", "scram_sha256", "scram_sha512"]},
        "tls": {"enum": ["enable", "disable"]},
    },
)
_TRIGGER = _object({"type": {"const": "kafka"}, "metadata": _KAFKA}, {"authenticationRef": _object({"name": TEXT})})
_SCALED = _object(
    {
        "scaleTargetRef": _object({"name": TEXT}, {"apiVersion": TEXT, "kind": TEXT, "envSourceContainerName": TEXT}),
        "triggers": _list(_TRIGGER),
    },
    {
        "minReplicaCount": COUNT,
        "maxReplicaCount": COUNT,
        "pollingInterval": COUNT,
        "fallback": _object({"failureThreshold": COUNT, "replicas": COUNT}),
        "advanced": _object(
            {"horizontalPodAutoscalerConfig": _object({"behavior": _object({}, dict.fromkeys(
                ("scaleUp", "scaleDown"), _BEHAVIOUR))})}
        ),
    },
)  # fmt: skip
_FROM_SECRET = _object(
    {"parameter": {"enum": ["username", "password", "sasl", "tls", "ca"]}, "name": TEXT, "key": TEXT}
)
_DURATION: Schema = {"type": "string", "pattern": "^[0-9]+(s|m|h)$"}
_TEXTS: Schema = {"type": "object", "additionalProperties": TEXT}
_ALERT = {"for": _DURATION, "labels": _TEXTS, "annotations": _TEXTS}
_ENDPOINT = _object({"port": TEXT}, {"path": TEXT, "interval": {"type": "string", "pattern": "^[0-9]+s$"}})

SCHEMAS: dict[tuple[str, str], Schema] = {
    ("keda.sh/v1alpha1", "ScaledObject"): _resource("keda.sh/v1alpha1", "ScaledObject", _SCALED),
    ("keda.sh/v1alpha1", "TriggerAuthentication"): _resource(
        "keda.sh/v1alpha1", "TriggerAuthentication", _object({"secretTargetRef": _list(_FROM_SECRET)})
    ),
    ("monitoring.coreos.com/v1", "PrometheusRule"): _resource(
        "monitoring.coreos.com/v1",
        "PrometheusRule",
        _object(
            {
                "groups": _list(
                    _object(
                        {
                            "name": TEXT,
                            "rules": _list(
                                {
                                    "anyOf": [
                                        _object({"record": TEXT, "expr": TEXT}),
                                        _object({"alert": TEXT, "expr": TEXT}, _ALERT),
                                    ]
                                }
                            ),
                        },
                        {"interval": _DURATION},
                    )
                )
            }
        ),
    ),
    ("monitoring.coreos.com/v1", "ServiceMonitor"): _resource(
        "monitoring.coreos.com/v1",
        "ServiceMonitor",
        _object(
            {
                "selector": _object({"matchLabels": {"type": "object", "additionalProperties": TEXT}}),
                "endpoints": _list(_ENDPOINT),
            },
            {"jobLabel": TEXT},
        ),
    ),
}
