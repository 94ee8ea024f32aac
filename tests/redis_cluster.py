"""A Redis Cluster of six servers on this machine: three primaries, a replica for each."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
from pathlib import Path

import redis

from shared.adapters.settings import RedisSettings
from tests.security_examples import example
from tests.servers import RedisServer, free_port, redis_server_path, until

PASSWORD = "clust3r-s3cret-of-the-test"


class ClusterServer(RedisServer):
    """One of the six."""

    def start(self) -> None:
        path = redis_server_path()
        assert path is not None
        with (self.folder / "redis.log").open("ab") as log:
            self.process = subprocess.Popen(
                [path, "--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(self.folder), "--save", "",
                 "--cluster-enabled", "yes", "--cluster-node-timeout", "1000", "--cluster-port", str(self.bus),
                 "--cluster-replica-validity-factor", "0", "--repl-diskless-sync-delay", "0"],
                stdout=log,
            )  # fmt: skip
        until(self.answers, what="redis-server")

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.bus = free_port()

    def client(self) -> redis.Redis:
        return redis.Redis(port=self.port, protocol=2)


class LocalRedisCluster:
    """``start`` it; ``kill`` of a primary has its replica take over."""

    def __init__(self, folder: Path) -> None:
        self.servers = []
        for n in range(6):
            (folder / str(n)).mkdir(parents=True)
            self.servers.append(ClusterServer(folder / str(n)))

    @staticmethod
    def possible() -> bool:
        return redis_server_path() is not None and shutil.which("redis-cli") is not None

    def start(self) -> None:
        for server in self.servers:
            server.start()
        places = [f"127.0.0.1:{server.port}" for server in self.servers]
        done = subprocess.run(
            ["redis-cli", "--cluster", "create", *places, "--cluster-replicas", "1", "--cluster-yes"],
            capture_output=True, text=True, timeout=120,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        until(lambda: len(self.primaries()) == 3 and all(map(self._in_sync, self.servers)), 60, "the cluster")

    def _in_sync(self, server: ClusterServer) -> bool:
        with server.client() as client:
            state, replication = client.execute_command("CLUSTER", "INFO"), client.info("replication")
        if b"cluster_state:ok" not in state and "cluster_state:ok" not in str(state):
            return False
        if replication["role"] == "slave":
            return replication["master_link_status"] == "up"
        return int(replication["connected_slaves"]) == 1

    def primaries(self) -> list[ClusterServer]:
        """Those that live and own slots."""
        found = []
        for server in self.servers:
            if server.process is None or server.process.poll() is not None:
                continue
            with server.client() as client:
                if client.info("replication")["role"] == "master":
                    found.append(server)
        return found

    def cut_off_replica(self, primary: ClusterServer) -> ClusterServer:
        """The primary's replica, which from now on gets nothing more from it."""
        with primary.client() as client:
            port = int(client.info("replication")["slave0"]["port"])
            replica = next(server for server in self.servers if server.port == port)
            with replica.client() as own:
                own.config_set("masteruser", "nobody")
                own.config_set("masterauth", "a password that nobody has")
            client.execute_command("CLIENT", "KILL", "TYPE", "replica")
        until(lambda: self._link(replica) == "down", 20, "the link to the replica is cut")
        return replica

    @staticmethod
    def _link(replica: ClusterServer) -> str:
        with replica.client() as client:
            return str(client.info("replication")["master_link_status"])

    def with_user(self) -> None:
        """The user of deploy/SECURITY.md, on each server."""
        line = example("redis-acl", PASSWORD_SHA256=hashlib.sha256(PASSWORD.encode()).hexdigest())
        for server in self.servers:
            with server.client() as client:
                client.execute_command("ACL", "SETUSER", *line.split()[1:], "+cluster|slots", "+command")

    def settings(self, **changes: object) -> RedisSettings:
        url = f"redis://127.0.0.1:{self.servers[0].port}/0"
        return RedisSettings(**{"redis_url": url, "redis_cluster": True, **changes})  # type: ignore[arg-type]

    def stop(self) -> None:
        for server in self.servers:
            server.stop()
