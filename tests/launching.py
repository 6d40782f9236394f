"""Real processes: a test starts some, waits for them, leaves none behind, and shows what they said when they fail."""

from __future__ import annotations

import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import psutil

ROOT = Path(__file__).resolve().parents[1]
# One thread each and this package; on an abort, and collectives that do not match end in one, where each thread was.
OWN = {
    "OMP_NUM_THREADS": "1",
    "PYTHONPATH": str(ROOT),
    "PYTHONUNBUFFERED": "1",
    "PYTHONFAULTHANDLER": "1",
}
Done = subprocess.CompletedProcess[str]


def torchrun(processes: int) -> list[str]:
    """The arguments that start a script on several processes, or plainly on one.

    `--standalone` lets the launcher take a port that is free as it takes it; without, all launches share one.
    """
    return ["-m", "torch.distributed.run", "--nproc_per_node", str(processes), "--standalone"] if processes > 1 else []


def free_port() -> str:
    """A port to meet at, below those that the system hands out to outgoing connections.

    One of those can be taken by any connection in the seconds until the launcher listens at it, also by the other
    side's own attempt to reach it.
    """
    for port in random.sample(range(20_000, 30_000), 50):
        with socket.socket() as found, suppress(OSError):
            found.bind(("127.0.0.1", port))
            return str(port)
    raise OSError("none of fifty ports is free")


def environment(without: Sequence[str] = (), **variables: str) -> dict[str, str]:
    """This process's variables but those `without`, and its own for a test."""
    return {name: value for name, value in os.environ.items() if name not in without} | OWN | variables


def run(*command: str, timeout: float = 240, without: Sequence[str] = (), **variables: str) -> Done:
    """Run a command of python's to its end. When it fails or hangs, an AssertionError shows what it said."""
    return run_together(command, timeout=timeout, without=without, **variables)[0]


def run_together(
    *commands: Sequence[str], timeout: float = 240, without: Sequence[str] = (), **variables: str
) -> list[Done]:
    """Run commands that wait for each other, as the machines of a cluster do; where one fails, the others are ended."""
    with tempfile.TemporaryDirectory() as place:
        given = environment(without, **variables)
        running = [started(command, Path(place, str(i)), given) for i, command in enumerate(commands)]
        try:
            wait_for(running, time.monotonic() + timeout)
        finally:
            for process in running:
                end(process)
        done = [Done(p.args, p.returncode, *said(Path(place, str(i)))) for i, p in enumerate(running)]
    assert not any(one.returncode for one in done), "\n".join(map(told, done))
    return done


def started(command: Sequence[str], place: Path, given: dict[str, str]) -> subprocess.Popen[str]:
    """A command of python's that writes its streams to two files."""
    with open(f"{place}.out", "w") as out, open(f"{place}.err", "w") as err:
        return subprocess.Popen([sys.executable, *command], env=given, stdout=out, stderr=err, text=True)


def wait_for(running: list[subprocess.Popen[str]], until: float) -> None:
    """Until all have ended, one has failed, or the time is up: then each is asked where it hangs."""
    while any(process.poll() is None for process in running) and not any(process.poll() for process in running):
        if time.monotonic() > until:
            for process in running:
                signal_all(process, signal.SIGABRT)
            time.sleep(2)
            return
        time.sleep(0.05)


def end(process: subprocess.Popen[str]) -> None:
    """Kill a process and all that it has started."""
    if process.poll() is None:
        signal_all(process, signal.SIGKILL)
    process.wait(timeout=30)


def signal_all(process: subprocess.Popen[str], number: signal.Signals) -> None:
    """Send a signal to the processes that a process has started, and to itself."""
    with suppress(psutil.NoSuchProcess):
        parent = psutil.Process(process.pid)
        for one in [*parent.children(recursive=True), parent]:
            with suppress(psutil.NoSuchProcess):
                one.send_signal(number)


def said(place: Path) -> list[str]:
    """What a command wrote to its two streams."""
    return [Path(f"{place}.{stream}").read_text(errors="replace") for stream in ("out", "err")]


def told(done: Done) -> str:
    """How a process ended, and the beginning and the end of what it said: the launcher's own words come last."""
    err = done.stderr if len(done.stderr) < 12_000 else f"{done.stderr[:6000]}\n[…]\n{done.stderr[-6000:]}"
    return f"{' '.join(map(str, done.args))}\nended with {done.returncode}\n{done.stdout[-2000:]}\n{err}"
