"""Synthetic shoppers with a taste that can shift: what comes next depends on the item before, not on fame alone.

Items belong to categories. Every item has a few followers in its category, and the shopper's kind decides which of
them it prefers; so the last item narrows the next one down to a handful, and earlier ones tell the kind. Now and then
a shopper browses its category by fame, or turns to another category that it likes. A list of the most popular items
cannot know any of this. ``shift`` draws all of it anew: the same items and shoppers, other habits.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from itertools import accumulate


@dataclass(frozen=True)
class ShopperConfig:
    """Sizes and habits of the shop; probabilities are per step within a session."""

    items: int = 480
    categories: int = 16
    users: int = 3000
    active: int = 150  # shoppers in the shop at once
    followers: int = 5  # of one item
    kinds: int = 3  # of shoppers, each with its own order of the followers
    follow: float = 0.8  # take a follower of the last item
    browse: float = 0.1  # take a famous item of the same category
    session_length: float = 9.0  # steps, mean
    cart: float = 0.06  # of the steps are "cart" and not "view"

    def __post_init__(self) -> None:
        if self.items < self.categories * (self.followers + 1):
            raise ValueError(f"{self.items} items are too few for {self.categories} categories with followers")
        if self.active > self.users:
            raise ValueError(f"active={self.active} is more than users={self.users}")


@dataclass(frozen=True)
class Action:
    """One step of one shopper; the time is whoever publishes it to say."""

    user_id: str
    session_id: str
    item_id: str
    event_type: str


@dataclass
class _Visit:
    user: int
    session_id: str
    item: int = -1  # none yet


class _Habits:
    """What everybody does, between two shifts; items are numbers, category = item % categories."""

    def __init__(self, config: ShopperConfig, rng: random.Random) -> None:
        self.members = [list(range(c, config.items, config.categories)) for c in range(config.categories)]
        for members in self.members:
            rng.shuffle(members)  # in order of fame
        self.fame = [_zipf(len(members)) for members in self.members]
        self.likes = [self._tastes(config, rng) for _ in range(config.users)]
        self.followers = []
        for item in range(config.items):
            others = [other for other in self.members[item % config.categories] if other != item]
            self.followers.append(rng.sample(others, config.followers))
        self.follower_weights = _zipf(config.followers)

    @staticmethod
    def _tastes(config: ShopperConfig, rng: random.Random) -> list[int]:
        """Three categories that a user likes, the well-known ones (low numbers) more often."""
        return [int(config.categories * rng.random() ** 1.5) for _ in range(3)]


class Shoppers:
    """An endless stream of actions, the same for the same seed and the same moments of ``shift``."""

    def __init__(self, config: ShopperConfig | None = None, seed: int = 1, shifts: int = 0) -> None:
        """shifts: so many have been before; the habits are those of one who saw them all."""
        self.config = config or ShopperConfig()
        self.shifts = shifts
        self._seed = seed
        self._rng = random.Random(f"{seed}/walk")
        self._habits = self._draw()
        self._sessions = 0
        self._away = list(range(self.config.users))
        self._rng.shuffle(self._away)
        self._visits = [self._arrive() for _ in range(self.config.active)]

    def shift(self) -> None:
        """From now on everybody follows other habits; drawn from the seed and the number of shifts so far."""
        self.shift_to(self.shifts + 1)

    def shift_to(self, shifts: int) -> None:
        """The habits after so many shifts."""
        self.shifts = shifts
        self._habits = self._draw()

    def next(self) -> Action:
        """The next action of somebody."""
        rng, place = self._rng, self._rng.randrange(len(self._visits))
        visit = self._visits[place]
        if visit.item >= 0 and rng.random() < 1 / self.config.session_length:
            self._away.append(visit.user)
            visit = self._visits[place] = self._arrive()
        visit.item = self._step(visit)
        kind = "cart" if rng.random() < self.config.cart else "view"
        return Action(user_name(visit.user), visit.session_id, self._item_name(visit.item), kind)

    def _draw(self) -> _Habits:
        return _Habits(self.config, random.Random(f"{self._seed}/habits/{self.shifts}"))

    def _arrive(self) -> _Visit:
        self._sessions += 1
        # Not the one who left last: somebody returns after a while, with the state kept from the visit before.
        place = self._rng.randrange(max(1, len(self._away) // 2))
        self._away[place], user = self._away[-1], self._away[place]
        self._away.pop()
        return _Visit(user, f"s{self._sessions}")

    def _step(self, visit: _Visit) -> int:
        rng, habits = self._rng, self._habits
        chance = rng.random() if visit.item >= 0 else 1.0
        if chance < self.config.follow:
            followers = habits.followers[visit.item]
            kind = visit.user % self.config.kinds
            order = followers[kind:] + followers[:kind]
            return rng.choices(order, cum_weights=habits.follower_weights)[0]
        if chance < self.config.follow + self.config.browse:
            category = visit.item % self.config.categories
        else:
            category = rng.choice(habits.likes[visit.user])
        return rng.choices(habits.members[category], cum_weights=habits.fame[category])[0]

    def _item_name(self, item: int) -> str:
        return f"c{item % self.config.categories:02d}-{item // self.config.categories:03d}"


def user_name(user: int) -> str:
    """The id of the user with this number."""
    return f"shopper-{user:05d}"


def _zipf(count: int) -> list[float]:
    """Cumulative weights 1, 1/2, 1/3, ..."""
    return list(accumulate(1 / rank for rank in range(1, count + 1)))
