"""`make keyboard`, short: what was typed trains a model, and its suggestions are taken more often than before."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path

import pytest

from tests.servers import IN_CI, ROOT, redis_server_path
from tests.stack_process import stack_environment

pytestmark = pytest.mark.skipif(redis_server_path() is None and not IN_CI, reason="no redis-server")


def generated_text(words: int, seed: int = 1) -> str:
    """Paragraphs in which each of 60 words is followed by one of two: a model can learn it, popularity cannot."""
    rng = random.Random(seed)
    names = [a + b for a in ("ka", "lo", "mi", "nu", "pe", "ro") for b in "bcdfghklmn"]
    following = {name: rng.sample(names, 2) for name in names}
    paragraphs, word = [], names[0]
    for _ in range(words // 40):
        said = []
        for _ in range(40):
            said.append(word)
            word = following[word][rng.random() < 0.3]
        paragraphs.append(" ".join(said).capitalize() + ".")
    return "\n\n".join(paragraphs)


@pytest.mark.slow
def test_suggestions_get_better_while_a_text_is_typed(tmp_path: Path):
    text, png = tmp_path / "text.txt", tmp_path / "keyboard.png"
    text.write_text(generated_text(2400))
    flags = ["--rate", "50"]  # 20 writers, each of whom leaves a loaded machine .4 s to take up a word
    done = subprocess.run(
        [sys.executable, "-m", "services.simulator.keyboard", "--text", text, "--png", png, *flags],
        cwd=ROOT,
        env=stack_environment(),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=170,
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["words"] + result["unanswered"] == 2400
    assert result["trainings"] >= 1
    assert result["last_tenth"] > result["first_tenth"] + 0.2
    assert result["last_tenth"] > result["commonest_words_last_tenth"] + 0.2
    assert png.read_bytes().startswith(b"\x89PNG")
