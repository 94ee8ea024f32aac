"""Run a command that cannot outlive the process that started it.

    python child.py SIGNAL PARENT_PID COMMAND [ARGUMENT...]

Linux sends SIGNAL to the command when its parent ends, however it ends: the stack's SIGKILL included. It asks the
kernel for that (prctl(2), PR_SET_PDEATHSIG; kept across exec) and then becomes the command, so that no extra process
remains between the two. PARENT_PID 0 skips the check that the parent is still there. Where there is no prctl (macOS)
the command runs all the same, and only a parent that ends by itself stops it.

Started by path with ``python -I -S`` (15 ms), hence imports nothing of ours.
"""

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1


def main(argv: list[str]) -> None:
    """Become ``argv[2:]``; exits 1 when the parent ended before the kernel was told."""
    signum, parent = signal.Signals[argv[0]], int(argv[1])
    if sys.platform == "linux":
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.prctl(_PR_SET_PDEATHSIG, int(signum), 0, 0, 0) != 0:
            sys.exit(f"prctl: {os.strerror(ctypes.get_errno())}")
        if parent and os.getppid() != parent:
            sys.exit(1)
    try:
        os.execvp(argv[2], argv[2:])
    except OSError as error:
        sys.exit(f"{argv[2]}: {error.strerror}")


if __name__ == "__main__":
    main(sys.argv[1:])
