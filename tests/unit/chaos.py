"""What happens to consumers while they read the log."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Protocol, TypeVar

from hypothesis import strategies as st

from shared.adapters.memory import MemoryInteractionSource, MemoryStateStore

# Some turns, then something bad (or nothing).
chaos = st.lists(
    st.tuples(
        st.integers(0, 3),
        st.sampled_from(
            [
                "crash",
                "redis rolls back",
                "zombie",
                "redis away",
                "commit",
                "commit unsaved",
                "hand over",
                "a partition goes and comes",
                "it goes while a batch fails",
                "it comes while a batch fails",
            ]
        ),
    ),
    max_size=8,
)


class Running(Protocol):
    """A member of the consumer group."""

    source: MemoryInteractionSource

    def turns(self, count: int) -> None:
        """So many of its loop."""

    def commit(self) -> None:
        """Make durable what it did."""


M = TypeVar("M", bound=Running)


def live_through(
    happenings: Iterable[tuple[int, str]], store: MemoryStateStore, another: Callable[[], M], partitions: list[int]
) -> tuple[M, list[M]]:
    """One member after the other (``another`` starts one that owns the partitions); the last, and those that were
    robbed without noticing."""
    disk = store.snapshot()
    member, zombies = another(), []
    for turns, happening in happenings:
        member.turns(turns)
        if happening == "commit":
            member.commit()
            disk = store.snapshot()
        elif happening == "commit unsaved":
            member.commit()  # what it wrote will be gone if the store goes back in time
        elif happening == "redis rolls back":
            store.restart(disk)
        elif happening == "redis away":
            store.available = False
            member.turns(2)
            store.available = True
        elif happening == "a partition goes and comes":
            rebalance_while_polling(member, partitions[-1:], goes=True, comes=True)
        elif happening == "it goes while a batch fails":  # Redis is back before anybody asks it again
            store.available = False
            member.turns(1)
            rebalance_while_polling(member, partitions[-1:], goes=True, store=store)
            member.source.assign(partitions[-1:])
        elif happening == "it comes while a batch fails":
            member.source.revoke(partitions[-1:])
            member.turns(1)
            store.available = False
            member.turns(1)
            rebalance_while_polling(member, partitions[-1:], comes=True)
            store.available = True
        elif happening == "hand over":
            member.source.revoke(partitions)
            member = another()
        else:
            if happening == "zombie":
                zombies.append(member)
            member = another()
    return member, zombies


def rebalance_while_polling(
    member: Running,
    partitions: list[int],
    goes: bool = False,
    comes: bool = False,
    store: MemoryStateStore | None = None,
) -> None:
    """A turn in which the partitions go, come, or both, after the records of its poll were fetched.

    store: is back right after that.
    """

    def happens() -> None:
        if goes:
            member.source.revoke(partitions)
        if comes:
            member.source.assign(partitions)
        if store is not None:
            store.available = True

    member.source.while_polling = happens
    member.turns(1)
