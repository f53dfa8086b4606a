"""Which limits can't be, and which can't be together."""

from dataclasses import fields

import pytest

from mta.core.limits import (
    Limits,
    MdaLimits,
    MemoryLimits,
    MtaLimits,
    QueueLimits,
    SchedulerLimits,
    SmtpLimits,
)

PARTS = {
    "smtp": SmtpLimits,
    "mta": MtaLimits,
    "mda": MdaLimits,
    "scheduler": SchedulerLimits,
    "queue": QueueLimits,
    "memory": MemoryLimits,
}
EVERY = [
    (cls, field.name)
    for cls in PARTS.values()
    for field in fields(cls)
    if not isinstance(getattr(cls(), field.name), str)  # a choice, not an amount
]
GAPS = {name for _, name in EVERY if "conn_delay" in name}


def keys(limits):
    """Return what the limits complain of."""
    return [key for key, _, _ in limits.problems()]


def test_the_defaults_are_in_order():
    """A server without a configuration starts."""
    assert [] == [problem for cls in (Limits, *PARTS.values()) for problem in cls().problems()]


def test_limits_have_all_parts():
    """No part is forgotten by the tests below."""
    assert {field.name for field in fields(Limits)} == set(PARTS)


@pytest.mark.parametrize(("cls", "name"), EVERY)
@pytest.mark.parametrize("nonsense", [-1, -0.5, float("nan")])
def test_no_limit_is_negative(cls, name, nonsense):
    """Neither a negative number nor one that is none."""
    assert name in keys(cls(**{name: nonsense}))


@pytest.mark.parametrize(("cls", "name"), EVERY)
def test_a_cap_of_nothing_is_no_cap(cls, name):
    """0 is refused where it would stop mail, and taken where it means: no gap, no reserve, no cache."""
    may_be_zero = name in GAPS | {
        "session_keepalive_s",
        "session_transaction_delay_s",
        "task_low_water",
        "max_deferred",
        "min_free_bytes",
        "min_free_ratio",
        "body_file_bytes",
        "cache_envelopes",
        "cache_bytes",
        "min_data_rate",
        "stress_off_at",
        "limit_bytes",
        "hysteresis",
        "sample_s",
    }
    assert may_be_zero == (name not in keys(cls(**{name: 0})))


@pytest.mark.parametrize(
    ("limits", "line"),
    [
        (SmtpLimits(max_line=511), ("max_line", 511, "must be at least 512 (RFC 5321 4.5.3.1.4)")),
        (
            SmtpLimits(max_text_line=999),
            ("max_text_line", 999, "must be at least 1000 (RFC 5321 4.5.3.1.6)"),
        ),
        (
            MemoryLimits(low_ratio=0.8),
            ("soft_ratio", 0.75, "must not be below low_ratio (0.8)"),
        ),
        (
            MemoryLimits(soft_ratio=0.95),
            ("hard_ratio", 0.9, "must not be below soft_ratio (0.95)"),
        ),
        (
            MemoryLimits(hysteresis=0.6),
            ("hysteresis", 0.6, "must be below low_ratio (0.6)"),
        ),
        (
            SmtpLimits(descriptor_share=1.5),
            ("descriptor_share", 1.5, "must not be above 1"),
        ),
        (
            SmtpLimits(stress_at=1.1),
            ("stress_at", 1.1, 'must not be above 1; stress = "no" switches it off'),
        ),
        (
            SmtpLimits(stress_at=0.5, stress_off_at=0.5),
            ("stress_off_at", 0.5, "must be below stress_at (0.5)"),
        ),
        (
            SmtpLimits(max_message_size=9, max_bytes_in_memory=8),
            ("max_bytes_in_memory", 8, "must not be below max_message_size (9)"),
        ),
        (
            MtaLimits(task_low_water=50),
            ("task_low_water", 50, "must be below task_high_water (50)"),
        ),
        (
            MtaLimits(route_delay_max_s=14.0),
            ("route_delay_max_s", 14.0, "must not be below route_delay_base_s (15)"),
        ),
        (
            MdaLimits(task_low_water=50),
            ("task_low_water", 50, "must be below task_high_water (50)"),
        ),
        (
            Limits(mda=MdaLimits(policy="raised")),
            (
                "mda.raised_max_pending",
                200_000,
                "must not be above limits.scheduler.max_inflight (5000)",
            ),
        ),
        (QueueLimits(min_free_ratio=1.0), ("min_free_ratio", 1.0, "must be below 1")),
        (
            Limits(queue=QueueLimits(max_bytes=1000)),
            ("queue.max_bytes", 1000, "must not be below limits.smtp.max_message_size (36700160)"),
        ),
    ],
)
def test_limits_that_contradict_each_other_are_told(limits, line):
    """The line says which value, and what it is measured by."""
    assert [line] == list(limits.problems())


@pytest.mark.parametrize(
    "limits",
    [
        SmtpLimits(max_line=512, max_text_line=1000),
        SmtpLimits(max_message_size=9, max_bytes_in_memory=9),
        MtaLimits(task_low_water=49),
        MtaLimits(route_delay_max_s=15.0),
        MdaLimits(task_low_water=49),
        Limits(mda=MdaLimits(policy="tempfail")),
        QueueLimits(min_free_ratio=0.99),
    ],
)
def test_limits_at_the_edge_are_in_order(limits):
    """The last value that works is taken."""
    assert [] == keys(limits)
