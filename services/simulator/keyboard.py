"""make keyboard: a text streamed as typing through the real services, which suggest the next word.

Items are words, a user is somebody who types one document. Before each word the keyboard asks for three suggestions; if
the word is among them they are accepted, else each is dismissed for about as long as a word takes. The retrainer learns
from what was typed so far, and better models are swapped in meanwhile. Drawn: the share of accepted suggestions.
"""

from __future__ import annotations

import argparse
import json
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from services.simulator.keyboard_run import Keyboard, KeyboardRules, Stopped, draw_board, result_of
from services.simulator.keyboard_text import read_documents
from shared.core.errors import DriftwoodError

_LINE_S = 5.0
_WORDS_A_SECOND, _MOST_RATE = 0.6, 120.0
"""Of one writer: what was turned down for one word must be over by the next, and it lasts for up to a second. Of all:
what two cores carry while they train."""
_INTERRUPTED, _BAD_INPUT = 130, 2


class Lines:
    """Progress on stderr: in place where a person looks on, every few seconds elsewhere."""

    def __init__(self) -> None:
        self._console = Console(stderr=True)
        self._said = 0.0
        self._status = self._console.status("") if self._console.is_terminal else None
        if self._status is not None:
            self._status.start()

    def show(self, text: str, passing: bool) -> None:
        """A line; a passing one is replaced by the next."""
        if not passing:
            self._console.print(text, highlight=False, markup=False, soft_wrap=True)
        elif self._status is not None:
            self._status.update(text)
        elif time.monotonic() - self._said >= _LINE_S:
            self._said = time.monotonic()
            self._console.print(text, highlight=False, markup=False, soft_wrap=True)

    def close(self) -> None:
        """No more in place."""
        if self._status is not None:
            self._status.stop()


def main(argv: Sequence[str] | None = None) -> int:
    """Last line of stdout: {"words", "accepted", "first_tenth", "last_tenth", ...}. Exit 2: no text; 130: stopped."""
    args = _parser().parse_args(argv)
    lines, began = Lines(), time.monotonic()
    folder = Path(tempfile.mkdtemp(prefix="driftwood-keyboard-"))
    code, keyboard = 1, None
    try:
        try:
            documents = read_documents(args.text)
        except DriftwoodError as error:
            print(f"keyboard: {error}", file=sys.stderr)
            return _BAD_INPUT
        rules = _rules(args, len(documents))
        keyboard = Keyboard(documents, rules, folder, lines.show)
        for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(signum, lambda *_: keyboard.stop.set())
        keyboard.run()
        result = result_of(keyboard.board, len(keyboard.gates), time.monotonic() - began)
        result["png"] = str(draw_board(args.png, f"{args.text.name}: typing with suggestions", keyboard.board))
        code = 0
    except Stopped:
        return _INTERRUPTED
    except (DriftwoodError, OSError) as error:
        print(f"keyboard: {error}", file=sys.stderr)
    finally:
        lines.close()
        if keyboard is not None:
            keyboard.close()
        if code == 1 and any(folder.iterdir()):
            print(f"keyboard: logs and data remain in {folder}", file=sys.stderr)
        else:
            shutil.rmtree(folder, ignore_errors=True)
    if code == 0:
        print(json.dumps(result), flush=True)
    return code


def _rules(args: argparse.Namespace, documents: int) -> KeyboardRules:
    """A short text has fewer writers, so that a first model comes while there is still something to type."""
    writers = min(args.writers, max(1, documents // 3))
    rate = args.rate or min(_MOST_RATE, _WORDS_A_SECOND * writers)
    first = args.first_training or writers + max(1, writers // 10)
    return KeyboardRules(args.words, rate, writers, first, args.max_age, args.seed)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="keyboard", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--text", type=Path, required=True, help="a text file, UTF-8; paragraphs are documents")
    parser.add_argument("--png", type=Path, default=Path(".run/keyboard.png"), help="the chart (default: %(default)s)")
    parser.add_argument("--words", type=int, default=30_000, help="typed at most (default: %(default)s)")
    parser.add_argument("--rate", type=float, help="words a second, all together (default: 0.6 a writer, at most 120)")
    parser.add_argument("--writers", type=int, default=200, help="who type at a time, at most (default: %(default)s)")
    parser.add_argument("--first-training", type=int, help="documents begun before it (default: 1.1 times the writers)")
    parser.add_argument(
        "--max-age", type=float, default=45.0, help="seconds until a model is trained anew (%(default)s)"
    )
    parser.add_argument("--seed", type=int, default=1)
    return parser


if __name__ == "__main__":
    sys.exit(main())
