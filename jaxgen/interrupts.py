"""Ctrl-C in a command, which ends it at once even while it imports or a compiler works.

Python raises KeyboardInterrupt in the main thread only, and only between two of its own instructions. The
threads of a compiler go on, and the end of the program would wait for them and may crash. So a thread watches
for Ctrl-C, and ends the program a moment later, whatever the others do. Compiled modules that are being
imported crash too, so that Ctrl-C ends a command without an exception until it begins. For this the package
imports this module before JAX, and so does every script of `experiments/`.
"""

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

GRACE = 1.0
"""Seconds that the main thread has to say that it was interrupted."""


SCRIPTS = Path(__file__).resolve().parent.parent / "experiments"
"""Where the experiment scripts are, in a clone."""


def is_command(words: list[str]) -> bool:
    """Whether Python was started, with these words, for the `jaxgen` command or for an experiment script."""
    if words[1:2] == ["-m"]:
        path = Path("".join(words[2:3]).replace(".", "/"))
    else:
        path = Path(words[min(1, len(words) - 1)])
    return path.stem == "jaxgen" or SCRIPTS in path.resolve().parents


def _leave(number: int, frame: Any) -> None:
    os.write(2, b"\ninterrupted\n")
    os._exit(130)


@contextlib.contextmanager
def watched() -> Iterator[None]:
    """End the program with exit status 130 within `GRACE` of a Ctrl-C.

    The first one is left to a run that has something to save. If the main thread does not answer with a
    KeyboardInterrupt, "interrupted" is printed. Outside the main thread, where Python allows no signal
    handlers, nothing is watched.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    if signal.getsignal(signal.SIGINT) is _leave:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    before = signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    answered = threading.Event()
    threading.Thread(target=_watch, args=(reading, answered), daemon=True).start()
    try:
        yield
    except KeyboardInterrupt:
        answered.set()
        raise
    finally:
        signal.set_wakeup_fd(before)
        os.close(writing)  # which ends the watcher, unless it has seen a Ctrl-C


def _watch(reading: int, answered: threading.Event) -> None:
    """Follow the numbers of signals that are written to a pipe."""
    from jaxgen.run import directory

    count = 0
    while number := os.read(reading, 1):
        if number[0] != signal.SIGINT:
            continue
        count += 1
        if count > 1 or not directory.saves_on_interrupt():
            time.sleep(GRACE)
            if not answered.is_set():
                os.write(2, b"\ninterrupted\n")
            os._exit(130)
    os.close(reading)


if is_command(sys.orig_argv) and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, _leave)
