"""Create the topics that a real broker does not have yet; those that exist are left as they are.

python -m services.stack.topics
"""

from __future__ import annotations

import sys
import time

from shared.adapters.embedded import recognise
from shared.adapters.kafka_reader import ensure_topics
from shared.adapters.settings import KafkaSettings
from shared.core.errors import NotAllowed, Unavailable

_RETRY_S = 1.0


def main() -> int:
    """Try until the broker answers: the stack, which starts this, has the deadline. 1: it may not make them."""
    while True:
        try:
            made = ensure_topics(recognise(KafkaSettings()))
        except NotAllowed as error:
            print(error, file=sys.stderr)
            return 1
        except Unavailable as error:
            print(f"{error}; trying again", file=sys.stderr, flush=True)
            time.sleep(_RETRY_S)
        else:
            print(f"made: {', '.join(made) or 'none, all are there'}")
            return 0


if __name__ == "__main__":
    sys.exit(main())
