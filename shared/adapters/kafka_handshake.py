"""One connection to the broker, made by hand, to say what is wrong with TLS or SASL: kafka-python only times out.

``check`` goes as far as a client must come before its first request: TCP, TLS, SASL. A broker that cannot be reached
is no finding: kafka-python waits for it, and says so.
"""

from __future__ import annotations

import contextlib
import socket
import ssl
import struct
from collections.abc import Callable

from kafka.errors import KafkaError, for_code
from kafka.net.sasl import get_sasl_mechanism

from shared.adapters.embedded import receive
from shared.adapters.settings import KafkaSettings
from shared.core.errors import Unavailable

_TIMEOUT_S = 1.5
_SASL_HANDSHAKE, _SASL_AUTHENTICATE, _API_VERSIONS = 17, 36, 18
_NOT_SASL, _NO_SUCH_MECHANISM = 34, 33
_WRONG_HOST = (62, 64)
"""OpenSSL's verification errors for a certificate of another host name, or of another IP address."""
_MOST_BYTES = 1 << 20


def check(settings: KafkaSettings) -> None:
    """Raises Unavailable, naming the setting, where no broker of the list lets us in; returns where one may."""
    problem = None
    for server in settings.kafka_bootstrap_servers.split(","):
        try:
            _Handshake(settings, server.strip()).run()
        except _Refused as error:
            problem = f"Kafka at {server.strip()}: {error}"
        else:
            return
    if problem is not None:
        raise Unavailable(problem)


class _Refused(Exception):
    """What is wrong, with the setting's name."""


class _Handshake:
    def __init__(self, settings: KafkaSettings, server: str) -> None:
        self._settings = settings
        host, _, port = server.rpartition(":")
        self._host, self._port = host.strip("[]"), port
        self._tls = settings.kafka_security_protocol.endswith("SSL")
        self._sasl = settings.kafka_security_protocol.startswith("SASL")
        self._protocol = f"KAFKA_SECURITY_PROTOCOL={settings.kafka_security_protocol}"

    def run(self) -> None:
        """Raises _Refused."""
        context = self._context() if self._tls else None
        try:
            raw = socket.create_connection((self._host, int(self._port)), _TIMEOUT_S)
        except (OSError, ValueError):
            return  # nobody is there (yet)
        with contextlib.closing(raw):
            raw.settimeout(_TIMEOUT_S)
            connection = self._encrypted(raw, context) if context is not None else raw
            try:
                self._talk(connection)
            except TimeoutError:
                return  # slow, which is no reason to send it away
            except ssl.SSLError as error:
                raise _Refused(self._of_tls(error)) from error
            except OSError:
                hint = "does it want TLS?" if not self._tls else "does it want SASL, or a client certificate?"
                raise _Refused(f"it closes the connection: {hint} ({self._protocol})") from None
            finally:
                connection.close()

    def _context(self) -> ssl.SSLContext:
        settings = self._settings
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = settings.kafka_ssl_check_hostname
        if settings.kafka_ssl_cafile:
            _load("KAFKA_SSL_CAFILE", settings.kafka_ssl_cafile, context.load_verify_locations)
        else:
            context.load_default_certs()
        if settings.kafka_ssl_certfile:
            key, password = settings.kafka_ssl_keyfile, settings.kafka_ssl_key_password.get_secret_value()
            _load(
                f"KAFKA_SSL_KEYFILE={key}, KAFKA_SSL_KEY_PASSWORD, KAFKA_SSL_CERTFILE",
                settings.kafka_ssl_certfile,
                # A function, since OpenSSL asks at the terminal for a password that was not given.
                lambda cert: context.load_cert_chain(cert, key or None, lambda: password),
            )
        return context

    def _encrypted(self, raw: socket.socket, context: ssl.SSLContext) -> ssl.SSLSocket:
        try:
            return context.wrap_socket(raw, server_hostname=self._host)
        except ssl.SSLError as error:
            raise _Refused(self._of_tls(error)) from error
        except TimeoutError:
            raise _Refused(f"no answer to TLS: does it speak TLS? ({self._protocol})") from None
        except OSError:
            raise _Refused(f"it does not speak TLS ({self._protocol})") from None

    def _of_tls(self, error: ssl.SSLError) -> str:
        if isinstance(error, ssl.SSLCertVerificationError):
            if error.verify_code in _WRONG_HOST:
                return (
                    f"its certificate is not for {self._host!r}: write the name that it is for into"
                    f" KAFKA_BOOTSTRAP_SERVERS (or KAFKA_SSL_CHECK_HOSTNAME=false): {error.verify_message}"
                )
            ca = self._settings.kafka_ssl_cafile
            return f"its certificate is not trusted (KAFKA_SSL_CAFILE={ca}): {error.verify_message}"
        reason = error.reason or str(error)
        if any(part in reason for part in ("CERTIFICATE", "HANDSHAKE_FAILURE", "UNKNOWN_CA")):
            return f"it does not accept our certificate (KAFKA_SSL_CERTFILE, KAFKA_SSL_KEYFILE): {reason}"
        return f"no TLS connection, does it speak TLS? ({self._protocol}): {reason}"

    def _talk(self, connection: socket.socket) -> None:
        _ask(connection, _API_VERSIONS, 0, b"")
        mechanism = self._settings.kafka_sasl_mechanism
        answer = _ask(connection, _SASL_HANDSHAKE, 1, _text(mechanism))
        code, offered = struct.unpack_from(">h", answer)[0], _texts(answer[2:])
        if not self._sasl:
            if code in (0, _NO_SUCH_MECHANISM) and offered:
                raise _Refused(f"it wants SASL, one of {', '.join(offered)} ({self._protocol})")
        elif code == _NOT_SASL:
            raise _Refused(f"it does not use SASL on this port ({self._protocol})")
        elif code == _NO_SUCH_MECHANISM:
            raise _Refused(f"it offers {', '.join(offered)} (KAFKA_SASL_MECHANISM={mechanism})")
        elif code == 0:
            self._authenticate(connection, mechanism)

    def _authenticate(self, connection: socket.socket, name: str) -> None:
        settings = self._settings
        mechanism = get_sasl_mechanism(name)(
            host=self._host,
            sasl_mechanism=name,
            sasl_plain_username=settings.kafka_sasl_username,
            sasl_plain_password=settings.kafka_sasl_password.get_secret_value(),
        )
        refused = "it does not accept KAFKA_SASL_USERNAME and KAFKA_SASL_PASSWORD"
        try:
            while not mechanism.is_done():
                token = mechanism.auth_bytes()
                answer = _ask(connection, _SASL_AUTHENTICATE, 0, struct.pack(">i", len(token)) + token)
                code, size = struct.unpack_from(">hh", answer)
                if code:
                    raise _Refused(f"{refused}: {for_code(code).__name__}")
                at = 4 + max(size, 0)
                (size,) = struct.unpack_from(">i", answer, at)
                mechanism.receive(answer[at + 4 : at + 4 + max(size, 0)])
        except (KafkaError, ValueError, KeyError, struct.error) as error:
            raise _Refused(f"{refused}: {type(error).__name__}") from None
        if not mechanism.is_authenticated():
            raise _Refused(refused)


def _load(setting: str, path: str, load: Callable[[str], object]) -> None:
    try:
        load(path)
    except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise _Refused(f"{setting}={path}: {reason}") from error


def _text(text: str) -> bytes:
    data = text.encode()
    return struct.pack(">h", len(data)) + data


def _texts(data: bytes) -> list[str]:
    (count,) = struct.unpack_from(">i", data)
    found, at = [], 4
    for _ in range(count):
        (size,) = struct.unpack_from(">h", data, at)
        found.append(data[at + 2 : at + 2 + size].decode())
        at += 2 + size
    return found


def _ask(connection: socket.socket, kind: int, version: int, body: bytes) -> bytes:
    """The answer's body. Raises OSError where the connection ends instead."""
    request = struct.pack(">hhih", kind, version, 1, -1) + body
    connection.sendall(struct.pack(">i", len(request)) + request)
    (size,) = struct.unpack(">i", receive(connection, 4))
    if not 4 <= size <= _MOST_BYTES:
        raise ConnectionError("this is not Kafka")
    return receive(connection, size)[4:]
