"""What an error means, which names are one step down, and who decides whether a late delivery counts."""

import asyncio
import errno
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mta.core.bounce import status_of
from mta.core.reply import Outcome
from mta.delivery import base
from mta.delivery.base import DeliveryLimits, DeliveryResult, RefusedError, report, result_of
from mta.delivery.files import AbandonedError, Attempt, check_name, on_thread, steps
from mta.delivery.pipe import SYSEXITS
from tests.mta.delivery.jobs import job


@pytest.mark.parametrize("number", sorted(errno.errorcode))
def test_every_local_fault_is_temporary_and_discreet(number):
    """Whatever the system says: class 4, and neither its number, its words nor a path."""
    error = OSError(number, os.strerror(number), "/home/ann/Maildir")
    result = result_of(error)
    assert Outcome.TEMPFAIL is result.outcome
    assert result.status.startswith("4.")
    for secret in (os.strerror(number), errno.errorcode[number], "/", str(number)):
        assert secret not in result.status[5:]


def test_what_errors_mean():
    """A full disk or quota is the mailbox's, a shortage ours; a mistake of ours is temporary, too."""
    for number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        assert base.FULL == result_of(OSError(number, ""))
    for number in (errno.EMFILE, errno.ENFILE, errno.ENOMEM):
        assert base.SHORTAGE == result_of(OSError(number, ""))
    for number in (errno.EIO, errno.EROFS):
        assert base.STORAGE == result_of(OSError(number, ""))
    assert base.SHORTAGE == result_of(MemoryError())
    assert base.TIMED_OUT == result_of(TimeoutError())
    assert base.OUR_FAULT == result_of(AssertionError()) == result_of(KeyError("x"))
    assert base.LOCKED == result_of(RefusedError(base.LOCKED, "x"))


def test_a_status_begins_with_its_code():
    """What a bounce takes from a status is the code that stands there, and its class fits the outcome."""
    results = [value for value in vars(base).values() if isinstance(value, DeliveryResult)]
    assert len(results) > 10
    for outcome, status in results:
        if outcome is Outcome.OK:
            continue
        assert status.isprintable()
        assert status_of(status)[2:] == status.split()[0][2:]
        assert ("4" if outcome is Outcome.TEMPFAIL else "5") == status[0]
    assert set(range(64, 79)) == set(SYSEXITS)


def test_the_operator_is_told_what_the_bounce_is_not(tmp_path):
    """The log has the error with its notes, and for whom it was."""
    lines: list[str] = []
    error = OSError(errno.EIO, "Input/output error", "/x")
    error.add_note("and more")
    report(lines.append, job(tmp_path), error)
    assert lines == [
        "warn: mda: evpid=0000000100000001 user=ann: OSError(5, 'Input/output error'); and more"
    ]


def test_limits_that_make_no_sense():
    """No limit is 0, negative or NaN; the defaults make sense."""
    assert [] == list(DeliveryLimits().problems())
    for field in fields(DeliveryLimits):
        for value in (0, -1, float("nan")):
            problems = list(DeliveryLimits(**{field.name: value}).problems())
            assert field.name in [key for key, _, _ in problems]
    problems = list(DeliveryLimits(output_max=10, output_flood=9).problems())
    assert [("output_flood", 9, "must not be below output_max (10)")] == problems


@given(name=st.text(alphabet=st.sampled_from("./\0ab-é "), max_size=5))
def test_a_name_is_one_step_down(name):
    """What passes is the name of one thing in a directory, and the system agrees."""
    joined = os.path.normpath(os.path.join("/d", name))  # noqa: PTH118
    one_down = "\0" not in name and joined == f"/d/{name}" and os.path.dirname(joined) == "/d"  # noqa: PTH120
    try:
        check_name(name)
    except RefusedError:
        assert not one_down
    else:
        assert one_down


def test_a_name_that_is_too_long():
    """255 bytes are a name, 256 are not; bytes, not letters."""
    check_name("x" * 255)
    for name in ("x" * 256, "é" * 128):
        with pytest.raises(RefusedError):
            check_name(name)


def test_the_steps_of_a_path():
    """What the operator wrote, one directory at a time."""
    assert ("mail", "in") == steps("./mail//in/")


def test_abandoned_or_committed_but_not_both():
    """A hundred times a thread commits while another gives up: exactly one of them wins."""
    for _ in range(100):
        attempt, start = Attempt(), threading.Barrier(2)
        committed: list[bool] = []

        def work(attempt=attempt, start=start, committed=committed) -> None:
            start.wait()
            try:
                attempt.commit()
            except AbandonedError:
                committed.append(False)
            else:
                committed.append(True)

        thread = threading.Thread(target=work)
        thread.start()
        start.wait()
        in_time = attempt.abandon()
        thread.join()
        assert [not in_time] == committed
        with pytest.raises(AbandonedError):
            attempt.check()


async def test_what_a_thread_raises_comes_out():
    """Its errors are the delivery's, and TimeoutError is not ours alone."""

    def work(_: Attempt) -> None:
        raise PermissionError

    with ThreadPoolExecutor(1) as pool, pytest.raises(PermissionError):
        await on_thread(pool, work, timeout_s=5.0, grace_s=1.0)


async def test_a_cancelled_delivery_never_starts():
    """One that still waits for a thread is forgotten."""
    gate, ran = threading.Event(), []
    with ThreadPoolExecutor(1) as pool:
        pool.submit(gate.wait, 30)
        running = on_thread(pool, ran.append, timeout_s=5.0, grace_s=1.0)
        task = asyncio.get_running_loop().create_task(running)
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        gate.set()
    assert ran == []
