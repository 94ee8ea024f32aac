"""Engagement: the ranks are those of the rankings that users were held, and no event counts twice."""

from __future__ import annotations

import itertools
import json
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry

from services.consumer.advance import Fresh, Moment, Placed
from services.consumer.engagement import Engagement
from services.consumer.metrics import ConsumerMetrics
from services.consumer.offers import OfferBook, Offers
from services.consumer.sampling import SampleRate
from services.consumer.spans import Lot
from shared.adapters.memory import MemoryBroker, MemoryStateStore
from shared.core.engagement import (
    HITS_AT,
    SAMPLE_ALL,
    Counted,
    EngagementBatch,
    decode_engagement,
    encode_engagement,
    engagement_batch,
    trimmed,
)
from shared.model import rank as rank_module
from shared.model.coarse import FP32
from shared.model.fold_in import Rows
from shared.model.inference import InferenceModel
from shared.model.rank import Ranked
from shared.model.scorer import Scorer
from tests.unit.chaos import chaos, live_through
from tests.unit.test_replay_property import NOW_MS, Member, events, value


def model_of(seed: int = 0, items: int = 60, width: int = 8) -> InferenceModel:
    g = torch.Generator().manual_seed(seed)
    shapes = {
        "item_embedding": (items, width), "item_bias": (items,),
        "gru.weight_ih_l0": (3 * width, width), "gru.weight_hh_l0": (3 * width, width),
        "gru.bias_ih_l0": (3 * width,), "gru.bias_hh_l0": (3 * width,),
    }  # fmt: skip
    weights = {name: torch.randn(shape, generator=g) for name, shape in shapes.items()}
    return InferenceModel(str(seed + 1), seed + 1, [f"i{n}" for n in range(items)], weights)


MODEL = model_of()
NEVER_AGAIN = model_of()
NEVER_AGAIN.repeats = False
SCORER = Scorer(MODEL, FP32)


def ranking(hidden: np.ndarray, out: tuple[int, ...] = (), model_scorer: Scorer = SCORER) -> list[int]:
    count = len(model_scorer.model.items)
    return model_scorer.rank(hidden.reshape(1, -1), [count], [out])[0].indexes.tolist()


def reports(broker: MemoryBroker) -> list[EngagementBatch]:
    return [decode_engagement(record.value or b"") for record in broker.records("engagement")]


def new_broker(partitions: int = 1) -> MemoryBroker:
    broker = MemoryBroker(partitions=partitions)
    for topic in ("interactions", "state-updates"):
        broker.create(topic)
    broker.create("engagement", 1)
    return broker


def test_a_rank_is_the_place_in_the_full_ranking(monkeypatch):
    monkeypatch.setattr(rank_module, "_TILE_ITEMS", 25)
    rng = np.random.default_rng(2)
    hidden = rng.normal(size=(70, 8)).astype(np.float16)
    items = rng.integers(0, 60, size=70).tolist()
    out = [tuple(rng.integers(0, 60, size=rng.integers(0, 6)).tolist()) for _ in items]
    expected = [
        0 if item in left else 1 + ranking(state, left).index(item)
        for state, item, left in zip(hidden, items, out, strict=True)
    ]
    assert Ranked(MODEL).ranks(hidden, items, out) == expected
    assert 0 in expected


def test_rows_of_new_items_are_ranked_among_the_others():
    more = model_of(seed=0, items=66)
    part = InferenceModel("1", 1, more.items[:60], _weights(more, 60))
    new = Rows(tuple(more.items[60:]), more.embedding[60:].numpy(), more.bias[60:].numpy())
    rng = np.random.default_rng(3)
    hidden = rng.normal(size=(50, 8)).astype(np.float16)
    items = rng.integers(40, 66, size=50).tolist()
    out = [tuple(rng.integers(50, 66, size=4).tolist()) for _ in items]
    assert Ranked(part, new).ranks(hidden, items, out) == Ranked(more).ranks(hidden, items, out)


def _weights(model: InferenceModel, items: int) -> dict[str, torch.Tensor]:
    made = model_of(items=items)
    names = {"gru.weight_ih_l0": made._w_in.T, "gru.weight_hh_l0": made._w_hidden.T}
    biases = {"gru.bias_ih_l0": made._b_in, "gru.bias_hh_l0": made._b_hidden}
    return {"item_embedding": model.embedding[:items], "item_bias": model.bias[:items]} | names | biases


def test_ties_count_against_the_item():
    model = model_of(items=10)
    model.embedding[:] = model.embedding[0]
    model.bias[:] = 1.0
    assert Ranked(model).ranks(np.ones((2, 8), dtype=np.float16), [0, 9], [(), (3, 4)]) == [10, 8]


@settings(max_examples=60, deadline=None)
@given(log=events, max_batch=st.integers(1, 7), repeats=st.booleans())
def test_every_event_is_scored_against_the_ranking_before_it(log, max_batch, repeats):
    model = MODEL if repeats else NEVER_AGAIN
    broker = new_broker()
    for n, (user, item, event_id, event_type) in enumerate(log):
        broker.append("interactions", user.encode(), value(user, item, n, event_id, event_type), timestamp=NOW_MS)
    member = Member(broker, MemoryStateStore(), max_batch, model=lambda: model)
    member.source.assign([0])
    member.service.run(until_idle=True)
    found = {}
    for batch in reports(broker):
        assert batch.count == len(batch.ranks) == batch.seen
        assert batch.hits == {str(k): sum(0 < rank <= k for rank in batch.ranks) for k in HITS_AT}
        if batch.strategy == "gru":
            assert batch.model_version == model.version
            found |= {batch.first_offset + at: rank for at, rank in zip(batch.offsets, batch.ranks, strict=True)}
    assert found == prequential(log, repeats)
    covered = [(b.first_offset, b.next_offset) for b in reports(broker) if b.strategy == "gru"]
    assert all(first < end for first, end in covered)
    assert all(before[1] <= after[0] for before, after in itertools.pairwise(covered))


def prequential(log, repeats: bool) -> dict[int, int]:
    """offset -> rank, one event at a time, by the ranking that the recommender would make."""
    states, gone, ids, expected, last = {}, {}, {}, {}, {}
    for offset, (user, item, event_id, event_type) in enumerate(log):
        known = ids.setdefault(user, [])
        if event_type == "impression" or (event_id and event_id in known):
            continue
        known += [event_id] if event_id else []
        if event_type == "dismiss":  # for an hour: longer than the log
            gone.setdefault(user, set()).add(MODEL.index[item])
            continue
        index, out = MODEL.index[item], tuple(gone.get(user, ()))
        if not repeats:
            out = (*out, *last.get(user, ()))
            last[user] = [index]
        if (state := states.get(user)) is not None:
            rank = 0 if index in out else 1 + ranking(state, out).index(index)
            expected[offset] = rank if rank <= 20 else 0
        states[user] = MODEL.advance(state if state is not None else MODEL.start(1), [[index]])
    return expected


@settings(max_examples=150, deadline=None)
@given(log=events, happenings=chaos, max_batch=st.integers(1, 7))
def test_whatever_happens_a_reader_counts_no_event_twice(log, happenings, max_batch):
    broker = new_broker()
    for n, (user, item, event_id, event_type) in enumerate(log):
        broker.append("interactions", user.encode(), value(user, item, n, event_id, event_type), timestamp=NOW_MS)
    store = MemoryStateStore()

    def new_member() -> Member:
        member = Member(broker, store, max_batch, 1000.0, lambda: MODEL)
        member.source.assign([0])
        return member

    member, zombies = live_through(happenings, store, new_member, [0])
    for running in (member, *zombies, new_member()):
        running.service.run(until_idle=True)
    expected, counted, shown = prequential(log, True), Counted(), Counter()
    ranked: Counter[int] = Counter()
    for record in reports(broker):
        batch = counted.take(record)
        if batch is None:
            continue
        for at, rank in zip(batch.offsets, batch.ranks, strict=True):
            ranked[batch.first_offset + at] += 1
            if batch.strategy == "gru":
                assert expected[batch.first_offset + at] == rank
        shown.update(batch.first_offset + at for at in batch.served_offsets.get("shown", ()))
        assert batch.served["shown"] == len(batch.served_offsets.get("shown", ()))
    assert set(ranked.values()) <= {1}
    assert shown == Counter(n for n, event in enumerate(log) if event[3] == "impression")


def test_what_was_served_is_told_once_with_clicks_and_dismissals():
    broker = new_broker()
    kinds = [("view", None), ("impression", "r1"), ("view", "r1"), ("dismiss", None), ("dismiss", "r2"), ("view", "r2")]
    for n, (kind, recommendation) in enumerate([*kinds, ("view", "r2")]):
        event = {"user_id": "u", "item_id": f"i{n}", "event_type": kind, "ts": NOW_MS + n}
        event |= {"recommendation_id": recommendation} if recommendation else {}
        event |= {"event_id": "same"} if n >= 5 else {}  # the last is a repetition
        broker.append("interactions", b"u", json.dumps(event).encode(), timestamp=NOW_MS)
    member = Member(broker, MemoryStateStore(), 100, model=lambda: MODEL)
    member.source.assign([0])
    member.service.run(until_idle=True)
    told = [b for b in reports(broker) if any(b.served.values())]
    assert [b.served for b in told] == [{"shown": 1, "clicked": 2, "dismissed": 2}]
    assert told[0].served_offsets == {"shown": [1], "clicked": [2, 5], "dismissed": [3, 4]}
    assert (told[0].model_version, told[0].strategy, told[0].ts) == ("1", "gru", NOW_MS + 5)
    assert member.metrics.served.labels("clicked")._value.get() == 2


def test_users_without_a_state_are_scored_by_what_is_trending():
    broker = new_broker()
    member = Member(broker, MemoryStateStore(), 100, commit_s=1000.0, model=lambda: MODEL)
    member.source.assign([0])

    def send(user, item, n, kind="view"):
        broker.append("interactions", user.encode(), value(user, item, n, None, kind), timestamp=NOW_MS)

    def applied():
        member.turns(2)
        member.commit()

    for n, item in enumerate(["i1", "i1", "i1", "i2", "i2", "new"]):
        send(f"first-{n}", item, n)
    applied()
    # Nothing was trending yet: the catalogue, most popular in training first.
    assert [rank for b in reports(broker) for rank in b.ranks] == [2, 2, 2, 3, 3, 0]
    send("a", "i2", 10)
    send("b", "new", 11)
    send("c", "i1", 12, "dismiss")
    send("c", "i2", 13)
    send("d", "unheard-of", 14)
    send("e", "i0", 15)
    send("f", "i40", 16)
    send("c", "i3", 17)  # has a state by now
    applied()
    trending, gru = sorted(reports(broker), key=lambda b: (b.first_offset, b.model_version))[-2:]
    assert (trending.model_version, trending.strategy, trending.ranks) == ("", "trending", [2, 3, 1, 0, 4, 0])
    assert (gru.strategy, gru.seen, gru.served["dismissed"]) == ("gru", 1, 1)  # told with the model's


def test_a_new_item_counts_as_offered_once_it_is_folded_in():
    broker, store = new_broker(), MemoryStateStore()
    member = Member(broker, store, 100, commit_s=1000.0, model=lambda: MODEL)
    member.partitions._fold_items = 10
    member.batches.engagement.offers = OfferBook(3600.0, fold_in_min=3, fold_in_items=10)
    member.source.assign([0])
    for n in range(200):  # so that it is known what states are typical
        broker.append("interactions", b"u", value(f"v{n % 100}", f"i{n * 7 % 60}", n), timestamp=NOW_MS)
    member.turns(4)
    member.commit()
    found = []
    for n in range(6):
        for item in ("i4", "new"):
            broker.append("interactions", b"u", value(f"u{n}", item, n), timestamp=NOW_MS)
        member.turns(2)
        member.commit()
        found += [r for b in reports(broker) if b.strategy == "gru" for at, r in zip(b.offsets, b.ranks, strict=True)
                  if b.first_offset + at == 200 + 2 * n + 1]  # fmt: skip
    # Its third chooser is in the sums of the third commit; rows are made of these when the fourth scores.
    assert len(found) == 6
    assert not any(found[:4])
    assert all(found[4:])


def test_a_moment_is_scored_under_the_model_that_made_it():
    broker = new_broker()
    models = [model_of(0), model_of(1)]
    member = Member(broker, MemoryStateStore(), 100, commit_s=1000.0, model=lambda: models[0])
    member.source.assign([0])
    for part in range(2):
        for n in range(3):
            item = f"i{7 * n + part}"
            broker.append("interactions", b"u", value("u", item, 3 * part + n), timestamp=NOW_MS)
        member.turns(2)
        member.service._settle()
        if part == 0:
            models.reverse()
    member.commit()
    first, second = model_of(0), model_of(1)
    found = {(b.model_version, b.first_offset + at): r for b in reports(broker) if b.model_version for at, r in
             zip(b.offsets, b.ranks, strict=True)}  # fmt: skip
    items = [0, 7, 14, 1, 8, 15]
    for offset in range(1, 6):
        model = first if offset < 3 else second
        state = model.advance(model.start(1), [items[:offset]])
        rank = 1 + ranking(state, (), Scorer(model, FP32)).index(items[offset])
        assert found[model.version, offset] == (rank if rank <= 20 else 0)
    assert len(found) == 5


def test_a_failing_score_stops_nothing(monkeypatch):
    def broken(*_: object) -> list[int]:
        raise RuntimeError("no memory")

    monkeypatch.setattr("services.consumer.engagement.Ranked.ranks", broken)
    broker = new_broker()
    for n in range(4):
        broker.append("interactions", b"u", value("u", f"i{n}", n), timestamp=NOW_MS)
    member = Member(broker, MemoryStateStore(), 2, model=lambda: MODEL)
    member.source.assign([0])
    member.service.run(until_idle=True)
    assert sum(b.seen for b in reports(broker)) == 4
    assert sum(b.count for b in reports(broker) if b.strategy == "gru") == 0


def test_in_its_own_thread_all_that_was_handed_in_goes_out_at_the_end():
    broker = new_broker()
    member = Member(broker, MemoryStateStore(), 10, commit_s=1000.0, model=lambda: MODEL)
    member.batches.engagement.start()
    member.source.assign([0])
    for n in range(50):
        broker.append("interactions", b"u", value("u", f"i{n}", n), timestamp=NOW_MS)
    member.service.run(until_idle=True)
    member.batches.engagement.stop()
    assert sum(b.count for b in reports(broker)) == 50
    assert [b.next_offset for b in reports(broker)][-1] == 50


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_the_rate_follows_the_stream_and_the_cost():
    clock = Clock()
    rate = SampleRate(500, 0.05, clock)
    weights = 50_000 * 128  # guessed: 0.64 ms a score, so 78 a second
    assert rate.threshold(10, 0, weights) == SAMPLE_ALL
    assert rate.threshold(4096, 0, weights) / SAMPLE_ALL == pytest.approx(78.125 / 4096, rel=1e-3)
    assert rate.threshold(4096, 200, weights) == 0  # too many wait already
    clock.now += 1.0
    rate.threshold(4096, 0, weights)
    assert rate.rate == pytest.approx(78.125 / (10 + 3 * 4096), rel=1e-3)
    for _ in range(50):
        rate.scored(10, 10 * 0.0001)
    clock.now += 1.0
    rate.threshold(1000, 0, weights)
    assert rate.rate == pytest.approx(0.5, rel=1e-2)  # 500 a second at most
    clock.now += 1.0
    rate.threshold(50, 0, weights)
    assert rate.rate == 1.0


def test_none_a_second_means_none():
    assert SampleRate(0, 1.0).threshold(10, 0, 0) == 0


def test_never_more_waits_than_can_be_scored_in_a_few_seconds():
    metrics = ConsumerMetrics(CollectorRegistry())
    engagement = Engagement(SampleRate(20, 1.0), "engagement", metrics, OfferBook(3600.0))
    fresh = Fresh(Placed("u", "i1", NOW_MS, None, 0, 7, 1), 1, True, b"", 0)
    for _ in range(10):
        engagement.add(Lot({}, MODEL, Offers(), [Moment(fresh, True, MODEL.start(1)[0])] * 15))
    assert engagement._waiting <= 40


def batch(first: int, end: int, offsets: list[int], shown: list[int] | None = None) -> EngagementBatch:
    outcomes = [(offset, offset % 23 % 21) for offset in offsets]
    return engagement_batch(("3", "gru"), 1, 9, (first, end), len(offsets), outcomes, NOW_MS, {"shown": shown or []})


def test_a_batch_comes_back_as_it_was():
    one = batch(100, 120, [101, 105, 119], [104])
    assert decode_engagement(encode_engagement(one)) == one
    assert json.loads(encode_engagement(one)) == {
        "model_version": "3", "strategy": "gru", "partition": 1, "incarnation": 9, "first_offset": 100,
        "next_offset": 120, "seen": 3, "count": 3, "hits": {"1": 0, "5": 1, "10": 2, "20": 3},
        "reciprocal_rank": 1 / 9 + 1 / 13 + 1 / 4, "offsets": [1, 5, 19], "ranks": [9, 13, 4], "ts": NOW_MS,
        "served": {"shown": 1, "clicked": 0, "dismissed": 0}, "served_offsets": {"shown": [4]},
    }  # fmt: skip


@given(st.lists(st.tuples(st.integers(0, 60), st.integers(1, 30)), max_size=12))
def test_overlapping_batches_count_each_offset_once(ranges):
    counted, seen = Counted(), []
    for first, length in ranges:
        one = counted.take(batch(first, first + length, list(range(first, first + length)), [first]))
        seen += [one.first_offset + at for at in one.offsets] if one else []
    assert len(seen) == len(set(seen))
    top = max((first + length for first, length in ranges), default=0)
    assert set(seen) <= set(range(top))


def test_a_trimmed_batch_is_one_that_began_later():
    whole = batch(100, 120, [101, 105, 119], [104, 112])
    assert trimmed(whole, 90) is whole
    assert trimmed(whole, 120) is None
    part = trimmed(whole, 110)
    assert part == engagement_batch(("3", "gru"), 1, 9, (110, 120), 2, [(119, 119 % 23 % 21)], NOW_MS, {"shown": [112]})
