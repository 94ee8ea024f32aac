"""Synthetic shoppers: reproducible, sequential, and different after a shift."""

from collections import Counter, defaultdict

import pytest

from services.simulator.shoppers import Action, ShopperConfig, Shoppers

SMALL = ShopperConfig(items=96, categories=8, users=60, active=10)


def take(shoppers: Shoppers, count: int) -> list[Action]:
    return [shoppers.next() for _ in range(count)]


def transitions(actions: list[Action]) -> dict[str, Counter[str]]:
    """Item -> how often each other item came next in the same session."""
    last: dict[str, str] = {}
    found: dict[str, Counter[str]] = defaultdict(Counter)
    for action in actions:
        if action.session_id in last:
            found[last[action.session_id]][action.item_id] += 1
        last[action.session_id] = action.item_id
    return found


def next_item_share(table: dict[str, list[str]], actions: list[Action]) -> float:
    """Share of steps that are among the five items that ``table`` lists for the item before."""
    pairs = [(a, b, n) for a, after in transitions(actions).items() for b, n in after.items()]
    return sum(n for a, b, n in pairs if b in table.get(a, [])) / sum(n for _, _, n in pairs)


def test_same_seed_same_stream():
    assert take(Shoppers(SMALL, 7), 2000) == take(Shoppers(SMALL, 7), 2000)


def test_another_seed_another_stream():
    assert take(Shoppers(SMALL, 7), 50) != take(Shoppers(SMALL, 8), 50)


def test_stream_with_shift_is_reproducible_and_equal_before_it():
    def shifted() -> list[Action]:
        shoppers = Shoppers(SMALL, 3)
        before = take(shoppers, 500)
        shoppers.shift()
        return before + take(shoppers, 500)

    plain = take(Shoppers(SMALL, 3), 1000)
    assert shifted() == shifted()
    assert shifted()[:500] == plain[:500]
    assert shifted()[500:] != plain[500:]


def test_last_item_tells_more_than_popularity():
    shoppers = Shoppers(SMALL, 1)
    past, future = take(shoppers, 20_000), take(shoppers, 5_000)
    followers = {item: [b for b, _ in after.most_common(5)] for item, after in transitions(past).items()}
    famous = [item for item, _ in Counter(a.item_id for a in past).most_common(5)]
    popularity = dict.fromkeys(followers, famous)
    assert next_item_share(followers, future) > 0.6
    assert next_item_share(popularity, future) < 0.25


def test_shift_makes_what_was_learned_wrong():
    shoppers = Shoppers(SMALL, 1)
    learned = {
        item: [b for b, _ in after.most_common(5)] for item, after in transitions(take(shoppers, 20_000)).items()
    }
    shoppers.shift()
    take(shoppers, 500)  # visits that began before it
    # Followers stay in their category of 12 items, so 5 guesses out of 12 still hit by chance.
    assert next_item_share(learned, take(shoppers, 5_000)) < 0.5


def test_a_session_belongs_to_one_user_and_users_come_back():
    actions = take(Shoppers(SMALL, 1), 5_000)
    users_of = defaultdict(set)
    sessions_of = defaultdict(set)
    for action in actions:
        users_of[action.session_id].add(action.user_id)
        sessions_of[action.user_id].add(action.session_id)
    assert all(len(users) == 1 for users in users_of.values())
    assert max(len(sessions) for sessions in sessions_of.values()) > 1
    assert 6 < len(actions) / len(users_of) < 12


def test_impossible_shop_is_refused():
    with pytest.raises(ValueError, match="too few"):
        ShopperConfig(items=20, categories=10)
    with pytest.raises(ValueError, match="active"):
        ShopperConfig(users=5, active=6)
