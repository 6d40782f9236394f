"""The process that launched this one and waits for it: `accelerate launch` or `torchrun`.

On Ctrl-C the terminal tells both. `accelerate launch` of one process then ends at once, with a traceback, and this
process goes on alone; `torchrun` waits for its processes, and says last of all that they failed. Whatever the launcher
does, how to go on should be the last thing that is seen, and a process that nobody waits for should not train on.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

# What a launcher puts into the environment of its processes, and words of its own command line.
SIGNS = ("ACCELERATE_MIXED_PRECISION", "TORCHELASTIC_RUN_ID")
COMMANDS = ("accelerate", "torchrun", "torch.distributed", "torch/distributed", "deepspeed")
PATIENCE = 60  # seconds that last words wait for the launcher's end

# Waits for a process to end, then writes a text to standard error; knows nothing of this package, to be there at once.
LAST_WORDS = f"""
import os, sys, time
until = time.monotonic() + {PATIENCE}
while time.monotonic() < until:
    try:
        os.kill(int(sys.argv[1]), 0)
    except OSError:
        break
    time.sleep(0.05)
time.sleep(0.1)
os.write(2, os.fsencode(sys.argv[2]))
"""


def waiting_launcher() -> int | None:
    """The id of the process that launched this one; None where it was started by hand, or is not Linux'."""
    if not any(sign in os.environ for sign in SIGNS):
        return None
    # The variables are inherited: a script that a launched process starts has them too, and another parent.
    parent = os.getppid()
    try:
        command = Path(f"/proc/{parent}/cmdline").read_bytes().decode(errors="replace")
    except OSError:
        return None
    return parent if any(word in command for word in COMMANDS) else None


def is_alive(process: int | None) -> bool:
    """Whether it is still our parent."""
    return process is not None and os.getppid() == process


def say_after(process: int, text: str) -> bool:
    """Write a text to standard error when a process has ended; whether somebody is there to do so."""
    command = [sys.executable, "-S", "-E", "-c", LAST_WORDS, str(process), text]
    silent = subprocess.DEVNULL
    try:
        subprocess.Popen(command, stdin=silent, stdout=silent, start_new_session=True)
    except OSError:
        return False
    return True
