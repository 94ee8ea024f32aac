"""Ranks what was asked at the same time: one read of all states, one run of the GRU, one multiplication."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence

import numpy as np

from services.recommender.cache import Entry, RankingCache
from services.recommender.metrics import RecommenderMetrics
from services.recommender.new_items import NO_NEW_ITEMS, NewItems
from services.recommender.popular import Popular
from services.recommender.queries import Answer, Outcome, Query
from services.recommender.serving import Serving
from services.recommender.subjects import Ask, States, Subject
from shared.core.dismissed import MOST
from shared.core.errors import Unavailable
from shared.core.ports import StateStore
from shared.core.ranking import STRATEGY_GRU, STRATEGY_TRENDING
from shared.core.state import TOKEN_BYTES
from shared.model.inference import Hidden, InferenceModel
from shared.model.scorer import Scorer

log = logging.getLogger(__name__)

CACHED_ITEMS = 64
"""Computed and kept for a user: 20 items, and as many again when all 32 recent ones are to be left out."""

MAX_SEEN = 255
"""Recent items of a user, at most."""

SLICE = 32
"""Items of an anonymous session taken in one batch, about 3 ms at width 128: a longer one is put back in between."""


class BatchRanker:
    """Answers queries. Not for use by several threads; ``serving`` may be replaced by another at any time."""

    def __init__(
        self,
        store: StateStore,
        popular: Callable[[], Popular],
        cache: RankingCache,
        metrics: RecommenderMetrics,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._store = store
        self._popular = popular
        self._cache = cache
        self._states = States(metrics, lambda: self._clock())
        self._metrics = metrics
        self._clock = clock
        self._stages = {s: metrics.stage.labels(s) for s in ("read", "rebuild", "score")}
        self._hits, self._misses = metrics.cache.labels("hit"), metrics.cache.labels("miss")
        self.serving: Serving | None = None

    def forget(self, user_id: str) -> None:
        """Drop what is kept of the user."""
        self._cache.drop(user_id)

    def rank(self, queries: Sequence[Query]) -> list[Outcome]:
        """An answer to each, in order. Unavailable: the state could not be read. None: not finished, ask again."""
        serving = self.serving
        scorer = serving.scorer if serving is not None else None
        new_items = serving.new_items if serving is not None else NO_NEW_ITEMS
        asks, failure = self._read(queries)
        if serving is not None and scorer is not None:
            self._find(serving, scorer, new_items, asks)
        outcomes: list[Outcome] = []
        for ask in asks:
            if ask.subject is None:
                outcomes.append(failure)
            elif ask.unfinished:
                outcomes.append(None)
            elif serving is not None and ask.subject.entry is not None:
                outcomes.append(self._from_entry(serving, new_items, ask.query, ask.subject, ask.out))
            else:
                outcomes.append(self._trending(serving, ask.query, ask.subject))
        return outcomes

    def _read(self, queries: Sequence[Query]) -> tuple[list[Ask], Unavailable | None]:
        """The states of all users asked for; no subject for those that could not be read."""
        users = list(dict.fromkeys(q.user_id for q in queries if q.user_id is not None))
        by_user: dict[str, Subject] = {}
        failure: Unavailable | None = None
        if users:
            started = time.perf_counter()
            try:
                values = self._store.read(users)
                by_user = {user: Subject(value) for user, value in zip(users, values, strict=True)}
            except Unavailable as error:
                failure = error
            self._stages["read"].observe(time.perf_counter() - started)
        return [Ask(q, Subject() if q.user_id is None else by_user.get(q.user_id)) for q in queries], failure

    def _find(self, serving: Serving, scorer: Scorer, new_items: NewItems, asks: Sequence[Ask]) -> None:
        """Give an entry with enough items to each subject of which the model knows something."""
        model = serving.model
        made_by = model.fingerprint, scorer.number
        most = len(model.items) - (not model.repeats)  # without the current item, where none repeats
        missing: dict[int, tuple[Query, Subject]] = {}
        hits = 0
        for ask in asks:
            query, subject = ask.query, ask.subject
            if subject is None:
                continue
            if query.user_id is not None and subject.value is not None and subject.entry is None:
                subject.entry = self._cache.get(query.user_id, subject.value[:TOKEN_BYTES], made_by)
            dismissed = self._states.dismissed(query, subject)
            left_out: list[str] = []
            if dismissed or query.exclude or query.exclude_seen:
                left_out = [*self._states.left_out(query, subject), *dismissed]
            if new_items.names and not model.repeats:
                left_out += self._recent(query, subject)[-1:]  # the current item, which may be a new one
            if left_out:
                ask.out = sorted(set(serving.known(left_out, new_items)))
            needed = min(query.k + len(ask.out), most)
            if (
                subject.entry is not None
                and len(subject.entry.indexes) >= needed
                and (not new_items.names or self._states.has_hidden(model, query, subject))
            ):
                hits += 1
                continue
            subject.needed = max(subject.needed, needed, min(CACHED_ITEMS, most))
            if id(subject) not in missing and self._prepare(model, query, subject):
                ask.unfinished = query.user_id is None and self._advance_slice(model, query, subject)
                if not ask.unfinished:
                    missing[id(subject)] = (query, subject)
        self._hits.inc(hits)
        if missing:
            self._misses.inc(len(missing))
            self._compute(scorer, list(missing.values()))

    def _prepare(self, model: InferenceModel, query: Query, subject: Subject) -> bool:
        """Where the hidden state comes from; False where the model knows none of the items."""
        if query.user_id is None:
            subject.steps = model.known(query.items)
            return bool(subject.steps)
        state = self._states.of(query.user_id, subject)
        if state.fingerprint == model.fingerprint and len(state.hidden) == 2 * model.width:
            subject.hidden = state.hidden
            return any(state.hidden) or bool(model.known(state.recent_items()))
        subject.steps = model.known(state.recent_items())
        if subject.steps:
            self._metrics.rebuilt.inc()
        return bool(subject.steps)

    def _advance_slice(self, model: InferenceModel, query: Query, subject: Subject) -> bool:
        """Take the next items of a long session; True while more are left than fit in the batch itself."""
        fingerprint, done, hidden = query.progress
        if fingerprint != model.fingerprint:
            done, hidden = 0, b""
        left = subject.steps[done:]
        subject.hidden, subject.steps = hidden, left
        if len(left) <= SLICE:
            return False
        subject.steps = left[:SLICE]
        query.progress = (model.fingerprint, done + SLICE, self._hidden(model, [subject]).tobytes())
        return True

    def _compute(self, scorer: Scorer, missing: list[tuple[Query, Subject]]) -> None:
        started = time.perf_counter()
        model = scorer.model
        hidden = self._hidden(model, [subject for _, subject in missing])
        made = time.perf_counter()
        self._stages["rebuild"].observe(made - started)
        widened = scorer.widened
        barred = [self._current(model, query, subject) for query, subject in missing]
        tops = scorer.rank(hidden, [subject.needed for _, subject in missing], barred)
        self._metrics.widened.inc(scorer.widened - widened)
        for (query, subject), top, row in zip(missing, tops, hidden, strict=True):
            subject.hidden = row.tobytes()
            token = subject.value[:TOKEN_BYTES] if subject.value is not None else b""
            as_of = subject.state.last_ts if subject.state is not None else 0
            dismissed = subject.state.dismissed_items() if subject.state is not None else ()
            indexes = top.indexes.astype(np.int32)
            subject.entry = Entry(token, (model.fingerprint, scorer.number), as_of, indexes, top.scores, dismissed)
            if query.user_id is not None and subject.needed <= 2 * CACHED_ITEMS:
                self._cache.put(query.user_id, subject.entry)
        self._metrics.cached_users.set(len(self._cache))
        self._stages["score"].observe(time.perf_counter() - made)

    def _current(self, model: InferenceModel, query: Query, subject: Subject) -> Sequence[int]:
        """The item that this ranking leaves out by itself."""
        if model.repeats:
            return ()
        current = model.current(self._recent(query, subject))
        return () if current < 0 else (current,)

    def _recent(self, query: Query, subject: Subject) -> Sequence[str]:
        return query.items if query.user_id is None else self._states.of(query.user_id, subject).recent_items()

    def _hidden(self, model: InferenceModel, subjects: Sequence[Subject]) -> Hidden:
        """(len(subjects), width) float16."""
        zeros = bytes(2 * model.width)
        joined = b"".join([subject.hidden or zeros for subject in subjects])
        hidden = np.frombuffer(joined, dtype=np.float16).reshape(len(subjects), model.width)
        rebuilt = [row for row, subject in enumerate(subjects) if subject.steps]
        if rebuilt:
            hidden = hidden.copy()
            hidden[rebuilt] = model.advance(hidden[rebuilt], [subjects[row].steps for row in rebuilt])
        return hidden

    def _from_entry(
        self, serving: Serving, new_items: NewItems, query: Query, subject: Subject, out: Sequence[int]
    ) -> Answer:
        entry = subject.entry
        assert entry is not None
        names, more, first = serving.names, new_items.names, len(serving.names)
        if subject.ranking is None:
            subject.ranking = (entry.indexes, entry.scores)
            if more:
                subject.ranking = new_items.merge(entry.indexes, entry.scores, subject.hidden, first)
        indexes, scores = subject.ranking
        if out:
            keep = ~np.isin(indexes, out)
            indexes, scores = indexes[keep], scores[keep]
        chosen = indexes[: query.k].tolist()
        return Answer(
            query.user_id,
            [names[i] if i < first else more[i - first] for i in chosen],
            scores[: query.k].tolist(),
            serving.model.version,
            STRATEGY_GRU,
            entry.as_of or self._now(),
            True,
        )

    def _trending(self, serving: Serving | None, query: Query, subject: Subject) -> Answer:
        popular = self._popular()
        if serving is not None and len(popular.items) < query.k + len(query.exclude) + MAX_SEEN + MOST:
            popular = serving.filled(popular)
        known = query.user_id is None or self._states.of(query.user_id, subject).events > 0
        names: Sequence[bytes] = popular.names[: query.k]
        scores: Sequence[float] = popular.scores[: query.k]
        dismissed = self._states.dismissed(query, subject)
        if dismissed or query.exclude or query.exclude_seen:
            out = {*self._states.left_out(query, subject), *dismissed}
            kept = [at for at, item in enumerate(popular.items) if item not in out][: query.k]
            names, scores = [popular.names[at] for at in kept], [popular.scores[at] for at in kept]
        return Answer(query.user_id, names, scores, None, STRATEGY_TRENDING, self._now(), known)

    def _now(self) -> int:
        return int(self._clock() * 1000)
