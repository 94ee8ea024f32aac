"""Sums over new items survive crashes as the counts beside them do: the end is that of a clean replay."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from shared.adapters.memory import MemoryBroker, MemoryStateStore
from shared.core.progress import Folded, decode_progress
from shared.core.state import decode_state
from tests.unit.chaos import chaos, live_through
from tests.unit.test_replay_property import ITEMS, NOW_MS, USERS, Member, make_model, value

MODEL = make_model(known=4)
OTHER = make_model(seed=1, known=6)


class FoldingMember(Member):
    def __init__(self, broker, store, max_batch=3, commit_s=0.0, model=lambda: MODEL, keep=50):
        super().__init__(broker, store, max_batch, commit_s, model)
        self.partitions._fold_items = keep


def broker_with(log) -> MemoryBroker:
    broker = MemoryBroker(partitions=2)
    broker.create("interactions")
    broker.create("state-updates")
    for n, (user, item, event_type) in enumerate(log):
        broker.append("interactions", user.encode(), value(user, item, n, None, event_type), timestamp=NOW_MS)
    return broker


def folded(store: MemoryStateStore) -> dict[tuple[str, int], tuple[int, list[Folded]]]:
    progress = {key: decode_progress(raw) for key, raw in store.progress.items()}
    return {key: (p.fingerprint, p.folded) for key, p in progress.items()}


def clean_replay(broker: MemoryBroker, keep: int = 50) -> MemoryStateStore:
    store = MemoryStateStore()
    member = FoldingMember(broker, store, max_batch=1000, keep=keep)
    member.source.assign([0, 1])
    member.service.run(until_idle=True)
    return store


logs = st.lists(
    st.tuples(st.sampled_from(USERS), st.sampled_from(ITEMS), st.sampled_from(["view", "view", "view", "impression"])),
    max_size=30,
)


def once_each(log):
    """Without a user's later choices of an item that is new to the model."""
    seen = set()
    return [
        (user, item, kind)
        for user, item, kind in log
        if item in MODEL.index or kind != "view" or ((user, item) not in seen and not seen.add((user, item)))
    ]


@settings(max_examples=150, deadline=None)
@given(log=logs.map(once_each), happenings=chaos, max_batch=st.integers(1, 7), keep=st.sampled_from([2, 50]))
def test_whatever_happens_the_sums_equal_those_of_a_clean_replay(log, happenings, max_batch, keep):
    broker = broker_with(log)
    store = after_chaos(broker, happenings, max_batch, keep)
    assert folded(store) == folded(clean_replay(broker, keep))


@settings(max_examples=150, deadline=None)
@given(log=logs, happenings=chaos, max_batch=st.integers(1, 7))
def test_choices_are_counted_once_each_also_where_a_user_repeats_them(log, happenings, max_batch):
    broker = broker_with(log)

    def counts(store: MemoryStateStore):
        return {key: [(f.item_id, f.chosen) for f in items] for key, (_, items) in folded(store).items()}

    assert counts(after_chaos(broker, happenings, max_batch)) == counts(clean_replay(broker))


def after_chaos(broker: MemoryBroker, happenings, max_batch: int, keep: int = 50) -> MemoryStateStore:
    store = MemoryStateStore()

    def another() -> FoldingMember:
        made = FoldingMember(broker, store, max_batch, 1000.0, keep=keep)
        made.source.assign([0, 1])
        return made

    member, zombies = live_through(happenings, store, another, [0, 1])
    for zombie in zombies:
        zombie.turns(2)
    for running in (member, *zombies, another()):
        running.service.run(until_idle=True)
    return store


def test_the_states_are_those_before_each_event_of_everyone_who_chose_the_item():
    new = ITEMS[4]
    log = [("u0", ITEMS[0], "view"), ("u0", new, "view"), ("u1", new, "view"), ("u0", ITEMS[1], "view")]
    log += [("u0", new, "view"), ("u1", new, "impression")]
    parts = [f for _, items in folded(clean_replay(broker_with(log))).values() for f in items if f.item_id == new]
    first = MODEL.advance(MODEL.start(1), [MODEL.known([ITEMS[0]])])
    second = MODEL.advance(first, [MODEL.known([ITEMS[1]])])
    expected = sum((state[0].astype("f4") * 4096).round().astype("<i4") for state in (first, second))
    assert (sum(f.chosen for f in parts), sum(f.states for f in parts)) == (3, 2)
    (with_states,) = [f for f in parts if f.states]
    assert with_states.total == expected.tobytes()


def test_after_a_swap_the_sums_are_of_the_new_model_only():
    log = [("u0", ITEMS[0], "view"), ("u0", ITEMS[5], "view"), ("u0", ITEMS[8], "view")]
    broker, store = broker_with(log), MemoryStateStore()
    current = MODEL
    member = FoldingMember(broker, store, model=lambda: current)
    member.source.assign([0, 1])
    member.service.run(until_idle=True)
    before = next(p for p in folded(store).values() if p[1])
    assert (before[0], [f.item_id for f in before[1]]) == (MODEL.fingerprint, [ITEMS[5], ITEMS[8]])
    current = OTHER
    member = FoldingMember(broker, store, model=lambda: current)
    member.source.assign([0, 1])
    broker.append("interactions", b"u0", value("u0", ITEMS[8], 9), timestamp=NOW_MS)
    member.service.run(until_idle=True)
    ((fingerprint, items),) = [p for p in folded(store).values() if p[1]]
    assert (fingerprint, [(f.item_id, f.chosen) for f in items]) == (OTHER.fingerprint, [(ITEMS[8], 1)])
    rebuilt = OTHER.advance(OTHER.start(1), [OTHER.known([ITEMS[0], ITEMS[5], ITEMS[8]])])
    assert decode_state(store.users["u0"]).hidden == rebuilt.tobytes()
