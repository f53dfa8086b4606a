"""Local users of a scenario: who gets what, when, and how its delivery ends, drawn before anything is sent."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mta.core.settings import ConfigError
from sim.groups import LocalGroup
from sim.scenario import Destination, Load, Scenario, Sizes, load, parse, to_toml
from sim.workload import Schedule, draw, message_bytes, service_law

OUTSIDE = Destination("outside", "outside.test")


def scenario(*groups: LocalGroup, messages: int = 0, scale: float = 1.0) -> Scenario:
    of = Load(messages=messages, scale=scale, sizes=Sizes("fixed"))
    return Scenario("s", seed=7, load=of, destinations=[OUTSIDE], local=list(groups))


def of_group(schedule: Schedule, group: int) -> np.ndarray:
    return np.flatnonzero(schedule.group == group)


def test_the_burst_is_what_it_says():
    """One user gets 100,000 messages, of which most come before its deliveries can; fifty get ten each."""
    burst = load("local-burst")
    schedule = draw(burst)
    assert len(schedule) == burst.messages == 100_500
    flood, others = of_group(schedule, 0), of_group(schedule, 1)
    assert {schedule.recipients(int(i))[0].address for i in flood[:1000]} == {"flood0@local.test"}
    addresses = [schedule.recipients(int(i))[0].address for i in others]
    assert sorted(set(addresses)) == sorted(f"others{n}@local.test" for n in range(50))
    assert all(addresses.count(each) == 10 for each in addresses)
    assert schedule.due_s[flood].max() <= 200.0
    # While the burst drains, too: seven deliveries of 0.05 s at a time.
    assert schedule.due_s[others].max() > 600.0
    assert 100_000 / (7 / 0.05) > 700.0
    assert (np.diff(schedule.due_s) >= 0).all()


def test_another_scale_has_the_same_rates():
    """A twentieth: the flood comes as fast for a twentieth of the time, the others get what they got."""
    whole, part = draw(load("local-burst")), draw(load("local-burst", ["load.scale=0.05"]))
    assert len(of_group(part, 0)) == 5000
    assert len(of_group(part, 1)) == 500
    assert part.due_s[of_group(part, 0)].max() == pytest.approx(10.0, rel=0.01)
    per_second = [
        len(of_group(each, 0)) / each.due_s[of_group(each, 0)].max() for each in (whole, part)
    ]
    assert per_second[0] == pytest.approx(per_second[1], rel=0.01)
    assert load("backlog", ["load.scale=0.5"]).messages == 2200


def test_mail_to_the_outside_does_not_notice():
    """Local groups draw from streams of their own: what goes to the outside is the same message for message."""
    alone = draw(scenario(messages=300))
    mixed = draw(scenario(LocalGroup("a", users=3, messages=40, to_s=2.0), messages=300))
    outside = of_group(mixed, -1)
    assert len(mixed) == 420
    assert mixed.due_s[outside].tolist() == alone.due_s.tolist()
    assert [mixed.recipients(int(i)) for i in outside] == [alone.recipients(i) for i in range(300)]
    assert mixed.size[outside].tolist() == alone.size.tolist()
    assert (alone.group == -1).all()
    # And its place among the others is no gap: every message can be made.
    assert {len(message_bytes(mixed, i, "run")) for i in range(420)} == {4096}


def test_groups_do_not_notice_each_other():
    """What one group draws is the same beside another."""
    a, b = LocalGroup("a", messages=50, tempfail=0.5), LocalGroup("b", messages=70, to_s=3.0)
    alone, both = draw(scenario(a)), draw(scenario(b, a))
    mine = of_group(both, 1)
    assert both.due_s[mine].tolist() == alone.due_s.tolist()
    assert both.failures[mine].tolist() == alone.failures.tolist()
    assert both.recipients(int(mine[0]))[0].destination == -2


def test_a_window_may_have_no_length():
    """All at once: the burst at its sharpest. Constant arrivals are evenly spaced."""
    at_once = draw(scenario(LocalGroup("a", messages=5, from_s=3.0, to_s=3.0)))
    assert set(at_once.due_s.tolist()) == {3.0}
    even = draw(scenario(LocalGroup("a", messages=4, from_s=1.0, to_s=3.0, arrivals="constant")))
    assert even.due_s.tolist() == [1.0, 1.5, 2.0, 2.5]


def test_outcomes_have_their_shares():
    """A third of the attempts fail for now, a tenth of the messages for good; both are drawn per message."""
    group = LocalGroup("a", messages=30_000, tempfail=1 / 3, permfail=0.1)
    schedule = draw(scenario(group))
    attempts = schedule.failures.sum() + len(schedule)
    assert schedule.failures.sum() / attempts == pytest.approx(1 / 3, abs=0.01)
    assert schedule.fatal.mean() == pytest.approx(0.1, abs=0.01)
    never = draw(scenario(LocalGroup("a", messages=1000)))
    assert not never.failures.any()
    assert not never.fatal.any()


@pytest.mark.parametrize("law", ["fixed", "lognormal", "exponential"])
def test_seconds_are_a_median(law):
    """Whatever the law is, half of the deliveries take longer."""
    group = LocalGroup("a", messages=20_000, seconds=0.2, law=law)
    drawn = draw(scenario(group)).service_s
    assert float(np.median(drawn)) == pytest.approx(0.2, rel=0.03)
    assert drawn.mean() == pytest.approx(service_law(group).mean, rel=0.03)
    assert not draw(scenario(LocalGroup("a", messages=9, law=law))).service_s.any()


@pytest.mark.parametrize(
    ("key", "value", "error"),
    [
        ("name", "a1", 'local.0.name = "a1": must be lower-case letters'),
        ("users", 0, "local.0.users = 0: must be from 1 to 1000000"),
        ("messages", 0, "local.0.messages = 0: must be from 1"),
        ("tempfail", 1.0, "local.0.tempfail = 1.0: must be from 0 to 0.99"),
        ("to_s", -1, "local.0.to_s = -1.0: must be from 0"),
        ("from_s", 61, "local.0.to_s = 60.0: must not be before from_s, which is 61"),
        ("seconds", 1e6, "local.0.seconds = 1000000.0: must be from 0 to 86400.0"),
        ("domain", "example.com", 'local.0.domain = "example.com": must be a name under .test'),
        (
            "domain",
            "d1.outside.test",
            'local.0.domain = "d1.outside.test": belongs to a destination',
        ),
        ("delivery", "uucp", 'local.0.delivery = "uucp": must be one of "command"'),
        ("messages", 100_000_000, "load.scale = 2.0: makes more than 100000000 messages"),
    ],
)
def test_a_wrong_group_is_one_line(key: str, value: object, error: str):
    """File or option, key, value and what it has to be."""
    said = value if not isinstance(value, str) else f"'{value}'"
    with pytest.raises(ConfigError) as caught:
        parse(
            b"name='s'\n[load]\nmessages=0\nscale=2.0\n[[destinations]]\nname='o'\ndomain='outside.test'\n[[local]]\n"
            + f"{key}={said}\n".encode()
            + (b"" if key == "name" else b"name='a'\n"),
            source="own.toml",
        )
    assert str(caught.value).startswith(f"own.toml: {error}")


def test_names_of_groups_differ():
    """And a hundred groups are enough."""
    with pytest.raises(ConfigError, match="is the name of another group"):
        load("local-burst", ["local.1.name=flood"])
    many = scenario(*[LocalGroup(f"a{'b' * (n % 14)}c") for n in range(101)])
    assert any(key == "local" for key, _, _ in many.problems())
    with pytest.raises(ConfigError, match=r"load\.messages = 0: must be from 1"):
        load("backlog", ["load.messages=0"])


@settings(max_examples=60, deadline=None)
@given(
    groups=st.lists(
        st.builds(
            LocalGroup,
            name=st.sampled_from(["a", "b-b", "c"]),
            users=st.integers(1, 9),
            messages=st.integers(1, 30),
            scales=st.booleans(),
            to_s=st.floats(0, 100),
            arrivals=st.sampled_from(["poisson", "constant"]),
        ),
        max_size=3,
        unique_by=lambda group: group.name,
    ),
    messages=st.integers(0, 40),
    scale=st.sampled_from([0.1, 1.0, 2.5]),
)
def test_every_message_is_there_once(groups: list[LocalGroup], messages: int, scale: float):
    """Whatever the groups are: as many messages as were asked for, in order, and the file says the same."""
    it = scenario(*groups, messages=messages, scale=scale)
    if not it.messages:
        return
    schedule = draw(it)
    assert len(schedule) == it.messages
    assert (np.diff(schedule.due_s) >= 0).all()
    for number, group in enumerate(groups):
        own = [schedule.recipients(int(i)) for i in of_group(schedule, number)]
        assert len(own) == group.count(scale)
        names = [each.local_part for (each,) in own]
        assert {names.count(name) for name in group.user_names()} == {group.per_user(scale)}
    assert len(of_group(schedule, -1)) == it.load.count
    assert parse(to_toml(it).encode(), source="again") == it
