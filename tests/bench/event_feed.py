"""Interactions at a constant rate until ended, in a process of its own: ``python -m tests.bench.event_feed``.

Settings of the broker come from the environment. ``--count`` events as fast as possible where no rate is given.
"""

from __future__ import annotations

import argparse
import json
import random
import time

from shared.adapters.kafka import KafkaPublisher
from shared.adapters.settings import KafkaSettings


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--users", type=int, required=True, help="u0, u1, …")
    parser.add_argument("--items", type=int, required=True, help="i0, i1, …")
    parser.add_argument("--first-item", type=int, default=0, help="number of the first of these")
    parser.add_argument("--rate", type=float, default=0, help="events a second; 0: as fast as possible")
    parser.add_argument("--count", type=int, default=1 << 60)
    options = parser.parse_args()
    kafka = KafkaSettings()
    publisher = KafkaPublisher(kafka)
    rng = random.Random(1)
    began = time.time()
    for n in range(options.count):
        # Without a rate, users in turn: all have a state when it is done.
        user = f"u{rng.randrange(options.users) if options.rate else n % options.users}"
        item = f"i{options.first_item + rng.randrange(options.items)}"
        event = {"user_id": user, "item_id": item, "event_type": "view", "ts": int(time.time() * 1000)}
        publisher.send(kafka.topic_interactions, user.encode(), json.dumps(event).encode())
        if options.rate and (ahead := began + n / options.rate - time.time()) > 0:
            time.sleep(ahead)
        if n % 5000 == 4999 and not options.rate:
            publisher.flush(30)
    publisher.flush(30)


if __name__ == "__main__":
    main()
