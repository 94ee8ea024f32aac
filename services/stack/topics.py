"""Create the topics that a real broker does not have yet; those that exist are left as they are.

python -m services.stack.topics
"""

from __future__ import annotations

import sys

from shared.adapters.kafka import ensure_topics
from shared.adapters.settings import KafkaSettings
from shared.core.errors import DriftwoodError


def main() -> None:
    """Exits 1 with one line when the broker cannot be reached or refuses."""
    try:
        ensure_topics(KafkaSettings())
    except DriftwoodError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
