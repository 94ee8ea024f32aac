"""The whole system at work in a minute or two: ``python -m services.simulator.demo`` (make demo).

Simulated shoppers, or with --data a real log, are streamed through the real services; a first model is trained from the
first part of the stream and swapped in live; then the rankings are put to the test of what the users did next. Ends
with 0 when all went well, 130 when stopped, 1 when a part failed.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import sys
import tempfile
from pathlib import Path

from pydantic import ValidationError
from rich.console import Console

from services.simulator.demo.run import Demo, Stopped
from services.simulator.demo.settings import DemoSettings
from services.simulator.demo.sources import LogSource, ShopperSource
from shared.core.errors import DriftwoodError

_INTERRUPTED = 130


def main() -> int:
    """See the module."""
    parser = argparse.ArgumentParser(prog="demo", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--data", help="a log (CSV, TSV, Parquet) to stream instead of simulated shoppers")
    args = parser.parse_args()
    console = Console()
    folder = Path(tempfile.mkdtemp(prefix="driftwood-demo-"))
    code, demo = 1, None
    try:
        settings = DemoSettings()
        if args.data:
            console.print(f"reading {args.data}", highlight=False)
        source = LogSource(args.data) if args.data else ShopperSource(settings.demo_seed)
        demo = Demo(source, settings, folder, console)
        for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(signum, lambda *_: demo.ask_to_stop())
        demo.run()
        code = 0
    except Stopped:
        code = _INTERRUPTED
    except (DriftwoodError, ValidationError, OSError) as error:
        print(f"demo: {error}", file=sys.stderr)
    finally:
        if demo is not None:
            demo.close()
        if code == 1 and any(folder.iterdir()):
            print(f"demo: logs and data remain in {folder}", file=sys.stderr)
        else:
            shutil.rmtree(folder, ignore_errors=True)
    return code


if __name__ == "__main__":
    os.environ.setdefault("PYTHONUNBUFFERED", "1")
    sys.exit(main())
