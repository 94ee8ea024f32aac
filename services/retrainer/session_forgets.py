"""The forgets topic, in terms of the session log."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import msgspec

from shared.core.ports import InteractionSource, Record
from shared.core.ranking import Forget
from shared.core.session_log_port import Cut, Forgotten, SessionLog

log = logging.getLogger(__name__)

_decoder = msgspec.json.Decoder(Forget)


def resolve(records: Sequence[Record], source: InteractionSource, session_log: SessionLog) -> list[Forgotten]:
    """What each wish cuts off: in the present lives of the partitions all below its offsets, in earlier lives all.

    The offsets are taken to be those of the life that the topic has now. Where it was made anew between the wish and
    this reading, too much is forgotten rather than too little. Raises TopicMissing, Unavailable.
    """
    wishes = [wish for record in records if (wish := _decoded(record)) is not None]
    if not wishes:
        return []
    logged = session_log.known_lives()
    numbers = sorted({n for wish in wishes for n in wish.end_offsets} | {n for n, _ in logged})
    lives = source.incarnations(numbers)
    bounds = source.bounds(sorted(lives))
    present = {n: session_log.incarnation(n, lives[n], bounds[n][1]) for n in lives}
    earlier = [Cut(n, life, None) for n, life in sorted(logged) if present.get(n) != life]
    return [
        Forgotten(
            wish.user_id,
            wish.requested_at,
            [Cut(n, present[n], end) for n, end in sorted(wish.end_offsets.items()) if n in present] + earlier,
        )
        for wish in wishes
    ]


def _decoded(record: Record) -> Forget | None:
    if record.value is None:
        return None
    try:
        return _decoder.decode(record.value)
    except msgspec.DecodeError as error:
        place = {"partition": record.partition, "offset": record.offset}
        log.error("a forget cannot be read and is left out: %s", error, extra=place)
        return None
