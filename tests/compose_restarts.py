"""Restart every container of a running `make up` while events come in, and see that nothing is lost.

    python -m tests.compose_restarts       # after: make up COMPOSE_PROFILES=demo, when a first model is in service

Each container is killed and started once while new users' events are published, then all of them at once. Afterwards
every user's ranking must be that of the same items posted, the states in Redis must have outlived the second part bit
by bit, and the session log must hold each event once. Prints what it did; ends with 1 where something does not hold.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections import defaultdict

import httpx

from services.simulator.shoppers import Shoppers
from shared.adapters.kafka import KafkaPublisher
from shared.adapters.settings import KafkaSettings
from shared.core.events import Interaction, encode
from tests.compose_files import versions
from tests.servers import until

HTTP = f"http://127.0.0.1:{versions()['HTTP_PORT']}"
KAFKA = f"127.0.0.1:{versions()['KAFKA_PORT']}"
VICTIMS = ("consumer", "recommender", "retrainer", "redis", "kafka", "prometheus")
MOST = 30  # events of one user: a model that comes meanwhile makes states anew from the last 32 items
WAIT_S = 300.0
_DIGEST = """
local keys = redis.call('KEYS', ARGV[1]); table.sort(keys); local sum = ''
for _, key in ipairs(keys) do sum = redis.sha1hex(sum .. key .. redis.call('GET', key)) end
return {#keys, sum}
"""
_LOGGED = """
import sys, polars as pl
from shared.adapters.session_log import FileSessionLog
rows = FileSessionLog('/data/session-log', 0, 0).window(newest_events=10**8)
print(rows.filter(pl.col('user_id').str.starts_with(sys.argv[1])).height)
"""


def docker(*words: str) -> str:
    return subprocess.run(["docker", *words], check=True, capture_output=True, text=True).stdout


def containers(service: str) -> list[str]:
    project = f"label=com.docker.compose.project={versions()['COMPOSE_PROJECT_NAME']}"
    return docker("ps", "-aq", "-f", project, "-f", f"label=com.docker.compose.service={service}").split()


def well() -> bool:
    states = [docker("inspect", "-f", "{{.State.Health.Status}}", c).strip() for v in VICTIMS for c in containers(v)]
    return set(states) == {"healthy"}


class Users:
    """Shoppers of this run alone, and what each of them did, in order."""

    def __init__(self) -> None:
        self.prefix = f"r{int(time.time()):x}-"
        self.did: dict[str, list[str]] = defaultdict(list)
        self._shoppers = Shoppers(seed=11)
        self._publisher = KafkaPublisher(KafkaSettings(kafka_bootstrap_servers=KAFKA))
        self.count = 0

    def act(self, seconds: float, rate: float = 50.0) -> None:
        """Publish at this rate for so long; returns when the broker has all."""
        began, first = time.monotonic(), self.count
        while (now := time.monotonic() - began) < seconds:
            while self.count - first < now * rate:
                self._one()
            self._publisher.flush(120.0)
            time.sleep(0.05)

    def _one(self) -> None:
        action = self._shoppers.next()
        user = self.prefix + action.user_id
        if len(self.did[user]) >= MOST:
            return
        self.count += 1
        event = Interaction(user, action.item_id, "view", int(time.time() * 1000), f"{self.prefix}{self.count}")
        self._publisher.send("interactions", user.encode(), encode(event))
        self.did[user].append(action.item_id)


class Check:
    """Questions to the running system about these users."""

    def __init__(self, users: Users) -> None:
        self._users = users
        self._http = httpx.Client(base_url=HTTP, timeout=10)

    def _ask(self, method: str, path: str, **body: object) -> dict[str, object]:
        try:
            answer = self._http.request(method, path, json=body or None)
            return answer.json() if answer.status_code == 200 else {}
        except (httpx.HTTPError, json.JSONDecodeError):
            return {}

    def differing(self) -> list[str]:
        """Users whose ranking is not that of a clean replay of what they did."""
        wrong = []
        for user, items in self._users.did.items():
            held = self._ask("GET", f"/v1/users/{user}/recommendations?k=50")
            replayed = self._ask("POST", "/v1/recommendations", items=items, k=50)
            if not held.get("items") or held["items"] != replayed.get("items") or held["strategy"] != "gru":
                wrong.append(user)
        return wrong

    def digest(self) -> str:
        """Of the users' values in Redis."""
        (redis,) = containers("redis")
        return docker("exec", redis, "redis-cli", "EVAL", _DIGEST, "0", f"dw:u:{self._users.prefix}*").strip()

    def logged(self) -> int:
        """The users' events in the session log."""
        return int(docker("exec", containers("retrainer")[0], "python", "-c", _LOGGED, self._users.prefix))

    def version(self) -> object:
        return self._ask("GET", "/v1/models").get("champion")


def kill_and_start(names: list[str]) -> None:
    """SIGKILL to the containers of these services, all at once, and then a start of each."""
    ids = [container for name in names for container in containers(name)]
    docker("kill", "--signal", "KILL", *ids)
    docker("start", *ids)


def main() -> int:
    users = Users()
    check = Check(users)
    for victim in VICTIMS:
        users.act(4.0)
        kill_and_start([victim])
        users.act(8.0)
        until(well, WAIT_S, f"all healthy after {victim}")
        print(f"{victim} killed and started while events came in: all healthy again", flush=True)
    until(lambda: not check.differing(), WAIT_S, "all rankings to be those of a clean replay")
    print(f"{len(users.did)} users, {users.count} events: every ranking is that of the same items posted", flush=True)
    before, version = check.digest(), check.version()
    kill_and_start(list(VICTIMS))
    until(well, WAIT_S, "all healthy after all")
    until(lambda: not check.differing(), WAIT_S, "all rankings after all were restarted")
    after, later = check.digest(), check.version()
    same = "bit by bit the same" if after == before else f"DIFFERENT: {before} {after} (models {version}, {later})"
    print(f"all killed and started at once: every ranking holds, the users' values in Redis are {same}", flush=True)
    until(lambda: check.logged() >= users.count, WAIT_S, "the session log")
    logged = check.logged()
    print(f"session log: {logged} of {users.count} events of these users", flush=True)
    return 0 if after == before and logged == users.count else 1


if __name__ == "__main__":
    sys.exit(main())
