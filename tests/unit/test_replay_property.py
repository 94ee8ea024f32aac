"""The property above all others: any split, redelivery, crash or takeover ends in the state of a clean replay."""

from __future__ import annotations

import contextlib
import itertools
import json
from collections.abc import Callable

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry

from services.consumer.batch import BatchProcessor, Topics
from services.consumer.engagement import Engagement
from services.consumer.metrics import ConsumerMetrics
from services.consumer.offers import OfferBook
from services.consumer.partitions import Partitions
from services.consumer.sampling import SampleRate
from services.consumer.service import ConsumerService
from shared.adapters.memory import MemoryBroker, MemoryInteractionSource, MemoryPublisher, MemoryStateStore
from shared.adapters.memory_cluster import MemoryClusterStateStore
from shared.core.errors import Unavailable
from shared.core.events import EventRules
from shared.core.ports import Publisher
from shared.core.progress import decode_progress
from shared.core.state import UserState, decode_state
from shared.model.inference import InferenceModel
from tests.unit.chaos import chaos, live_through

USERS = [f"u{i}" for i in range(4)]
ITEMS = [f"i{i}" for i in range(9)]
NOW_MS = 1_700_000_000_000


def make_model(seed: int = 0, width: int = 8, known: int = 7) -> InferenceModel:
    g = torch.Generator().manual_seed(seed)
    rand = lambda *shape: torch.randn(*shape, generator=g)  # noqa: E731
    weights = {
        "item_embedding": rand(known, width),
        "item_bias": rand(known),
        "gru.weight_ih_l0": rand(3 * width, width),
        "gru.weight_hh_l0": rand(3 * width, width),
        "gru.bias_ih_l0": rand(3 * width),
        "gru.bias_hh_l0": rand(3 * width),
    }
    return InferenceModel(str(seed + 1), seed + 1, ITEMS[:known], weights)


MODEL = make_model()


def value(user: str, item: str, n: int, event_id: str | None = None, event_type: str = "view") -> bytes:
    event = {"user_id": user, "item_id": item, "event_type": event_type, "ts": NOW_MS + n}
    if event_id:
        event["event_id"] = event_id
    return json.dumps(event).encode()


class Member:
    """A consumer in this process, on twins."""

    def __init__(
        self,
        broker: MemoryBroker,
        store: MemoryStateStore,
        max_batch: int = 3,
        commit_s: float = 0.0,
        model: Callable[[], InferenceModel | None] = lambda: MODEL,
        publisher: Publisher | None = None,
    ) -> None:
        metrics = ConsumerMetrics(CollectorRegistry())
        self.metrics = metrics
        self.source = MemoryInteractionSource(broker, "interactions")
        self.publisher = publisher or MemoryPublisher(broker)
        self.partitions = Partitions(self.source, store, 3600.0, 50)
        engagement = Engagement(SampleRate(1e9, 1.0), "engagement", metrics, OfferBook(3600.0))
        self.batches = BatchProcessor(
            store, self.publisher, model, EventRules(), Topics("state-updates", "dlq"), 32, metrics,
            engagement, 3600, lambda: NOW_MS / 1000 + 60, part_users=2,
        )  # fmt: skip
        self.service = ConsumerService(
            self.source, self.partitions, self.batches, self.publisher, metrics, max_batch, commit_s
        )

    def turns(self, count: int) -> None:
        for _ in range(count):
            self.service.step()

    def commit(self) -> None:
        with contextlib.suppress(Unavailable):  # as the loop would: the next turn starts again
            self.service._settle()
            self.service._commit()


def content(store: MemoryStateStore) -> dict[str, tuple[object, ...]]:
    """States without their tokens, which count writes."""

    def plain(state: UserState) -> tuple[object, ...]:
        return (
            state.hidden, state.fingerprint, state.last_ts, state.events, state.event_ids, state.recent_items(),
            state.dismissed_items(),
        )  # fmt: skip

    return {user: plain(decode_state(raw)) for user, raw in store.users.items()}


def trending(store: MemoryStateStore) -> dict[tuple[str, int], object]:
    progress = {key: decode_progress(raw) for key, raw in store.progress.items()}
    return {key: (p.next_offset, p.landmark, p.weights) for key, p in progress.items()}


def clean_replay(broker: MemoryBroker) -> MemoryStateStore:
    store = MemoryStateStore()
    member = Member(broker, store, max_batch=1000)
    member.source.assign(range(len(broker.topics["interactions"].partitions)))
    member.service.run(until_idle=True)
    return store


events = st.lists(
    st.tuples(
        st.sampled_from(USERS),
        st.sampled_from(ITEMS),
        st.sampled_from([None, None, "e1", "e2", "e3"]),
        st.sampled_from(["view", "view", "view", "impression", "dismiss"]),
    ),
    max_size=40,
)


@settings(max_examples=500, deadline=None)
@given(
    log=events,
    happenings=chaos,
    max_batch=st.integers(1, 7),
    servers=st.sampled_from([1, 1, 2, 3]),
    failing=st.integers(0, 2),
)
def test_whatever_happens_the_states_equal_those_of_a_clean_replay(log, happenings, max_batch, servers, failing):
    """servers: of a store whose parts go back in time one at a time, as those of a cluster do; 1: all at once."""
    broker = MemoryBroker(partitions=2)
    broker.create("interactions")
    broker.create("state-updates")
    for n, (user, item, event_id, event_type) in enumerate(log):
        broker.append("interactions", user.encode(), value(user, item, n, event_id, event_type), timestamp=NOW_MS)
    store = MemoryStateStore() if servers == 1 else MemoryClusterStateStore(servers, failing)

    def another() -> Member:
        member = Member(broker, store, max_batch, 1000.0)  # commits only where a happening asks for one
        member.source.assign([0, 1])
        return member

    member, zombies = live_through(happenings, store, another, [0, 1])
    for zombie in zombies:
        zombie.turns(2)  # an old owner that has not noticed
    for running in (member, *zombies):
        running.service.run(until_idle=True)
    another().service.run(until_idle=True)  # the next owner finds what those before it left
    expected = clean_replay(broker)
    assert content(store) == content(expected)
    assert trending(store) == trending(expected)


@settings(max_examples=600, deadline=None)
@given(
    before=events,
    after=events,
    lost=st.integers(1, 30),
    restarted=st.booleans(),
    committed=st.booleans(),
    servers=st.sampled_from([1, 1, 2, 3]),
)
def test_when_the_broker_loses_the_end_of_its_log_nothing_is_applied_twice_and_all_that_is_new_once(
    before, after, lost, restarted, committed, servers
):
    """Also where what is new reaches beyond what was read before. Events that the broker lost stay in the states."""
    broker = MemoryBroker(partitions=2)
    broker.create("interactions")
    store = MemoryStateStore() if servers == 1 else MemoryClusterStateStore(servers)

    def send(log, start):
        for n, (user, item, _, event_type) in enumerate(log, start):
            broker.append("interactions", user.encode(), value(user, item, n, None, event_type), timestamp=NOW_MS)

    def another() -> Member:
        member = Member(broker, store, 3, 1000.0)
        member.source.assign([0, 1])
        return member

    send(before, 0)
    member = another()
    for _ in range(60):
        member.turns(1)
    if committed or restarted:  # what a crash keeps from the progress is not known to the next owner
        member.commit()
    if restarted:
        member = another()
    for partition in (0, 1):
        broker.lose_end("interactions", partition, lost)
    send(after, len(before))
    for _ in range(60):
        member.turns(1)
    member.commit()
    another().service.run(until_idle=True)
    expected: dict[str, list[str]] = {}
    for user, item, _, event_type in [*before, *after]:
        if event_type == "view":
            expected.setdefault(user, []).append(item)
    states = {user: decode_state(raw) for user, raw in store.users.items()}
    assert {user: state.recent_items() for user, state in states.items() if state.events} == {
        user: items[-32:] for user, items in expected.items()
    }
    assert {user: state.events for user, state in states.items() if state.events} == {
        user: len(items) for user, items in expected.items()
    }


@settings(max_examples=100, deadline=None)
@given(before=events, after=events, turns=st.integers(0, 6), missing_turns=st.integers(0, 3), size=st.integers(1, 3))
def test_a_topic_made_anew_adds_to_the_states_and_skips_nothing(before, after, turns, missing_turns, size):
    broker = MemoryBroker(partitions=2)
    broker.create("interactions")
    store = MemoryStateStore()
    member = Member(broker, store)
    member.source.assign([0, 1])

    def send(log, start):
        for n, (user, item, _, event_type) in enumerate(log, start):
            broker.append("interactions", user.encode(), value(user, item, n, None, event_type), timestamp=NOW_MS)

    send(before, 0)
    member.service.run(until_idle=True)
    member = Member(broker, store)
    member.source.assign([0, 1])
    member.turns(turns)
    broker.delete("interactions")
    member.turns(missing_turns)
    broker.create("interactions", size)
    send(after, len(before))
    member.service.step()
    if size > 2:
        member.source.assign([2])
    while not member.service.step():
        pass
    member.service.run(until_idle=True)
    expected: dict[str, list[str]] = {}
    for user, item, _, event_type in [*before, *after]:
        if event_type == "view":
            expected.setdefault(user, []).append(item)
    states = {user: decode_state(raw) for user, raw in store.users.items()}
    assert {user: state.events for user, state in states.items() if state.events} == {
        u: len(i) for u, i in expected.items()
    }
    for user, items in expected.items():
        hidden = MODEL.advance(MODEL.start(1), [MODEL.known(items)])
        assert states[user].hidden == hidden.tobytes()


@settings(max_examples=600, deadline=None)
@given(
    sequences=st.lists(st.lists(st.integers(0, 6), max_size=12), min_size=1, max_size=9),
    cuts=st.lists(st.integers(0, 12), max_size=4),
)
def test_the_gru_gives_the_same_bits_in_any_batch_and_any_split(sequences, cuts):
    together = MODEL.advance(MODEL.start(len(sequences)), sequences)
    for row, sequence in enumerate(sequences):
        state = MODEL.start(1)
        edges = [0, *sorted(min(c, len(sequence)) for c in cuts), len(sequence)]
        for begin, end in itertools.pairwise(edges):
            state = MODEL.advance(state, [sequence[begin:end]])
        assert state.tobytes() == together[row].tobytes()
