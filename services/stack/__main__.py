"""The whole system without Docker, in the foreground: ``python -m services.stack`` (``make stack``).

When everything is ready, one JSON line goes to stdout; progress goes to stderr, each part's own words to a log file.
SIGTERM or Ctrl-C stops everything, services first; a second one does it at once. A part that dies is started again on
the same port. One cannot be: the embedded broker keeps its topics in memory and picks its port, so when it dies the
stack stops with exit code 1 rather than serve a system whose past is gone.
"""

from __future__ import annotations

import os
import sys

from pydantic import ValidationError

from services.stack.settings import StackSettings
from services.stack.signals import Signals
from services.stack.system import Interrupted, System, say
from shared.core.errors import DriftwoodError, SettingsInvalid


def main() -> int:
    """Run until stopped: 0 after a stop that was asked for, 1 after a failure, 2 for a wrong setting."""
    try:
        settings = StackSettings()
    except ValidationError as error:
        for problem in error.errors():
            say(f"{'.'.join(str(part) for part in problem['loc']).upper()}: {problem['msg']}")
        return 2
    except SettingsInvalid as error:
        say(str(error))
        return 2
    with Signals() as signals:
        system = System(settings, os.environ, signals)
        code = 1
        try:
            system.start()
            print(system.ready_line(), flush=True)
            code = system.watch()
        except Interrupted as error:
            say(str(error))
            code = 0
        except DriftwoodError as error:
            say(f"failed: {error}")
        except OSError as error:
            say(f"failed: {error}")
        finally:
            system.stop(failed=code != 0)
    return code


if __name__ == "__main__":
    sys.exit(main())
