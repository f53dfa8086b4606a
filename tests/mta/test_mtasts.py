"""MTA-STS: what counts as a policy, and which hosts it allows (RFC 8461)."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mta.mtasts import (
    MAX_AGE_MAX_S,
    MX_MAX,
    POLICY_BYTES_MAX,
    Mode,
    StsPolicy,
    parse_policy,
    policy_id,
)

GOOD = b"version: STSv1\r\nmode: enforce\r\nmx: mail.example.com\r\nmx: *.example.net\r\nmax_age: 604800\r\n"


class TestId:
    @pytest.mark.parametrize(
        ("texts", "found"),
        [
            ([b"v=STSv1; id=20160831085700Z;"], "20160831085700Z"),
            ([b"v=STSv1;id=a"], "a"),
            ([b"v=STSv1 ; x=y; id=a1 ;"], "a1"),
            ([b"v=spf1 -all", b"v=STSv1; id=a"], "a"),
            ([], None),
            ([b"v=STSv1; id=a", b"v=STSv1; id=b"], None),
            ([b"v=STSv1"], None),
            ([b"v=STSv1; id="], None),
            ([b"v=STSv1; id=a-b"], None),
            ([b"v=STSv1; id=" + b"a" * 33], None),
            ([b"v=STSv12; id=a"], None),
            ([b" v=STSv1; id=a"], None),
            ([b"v=STSv1; id=\xff"], None),
        ],
    )
    def test_one_valid_record_or_none(self, texts: list[bytes], found: str | None) -> None:
        assert policy_id(texts) == found

    @given(st.lists(st.binary(max_size=60), max_size=3))
    def test_any_bytes(self, texts: list[bytes]) -> None:
        found = policy_id(texts)
        assert found is None or (found.isalnum() and len(found) <= 32)


class TestPolicy:
    def test_the_example_of_the_rfc(self) -> None:
        assert parse_policy(GOOD) == StsPolicy(
            Mode.ENFORCE, 604800, ("mail.example.com", "*.example.net")
        )

    def test_lenient_where_the_rfc_is(self) -> None:
        """LF for CRLF, blank space, unknown keys, order, and the first of two."""
        text = b"mx:Mail.Example.COM.\nfuture: x: y\nmode:  testing\nmode: none\n\nversion: STSv1\nmax_age:1\nmx: mail.example.com"
        assert parse_policy(text) == StsPolicy(Mode.TESTING, 1, ("mail.example.com",))

    def test_mode_none_needs_no_mx(self) -> None:
        assert parse_policy(b"version: STSv1\nmode: none\nmax_age: 0").mode is Mode.NONE

    def test_a_year_is_the_longest(self) -> None:
        text = GOOD.replace(b"604800", b"9999999999")
        assert parse_policy(text).max_age_s == MAX_AGE_MAX_S

    @pytest.mark.parametrize(
        ("body", "why"),
        [
            (b"", "is not version STSv1"),
            (GOOD.replace(b"STSv1", b"STSv2"), "is not version STSv1"),
            (GOOD.replace(b"enforce", b"Enforce"), "has no known mode"),
            (GOOD.replace(b"604800", b"-1"), "has no max_age"),
            (GOOD.replace(b"604800", b"12345678901"), "has no max_age"),
            (GOOD.replace(b"604800", "٣".encode()), "has no max_age"),
            (b"version: STSv1\nmode: enforce\nmax_age: 1", "names no mx"),
            (GOOD + b"mx: a b\n", "has an mx that is no host name"),
            (GOOD + b"mx: *\n", "has an mx that is no host name"),
            (GOOD + b"mx: *.*.test\n", "has an mx that is no host name"),
            (GOOD + b"mx: a.*.test\n", "has an mx that is no host name"),
            (GOOD + b"<html>", "has a line that is not key: value"),
            (GOOD + b"\xff: x", "is not UTF-8"),
            (GOOD + b"x: " + b"x" * POLICY_BYTES_MAX, "is longer than 65536 bytes"),
            (
                GOOD + b"".join(b"mx: m%d.test\n" % n for n in range(MX_MAX)),
                f"names more than {MX_MAX} mx",
            ),
        ],
    )
    def test_nonsense_is_no_policy(self, body: bytes, why: str) -> None:
        with pytest.raises(ValueError, match=f"^{why}$"):
            parse_policy(body)

    @given(st.binary(max_size=200), st.integers(0, len(GOOD)))
    def test_any_bytes_are_a_policy_or_a_value_error(self, noise: bytes, at: int) -> None:
        try:
            policy = parse_policy(GOOD[:at] + noise + GOOD[at:])
        except ValueError:
            return
        assert policy.mx or policy.mode is Mode.NONE
        assert 0 <= policy.max_age_s <= MAX_AGE_MAX_S


LABEL = st.text("abc", min_size=1, max_size=3)


class TestHosts:
    @pytest.mark.parametrize(
        ("host", "allowed"),
        [
            ("mail.example.com", True),
            ("MAIL.example.com.", True),
            ("a.example.net", True),
            ("a.b.example.net", False),
            ("example.net", False),
            (".example.net", False),
            ("x.mail.example.com", False),
            ("", False),
        ],
    )
    def test_a_wildcard_is_one_label_on_the_left(self, host: str, allowed: bool) -> None:
        assert parse_policy(GOOD).allows(host) is allowed

    @given(LABEL, st.lists(LABEL, min_size=1, max_size=3))
    def test_a_wildcard_allows_each_label_and_never_none(self, first: str, rest: list[str]) -> None:
        parent = ".".join(rest)
        policy = StsPolicy(Mode.ENFORCE, 1, (f"*.{parent}",))
        assert policy.allows(f"{first}.{parent}")
        assert not policy.allows(f"{first}.{first}.{parent}")
        assert not policy.allows(parent) or len(rest) > 1
