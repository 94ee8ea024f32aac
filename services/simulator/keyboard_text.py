"""A text as what a keyboard sees: documents, each a list of words in the order typed."""

from __future__ import annotations

import re
from pathlib import Path

from shared.core.errors import LogUnreadable

LEAST_WORDS, MOST_WORDS = 30, 300
"""Of a document: paragraphs are put together up to the first, and cut at the second. A user types one document."""
_WORD = re.compile(r"[^\W_]+(?:['’\-][^\W_]+)*")
_LONGEST = 64
"""Letters; longer runs are no words of a language, and an item id must fit in 256 bytes."""


def read_documents(path: Path) -> list[list[str]]:
    """Raises LogUnreadable, naming the file, where there is no text of two words."""
    try:
        text = path.read_text("utf-8", errors="replace")
    except OSError as error:
        raise LogUnreadable(f"{path}: {error.strerror}") from error
    documents = documents_of(text)
    if sum(len(document) for document in documents) < 2:
        raise LogUnreadable(f"{path}: no words to type")
    return documents


def documents_of(text: str) -> list[list[str]]:
    """Paragraphs (parted by empty lines) as documents of about LEAST_WORDS to MOST_WORDS lower-case words."""
    documents: list[list[str]] = []
    gathered: list[str] = []
    for paragraph in re.split(r"\n\s*\n", text):
        gathered += [word for word in _WORD.findall(paragraph.lower()) if len(word) <= _LONGEST]
        if len(gathered) >= LEAST_WORDS:
            documents += [gathered[at : at + MOST_WORDS] for at in range(0, len(gathered), MOST_WORDS)]
            gathered = []
    return [*documents, gathered] if gathered else documents
