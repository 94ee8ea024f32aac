"""The topics as an AsyncAPI 3.0 document: what each is for, its messages, keys and settings."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from shared.adapters.kafka_reader import topic_configs
from shared.adapters.settings import KafkaSettings

DEAD_LETTER_HEADERS: dict[str, Any] = {
    "title": "DeadLetterHeaders",
    "description": "Headers of a dead letter, each as UTF-8 text.",
    "type": "object",
    "properties": {
        "error": {"type": "string", "minLength": 1, "description": "the field at fault, if it is one, and the reason"},
        "source.topic": {"type": "string", "minLength": 1},
        "source.partition": {"type": "string", "pattern": "^[0-9]+$"},
        "source.offset": {"type": "string", "pattern": "^[0-9]+$"},
        "value.bytes": {"type": "string", "pattern": "^[0-9]+$", "description": "of a value that was cut for its size"},
        "key.bytes": {"type": "string", "pattern": "^[0-9]+$", "description": "of a key that was cut for its size"},
        "key": {"const": "null", "description": "of a record with neither key nor value: the letter's key is empty"},
    },
    "required": ["error", "source.topic", "source.partition", "source.offset"],
}

EXAMPLES: dict[str, Any] = {
    "interaction": {"user_id": "ada", "item_id": "kettle", "event_type": "view", "ts": 1_760_000_000_000},
    "recommendation": {
        "user_id": "ada",
        "items": [{"item_id": "teapot", "score": 7.25}, {"item_id": "cup", "score": 6.5}],
        "model_version": "3",
        "strategy": "gru",
        "as_of": 1_760_000_000_000,
        "recommendation_id": "5f0c3a9d1b2e4f68-2a",
    },
    "engagement": {
        "model_version": "3",
        "strategy": "gru",
        "partition": 0,
        "incarnation": 2_911_384_553,
        "first_offset": 1000,
        "next_offset": 1004,
        "seen": 3,
        "count": 2,
        "hits": {"1": 0, "5": 1, "10": 1, "20": 1},
        "reciprocal_rank": 0.25,
        "offsets": [0, 3],
        "ranks": [4, 0],
        "ts": 1_760_000_000_000,
        "served": {"shown": 1, "clicked": 0, "dismissed": 0},
        "served_offsets": {"shown": [2]},
    },
}


def _message(name: str, summary: str, payload: Any, key: str, **more: Any) -> dict[str, Any]:
    example = {"examples": [{"name": "usual", "payload": EXAMPLES[name]}]} if name in EXAMPLES else {}
    kafka = {"kafka": {"key": {"type": "string", "description": key}, "bindingVersion": "0.5.0"}}
    return {
        "name": name,
        "title": summary,
        "contentType": "application/json",
        "payload": payload,
        "bindings": kafka,
        **example,
        **more,
    }


def _schema(name: str) -> dict[str, str]:
    return {"$ref": f"#/components/schemas/{name}"}


MESSAGES: dict[str, dict[str, Any]] = {
    "interaction": _message("interaction", "One action of one user on one item", _schema("Interaction"), "user_id"),
    "recommendation": _message(
        "recommendation", "The newest ranking of a user, best first", _schema("Ranking"), "user_id"
    ),
    "forgotten": _message("forgotten", "The user was forgotten: a null value", {"type": "null"}, "user_id"),
    "engagement": _message(
        "engagement",
        "Were the users' next actions in the rankings held for them?",
        _schema("EngagementBatch"),
        "model version; empty for trending",
    ),
    "deadLetter": _message(
        "deadLetter",
        "A value that is no interaction, unchanged",
        {"description": "the original bytes, whatever they are"},
        "as it came",
        contentType="application/octet-stream",
        headers=_schema("DeadLetterHeaders"),
    ),
}

# setting of its name -> (what it is for, its messages, operations: name, action, summary)
CHANNELS: dict[str, tuple[str, tuple[str, ...], tuple[tuple[str, str, str], ...]]] = {
    "topic_interactions": (
        "What users do. In order for each user, as long as all of a user's events have the same key.",
        ("interaction",),
        (
            ("applyInteractions", "receive", "Advance the users' states, and log them for training."),
            ("takeInteractions", "send", "Pass on what came by POST /v1/interactions."),
        ),
    ),
    "topic_recommendations": (
        "A ranking for each user whose state changed; compacted, so that the newest of each user stays.",
        ("recommendation", "forgotten"),
        (("publishRankings", "send", "Tell the new ranking, or that the user was forgotten."),),
    ),
    "topic_engagement": (
        "Prequential outcomes, one batch a second for each partition, model version and strategy.",
        ("engagement",),
        (
            ("reportEngagement", "send", "Tell how the rankings did."),
            ("watchEngagement", "receive", "Watch for drift, and judge promotions."),
        ),
    ),
    "topic_dlq": (
        "Values of the interactions topic that break its contract.",
        ("deadLetter",),
        (("setAside", "send", "Keep the value with the reason, and go on."),),
    ),
}


def asyncapi(schemas: Mapping[str, Any]) -> dict[str, Any]:
    """The document. schemas: those of the messages, by the names of their types."""
    kafka = KafkaSettings.model_construct()  # the defaults, whatever the environment says
    channels: dict[str, Any] = {}
    operations: dict[str, Any] = {}
    for setting, (purpose, messages, actions) in CHANNELS.items():
        topic = KafkaSettings.model_fields[setting].default
        channel = setting.removeprefix("topic_")
        channels[channel] = {
            "address": topic,
            "description": f"{purpose} Name: {setting.upper()}.",
            "messages": {name: {"$ref": f"#/components/messages/{name}"} for name in messages},
            "bindings": {"kafka": _topic(topic_configs(kafka)[getattr(kafka, setting)])},
        }
        for name, action, summary in actions:
            operations[name] = {
                "action": action,
                "channel": {"$ref": f"#/channels/{channel}"},
                "summary": summary,
                "messages": [{"$ref": f"#/channels/{channel}/messages/{message}"} for message in messages],
            }
    return {
        "asyncapi": "3.0.0",
        "info": {
            "title": "Driftwood topics",
            "version": "0.1.0",
            "description": "Interactions in, rankings and engagement out. Names of topics are settings; these are the"
            " defaults. send and receive are what Driftwood does. The topics state-updates and forgets are internal.",
            "license": {"name": "MIT"},
        },
        "defaultContentType": "application/json",
        "servers": {
            "kafka": {
                "host": "{broker}",
                "protocol": "kafka",
                "description": "KAFKA_BOOTSTRAP_SERVERS; kafka-secure with TLS (KAFKA_SECURITY_PROTOCOL)",
                "variables": {"broker": {"default": KafkaSettings.model_fields["kafka_bootstrap_servers"].default}},
            }
        },
        "channels": channels,
        "operations": operations,
        "components": {"messages": MESSAGES, "schemas": {**schemas, "DeadLetterHeaders": DEAD_LETTER_HEADERS}},
    }


def _topic(configs: Mapping[str, str]) -> dict[str, Any]:
    """The Kafka binding of a topic, from the settings that it is made with."""
    configuration: dict[str, Any] = {"cleanup.policy": [configs.get("cleanup.policy", "delete")]}
    for name in ("retention.ms", "max.message.bytes"):
        if name in configs:
            configuration[name] = int(configs[name])
    return {"topicConfiguration": configuration, "bindingVersion": "0.5.0"}
