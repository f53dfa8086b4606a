"""Which hosts are tried for a domain, in which order."""

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mta.core.reply import Outcome
from mta.core.routing import (
    LOOPS_BACK,
    MxHost,
    Resolution,
    ResolutionStatus,
    Target,
    failure_of,
    order_targets,
    own_by_port,
)


def resolved(*hosts):
    """Return an answer with these hosts."""
    return Resolution(ResolutionStatus.OK, tuple(MxHost(*host) for host in hosts))


def ordered(
    resolution, *, names=(), addresses=(), max_mx=20, max_addresses=20, seed=1
) -> tuple[Target, ...]:
    """Return the targets."""
    return order_targets(
        resolution,
        own_names=names,
        own_addresses=addresses,
        max_mx=max_mx,
        max_addresses=max_addresses,
        rng=Random(seed),
    )


THREE = resolved(
    (30, "c.test", ("127.0.0.3",)),
    (10, "a.test", ("127.0.0.1",)),
    (20, "b.test", ("127.0.0.2", "::2")),
)


def test_lower_preference_is_tried_first():
    """RFC 5321 5.1; the addresses of a host stay in the order of the name server."""
    assert ordered(THREE) == (
        Target(10, "a.test", "127.0.0.1"),
        Target(20, "b.test", "127.0.0.2"),
        Target(20, "b.test", "::2"),
        Target(30, "c.test", "127.0.0.3"),
    )


def test_equal_preference_shares_the_load():
    """RFC 5321 5.1: hosts of one preference are tried in random order, each as often first."""
    answer = resolved(*((10, f"{n}.test", (f"127.0.0.{n}",)) for n in range(1, 5)))
    firsts = [ordered(answer, seed=seed)[0].host for seed in range(400)]
    assert all(60 < firsts.count(f"{n}.test") < 140 for n in range(1, 5))


def test_the_order_of_the_name_server_does_not_matter():
    """Round-robin DNS does not change a run with the same seed."""
    hosts = [(10, f"{n}.test", (f"127.0.0.{n}",)) for n in range(1, 6)]
    assert ordered(resolved(*hosts)) == ordered(resolved(*reversed(hosts)))


@pytest.mark.parametrize(
    "own",
    [
        {"names": ["b.test"]},
        {"names": ["B.Test."]},
        {"addresses": ["127.0.0.2"]},
        {"addresses": ["::ffff:127.0.0.2"]},
        {"addresses": ["0:0:0:0:0:0:0:2"]},
        {"addresses": ["192.0.2.1", "127.0.0.2/31"]},
        {"addresses": ["::2/128"]},
    ],
)
def test_only_better_hosts_than_ourselves_remain(own):
    """RFC 5321 5.1: our own record and all at or beyond its preference are discarded."""
    assert ordered(THREE, **own) == (Target(10, "a.test", "127.0.0.1"),)


def test_our_equals_are_discarded_too():
    """A host of the same preference would send it back to us."""
    answer = resolved((10, "a.test", ("127.0.0.1",)), (10, "b.test", ("127.0.0.2",)))
    assert ordered(answer, names=["b.test"]) == ()


def test_the_best_host_is_ourselves():
    """Nothing is left: with addresses that can only mean that mail would loop."""
    assert failure_of(THREE) is None
    assert ordered(THREE, addresses=["127.0.0.1"]) == ()
    assert LOOPS_BACK == (Outcome.PERMFAIL, "554 5.4.6 Mail loops back to myself")


def test_ourselves_as_the_last_of_many_are_found():
    """The search for ourselves is not cut short by the caps."""
    answer = resolved(
        *((10, f"{n}.test", (f"127.0.0.{n}",)) for n in range(1, 9)),
        (10, "own.test", ("127.0.0.99",)),
    )
    assert ordered(answer, names=["own.test"], max_mx=1, max_addresses=1) == ()


def test_an_address_counts_once_where_it_is_best():
    """Two names, or two spellings, for one address are one target."""
    answer = resolved((20, "b.test", ("0:0::1", "127.0.0.1")), (10, "a.test", ("::1", "::1")))
    assert ordered(answer) == (Target(10, "a.test", "::1"), Target(20, "b.test", "127.0.0.1"))


def test_what_is_no_address_is_compared_as_it_stands():
    """A path of a Unix socket, say, in a test."""
    assert ordered(resolved((10, "a.test", ("Sock", "sock")))) == (Target(10, "a.test", "Sock"),)


def test_hosts_without_addresses_do_not_count():
    """Neither as exchangers for the cap nor as ourselves."""
    answer = resolved((5, "own.test", ()), (10, "a.test", ("127.0.0.1",)))
    assert ordered(answer, names=["own.test"], max_mx=1) == (Target(10, "a.test", "127.0.0.1"),)


def test_caps_cut_the_worst():
    """max_mx counts exchangers, max_addresses addresses."""
    assert [target.host for target in ordered(THREE, max_mx=2)] == ["a.test", "b.test", "b.test"]
    assert [target.address for target in ordered(THREE, max_addresses=2)] == [
        "127.0.0.1",
        "127.0.0.2",
    ]


@pytest.mark.parametrize(
    ("status", "outcome", "line"),
    [
        (ResolutionStatus.RETRY, Outcome.TEMPFAIL, "451 4.4.3 Temporary failure in MX lookup"),
        (ResolutionStatus.NO_DOMAIN, Outcome.PERMFAIL, "550 5.1.2 Domain does not exist"),
        (ResolutionStatus.NO_MX, Outcome.PERMFAIL, "550 5.4.4 No MX found for domain"),
        (ResolutionStatus.NULL_MX, Outcome.PERMFAIL, "556 5.1.10 Domain does not accept mail"),
    ],
)
def test_a_failed_look_up_has_its_reply(status, outcome, line):
    """Code and enhanced code agree with the outcome."""
    assert failure_of(Resolution(status)) == (outcome, line)


def test_every_status_is_decided():
    """A status that is added later can't be forgotten."""
    for status in ResolutionStatus:
        failure = failure_of(Resolution(status))
        assert failure is not None
        outcome, line = failure
        assert line[0] == line[4] == ("5" if outcome is Outcome.PERMFAIL else "4")


def test_exchangers_without_addresses_are_waited_for():
    """Zones that are being edited look like that."""
    failure = failure_of(resolved((10, "a.test", ()), (20, "b.test", ())))
    assert failure == (Outcome.TEMPFAIL, "451 4.4.4 No address found for any mail exchanger")


hosts = st.builds(
    MxHost,
    st.integers(0, 4),
    st.sampled_from("abcdef").map(lambda letter: f"{letter}.test"),
    st.lists(st.integers(1, 12).map(lambda n: f"127.0.0.{n}"), max_size=4).map(tuple),
)


@given(
    hosts=st.lists(hosts, max_size=12),
    own_names=st.sets(st.sampled_from(["a.test", "b.test"])),
    own_addresses=st.sets(st.sampled_from(["127.0.0.1", "127.0.0.2"])),
    max_mx=st.integers(1, 8),
    max_addresses=st.integers(1, 8),
    seed=st.integers(0, 1000),
)
def test_what_always_holds_of_an_order(
    hosts, own_names, own_addresses, max_mx, max_addresses, seed
):
    """Sorted, within the caps, each address once and from the answer, never ourselves nor our equals."""
    resolution = Resolution(ResolutionStatus.OK, tuple(hosts))
    targets = ordered(
        resolution,
        names=own_names,
        addresses=own_addresses,
        max_mx=max_mx,
        max_addresses=max_addresses,
        seed=seed,
    )
    preferences = [target.preference for target in targets]
    assert preferences == sorted(preferences)
    assert len(targets) <= max_addresses
    assert len({target.address for target in targets}) == len(targets)
    own = [
        host.preference
        for host in hosts
        if host.addresses and (host.name in own_names or own_addresses & set(host.addresses))
    ]
    for target in targets:
        assert any(
            (target.preference, target.host) == (host.preference, host.name)
            and target.address in host.addresses
            for host in hosts
        )
        assert target.preference < min(own, default=5)
    reachable = any(host.addresses and host.preference < min(own, default=5) for host in hosts)
    assert bool(targets) == reachable


def test_who_listens_everywhere_has_all_addresses_of_the_host_at_that_port():
    """Which they are is asked only then."""
    asked = []

    def interfaces() -> tuple[str, ...]:
        asked.append(1)
        return ("192.0.2.1", "2001:db8::1")

    assert own_by_port([("127.0.0.7", 25), ("::1", 25), ("127.0.0.8", 2525)], interfaces) == {
        25: ("127.0.0.7", "::1"), 2525: ("127.0.0.8",),
    }  # fmt: skip
    assert not asked
    everywhere = ("127.0.0.0/8", "::1", "192.0.2.1", "2001:db8::1")
    for address in ("0.0.0.0", "::", ""):  # read, not bound
        assert own_by_port([(address, 25)], interfaces) == {25: everywhere}
