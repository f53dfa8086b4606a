"""How settings are built from TOML, and what an operator reads when they can't be."""

import dataclasses
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mta.config import Config
from mta.core.settings import ABSENT, SHOWN_MAX, ConfigError, build, changed, flatten, show


@dataclass(slots=True)
class Host:
    """A table in a list."""

    name: str
    weight: float = 1.0

    def problems(self) -> Iterator[tuple[str, object, str]]:
        """Weigh something."""
        if self.weight < 0:
            yield "weight", self.weight, "must not be negative"


@dataclass(slots=True)
class Inner:
    """A table."""

    low: int = 3
    high: int = 5
    kinds: list[Literal["a", "b"]] = field(default_factory=list)

    def problems(self) -> Iterator[tuple[str, object, str]]:
        """Be ordered."""
        if self.low >= self.high:
            yield "low", self.low, f"must be below high ({self.high})"


@dataclass(slots=True)
class Outer:
    """Every type that settings may have."""

    flag: bool = False
    count: int = 1
    ratio: float = 0.5
    name: str = "x"
    word: Literal["red", "1", 7] = "red"
    path: Path = Path("here")
    maybe: Path | None = None
    number_or_name: int | str = 0
    inner: Inner = field(default_factory=Inner)
    hosts: list[Host] = field(default_factory=list)
    pair: tuple[str, int] = ("a", 1)
    many: tuple[int, ...] = ()
    by_name: dict[str, float] = field(default_factory=dict)
    anything: object = None
    free: dict[str, Any] = field(default_factory=dict)
    loose: list = field(default_factory=list)  # type: ignore[type-arg]  # a list of anything
    table: dict = field(default_factory=dict)  # type: ignore[type-arg]  # a table of anything
    derived: int = field(default=0, init=False)


def wrong(data: Mapping[str, object], *overrides: str, cls: type = Outer) -> str:
    """Return the line that the operator reads."""
    with pytest.raises(ConfigError) as caught:
        build(cls, data, source="mta.toml", overrides=overrides)
    line = str(caught.value)
    assert line.isprintable()
    return line


def test_nothing_said_is_the_default():
    """An empty file gives every default."""
    assert Config() == build(Config, {}, source="mta.toml")


def test_every_type_is_built():
    """TOML's values become what the annotations say."""
    data = tomllib.loads("""
        flag = true
        count = 2
        ratio = 3
        name = "y"
        word = 7
        path = "/a/b"
        maybe = "c"
        number_or_name = "n"
        inner = {low = 1, kinds = ["b", "a"]}
        hosts = [{name = "h", weight = 0.25}, {name = "g"}]
        pair = ["z", 9]
        many = [1, 2, 3]
        by_name = {one = 1, half = 0.5}
        anything = [1, {a = "b"}]
        free = {any = [true], deep = {er = 1}}
        loose = [1, "a"]
        table = {a = 1}
    """)
    assert build(Outer, data, source="mta.toml") == Outer(
        flag=True,
        count=2,
        ratio=3.0,
        name="y",
        word=7,
        path=Path("/a/b"),
        maybe=Path("c"),
        number_or_name="n",
        inner=Inner(low=1, kinds=["b", "a"]),
        hosts=[Host("h", 0.25), Host("g")],
        pair=("z", 9),
        many=(1, 2, 3),
        by_name={"one": 1.0, "half": 0.5},
        anything=[1, {"a": "b"}],
        free={"any": [True], "deep": {"er": 1}},
        loose=[1, "a"],
        table={"a": 1},
    )
    assert isinstance(build(Outer, data, source="mta.toml").ratio, float)


@pytest.mark.parametrize(
    ("data", "line"),
    [
        ({"inner": {"lwo": 2}}, "inner.lwo = 2: unknown key (did you mean low?)"),
        ({"kinds": ["a"]}, 'kinds = ["a"]: unknown key (did you mean inner.kinds?)'),
        ({"hihg": 1}, "hihg = 1: unknown key (did you mean inner.high?)"),
        ({"zzzzz": 1}, "zzzzz = 1: unknown key"),
        ({"derived": 1}, "derived = 1: unknown key"),
        ({"hosts": [{}]}, "hosts.0.name: missing"),
        ({"hosts": [{"name": "a"}, {"name": 5}]}, "hosts.1.name = 5: must be a string"),
        ({"hosts": {}}, "hosts = {}: must be a list"),
        ({"hosts": ["a"]}, 'hosts.0 = "a": must be a table'),
        ({"flag": 1}, "flag = 1: must be true or false"),
        ({"count": True}, "count = true: must be a whole number"),
        ({"count": 2.0}, "count = 2.0: must be a whole number"),
        ({"count": 2**63}, "count = 9223372036854775808: must fit into 64 bits"),
        ({"ratio": 10**400}, "ratio = 1" + "0" * 78 + "…: must fit into 64 bits"),
        ({"ratio": 10**5000}, "ratio = a huge number: must fit into 64 bits"),
        ({"ratio": float("nan")}, "ratio = nan: must be a finite number"),
        ({"ratio": float("-inf")}, "ratio = -inf: must be a finite number"),
        ({"ratio": True}, "ratio = true: must be a number"),
        ({"ratio": "1"}, 'ratio = "1": must be a number'),
        ({"name": 1}, "name = 1: must be a string"),
        ({"word": "blue"}, 'word = "blue": must be one of "red", "1", 7'),
        ({"word": 1}, 'word = 1: must be one of "red", "1", 7'),
        ({"path": ""}, 'path = "": must be a path'),
        ({"path": "a\0b"}, 'path = "a\\x00b": must be a path'),
        ({"path": 3}, "path = 3: must be a path"),
        ({"maybe": 3}, "maybe = 3: must be a path"),
        (
            {"number_or_name": [1]},
            "number_or_name = [1]: must be a whole number or a string",
        ),
        ({"inner": 1}, "inner = 1: must be a table"),
        ({"inner": {"low": 9}}, "inner.low = 9: must be below high (5)"),
        ({"pair": ["a"]}, 'pair = ["a"]: must have 2 items'),
        ({"pair": ["a", "b"]}, 'pair.1 = "b": must be a whole number'),
        ({"many": [1, "b"]}, 'many.1 = "b": must be a whole number'),
        ({"by_name": {"a": "b"}}, 'by_name.a = "b": must be a number'),
        ({"by_name": 1}, "by_name = 1: must be a table"),
        ({"name": {"a": [1, "b"]}}, 'name = {a = [1, "b"]}: must be a string'),
        ({"in\nner": 1}, "in\\nner = 1: unknown key (did you mean inner?)"),
    ],
)
def test_what_is_wrong_is_one_line_that_names_it(data, line):
    """The line names file, key, value and problem, and what may have been meant."""
    assert f"mta.toml: {line}" == wrong(data)


def test_the_example_of_a_typing_mistake():
    """A near miss among the limits is found, at its own level or elsewhere."""
    assert (
        "mta.toml: limits.mta.max_conn_per_hots = 2: unknown key (did you mean max_conn_per_host?)"
        == wrong({"limits": {"mta": {"max_conn_per_hots": 2}}}, cls=Config)
    )
    assert (
        "mta.toml: max_inflight = 2: unknown key (did you mean limits.scheduler.max_inflight?)"
        == wrong({"max_inflight": 2}, cls=Config)
    )


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("nope", ""),  # expansion.limits.nodes is neither near nor alike
        ("max_conn_per_host", " (did you mean limits.mta.max_conn_per_host?)"),  # not …_per_client
        ("max_conn_per_clients", " (did you mean max_conn_per_client?)"),
    ],
)
def test_a_hint_does_not_lead_astray(name, hint):
    """The same name elsewhere comes first, then a sibling that is alike; from elsewhere it has to be nearly the same."""
    line = f"mta.toml: limits.smtp.{name} = 3: unknown key{hint}"
    assert line == wrong({"limits": {"smtp": {name: 3}}}, cls=Config)


def test_a_file_that_is_no_table_is_an_error():
    """Even the outermost value is checked."""
    with pytest.raises(ConfigError, match=r"^mta.toml: \[1\]: must be a table$"):
        build(Inner, [1], source="mta.toml")  # type: ignore[arg-type]  # on purpose


def test_a_long_value_is_cut():
    """A megabyte of value is not a line that anybody reads."""
    assert SHOWN_MAX == len(show("x" * 10**6))
    assert show("x" * 10**6).endswith("…")
    assert '"a\\"b\\\\"' == show('a"b\\')


def test_a_path_that_is_one_already_is_taken():
    """Mappings that did not come from TOML may hold what the annotation says."""
    data = {"path": Path("p"), "maybe": None}
    assert Outer(path=Path("p")) == build(Outer, data, source="x")
    assert '"p"' == show(Path("p"))


def test_an_annotation_that_settings_can_not_have_is_our_fault():
    """It is found by the first test that says a value, not by the operator."""

    @dataclass
    class Wrong:
        key: set[int] = field(default_factory=set)

    with pytest.raises(AssertionError, match="key: no settings have type"):
        build(Wrong, {"key": [1]}, source="x")


def test_a_config_error_may_mean_a_whole_file():
    """Key and value are left out if there is none."""
    assert "a.toml: not there" == str(ConfigError("a.toml", problem="not there"))
    assert "a.toml: 5: bad" == str(ConfigError("a.toml", value=5, problem="bad"))
    assert "ABSENT" == repr(ABSENT)


# Overrides


def test_an_override_replaces_one_value():
    """`--set` wins over the file, and the last one over those before."""
    outer = build(
        Outer,
        {"inner": {"low": 1, "high": 9}, "hosts": [{"name": "a"}, {"name": "b"}]},
        source="mta.toml",
        overrides=["inner.low=2", "hosts.1.name=c", "inner.low = 4", "maybe=/x", "flag=true"],
    )
    assert Inner(low=4, high=9) == outer.inner
    assert [Host("a"), Host("c")] == outer.hosts
    assert (Path("/x"), True) == (outer.maybe, outer.flag)


def test_an_override_does_not_change_the_file():
    """The mapping that was given is read only."""
    data = {"inner": {"low": 1, "high": 9}, "hosts": [{"name": "a"}]}
    build(Outer, data, source="x", overrides=["inner.low=2", "hosts.0.name=b"])
    assert {"inner": {"low": 1, "high": 9}, "hosts": [{"name": "a"}]} == data


@pytest.mark.parametrize(
    ("override", "key", "value"),
    [
        ("name=bare words", "name", "bare words"),
        ('name="quoted # not a comment"', "name", "quoted # not a comment"),
        ("name=", "name", ""),
        ("name=a=b", "name", "a=b"),
        ("name=123", "name", "123"),
        ("name=1e3", "name", "1e3"),
        ("name=true", "name", "true"),
        ("name=2024-01-01", "name", "2024-01-01"),
        ("name=1\ncount = 5", "name", "1\ncount = 5"),
        ("name=" + "[" * 10_000, "name", "[" * 10_000),
        ("name=127.0.0.1:2525", "name", "127.0.0.1:2525"),
        ("path=12", "path", Path("12")),
        ("word=1", "word", "1"),
        ("word=7", "word", 7),
        ("count=1_000", "count", 1000),
        ("ratio=1", "ratio", 1.0),
        ("number_or_name=5", "number_or_name", 5),
        ("number_or_name=five", "number_or_name", "five"),
        ("many=[1, 2]", "many", (1, 2)),
        ("anything=[1]", "anything", [1]),
        ("free.a.b=1", "free", {"a": {"b": 1}}),
        ("free={a = {b = 1}}", "free", {"a": {"b": 1}}),
        ("inner={low = 2}", "inner", Inner(low=2)),
    ],
)
def test_an_override_is_toml_or_a_bare_word(override, key, value):
    """Quotes are not needed where the shell has eaten them already."""
    assert value == getattr(build(Outer, {}, source="x", overrides=[override]), key)


def test_an_override_may_reach_into_another():
    """A table that was set as a whole can be refined."""
    outer = build(Outer, {}, source="x", overrides=["free={a = {b = 1}}", "free.a.c=2"])
    assert {"a": {"b": 1, "c": 2}} == outer.free


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("nonsense", 'must be key=value, not "nonsense"'),
        ("=1", 'must be key=value, not "=1"'),
        ("a..b=1", 'must be key=value, not "a..b=1"'),
        ("inner.lwo=1", "inner.lwo = 1: unknown key (did you mean low?)"),
        ("count=many", 'count = "many": must be a whole number'),
        ("ratio=inf", "ratio = inf: must be a finite number"),
        ("flag=1", "flag = 1: must be true or false"),
        ("hosts.2.name=x", 'hosts.2.name = "x": hosts has 1 items; name one by its number from 0'),
        ("hosts.x.name=x", 'hosts.x.name = "x": hosts has 1 items; name one by its number from 0'),
        ("count.x=1", 'count.x = "1": count is not a table'),
        ("inner={low = 9}", "inner.low = 9: must be below high (5)"),
    ],
)
def test_a_wrong_override_is_told_from_the_file(override, line):
    """The line says --set where the operator said it there."""
    data = {"hosts": [{"name": "a"}], "count": 3}
    assert f"--set: {line}" == wrong(data, override)


def test_a_conflict_is_blamed_on_who_made_it():
    """An override that breaks a default is to blame; one that has nothing to do with it is not."""
    assert "--set: inner.low = 3: must be below high (2)" == wrong({}, "inner.high=2")
    assert "mta.toml: inner.low = 3: must be below high (2)" == wrong(
        {"inner": {"high": 2}}, "count=5"
    )
    assert "mta.toml: inner.low = 4: must be below high (2)" == wrong(
        {"inner": {"low": 4}}, "inner.high=2"
    )
    assert "mta.toml: hosts.0.name = 1: must be a string" == wrong(
        {"hosts": [{"name": 1}]}, "count=5"
    )
    assert "mta.toml: hosts.0.name: missing" == wrong({"hosts": [{}]}, "count=5")


def test_an_override_may_mend_the_file():
    """What the file says wrongly does not matter once it is replaced."""
    assert 2 == build(Outer, {"count": "x"}, source="x", overrides=["count=2"]).count


# What settings say of themselves


def test_flatten_names_every_value():
    """Tables and lists of tables are dotted; other lists are values."""
    outer = Outer(hosts=[Host("a")], free={"a": {"b": 1}, "e": {}}, many=(1, 2))
    flat = flatten(outer)
    assert {"hosts.0.name": "a", "hosts.0.weight": 1.0, "free.a.b": 1, "free.e": {}}.items() <= (
        flat.items()
    )
    assert (1, 2) == flat["many"]
    assert 3 == flat["inner.low"]
    assert "inner" not in flat


def test_changed_is_what_differs():
    """`changed` answers what an operator has set, and what is there in addition."""
    assert {} == changed(Config(), Config())
    config = build(Config, {"seed": 4, "limits": {"mta": {"max_mx": 2}}}, source="x")
    assert {"seed": 4, "limits.mta.max_mx": 2} == changed(config, Config())
    assert {"hosts.0.name": "a", "hosts.0.weight": 1.0} == changed(
        Outer(hosts=[Host("a")]), Outer()
    )


leaves = [
    (key, value)
    for key, value in flatten(Config()).items()
    if type(value) in (int, float) and not key.endswith("ratio") and key != "seed"
]


@given(leaf=st.sampled_from(leaves))
def test_no_limit_may_be_negative_or_infinite(leaf):
    """Every number of the configuration that is a limit or a wait refuses nonsense."""
    key, value = leaf
    if key.startswith(("limits.", "retry.", "concurrency.")):
        assert f"--set: {key} = -1" in wrong({}, f"{key}=-1", cls=Config)
    if isinstance(value, float):
        for nonsense in ("nan", "inf", "-inf"):
            assert "must be a finite number" in wrong({}, f"{key}={nonsense}", cls=Config)


json_like = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=10,
)
field_names = st.sampled_from([one.name for one in dataclasses.fields(Outer)]) | st.text()


@given(
    data=st.dictionaries(field_names, json_like, max_size=4),
    overrides=st.lists(st.builds("{}={}".format, field_names, st.text()), max_size=3),
)
def test_whatever_is_said_is_built_or_explained_in_one_line(data, overrides):
    """There is no traceback for an operator, whatever the file holds."""
    problem = None
    try:
        build(Outer, data, source="mta.toml", overrides=overrides)
    except ConfigError as error:
        problem = error
    if problem is not None:
        assert str(problem).isprintable()
        assert problem.source in ("mta.toml", "--set")
