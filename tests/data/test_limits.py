"""A limit of time with signals and, as on Windows and in threads, without."""

import signal
import threading
import time
from contextlib import suppress

import pytest

from escdiff.data.limits import time_limit
from escdiff.support.errors import UserError


@pytest.fixture(params=["signals", "no signals"], autouse=True)
def signals(request, monkeypatch):
    if request.param == "no signals":
        for name in ("SIGALRM", "ITIMER_REAL", "setitimer", "alarm"):
            monkeypatch.delattr(signal, name, raising=False)


def busy() -> None:
    while True:
        sum(range(100))


def test_what_takes_too_long_is_stopped():
    with pytest.raises(UserError, match=r"sample x took longer than 0\.05 s"), time_limit(0.05, "sample x"):
        busy()


def test_it_is_stopped_again_where_a_library_swallows_it():
    def stubborn() -> None:
        with suppress(Exception):
            busy()
        busy()

    with pytest.raises(UserError, match="took longer"), time_limit(0.05, "sample x"):
        stubborn()


def test_errors_of_the_block_stay_themselves():
    with pytest.raises(KeyError), time_limit(5, "x"):
        raise KeyError("x")
    with pytest.raises(UserError, match="mine"), time_limit(5, "x"):
        raise UserError("mine")


def test_nothing_arrives_after_the_block():
    before = set(threading.enumerate())
    for _ in range(200):
        with suppress(UserError), time_limit(0.001, "x"):
            time.sleep(0.0009)
        sum(range(1000))
    for watch in set(threading.enumerate()) - before:
        watch.join(10)
        assert not watch.is_alive()


def test_no_limit_starts_no_watch():
    before = threading.active_count()
    with time_limit(0, "x"):
        assert threading.active_count() == before


def test_threads_have_limits_too():
    said = []

    def work() -> None:
        try:
            with time_limit(0.05, "x"):
                busy()
        except UserError as error:
            said.append(str(error))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join(20)
    assert said and "took longer" in said[0]
