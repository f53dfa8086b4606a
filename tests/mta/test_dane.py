"""DANE's decision: which records count, and which certificates they mean (RFC 6698, 7671, 7672)."""

import datetime
import hashlib
import ssl
from functools import cache
from typing import NamedTuple

import trustme
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import NameOID
from hypothesis import given
from hypothesis import strategies as st

from mta.dane import DANE_EE, DANE_TA, RECORDS_MAX, failure, usable
from mta.tlsplan import Tlsa

NAME, DOMAIN = "mx.test", "example.test"
NAMES = (NAME, DOMAIN)
MISMATCH = "certificate does not match TLSA records"


class Chain(NamedTuple):
    """Certificates in DER: the host's, the intermediate authority's, the root's."""

    leaf: bytes
    middle: bytes
    root: bytes
    now: float

    @property
    def sent(self) -> tuple[bytes, bytes, bytes]:
        return self.leaf, self.middle, self.root


def der(pem: bytes) -> bytes:
    return ssl.PEM_cert_to_DER_cert(pem.decode())


@cache
def chain(name: str = NAME, days: int = 30) -> Chain:
    """Return a new chain whose first certificate ends ``days`` from now."""
    now = datetime.datetime.now(datetime.UTC)
    root = trustme.CA()
    middle = root.create_child_ca()
    leaf = middle.issue_cert(name, not_after=now + datetime.timedelta(days=days))
    first = der(leaf.cert_chain_pems[0].bytes())
    return Chain(first, der(middle.cert_pem.bytes()), der(root.cert_pem.bytes()), now.timestamp())


def record(usage: int, certificate: bytes, selector: int = 1, matching: int = 1) -> Tlsa:
    """Return the record that means a certificate."""
    thing = certificate
    if selector == 1:
        key = x509.load_der_x509_certificate(certificate).public_key()
        thing = key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    if matching:
        thing = hashlib.new("sha256" if matching == 1 else "sha512", thing).digest()
    return Tlsa(usage, selector, matching, thing)


selectors = st.sampled_from([0, 1])
matchings = st.sampled_from([0, 1, 2])


class TestUsable:
    """Records that nobody can check count for nothing."""

    @given(
        st.lists(
            st.builds(
                Tlsa,
                st.integers(0, 255),
                st.integers(0, 255),
                st.integers(0, 255),
                st.binary(max_size=70),
            ),
            max_size=50,
        )
    )
    def test_what_is_left_is_what_the_rfc_allows(self, records: list[Tlsa]) -> None:
        left = usable(records)
        assert set(left) <= set(records)
        assert len(left) <= RECORDS_MAX
        for each in left:
            assert each.usage in (DANE_TA, DANE_EE)
            assert each.selector in (0, 1)
            assert each.matching in (0, 1, 2)
            assert each.data
        assert usable(left) == left

    @given(st.sampled_from([0, 1, 2, 3]), selectors, matchings)
    def test_well_formed_records_of_usage_2_and_3_count(
        self, usage: int, selector: int, matching: int
    ) -> None:
        one = record(usage, chain().leaf, selector, matching)
        assert usable([one]) == ((one,) if usage >= 2 else ())

    def test_digests_of_the_wrong_length_do_not(self) -> None:
        assert (
            usable([Tlsa(3, 1, 1, b"x" * 31), Tlsa(3, 1, 2, b"x" * 32), Tlsa(3, 1, 0, b"")]) == ()
        )

    def test_the_stronger_digest_of_the_same_thing_decides(self) -> None:
        """Who can find a collision of the weaker one gains nothing (RFC 7671 9)."""
        weak, strong = record(3, chain().leaf, 1, 1), record(3, chain().leaf, 1, 2)
        other = record(3, chain().leaf, 0, 1)
        assert usable([weak, strong, other]) == (strong, other)


class TestEndEntity:
    """DANE-EE: the record is all that counts."""

    @given(selectors, matchings)
    def test_the_certificate_that_is_meant(self, selector: int, matching: int) -> None:
        c = chain()
        assert failure([record(3, c.leaf, selector, matching)], c.sent, NAMES, c.now) == ""
        assert failure([record(3, c.leaf, selector, matching)], [c.leaf], NAMES, c.now) == ""

    @given(selectors, matchings, st.integers(0, 10_000))
    def test_one_bit_makes_it_another(self, selector: int, matching: int, bit: int) -> None:
        c = chain()
        good = record(3, c.leaf, selector, matching)
        at = bit % (len(good.data) * 8)
        data = bytearray(good.data)
        data[at // 8] ^= 1 << at % 8
        assert failure([good._replace(data=bytes(data))], c.sent, NAMES, c.now) == MISMATCH

    def test_neither_name_nor_dates_matter(self) -> None:
        c = chain("other.test", 1)
        assert failure([record(3, c.leaf)], c.sent, NAMES, c.now + 1e9) == ""

    def test_an_authoritys_certificate_is_not_the_hosts(self) -> None:
        c = chain()
        assert failure([record(3, c.middle)], c.sent, NAMES, c.now) == MISMATCH

    def test_one_of_several_is_enough(self) -> None:
        """As while a key is being changed."""
        c = chain()
        records = [Tlsa(3, 1, 1, b"\0" * 32), record(2, chain("x.test").root), record(3, c.leaf)]
        assert failure(records, c.sent, NAMES, c.now) == ""


class TestTrustAnchor:
    """DANE-TA: the record means an authority, which has to have issued the certificate."""

    @given(selectors, matchings, st.booleans())
    def test_root_or_intermediate(self, selector: int, matching: int, root: bool) -> None:
        c = chain()
        one = record(2, c.root if root else c.middle, selector, matching)
        assert failure([one], c.sent, NAMES, c.now) == ""

    def test_the_order_of_what_is_sent_does_not_matter(self) -> None:
        c = chain()
        assert failure([record(2, c.root)], [c.leaf, c.root, c.middle], NAMES, c.now) == ""

    def test_a_whole_certificate_need_not_be_sent(self) -> None:
        c = chain()
        assert failure([record(2, c.middle, 0, 0)], [c.leaf], NAMES, c.now) == ""
        assert failure([record(2, c.middle, 0, 1)], [c.leaf], NAMES, c.now) == MISMATCH

    def test_an_anchor_that_issued_nothing_here(self) -> None:
        """To send the right authority beside one's own certificate is no proof."""
        c, other = chain(), chain("elsewhere.test")
        assert failure([record(2, other.root)], c.sent, NAMES, c.now) == MISMATCH
        forged = [c.leaf, other.middle, other.root]
        assert failure([record(2, other.root)], forged, NAMES, c.now) == MISMATCH

    def test_the_hosts_own_certificate_is_no_authority(self) -> None:
        c = chain()
        assert failure([record(2, c.leaf)], c.sent, NAMES, c.now) == MISMATCH
        assert failure([record(2, c.leaf)], [c.leaf, c.leaf], NAMES, c.now) == MISMATCH

    def test_names(self) -> None:
        for name, good in [
            (NAME, True),
            (DOMAIN, True),
            ("*.test", True),
            ("MX.TEST", True),
            ("other.test", False),
            ("*.mx.test", False),
        ]:
            c = chain(name)
            found = failure([record(2, c.root)], c.sent, ("mx.test.", DOMAIN), c.now)
            # Wildcards stand for one label and never directly below a top-level domain.
            expected = "" if good and name != "*.test" else "certificate is for another name"
            assert found == expected, name

    def test_a_wildcard_stands_for_one_label(self) -> None:
        c = chain("*.wild.test")
        one = [record(2, c.root)]
        assert failure(one, c.sent, ("a.wild.test",), c.now) == ""
        assert failure(one, c.sent, ("a.b.wild.test",), c.now) != ""
        assert failure(one, c.sent, ("wild.test",), c.now) != ""

    def test_dates(self) -> None:
        c = chain(days=3)
        expired = "certificate has expired or is not yet valid"
        assert failure([record(2, c.root)], c.sent, NAMES, c.now + 4 * 86400) == expired
        assert failure([record(2, c.root)], c.sent, NAMES, 0.0) == expired

    def test_an_authority_that_may_have_none_below_it(self) -> None:
        """Its path length says so (RFC 5280 4.2.1.9)."""
        c = chain()
        now = datetime.datetime.fromtimestamp(c.now, datetime.UTC)
        keys = [ec.generate_private_key(ec.SECP256R1()) for _ in range(3)]
        subjects = [x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, n)]) for n in "abc"]

        def issue(n: int, by: int, *, ca: bool, length: int | None, sign: bool = True) -> bytes:
            builder = (
                x509.CertificateBuilder(subjects[by], subjects[n], keys[n].public_key())
                .serial_number(n + 1)
                .not_valid_before(now - datetime.timedelta(days=1))
                .not_valid_after(now + datetime.timedelta(days=1))
                .add_extension(x509.BasicConstraints(ca, length), critical=True)
                .add_extension(x509.SubjectAlternativeName([x509.DNSName(NAME)]), critical=False)
                .add_extension(x509.KeyUsage(*[True] * 5, sign, False, False, False), critical=True)
            )
            return builder.sign(keys[by], hashes.SHA256()).public_bytes(Encoding.DER)

        leaf, middle = issue(2, 1, ca=False, length=None), issue(1, 0, ca=True, length=None)
        for length, found in [(None, ""), (1, ""), (0, MISMATCH)]:
            top = issue(0, 0, ca=True, length=length)
            assert failure([record(2, top)], [leaf, middle, top], NAMES, c.now) == found
        for bad in (
            issue(1, 0, ca=False, length=None),
            issue(1, 0, ca=True, length=None, sign=False),
        ):
            assert failure([record(2, bad)], [leaf, bad], NAMES, c.now) == MISMATCH

    def test_a_long_chain_ends(self) -> None:
        now = datetime.datetime.now(datetime.UTC).timestamp()
        authorities = [trustme.CA(path_length=20)]
        for _ in range(12):
            authorities.append(authorities[-1].create_child_ca())
        leaf = der(authorities[-1].issue_cert(NAME).cert_chain_pems[0].bytes())
        up = [der(each.cert_pem.bytes()) for each in reversed(authorities)]
        assert failure([record(2, up[-1])], [leaf, *up], NAMES, now) != ""
        assert failure([record(2, up[5])], [leaf, *up], NAMES, now) == ""


class TestNonsense:
    """What strangers send is data."""

    @given(st.lists(st.binary(max_size=200), max_size=4), st.integers(2, 3), selectors, matchings)
    def test_no_bytes_raise_and_none_match(
        self, sent: list[bytes], usage: int, selector: int, matching: int
    ) -> None:
        c = chain()
        assert failure([record(usage, c.root, selector, matching)], sent, NAMES, c.now) != ""
        found = failure([record(usage, c.root, selector, matching)], [c.leaf, *sent], NAMES, c.now)
        assert found in ("", MISMATCH)
        assert failure([Tlsa(usage, 0, 0, b"x")], [c.leaf, *sent], NAMES, c.now) == MISMATCH

    @given(st.integers(0, 10_000), st.integers(0, 255))
    def test_a_damaged_certificate(self, at: int, value: int) -> None:
        c = chain()
        damaged = bytearray(c.leaf)
        damaged[at % len(damaged)] = value
        found = failure([record(2, c.root)], [bytes(damaged), c.middle, c.root], NAMES, c.now)
        assert (found == "") == (bytes(damaged) == c.leaf)

    def test_nothing_was_sent(self) -> None:
        c = chain()
        assert failure([record(3, c.leaf)], [], NAMES, c.now) == "no certificate that can be read"
