"""The last words of the demo: what was measured, and the command that asks for a ranking, with its answer."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import dataclass

from services.simulator.demo.client import RankingClient, path_of
from services.simulator.demo.measure import Board, Hits
from services.simulator.demo.view import freshness_text, per_cent
from shared.core.errors import Unavailable

_ANSWER_S = 10.0


@dataclass(frozen=True)
class Recovery:
    """Before taste shifted, until a new model was live, and from then on (None: there was none); seconds since."""

    before: Hits
    fallen: Hits
    after: Hits | None
    swapped_s: float
    ended_s: float


def recovery_lines(recovery: Recovery) -> list[str]:
    """Lines for people."""
    before, fallen = recovery.before.total.held_share, recovery.fallen.total.held_share
    lines = [f"  after the shift of taste: {per_cent(before)} fell to {per_cent(fallen)}"]
    if recovery.after is None:
        return [*lines, f"    no new model was live within {recovery.ended_s:.0f} s"]
    late = recovery.after.recent().held_share
    share = per_cent(late / before) if before else "-"
    return [
        *lines,
        f"    a retrained model was live after {recovery.swapped_s:.0f} s; after {recovery.ended_s:.0f} s the share is "
        f"{per_cent(late)}, {share} of what it was",
    ]


def summary(board: Board, history: int, seconds: float) -> list[str]:
    """Lines for people. ``history``: events that the model was trained on."""
    hits, total = board.hits, board.hits.total
    lines = [
        "",
        f"Summary: {board.events.count:,} events streamed in {seconds:.0f} s, the first {history:,} trained on",
        f"  freshness   {freshness_text(board.freshness_ms)}, from publishing an event to a ranking that knows it "
        f"({len(board.freshness_ms):,} probes)",
        f"  next action in the top 20, of {total.actions:,} actions since the model is live:",
        f"    the ranking held for the user   {per_cent(total.held_share)}",
        f"    trending                        {per_cent(total.trending_share)}",
        f"  of the {hits.by_model.actions:,} that had a ranking from the model (the others were new users): "
        f"{per_cent(hits.by_model.held_share)}, trending {per_cent(hits.by_model.trending_share)}",
    ]
    if hits.unknown > 0.001 * total.actions:
        share = per_cent(hits.unknown / max(1, total.actions))
        lines.append(
            f"  {share} of the actions were on items that came after the training, which the model cannot know"
        )
    if board.unanswered or board.unseen:
        lines.append(f"  {board.unanswered:,} requests unanswered, {board.unseen:,} events not seen within 5 s")
    return lines


def curl_lines(http: str, user_id: str) -> list[str]:
    """The exact command for a user who was just active, and the answer that it gives now."""
    path = path_of(user_id, 5)
    return ["", "Ask for a user's recommendations:", f"  $ curl -s '{http}{path}'", f"  {_answer(http, path)}"]


def _answer(http: str, path: str) -> str:
    """Of curl itself, or where there is none of our own client."""
    if shutil.which("curl"):
        command = ["curl", "-s", f"{http}{path}"]
        try:
            return subprocess.run(command, capture_output=True, text=True, timeout=_ANSWER_S).stdout.strip()
        except subprocess.TimeoutExpired:
            return f"no answer within {_ANSWER_S:.0f} s"
    client = RankingClient(http)
    try:
        return client.raw(path).decode()
    except Unavailable as error:
        return str(error)
    finally:
        client.close()
