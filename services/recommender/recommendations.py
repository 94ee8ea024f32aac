"""The two calls that rank."""

from __future__ import annotations

from services.recommender.metrics import RecommenderMetrics
from services.recommender.params import Refused, session_query, user_query
from services.recommender.queries import Answer, Ids, Query, encode_answer
from services.recommender.ranker import Ranker
from services.recommender.responses import Reply, failure_reply
from shared.core.errors import Unavailable
from shared.core.ranking import STRATEGY_GRU, STRATEGY_TRENDING


class Recommendations:
    """Questions in, replies out."""

    def __init__(self, ranker: Ranker, ids: Ids, metrics: RecommenderMetrics) -> None:
        self._ranker = ranker
        self._ids = ids
        self._count = {s: metrics.rankings.labels("http", s).inc for s in (STRATEGY_GRU, STRATEGY_TRENDING)}

    async def for_user(self, raw_user: bytes, query_string: bytes) -> Reply:
        """``GET /v1/users/{user_id}/recommendations``; the user id as it stands in the path."""
        try:
            return await self._answer(user_query(raw_user, query_string))
        except Refused as error:
            return failure_reply(error)

    async def for_session(self, body: bytes) -> Reply:
        """``POST /v1/recommendations``."""
        try:
            return await self._answer(session_query(body))
        except Refused as error:
            return failure_reply(error)

    async def _answer(self, query: Query) -> Reply:
        outcome = await self._ranker.ask(query)
        if not isinstance(outcome, Answer):
            return failure_reply(outcome or Unavailable("the ranking was not finished"))
        self._count[outcome.strategy]()
        return Reply(200, encode_answer(outcome, self._ids()))
