"""Writes to Kafka on behalf of HTTP requests: one thread, and one acknowledgement awaited for all who wait."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import queue
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from shared.core.errors import DriftwoodError, Unavailable
from shared.core.ports import Publisher

log = logging.getLogger(__name__)

_GROUP_RECORDS = 8192
"""Records whose acknowledgement is awaited together."""

_MAX_WAITING = 1024
"""Requests in the queue while the broker is slow."""


class OutRecord(NamedTuple):
    """A record to write."""

    topic: str
    key: bytes | None
    value: bytes | None
    partition: int | None = None


@dataclass(slots=True)
class _Parcel:
    records: Sequence[OutRecord]
    future: asyncio.Future[None]


class Outbox:
    """Publishes parcels of records whole: a parcel counts as written when the broker has acknowledged all of it.

    After a failure the publisher is thrown away and made anew, so that what the broker did not take in time is not
    written later, when its sender was already told to try again. What was on its way may still have arrived.
    """

    def __init__(self, connect: Callable[[], Publisher], timeout_s: float) -> None:
        self._connect = connect
        self._timeout_s = timeout_s
        self._publisher: Publisher | None = None
        self._inbox: queue.SimpleQueue[_Parcel | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="outbox", daemon=True)

    def start(self) -> None:
        """Connect in the background and begin to publish."""
        self._thread.start()

    def stop(self) -> None:
        """Publish what waits, then end."""
        self._inbox.put(None)
        if self._thread.is_alive():
            self._thread.join(timeout=10)

    async def publish(self, records: Sequence[OutRecord]) -> None:
        """Return when all are acknowledged. Raises Unavailable where they were not, or not in time."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        if self._inbox.qsize() >= _MAX_WAITING:
            raise Unavailable(f"more than {_MAX_WAITING} requests wait for Kafka")
        self._inbox.put(_Parcel(records, future))
        try:
            await asyncio.wait_for(future, self._timeout_s)
        except TimeoutError as error:
            raise Unavailable(f"Kafka did not acknowledge within {self._timeout_s:g} s") from error

    def _run(self) -> None:
        try:
            self._ready_publisher()
        except Unavailable as error:
            log.error("not connected yet: %s", error)
        stopping = False
        while not stopping:
            parcels, stopping = self._gather()
            try:
                if parcels:
                    self._write([record for parcel in parcels for record in parcel.records])
                _tell(parcels, None)
            except Unavailable as error:
                log.error("%d requests not written: %s", len(parcels), error)
                _tell(parcels, error)
                self._discard()
            except Exception as error:
                log.exception("%d requests not written", len(parcels))
                _tell(parcels, Unavailable(f"publishing failed: {error!r}"))
                self._discard()
        self._discard()

    def _gather(self) -> tuple[list[_Parcel], bool]:
        """Wait for a parcel and take those that wait beside it; those whose sender gave up are left out."""
        parcels: list[_Parcel] = []
        count = 0
        block = True
        while count < _GROUP_RECORDS:
            try:
                parcel = self._inbox.get(block=block)
            except queue.Empty:
                break
            if parcel is None:
                return parcels, True
            block = False
            if not parcel.future.done():
                parcels.append(parcel)
                count += len(parcel.records)
        return parcels, False

    def _ready_publisher(self) -> Publisher:
        if self._publisher is None:
            self._publisher = self._connect()
        return self._publisher

    def _write(self, records: Sequence[OutRecord]) -> None:
        publisher = self._ready_publisher()
        for record in records:
            publisher.send(record.topic, record.key, record.value, (), record.partition)
        publisher.flush(self._timeout_s)

    def _discard(self) -> None:
        publisher, self._publisher = self._publisher, None
        if publisher is not None:
            with contextlib.suppress(DriftwoodError):
                publisher.close()


def _tell(parcels: Sequence[_Parcel], error: Unavailable | None) -> None:
    for parcel in parcels:
        with contextlib.suppress(RuntimeError):  # the loop was closed: nobody waits any more
            parcel.future.get_loop().call_soon_threadsafe(_resolve, parcel.future, error)


def _resolve(future: asyncio.Future[None], error: Unavailable | None) -> None:
    if future.done():
        return
    if error is None:
        future.set_result(None)
    else:
        future.set_exception(error)
