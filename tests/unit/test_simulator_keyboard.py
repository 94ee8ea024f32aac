"""The keyboard scenario's parts that need no server."""

from __future__ import annotations

import pytest

from services.simulator import keyboard
from services.simulator.keyboard_board import BUCKET, Board
from services.simulator.keyboard_run import result_of
from services.simulator.keyboard_text import MOST_WORDS, documents_of
from services.simulator.keyboard_typing import Desk, Suggested, events_of


def test_paragraphs_are_documents_of_a_fair_length_in_lower_case():
    short, long = "It's a well-known fact.", "Word " * (MOST_WORDS + 50)
    documents = documents_of(f"{short}\n\n{short}\n \n{long}\n\nThe end, 42!")
    assert documents[0][:5] == ["it's", "a", "well-known", "fact", "it's"]
    assert [len(document) for document in documents] == [MOST_WORDS, 58, 3]
    assert documents[-1] == ["the", "end", "42"]
    assert documents_of("?!\n\n---") == []


def test_a_rejected_suggestion_is_dismissed_before_the_word_an_accepted_one_is_named():
    shown = Suggested(("the", "of", "and"), "v1", "r-1")
    rejected = events_of("ann", "kettle", shown, 1000)
    assert [(event.item_id, event.event_type) for event in rejected] == [
        ("the", "dismiss"),
        ("of", "dismiss"),
        ("and", "dismiss"),
        ("kettle", "word"),
    ]
    assert [event.recommendation_id for event in rejected] == ["r-1", "r-1", "r-1", None]
    (accepted,) = events_of("ann", "of", shown, 1000)
    assert (accepted.item_id, accepted.event_type, accepted.recommendation_id) == ("of", "word", "r-1")
    (unasked,) = events_of("ann", "of", None, 1000)
    assert unasked.recommendation_id is None


def test_the_desk_hands_out_each_document_once_and_no_more_words_than_asked_for():
    desk = Desk([["a", "b"], ["c", "d", "e"], ["f"]], "run", most_words=4)
    writers = []
    while (writer := desk.writer()) is not None:
        writers.append((writer.user_id, list(iter(writer.next, None))))
    assert writers == [("run-0", ["a", "b"]), ("run-1", ["c", "d"])]


def test_the_board_counts_by_time_by_model_and_beside_the_commonest_words():
    board = Board()
    for number in range(2 * BUCKET):
        model = "trending" if number < BUCKET else "v1"
        board.typed("the" if number % 2 else f"word-{number}", accepted=number >= BUCKET, model=model)
    assert [tally.share for tally in board.buckets] == [0.0, 1.0]
    assert board.swaps == [(0, "trending"), (BUCKET, "v1")]
    assert board.total.common_share == pytest.approx(0.45, abs=0.06)  # all "the" but those before it was common
    result = result_of(board, trained=1, seconds=1.0)
    assert (result["first_tenth"], result["last_tenth"], result["accepted"]) == (0.0, 1.0, 0.5)
    assert result["by_model"]["v1"] == {"words": BUCKET, "accepted": 1.0}


def test_a_text_that_is_not_there_is_told_in_one_line(tmp_path, capsys):
    assert keyboard.main(["--text", str(tmp_path / "none.txt")]) == 2
    assert "none.txt" in capsys.readouterr().err
    (tmp_path / "empty.txt").write_text(" \n\n!")
    assert keyboard.main(["--text", str(tmp_path / "empty.txt")]) == 2
    assert "no words" in capsys.readouterr().err
