"""Apache Kafka with SASL_SSL, mTLS and ACLs, set up with the commands of deploy/SECURITY.md."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from shared.adapters.kafka_reader import ensure_topics
from shared.adapters.settings import KafkaSettings
from tests.certificates import Authority
from tests.security_examples import example, settings_of
from tests.servers import REAL_KAFKA, KafkaNode, free_port

PASSWORD = "kafk4-s3cret-of-the-test"


class SecureKafka:
    """One listener without protection for the administrator, one for SASL_SSL, one for mTLS."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.authority = Authority(folder / "authority")
        self.certificate, self.key = self.authority.issue("driftwood", [])
        self.sasl, self.mtls = free_port(), free_port()
        certificate, key = self.authority.issue("broker", ["localhost"])
        store = folder / "broker.pem"
        store.write_bytes(key.read_bytes() + certificate.read_bytes())
        self._node = KafkaNode(
            folder,
            f"""
listeners=PLAINTEXT://127.0.0.1:@PORT@,CONTROLLER://127.0.0.1:@CONTROLLER@,SASL_SSL://:{self.sasl},SSL://:{self.mtls}
advertised.listeners=PLAINTEXT://127.0.0.1:@PORT@,SASL_SSL://localhost:{self.sasl},SSL://localhost:{self.mtls}
inter.broker.listener.name=PLAINTEXT
ssl.keystore.type=PEM
ssl.keystore.location={store}
ssl.truststore.type=PEM
ssl.truststore.location={self.authority.ca}
listener.name.ssl.ssl.client.auth=required
ssl.principal.mapping.rules=RULE:^CN=([^,]+).*$/$1/
sasl.enabled.mechanisms=SCRAM-SHA-512
listener.name.sasl_ssl.scram-sha-512.sasl.jaas.config=org.apache.kafka.common.security.scram.ScramLoginModule required;
authorizer.class.name=org.apache.kafka.metadata.authorizer.StandardAuthorizer
super.users=User:ANONYMOUS
""",
        )
        (folder / "password").write_text(PASSWORD + "\n")

    def start(self) -> None:
        self._node.start()
        ensure_topics(KafkaSettings(kafka_bootstrap_servers=self._node.bootstrap, kafka_partitions=1))
        self.run(example("kafka-acls"))

    def run(self, script: str) -> None:
        """A script of the administrator's, with Kafka's tools and what the examples name."""
        environment = {
            **os.environ,
            "PATH": f"{REAL_KAFKA.parent / 'bin'}:{os.environ['PATH']}",
            "BROKER": self._node.bootstrap,
            "PASSWORD_FILE": str(self.folder / "password"),
        }
        done = subprocess.run(["bash", "-euc", script], env=environment, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stdout + done.stderr

    def stop(self) -> None:
        self._node.stop()

    def environment(self, name: str = "kafka-sasl") -> dict[str, str]:
        """The settings of an example, for this broker."""
        server, files = self.authority, {"/etc/driftwood/ca.pem": str(self.authority.ca)}
        assert server.ca.exists()
        files |= {
            "/run/secrets/kafka_password": str(self.folder / "password"),
            "/etc/driftwood/driftwood.crt": str(self.certificate),
            "/etc/driftwood/driftwood.key": str(self.key),
            "broker.example:9093": f"localhost:{self.sasl}",
            "broker.example:9094": f"localhost:{self.mtls}",
        }
        return {setting: files.get(value, value) for setting, value in settings_of(example(name)).items()}

    def settings(self, name: str = "kafka-sasl", **changes: object) -> KafkaSettings:
        """The same as settings."""
        given: dict[str, object] = {k.lower(): v for k, v in self.environment(name).items()}
        if given.pop("kafka_sasl_password_file", None):
            given["kafka_sasl_password"] = PASSWORD
        return KafkaSettings(**{**given, **changes})  # type: ignore[arg-type]
