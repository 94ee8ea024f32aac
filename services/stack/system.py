"""The whole system on one machine: start in order, watch, stop in reverse order."""

from __future__ import annotations

import fcntl
import json
import os
import re
import select
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO

from services.stack.components import SERVICES, Addresses, Service, reachable, service_environment
from services.stack.probes import free_port, not_ready, redis_answers
from services.stack.redis_server import find_redis_server, redis_command
from services.stack.settings import StackSettings
from services.stack.signals import Signals
from services.stack.supervisor import Child, Supervisor, ended
from shared.adapters.embedded import recognise
from shared.adapters.settings import KafkaSettings
from shared.core.errors import DriftwoodError

_PROBE_S = 0.05  # between two looks at something that is starting
_RESTART_PROBE_S = 0.5  # between two looks at something that was started again
_FAILED_STOP_S = 3.0  # services without their broker cannot finish their work; nothing is lost by not waiting


class StartFailed(DriftwoodError):
    """A part did not come up; the message names it, says why, and shows the end of its log."""


class Interrupted(DriftwoodError):
    """A stop was asked for before the system was ready."""


def say(line: str) -> None:
    """One line of progress, on stderr: stdout is for the ready line."""
    print(f"stack: {line}", file=sys.stderr, flush=True)


class System:
    """Use as ``start``, ``ready_line``, ``watch``, and in any case ``stop`` at the end."""

    def __init__(self, settings: StackSettings, environment: Mapping[str, str], signals: Signals) -> None:
        self._settings = settings
        self._environment = environment
        self._signals = signals
        self._supervisor = Supervisor(say)
        self._began = time.monotonic()
        self._lock: IO[str] | None = None
        self._temporary = settings.stack_dir is None
        self._folder = Path()
        self._addresses: Addresses | None = None
        self._coming_back: dict[str, float] = {}  # service name: monotonic seconds of its restart

    def start(self) -> None:
        """Bring up Redis, the broker and the services. Raises StartFailed, Interrupted or Unavailable."""
        self._open_folder()
        redis = self._start_redis() if not self._settings.redis_url.get_secret_value() else None
        kafka = self._settings.kafka_bootstrap_servers or self._start_broker()
        if redis is None:
            redis_url = self._settings.redis_url.get_secret_value()
        else:
            child, port = redis
            redis_url = f"redis://127.0.0.1:{port}/0"
            self._until(lambda: redis_answers(port), child, lambda: "it does not answer PING")
            self._came_up("redis", redis_url)
        self._addresses = self._plan(kafka, redis_url)
        environment = service_environment(self._environment, self._addresses, self._settings)
        if self._settings.kafka_bootstrap_servers:
            self._create_topics(environment)
            environment["KAFKA_API_VERSION"] = recognise(KafkaSettings()).kafka_api_version
        children = {service.name: self._start_service(service, environment) for service in SERVICES}
        for service in SERVICES:
            probe = self._probe(service)
            self._until(lambda probe=probe: not probe(), children[service.name], probe)  # type: ignore[misc]
            self._came_up(service.name, f"port {self._addresses.ports[service.name]}")
        self._record()

    def ready_line(self) -> str:
        """The contract's one JSON line; a password in the Redis URL is not shown."""
        assert self._addresses is not None
        line = {
            "ready": True,
            "kafka": self._addresses.kafka,
            "redis": re.sub(r"(://[^:@/]*:)[^@/]*@", r"\1***@", self._addresses.redis),
            "http": self._addresses.http,
            "model_uri": self._addresses.model_uri,
        }
        return json.dumps(line)

    def watch(self) -> int:
        """Keep everything running until a stop is asked for (returns 0) or the broker is lost (returns 1)."""
        while not self._signals.stops:
            again, lost = self._supervisor.tick()
            if lost is not None and lost.process is not None:
                say(
                    f"{lost.name} {ended(lost.process)}. It kept its topics in memory and its port is gone, so nothing "
                    f"here can go on: stopping. Its log: {lost.log}"
                )
                return 1
            for child in again:
                self._coming_back[child.name] = time.monotonic()
                self._record()
            self._announce_returns()
            due = self._supervisor.due_in()
            self._signals.wait(min(due, _RESTART_PROBE_S) if self._coming_back else due)
        return 0

    def stop(self, failed: bool) -> None:
        """Services first, then what they depend on; a second signal makes it immediate. Never raises Interrupted."""
        asked = self._signals.stops
        say("stopping")

        def patient(seconds: float) -> bool:
            self._signals.wait(seconds)
            return self._signals.stops <= max(asked, 1)

        grace_s = min(self._settings.stack_stop_s, _FAILED_STOP_S) if failed else self._settings.stack_stop_s
        services = {service.name for service in SERVICES}
        children = self._supervisor.children
        for group in ([c for c in children if c.name in services], [c for c in children if c.name not in services]):
            self._supervisor.stop(group, grace_s, patient)
        if self._lock is not None:
            self._lock.close()
        if self._temporary and not failed:
            shutil.rmtree(self._folder, ignore_errors=True)
        elif self._folder != Path():
            say(f"logs and data remain in {self._folder}")
        say("stopped")

    def _open_folder(self) -> None:
        given = self._settings.stack_dir
        self._folder = given.resolve() if given else Path(tempfile.mkdtemp(prefix="driftwood-"))
        try:
            for name in ("logs", "redis"):
                (self._folder / name).mkdir(parents=True, exist_ok=True)
            self._lock = (self._folder / "lock").open("w")
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise StartFailed(f"STACK_DIR={given}: another stack runs in this folder") from error
        except OSError as error:
            raise StartFailed(f"STACK_DIR={given}: {error.strerror}") from error
        say(f"folder {self._folder} (logs/ inside)")

    def _child(
        self,
        name: str,
        command: list[str],
        environment: Mapping[str, str],
        restartable: bool = True,
        pipe: bool = False,
    ) -> Child:
        log = self._folder / "logs" / f"{name}.log"
        return self._supervisor.add(Child(name, command, environment, log, restartable, pipe))

    def _start_redis(self) -> tuple[Child, int]:
        port = self._settings.redis_port or free_port()
        command = redis_command(find_redis_server(), port, self._folder / "redis")
        return self._child("redis", command, self._environment), port

    def _start_broker(self) -> str:
        command = [sys.executable, "-m", "services.stack.broker"]
        child = self._child("broker", command, self._environment, restartable=False, pipe=True)
        assert child.process is not None
        assert child.process.stdout is not None
        answer = child.process.stdout
        self._until(lambda: bool(select.select([answer], [], [], 0)[0]), child, lambda: "it gave no address")
        line = answer.readline()
        if not line:
            raise StartFailed(f"broker: it ended without an address\n{child.tail()}")
        address = str(json.loads(line)["kafka"])
        self._came_up("broker", f"{address} (embedded: in memory, for this machine)")
        return address

    def _create_topics(self, environment: Mapping[str, str]) -> None:
        command = [sys.executable, "-m", "services.stack.topics"]
        child = self._child("topics", command, environment, restartable=False)
        self._supervisor.children.remove(child)  # it ends by itself: nothing to keep running
        try:
            assert child.process is not None
            process = child.process
            self._until(lambda: process.poll() == 0, child, lambda: "it took too long", done=0)
        finally:
            self._supervisor.stop([child], 0.0, lambda seconds: False)
        self._came_up("topics", f"on {self._settings.kafka_bootstrap_servers}")

    def _start_service(self, service: Service, environment: Mapping[str, str]) -> Child:
        return self._child(service.name, [sys.executable, "-m", service.module], environment)

    def _plan(self, kafka: str, redis: str) -> Addresses:
        ports = {s.name: int(getattr(self._settings, s.port_variable.lower())) or free_port() for s in SERVICES}
        return Addresses(
            kafka=kafka,
            redis=redis,
            model_uri=self._settings.model_uri or str(self._folder / "models"),
            session_log_uri=self._settings.session_log_uri or str(self._folder / "session-log"),
            train_dir=str(self._folder / "training"),
            http_host=self._settings.http_host,
            ports=ports,
            kafka_is_ours=not self._settings.kafka_bootstrap_servers,
            redis_is_ours=not self._settings.redis_url.get_secret_value(),
        )

    def _probe(self, service: Service) -> Callable[[], str]:
        assert self._addresses is not None
        default = "127.0.0.1" if service.host_variable != "HTTP_HOST" else self._settings.http_host
        host = reachable(self._environment.get(service.host_variable) or default)
        port = self._addresses.ports[service.name]
        return lambda: not_ready(host, port)

    def _until(
        self, is_up: Callable[[], bool], child: Child, why_not: Callable[[], str], done: int | None = None
    ) -> None:
        """Wait for ``is_up``, watching that the child lives; an exit with code ``done`` is no failure."""
        deadline = self._began + self._settings.stack_ready_s
        while True:
            if self._signals.stops:
                raise Interrupted("asked to stop before it was ready")
            if is_up():
                return
            if child.process is not None and child.process.poll() not in (None, done):
                raise StartFailed(f"{child.name} {ended(child.process)}; the end of {child.log}:\n{child.tail()}")
            if time.monotonic() > deadline:
                raise StartFailed(
                    f"{child.name} is not ready after {self._settings.stack_ready_s:g} s (STACK_READY_S): {why_not()}; "
                    f"the end of {child.log}:\n{child.tail()}"
                )
            self._signals.wait(_PROBE_S)

    def _came_up(self, name: str, where: str) -> None:
        say(f"{name:<12} up after {time.monotonic() - self._began:4.1f} s  {where}")

    def _announce_returns(self) -> None:
        for service in SERVICES:
            since = self._coming_back.get(service.name)
            if since is not None and not self._probe(service)():
                say(f"{service.name} is ready again after {time.monotonic() - since:.1f} s")
                del self._coming_back[service.name]
        self._coming_back.pop("redis", None)  # the services' readiness speaks for it

    def _record(self) -> None:
        """Keep ``stack.json`` in the folder: the ready line with the process ids, for tools and for `kill`."""
        pids = {child.name: child.pid for child in self._supervisor.children}
        record = {**json.loads(self.ready_line()), "pids": pids, "pid": os.getpid()}
        partial = self._folder / "stack.json.partial"
        partial.write_text(json.dumps(record, indent=2) + "\n")
        partial.replace(self._folder / "stack.json")
