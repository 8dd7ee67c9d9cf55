"""The lock of the runner: one at a time, in the order in which they come."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable

import pytest
from lariat._lock import Exclusive


def wait_until(is_true: Callable[[], bool]) -> None:
    end = time.monotonic() + 30
    while not is_true():
        assert time.monotonic() < end
        time.sleep(0.001)


def test_who_comes_back_stands_behind_who_waits() -> None:
    lock, order = Exclusive(lambda: None), []

    def enter() -> None:
        with lock:
            order.append("other")

    with lock:
        assert lock.is_held
        assert lock.is_mine
        assert not lock.is_wanted
        other = threading.Thread(target=enter)
        other.start()
        wait_until(lambda: lock.is_wanted)
        order.append("first")
    with lock:
        order.append("again")
    other.join(30)
    assert order == ["first", "other", "again"]
    assert not lock.is_held
    assert not lock.is_mine


def test_within_the_block_is_nobodys_place_again() -> None:
    lock = Exclusive(lambda: None)
    with lock, pytest.raises(RuntimeError, match="its own callbacks"), lock:
        pass
    assert not lock.is_held
    assert lock.failed is False


@pytest.mark.parametrize("after", [0, 1])
def test_an_error_of_the_check_leaves_it_free(after: int) -> None:
    """Before it is waited for, and when it is held."""
    n = iter(range(4))

    def check() -> None:
        if next(n) == after:
            raise ValueError("closed")

    lock = Exclusive(check)
    with pytest.raises(ValueError, match="closed"), lock:
        pass
    assert not lock.is_held
    with lock:
        assert lock.is_mine


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="alarms are Unix's")
@pytest.mark.parametrize("raises", [False, True])
def test_a_signal_while_it_is_waited_for(raises: bool) -> None:
    """Its handler may take the lock itself, or end the wait."""
    lock, may_go, entered = Exclusive(lambda: None), threading.Event(), []

    def hold() -> None:
        with lock:
            entered.append("other")
            assert may_go.wait(30)

    def handle(*_: object) -> None:
        if raises:
            raise InterruptedError
        may_go.set()
        with lock:
            entered.append("handler")

    other = threading.Thread(target=hold)
    other.start()
    wait_until(lambda: bool(entered))
    before = signal.signal(signal.SIGALRM, handle)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.01)
        if raises:
            with pytest.raises(InterruptedError), lock:
                pass
            may_go.set()
            other.join(30)
        else:
            with lock:
                entered.append("me")
            assert entered == ["other", "handler", "me"]
    finally:
        signal.signal(signal.SIGALRM, before)
    other.join(30)
    assert not lock.is_held
    with lock:
        pass
