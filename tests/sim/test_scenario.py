"""A scenario is read, checked and written back; what is wrong with it is one line."""

import ipaddress
import json
import tomllib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mta.config import Config
from mta.core.settings import ConfigError, build
from sim.distributions import Zipf
from sim.listing import scenario_lines
from sim.remote import build_hosts
from sim.scenario import (
    Destination,
    Load,
    Recipients,
    Scenario,
    Sizes,
    addresses,
    available,
    destination_of,
    domains_of,
    load,
    mx_records,
    parse,
    sender_domain,
    to_dict,
    to_toml,
)

SMALL = """
name = "small"
[[destinations]]
name = "one"
domain = "one.test"
"""


def small(*overrides: str) -> Scenario:
    return parse(SMALL.encode(), source="small.toml", overrides=overrides)


def error_of(*overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        small(*overrides)
    text = str(caught.value)
    assert "\n" not in text
    return text


@pytest.mark.parametrize("name", available())
def test_what_ships_is_whole(name):
    """Every scenario that ships can be read, says what it is for, and fits the server and the world."""
    scenario = load(name)
    assert scenario.name == name
    assert all((scenario.title, scenario.question, scenario.healthy))
    build(Config, scenario.server, source=f"{name}.toml server")
    assert len(build_hosts(scenario)) == len(addresses(scenario))


def test_backlog_asks_what_it_says():
    """Half of the mail goes to a destination that is away while the load goes on, and comes back."""
    scenario = load("backlog")
    steady, flaky = scenario.destinations
    assert steady.share == flaky.share
    (outage,) = [each for each in flaky.behaviours if each["kind"] == "outage"]
    ends_s = scenario.load.messages / scenario.load.rate
    assert 0 < outage["from_s"] < outage["to_s"] < ends_s
    assert not [each for each in steady.behaviours if each["kind"] == "outage"]
    assert Zipf(scenario.load.recipients.s, scenario.load.recipients.max).mean == pytest.approx(
        4, rel=0.1
    )


def test_messages_and_rate_are_parameters():
    """The size of the experiment is set from outside."""
    scenario = load("backlog", ["load.messages=50", "load.rate=10", "server.envelope=packed"])
    assert (scenario.load.messages, scenario.load.rate) == (50, 10.0)
    assert scenario.server["envelope"] == "packed"


def test_a_path_is_read(tmp_path):
    """A file of the user's own works like a name, also a list item can be set."""
    path = tmp_path / "own.toml"
    path.write_text(SMALL)
    assert load(path) == load(str(path)) == small()
    assert load(path, ["destinations.0.hosts=3"]).destinations[0].hosts == 3


def test_a_missing_scenario_names_those_there_are():
    """One line: what was asked for, and what could have been."""
    with pytest.raises(
        ConfigError, match=r'^scenario: "nope": there is no such scenario; there are .*backlog'
    ):
        load("nope")


def test_an_unreadable_file_is_one_line(tmp_path):
    """A missing file, a directory and bytes that are no TOML name the file."""
    for path in (tmp_path / "none.toml", tmp_path):
        with pytest.raises(ConfigError, match=f"^{path}: can't be read: "):
            load(path)
    for content in (b"name =", b"\xff\xfe", b"a = 1\na = 2"):
        with pytest.raises(ConfigError, match=r"^x.toml: is not TOML: [^\n]+$"):
            parse(content, source="x.toml")


@pytest.mark.parametrize(
    ("override", "error"),
    [
        ("load.mesages=3", "--set: load.mesages = 3: unknown key (did you mean messages?)"),
        ("load.messages=many", '--set: load.messages = "many": must be a whole number'),
        ("load.messages=0", "--set: load.messages = 0: must be from 1 to 100000000"),
        ("load.rate=0", "--set: load.rate = 0.0: must be from 0.001 to 1000000"),
        ("load.rate=nan", "--set: load.rate"),
        (
            "load.arrivals=bursty",
            '--set: load.arrivals = "bursty": must be one of "poisson", "constant"',
        ),
        ("load.sizes.bytes=100", "--set: load.sizes.bytes = 100: must be from 512 to"),
        ("load.sizes.max=512", "--set: load.sizes.max = 512: must be above min, which is 512"),
        (
            "load.recipients.mailboxes=99",
            "--set: load.recipients.mailboxes = 99: must be 100 or more",
        ),
        ("load.tls=1.5", "--set: load.tls = 1.5: must be from 0 to 1"),
        ("load.password=''", "--set: load.password = "),
        ("load.sources=251", "--set: load.sources = 251: must be from 1 to 250"),
        ("load.shape.kind=saw", '--set: load.shape.kind = "saw": must be one of "steady", "ramp"'),
        ("load.shape={kind='spike',at=0.9}", "--set: load.shape.width = 0.2: ends after the run"),
        ("load.beside=[{kind='rude'}]", '--set: load.beside.0.kind = "rude": must be one of'),
        (
            "load.beside=[{kind='noop'},{kind='noop'}]",
            '--set: load.beside.1.kind = "noop": has a table already',
        ),
        ("load.sender_domain=gmail.com", "--set: load.sender_domain = "),
        ("destinations.0.domain=example.com", "--set: destinations.0.domain = "),
        ("destinations.0.domain=a..test", "--set: destinations.0.domain = "),
        ("destinations.0.hosts=255", "--set: destinations.0.hosts = 255: must be from 1 to 254"),
        ("destinations.0.share=0", "--set: destinations.0.share = 0.0: must be above 0"),
        ("destinations=[]", "--set: destinations = 0: must be from 1 to 200 tables"),
        ("destinations.0.behaviours=[{wait_s=1}]", "--set: destinations.0.behaviours.0 = "),
        ("destinations.0.name=''", "--set: destinations.0.name = "),
        ("name=Big One", "--set: name = "),
        ("seed=-1", "--set: seed = -1: must not be negative"),
        ("drain_s=0", "--set: drain_s = 0.0: must be above 0"),
        ("representations=[]", "--set: representations = []: must name at least one"),
        ('representations=["slim","slim"]', "--set: representations = "),
        ('representations=["huge"]', "--set: representations"),
    ],
)
def test_what_makes_no_sense_is_one_line(override, error):
    """File or option, key, value and the rule that it breaks."""
    assert error_of(override).startswith(error)


def test_two_destinations_differ():
    """Neither a name nor a domain may stand for two destinations."""
    two = "\n[[destinations]]\nname = '{}'\ndomain = '{}'\n"
    for name, domain, key in (("one", "two.test", "name"), ("two", "one.test", "domain")):
        with pytest.raises(ConfigError, match=rf"^x: destinations\.1\.{key} = "):
            parse((SMALL + two.format(name, domain)).encode(), source="x")


def test_addresses_are_loopback_and_different():
    """Host j of destination i has an address of its own, and a name under its domain."""
    scenario = Scenario(
        "s",
        destinations=[
            Destination("a", "a.test", hosts=2),
            Destination("b", "b.example", domains=3),
        ],
    )
    assert [tuple(each) for each in addresses(scenario)] == [
        (0, "mx0.a.test", "127.0.10.1"),
        (0, "mx1.a.test", "127.0.10.2"),
        (1, "mx0.b.example", "127.0.11.1"),
    ]
    assert destination_of(scenario) == {"127.0.10.1": 0, "127.0.10.2": 0, "127.0.11.1": 1}
    records = mx_records(scenario)
    assert list(records) == ["a.test", "d1.b.example", "d2.b.example", "d3.b.example"]
    assert [tuple(each) for each in records["a.test"]] == [
        (10, "mx0.a.test", "127.0.10.1"),
        (10, "mx1.a.test", "127.0.10.2"),
    ]
    assert records["d3.b.example"] == ((10, "mx0.b.example", "127.0.11.1"),)


def test_the_largest_scenario_still_has_addresses():
    """The last host of the last destination is a loopback address, as all before it."""
    scenario = Scenario(
        "s", destinations=[Destination(f"n{i}", f"n{i}.test", hosts=254) for i in range(200)]
    )
    all_of_them = [each.address for each in addresses(scenario)]
    assert len(set(all_of_them)) == len(all_of_them) == 200 * 254
    assert all(ipaddress.ip_address(each).is_loopback for each in all_of_them[-254:])


def test_bounces_have_somewhere_to_go():
    """The senders' domain has mail exchangers, whether it is a destination's or not."""
    own = small("load.sender_domain=senders.test")
    assert sender_domain(own) == "senders.test"
    assert mx_records(own)["senders.test"] == mx_records(own)["one.test"]
    assert sender_domain(small()) == "one.test" == domains_of(small().destinations[0])[0]


LABEL = st.from_regex(r"[a-z][a-z0-9]{0,8}", fullmatch=True)
SCALARS = st.one_of(
    st.booleans(),
    st.integers(-(2**62), 2**62),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(max_size=20),
)
KEYS = st.one_of(LABEL, st.text(min_size=1, max_size=8))
TABLES = st.recursive(
    st.dictionaries(KEYS, SCALARS, max_size=3),
    lambda inner: st.dictionaries(
        KEYS,
        st.one_of(SCALARS, inner, st.lists(SCALARS, max_size=3), st.lists(inner, max_size=3)),
        max_size=3,
    ),
    max_leaves=8,
)


@settings(max_examples=60)
@given(
    title=st.text(max_size=30),
    server=TABLES,
    behaviours=st.lists(
        st.dictionaries(LABEL.filter(lambda k: k != "kind"), SCALARS, max_size=3), max_size=3
    ),
    rate=st.floats(0.001, 1e6),
    share=st.floats(0.0001, 100),
)
def test_what_is_written_is_read_back(title, server, behaviours, rate, share):
    """`to_toml` loses nothing, whatever characters and tables there are."""
    scenario = Scenario(
        "round-trip",
        title=title,
        representations=["packed", "slim"],
        load=Load(rate=rate, sizes=Sizes("lognormal"), recipients=Recipients("fixed", count=3)),
        destinations=[
            Destination(
                "a", "a.test", share=share, behaviours=[{"kind": "x"} | each for each in behaviours]
            ),
            Destination("b", "b.test"),
        ],
        server=server,
    )
    text = to_toml(scenario)
    assert tomllib.loads(text) == to_dict(scenario)
    assert parse(text.encode(), source="again") == scenario


def test_scenarios_are_described() -> None:
    """What `sim scenarios` prints: each that ships, in JSON with all that there is to say."""
    (line,) = scenario_lines(as_json=True, long=False)
    found = {each["name"]: each for each in json.loads(line)}
    assert available() == sorted(found)
    assert found["big-messages"]["not_in_model"]
    assert "p99_accepted < 2 s" in found["baseline"]["expects"]
    assert len(available()) == len(list(scenario_lines(as_json=False, long=False)))
    text = "\n".join(scenario_lines(as_json=False, long=True))
    for each in found.values():
        assert " ".join(each["about"].split()[:4]) in text


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ('expects=["lost"]', "must be as"),
        ('vary={ "load.rate" = [1] }', "2 to 50 values"),
    ],
)
def test_what_is_wrong_with_conditions_and_sweeps(override: str, words: str) -> None:
    """One line each."""
    with pytest.raises(ConfigError) as found:
        small(override)
    assert words in str(found.value)
