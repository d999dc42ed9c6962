"""What is written while the next scan is computed: in order, and whole or not there where the process is to end."""

import signal
import threading
import time

import pytest

from meshnet.cohort.behind import Behind
from meshnet.files import whole_file


def slowly(path, begun, seconds=20.0):
    with whole_file(path) as temporary:
        temporary.write_bytes(b"half")
        begun.set()
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            time.sleep(0.01)


@pytest.fixture
def ctrl_c():
    """Ctrl-C raises, also where these tests were begun in the background of a shell, which has it ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("at_the_end", [False, True])
def test_what_is_being_written_is_given_up_on_ctrl_c(tmp_path, ctrl_c, at_the_end):
    """Before all is computed, or while the last scan is waited for; a second signal changes nothing."""
    begun, later, started = threading.Event(), [], time.monotonic()

    def interrupt():
        begun.wait()
        for _ in range(2):
            time.sleep(0.2)
            signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)

    other = threading.Thread(target=interrupt)
    with pytest.raises(KeyboardInterrupt):
        other.start()
        try:
            with Behind(True) as behind:
                behind.do(slowly, tmp_path / "mask", begun)
                behind.do(later.append, 1)
                if not at_the_end:
                    time.sleep(20)
        finally:
            assert not list(tmp_path.iterdir())  # before anything else is given back
            other.join()
    assert time.monotonic() - started < 10 and later == []


def test_what_was_begun_is_waited_for_also_after_an_error(tmp_path):
    begun, order = threading.Event(), []
    with pytest.raises(ValueError), Behind(True) as behind:
        behind.do(slowly, tmp_path / "mask", begun, 0.2)
        behind.do(order.append, 1)
        raise ValueError
    assert (tmp_path / "mask").read_bytes() == b"half" and order == [1]
