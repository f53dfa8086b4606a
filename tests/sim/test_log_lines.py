"""Instants of mail logs, in all their spellings."""

from datetime import UTC, datetime

import pytest

from sim.logs.lines import Clock, any_line, exim_line, syslog_line

AT = datetime(2026, 11, 2, 21, 55, 50, tzinfo=UTC).timestamp()


@pytest.mark.parametrize(
    ("line", "seconds"),
    [
        ("Nov  2 21:55:50 mx1 postfix/smtp[77]: text", 0),
        ("Nov  2 21:55:50 mx1 postfix/smtp: text", 0),
        ("Nov  2 21:55:50 postfix/smtp[77]: text", 0),
        ("<22>Nov  2 21:55:50 mx1 postfix/smtp[77]: text", 0),
        ("Nov  2 21:55:50.250 mx1 postfix/smtp[77]: text", 0.25),
        ("2026-11-02T21:55:50+00:00 mx1 postfix/smtp[77]: text", 0),
        ("2026-11-02T22:55:50.125+01:00 mx1 postfix/smtp[77]: text", 0.125),
        ("2026-11-02T21:55:50.000001Z mx1 postfix/smtp: text", 0.000001),
        ("2026-11-02T16:25:50-0530 mx1 postfix/smtp[77]: text", 0),
        ("2026-11-02 21:55:50,5 mx1 postfix/smtp[77]: text", 0.5),
        ("2026-11-02T21:55:50 postfix/smtp[77]: text", 0),
        ("<22>1 2026-11-02T21:55:50.5Z mx1 postfix/smtp 77 - - text", 0.5),
        ('1 2026-11-02T21:55:50Z mx1 postfix/smtp 77 id [a@1 b="c"][d@1 e="f"] \ufefftext', 0),
        (r'<22>1 2026-11-02T21:55:50Z mx1 postfix/smtp 77 id [a@1 b="c\]d"] text', 0),
        ("Nov  2 21:55:50 2001:db8::1 postfix/smtp[77]: text", 0),
        ("2026-11-02T21:55:50Z ::1 postfix/smtp[77]: text", 0),
    ],
)  # fmt: skip
def test_every_spelling_is_the_same_instant(line: str, seconds: float):
    """With and without host, process, zone, fraction and priority."""
    found = syslog_line(line.encode(), Clock(2026))
    assert found is not None
    assert (found.program, found.text) == (b"postfix/smtp", b"text")
    assert found.at == pytest.approx(AT + seconds, abs=1e-6)


@pytest.mark.parametrize(
    "line",
    [
        "", "x", "Nov  2 21:55:50", "Nov 32 21:55:50 h p: t", "Foo  2 21:55:50 h p: t", "Nov  2 24:55:50 h p: t",
        "2026-13-02T21:55:50Z h p: t", "2026-02-30T21:55:50Z h p: t", "2026-11-02T21:61:50Z h p: t",
        "Nov  2 21:55:50 no tag here", "\0\0\0\0",
    ],
)  # fmt: skip
def test_what_is_no_line_is_none(line: str):
    """Instants that do not exist, too."""
    assert any_line(line.encode(), Clock(2026)) is None


def test_a_log_may_go_on_over_new_year():
    """And a line of the old year may come late."""
    clock = Clock(2026)
    stamps = ["Dec 31 23:59:59", "Jan  1 00:00:01", "Dec 31 23:59:58", "Jan  1 00:00:02"]
    found = [any_line(f"{stamp} mx1 p: t".encode(), clock) for stamp in stamps]
    new_year = datetime(2027, 1, 1, tzinfo=UTC).timestamp()
    assert [-1, 1, -2, 2] == [line.at - new_year for line in found if line is not None]


def test_months_in_no_order_leave_no_year_behind():
    """Lines that go back through more years than there are, or on, are lines all the same."""
    for months in (("Jan", "Dec", "Jun"), ("Dec", "Jan", "Jun")):
        clock = Clock(2026)
        found = [
            any_line(f"{month}  1 00:00:00 mx1 p: t".encode(), clock)
            for _ in range(9000)
            for month in months
        ]
        assert None not in found
        assert clock.year in (2, 9998)


def test_the_host_is_known():
    """A name or an address; empty where the line has none."""
    for line, host in (
        ("Nov  2 21:55:50 mx1 postfix/smtp[77]: text", b"mx1"),
        ("Nov  2 21:55:50 2001:db8::1 postfix/smtp[77]: text", b"2001:db8::1"),
        ("<22>1 2026-11-02T21:55:50.5Z mx2 postfix/smtp 77 - - text", b"mx2"),
        ("2026-11-02T21:55:50 postfix/smtp[77]: text", b""),
    ):
        found = any_line(line.encode(), Clock(2026))
        assert found is not None
        assert found.host == host


def test_the_29th_of_february_of_a_year_that_was_guessed_wrong():
    """It is the day before the 1st of March, or the same."""
    for year in (2024, 2025):
        found = any_line(b"Feb 29 12:00:00 mx1 p: t", Clock(year))
        assert found is not None
        assert (
            found.at
            == datetime(2024 if year == 2024 else 2025, 2, 28, 12, tzinfo=UTC).timestamp() + 86_400
        )


@pytest.mark.parametrize(
    ("stamp", "seconds"),
    [
        ("2026-11-02 21:55:50", 0),
        ("2026-11-02 21:55:50.125", 0.125),
        ("2026-11-02 22:55:50 +0100", 0),
        ("2026-11-02 22:55:50.5 +0100 [123]", 0.5),
        ("2026-11-02 21:55:50 [123]", 0),
    ],
)
def test_exims_own_stamp(stamp: str, seconds: float):
    """With its options +millisec, +pid and log_timezone."""
    found = exim_line(f"{stamp} 1xVFZs-00000N-1G Completed".encode(), Clock(2000))
    assert found is not None
    assert (found.at, found.text) == (AT + seconds, b"1xVFZs-00000N-1G Completed")
