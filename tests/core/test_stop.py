"""Requests to stop, by real signals to real processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from types import FrameType
from typing import Any

import pytest

from launcher.core import stop as stop_module
from launcher.core.errors import Cancelled
from launcher.core.stop import HANDLED_SIGNALS, Stop, StopEvent, stop_on_signals


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_the_first_signal_is_remembered(number: signal.Signals, code: int) -> None:
    with stop_on_signals() as stop:
        stop.check()
        os.kill(os.getpid(), number)
        assert stop.wait(2)
        os.kill(os.getpid(), signal.SIGTERM)
        for ask in (stop.check, lambda: stop.sleep(30)):
            with pytest.raises(Cancelled, match=f"stopped by {number.name}") as raised:
                ask()
            assert raised.value.exit_code == code


def test_a_request_that_never_comes() -> None:
    waited: list[float] = []
    stop = Stop.never(waited.append)
    stop.sleep(3)
    stop.check()
    assert not stop.requested()
    assert waited == [3]


def test_the_handlers_before_come_back() -> None:
    heard: list[int] = []
    real = signal.signal(signal.SIGTERM, lambda number, frame: heard.append(number))
    try:
        before = [signal.getsignal(number) for number in HANDLED_SIGNALS]
        with pytest.raises(ValueError), stop_on_signals():
            os.kill(os.getpid(), signal.SIGTERM)
            raise ValueError
        assert heard == []
        assert [signal.getsignal(number) for number in HANDLED_SIGNALS] == before
        os.kill(os.getpid(), signal.SIGTERM)
        assert heard == [signal.SIGTERM]
    finally:
        signal.signal(signal.SIGTERM, real)


def test_a_signal_decides_the_exit_code_whoever_says_that_it_came() -> None:
    with pytest.raises(Cancelled) as raised, stop_on_signals((signal.SIGUSR2, signal.SIGTERM)) as stop:
        os.kill(os.getpid(), signal.SIGUSR2)
        assert stop.requested()
        raise Cancelled("a program was ended", hint="go on")
    assert (raised.value.exit_code, raised.value.hint) == (128 + signal.SIGUSR2, "go on")


def test_whoever_ended_a_program_need_not_know_by_which_signal() -> None:
    with pytest.raises(Cancelled) as raised, stop_on_signals((signal.SIGUSR2,)):
        os.kill(os.getpid(), signal.SIGUSR2)
        raise Cancelled("stopped while this ran: enroot import x")
    assert raised.value.message == "stopped by SIGUSR2 while this ran: enroot import x"


def test_a_wait_costs_no_processor_time() -> None:
    began = time.process_time()
    StopEvent().wait(0.3)
    assert time.process_time() - began < 0.1


def test_a_hangup_that_nohup_ignores_stays_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with stop_on_signals() as stop:
            os.kill(os.getpid(), signal.SIGHUP)
            assert not stop.wait(0.05)
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_wait_ends_at_once_when_a_signal_comes() -> None:
    with stop_on_signals() as stop:
        timer = threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGTERM))
        timer.start()
        began = time.monotonic()
        assert stop.wait(60)
        assert time.monotonic() - began < 50
        timer.join()


def test_the_event_is_an_event() -> None:
    event = StopEvent()
    assert not event.is_set()
    began = time.monotonic()
    assert not event.wait(0.1)
    assert time.monotonic() - began > 0.09
    waiting = [threading.Thread(target=event.wait) for _ in range(3)]
    for thread in waiting:
        thread.start()
    event.set()
    event.set()
    for thread in waiting:
        thread.join(60)
        assert not thread.is_alive()
    assert event.wait(0) and event.is_set()


STORM = """
import os, sys, time
while os.getppid() == int(sys.argv[1]):
    os.kill(int(sys.argv[1]), 15)
    time.sleep(0.0005)
"""

SHELTER = """
import os, signal, subprocess, sys
from launcher.core.stop import stop_on_signals

signal.signal(signal.SIGTERM, lambda number, frame: None)  # between two blocks
storm = subprocess.Popen([sys.executable, "-c", sys.argv[1], str(os.getpid())])
for _ in range(500):
    with stop_on_signals() as stop:
        assert stop.wait(60), "a signal was lost"
storm.kill()
storm.wait()
"""


def test_a_storm_of_signals_neither_blocks_nor_is_lost() -> None:
    """Every wait in a storm of signals ends by one of them, wherever within the wait the handler runs."""
    done = subprocess.run([sys.executable, "-c", SHELTER, STORM], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.parametrize("line", range(1, 6))
def test_a_handler_never_waits_for_the_thread_that_it_interrupts(line: int) -> None:
    """It runs in the main thread, before any line of the event's own `wait` and `is_set`."""
    event = StopEvent()
    lines = 0

    def interrupt(frame: FrameType, kind: str, argument: object) -> Any:
        nonlocal lines
        lines += kind == "line" and frame.f_code.co_filename == stop_module.__file__
        if lines == line:
            sys.settrace(None)
            event.set()
        return interrupt

    sys.settrace(interrupt)
    try:
        event.wait(0.2)
        assert event.is_set()
    finally:
        sys.settrace(None)


CANCELLED = """
    import sys
    from launcher.core.errors import Cancelled
    from launcher.core.stop import stop_on_signals

    try:
        with stop_on_signals() as stop:
            print("ready", flush=True)
            stop.wait(10)
            print("scancel", flush=True)
            sys.stdin.readline()
            stop.check()
    except Cancelled as error:
        sys.exit(error.exit_code)
"""


def test_a_process_that_github_cancels_ends_with_the_code_of_the_first_signal() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(CANCELLED)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as child:
        assert child.stdin is not None and child.stdout is not None
        assert child.stdout.readline() == "ready\n"
        child.send_signal(signal.SIGINT)
        child.send_signal(signal.SIGTERM)
        assert child.stdout.readline() == "scancel\n"
        child.stdin.close()  # it stays in the block until both signals have come
        assert child.wait(5) == 130
