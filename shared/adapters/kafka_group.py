"""Taking part in a consumer group, in spite of what kafka-python 3.0.12 gets wrong about it.

It loses an assignment that arrives between two polls, and joins again: see ``_keep_what_was_joined``. And it may elect
a leader that does not know the topic yet: the leader hands out nothing, and does not notice when it learns better.
With the topic known before the subscription that became rare; and from time to time a member looks whether partitions
are left to nobody, and if they are, joins again.
"""

from __future__ import annotations

import functools
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Any

from kafka import KafkaConsumer
from kafka.consumer.subscription_state import ConsumerRebalanceListener
from kafka.coordinator.base import BaseCoordinator, MemberState

from shared.adapters.kafka_client import TopicAdmin, abandon, bounded
from shared.adapters.settings import KafkaSettings

log = logging.getLogger(__name__)

_LOOK_S = 3.0
"""How often a member looks. Partitions must be left over twice in a row: a rebalance may be about to begin."""
_LOOK_EMBEDDED_S = 15.0
"""The same with the embedded broker, which takes seconds to let a member in, and cannot be asked how far it is."""
_MOST_S = 60.0
"""Each joining again doubles the time to the next look, up to this: joining takes its time on a busy machine."""


def _keep_what_was_joined(join: Callable[..., Awaitable[bool]]) -> Callable[..., Awaitable[bool]]:
    """kafka-python 3.0.12 drives joining from ``poll``, and takes an attempt that ended since the last poll for none.

    The assignment is dropped and the group is joined once more: another rebalance for all its members, and with the
    embedded broker nine seconds. A consumer that works for as long as it polls would lose half of its assignments.
    """

    @functools.wraps(join)
    async def keeping(coordinator: Any, timeout_ms: float | None = None) -> bool:
        attempt = coordinator._join_task
        if (
            attempt is not None
            and attempt.is_done
            and attempt.succeeded()
            and coordinator.rejoining
            and coordinator.state is MemberState.REBALANCING  # else what was joined has been left since
        ):
            coordinator._join_task = None
            with coordinator._lock:
                coordinator.rejoining = coordinator.rejoin_needed = False
                coordinator.state = MemberState.STABLE
                coordinator._enable_heartbeat()
            joined = coordinator._generation
            await coordinator._on_join_complete_async(
                joined.generation_id, joined.member_id, joined.protocol, attempt.value
            )
        return await join(coordinator, timeout_ms)

    return keeping


BaseCoordinator.join_group_async = _keep_what_was_joined(BaseCoordinator.join_group_async)


class Membership:
    """One consumer's part in a group on one topic."""

    def __init__(
        self,
        consumer: KafkaConsumer,
        settings: KafkaSettings,
        group: str,
        topic: str,
        listener: ConsumerRebalanceListener | None = None,
    ) -> None:
        """Raises Unavailable: then the consumer is closed."""
        self._consumer = consumer
        self._settings = settings
        self._embedded = bool(settings.kafka_api_version)
        self._admin = TopicAdmin(settings)
        self._group = group
        self._topic = topic
        self._listener = listener
        self._looked_at = time.monotonic()
        self._pause_s = self._shortest_s = _LOOK_EMBEDDED_S if self._embedded else _LOOK_S
        self._left_over: set[int] = set()
        try:
            self._join()
        except BaseException:
            abandon(consumer)
            raise

    def _join(self) -> None:
        bounded(self._settings, lambda: self._consumer.partitions_for_topic(self._topic))
        self._consumer.subscribe([self._topic], listener=self._listener)

    def look(self) -> bool:
        """To be called with every poll; true where the consumer must join again: see ``rejoin``.

        Raises TopicMissing, Unavailable.
        """
        if time.monotonic() - self._looked_at < self._pause_s:
            return False
        self._looked_at = time.monotonic()
        if self._embedded:  # it cannot be asked about groups; but there, a group has one member
            left_over = set() if self._consumer.assignment() else {-1}
        else:
            left_over = self._admin.unassigned(self._group, self._topic)
        twice = left_over & self._left_over
        self._left_over = left_over
        if not left_over:
            self._pause_s = self._shortest_s
        return bool(twice)

    def rejoin(self) -> None:
        """Leave the group and join it again. What the consumer owned, it owns no more."""
        place: dict[str, Any] = {"topic": self._topic, "group": self._group, "partitions": sorted(self._left_over)}
        log.warning("nobody reads these partitions: joining the group again", extra=place)
        self._left_over = set()
        self._pause_s = min(2 * self._pause_s, _MOST_S)
        self._consumer.unsubscribe()
        # The brokers may all have come back at other addresses: kafka-python asks for them only once.
        bounded(self._settings, lambda: self._consumer.bootstrap(timeout_ms=5000, refresh=True))
        self._join()

    def close(self) -> None:
        """Close the connection that asks about the group."""
        self._admin.close()
