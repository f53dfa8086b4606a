"""What the resolver makes of answers: exchangers, addresses, aliases; and how long it remembers them."""

import asyncio

import dns.message
import dns.rdatatype
import pytest

from mta.core.routing import MxHost, Resolution
from mta.resolver import address_literal
from tests.support.nameserver import HOSTS, NO_DOMAIN, NO_MX, NULL_MX, OK, RETRY, ZONE, bench


class TestAnswers:
    async def test_exchangers_with_their_addresses(self):
        """Hosts are sorted by preference; each has its IPv4 and IPv6 addresses."""
        async with bench(ZONE) as b:
            assert await b.resolver.resolve("Example.ORG.") == Resolution(OK, HOSTS, 600.0)

    async def test_implicit_mx(self):
        """Without MX the domain itself is the exchanger, with preference 0 (RFC 5321 5.1)."""
        async with bench({("a.test", "A"): ["127.0.0.1"]}) as b:
            resolution = await b.resolver.resolve("a.test")
            assert resolution == Resolution(OK, (MxHost(0, "a.test", ("127.0.0.1",)),), 600.0)

    @pytest.mark.parametrize(
        ("zone", "status", "text"),
        [
            ({}, NO_DOMAIN, "Domain does not exist"),
            ({("a.test", "TXT"): ["x"]}, NO_MX, "No MX found for domain"),
            ({("a.test", "MX"): ["0 ."]}, NULL_MX, "Domain does not accept mail"),
            ({("a.test", "MX"): ["10 localhost."]}, NULL_MX, "Domain does not accept mail"),
            ({("a.test", "MX"): "SERVFAIL"}, RETRY, "Name server said SERVFAIL"),
            ({("a.test", "MX"): "REFUSED"}, RETRY, "Name server said REFUSED"),
            ({("a.test", "MX"): "NOTAUTH"}, RETRY, "Name server said NOTAUTH"),
            ({("a.test", "MX"): "FORMERR"}, RETRY, "Name server said FORMERR"),
            ({("a.test", "MX"): "YXDOMAIN"}, RETRY, "Name server said 6"),
            ({("a.test", "MX"): [], ("a.test", "A"): "SERVFAIL"}, RETRY, "SERVFAIL"),
            ({("a.test", "MX"): [], ("a.test", "AAAA"): "REFUSED"}, RETRY, "REFUSED"),
            ({("a.test", "MX"): ["10 b.test."]}, RETRY, "No MX of the domain has an address"),
            (
                {("a.test", "MX"): ["10 b.test."], ("b.test", "A"): "SERVFAIL"},
                RETRY,
                "No MX of the domain has an address",
            ),
        ],
    )
    async def test_failures(self, zone, status, text):
        """Permanent only if the name servers say that there is nothing, or that nothing is wanted."""
        async with bench(zone) as b:
            resolution = await b.resolver.resolve("a.test")
            assert (resolution.status, resolution.hosts) == (status, ())
            assert resolution.text.endswith(text)
            assert b.resolver.stats.failures == (status is RETRY)

    async def test_null_mx_asks_no_further(self):
        """A domain that takes no mail is not looked up further (RFC 7505)."""
        async with bench({("a.test", "MX"): ["0 ."], ("a.test", "A"): ["127.0.0.1"]}) as b:
            assert (await b.resolver.resolve("a.test")).status is NULL_MX
            assert b.server.asked == ["a.test MX"]

    async def test_null_mx_beside_a_real_one_is_ignored(self):
        """The dot among other records means nothing."""
        zone = {**ZONE, ("example.org", "MX"): ["0 .", "5 localhost.", "20 mx2.example.org."]}
        async with bench(zone) as b:
            assert (await b.resolver.resolve("example.org")).hosts == HOSTS[1:]

    async def test_one_address_family_fails(self):
        """What was found is used, and asked for again soon."""
        async with bench({("a.test", "A"): ["127.0.0.1"], ("a.test", "AAAA"): "SERVFAIL"}) as b:
            resolution = await b.resolver.resolve("a.test")
            assert resolution.status is OK
            assert resolution.ttl_s == 60.0

    @pytest.mark.parametrize(
        "name", ["a..b", "x" * 64 + ".org", "a\\.b", "é.test", "", "a b", ".x"]
    )
    async def test_names_that_cannot_be(self, name):
        """What is no domain name does not exist, and nobody is asked."""
        async with bench() as b:
            resolution = await b.resolver.resolve(name)
            assert (resolution.status, resolution.text) == (NO_DOMAIN, "Invalid domain name")
            assert b.server.asked == []

    @pytest.mark.parametrize(
        ("literal", "address"),
        [
            ("[127.0.0.1]", "127.0.0.1"),
            ("127.0.0.1", "127.0.0.1"),
            ("[IPv6:::1]", "::1"),
            ("[::1]", "::1"),
        ],
    )
    async def test_address_literals(self, literal, address):
        """A literal is its own host; nobody is asked."""
        async with bench() as b:
            resolution = await b.resolver.resolve(literal)
            assert resolution.status is OK
            assert resolution.hosts == (MxHost(0, literal, (address,)),)
            assert b.server.asked == []

    @pytest.mark.parametrize("text", ["[", "[]", "[1.2.3]", "[mx.test]", "1.2.3.4.5", "[127.0.0.1"])
    def test_what_is_no_literal(self, text):
        """Only a whole address counts."""
        assert address_literal(text) is None

    async def test_smart_host_in_brackets(self):
        """``[name]`` skips MX, as Postfix's relayhost does."""
        async with bench({("mx.test", "A"): ["127.0.0.1"], ("mx.test", "MX"): ["1 x."]}) as b:
            resolution = await b.resolver.resolve("[mx.test]")
            assert resolution.hosts == (MxHost(0, "mx.test", ("127.0.0.1",)),)
            assert (await b.resolver.resolve("[none.test]")).status is NO_DOMAIN
            assert (await b.resolver.resolve("[a b]")).text == "Invalid domain name"


class TestAliases:
    @pytest.mark.parametrize(("length", "status"), [(1, OK), (8, OK), (9, RETRY), (20, RETRY)])
    @pytest.mark.parametrize("recursive", [True, False])
    async def test_chains(self, length, status, recursive):
        """Up to eight aliases are followed, whether the server gives them at once or one by one."""
        zone: dict[tuple[str, str], list[str] | str] = {
            (f"c{i}.test", "CNAME"): [f"c{i + 1}.test."] for i in range(length)
        }
        zone[f"c{length}.test", "MX"] = ["10 mx1.example.org."]
        async with bench({**ZONE, **zone}) as b:
            if not recursive:

                def one_step(query: dns.message.Message, tcp: bool) -> bytes:
                    name = query.question[0].name.to_text(omit_final_dot=True)
                    rdtype = dns.rdatatype.to_text(query.question[0].rdtype)
                    response = b.server.from_zone(query, name, rdtype)
                    del response.answer[1:]
                    return response.to_wire()

                b.server.override = one_step
            assert (await b.resolver.resolve("c0.test")).status is status

    @pytest.mark.parametrize("recursive", [True, False])
    async def test_loops(self, recursive):
        """A loop of aliases is somebody's mistake, and temporary."""
        zone: dict[tuple[str, str], list[str] | str] = {
            ("a.test", "CNAME"): ["b.test."],
            ("b.test", "CNAME"): ["a.test."],
            ("m.test", "MX"): ["10 a.test."],
        }
        async with bench(zone) as b:
            if not recursive:
                b.server.override = lambda query, tcp: b.server.from_zone(
                    query,
                    query.question[0].name.to_text(omit_final_dot=True),
                    dns.rdatatype.to_text(query.question[0].rdtype),
                ).to_wire()
            resolution = await b.resolver.resolve("a.test")
            assert (resolution.status, resolution.text) == (
                RETRY,
                "Temporary failure in MX lookup: Too many aliases",
            )
            assert (await b.resolver.resolve("m.test")).status is RETRY

    async def test_exchanger_that_is_an_alias(self):
        """Forbidden by RFC 2181 10.3, common, and followed."""
        zone: dict[tuple[str, str], list[str] | str] = {
            ("a.test", "MX"): ["10 alias.test."],
            ("alias.test", "CNAME"): ["real.test."],
            ("real.test", "A"): ["127.0.0.1"],
        }
        async with bench(zone) as b:
            hosts = (await b.resolver.resolve("a.test")).hosts
            assert hosts == (MxHost(10, "alias.test", ("127.0.0.1",)),)


class TestCache:
    async def test_hits_until_the_ttl_is_over(self):
        """An answer is kept for its TTL, and says how long it still holds."""
        async with bench(ZONE, ttl_s=100) as b:
            await b.resolver.resolve("example.org")
            asked = len(b.server.asked)
            b.effects.time += 99.0
            assert (await b.resolver.resolve("EXAMPLE.org")).ttl_s == 1.0
            assert len(b.server.asked) == asked
            b.effects.time += 1.0
            assert (await b.resolver.resolve("example.org")).ttl_s == 100.0
            assert len(b.server.asked) == 2 * asked
            assert (b.resolver.stats.hits, b.resolver.stats.misses) == (1, 2)

    @pytest.mark.parametrize(("ttl_s", "kept_s"), [(0, 5.0), (1_000_000, 86_400.0)])
    async def test_ttl_is_clamped(self, ttl_s, kept_s):
        """Neither a TTL of 0 nor one of weeks is taken literally."""
        async with bench(ZONE, ttl_s=ttl_s) as b:
            assert (await b.resolver.resolve("example.org")).ttl_s == kept_s

    async def test_failures_are_kept_for_a_while(self):
        """A broken domain is asked for once a minute, not once per message."""
        async with bench({("a.test", "MX"): "SERVFAIL"}) as b:
            for seconds, asked in ((0, 1), (59, 1), (1, 2)):
                b.effects.time += seconds
                assert (await b.resolver.resolve("a.test")).status is RETRY
                assert len(b.server.asked) == asked

    async def test_bounded(self):
        """The domain that was not asked for longest is dropped."""
        zone: dict[tuple[str, str], list[str] | str] = {
            (f"d{i}.test", "A"): ["127.0.0.1"] for i in range(4)
        }
        async with bench(zone, cache_max=2) as b:
            for name in ("d0.test", "d1.test", "d0.test", "d2.test"):
                await b.resolver.resolve(name)
            assert len(b.resolver) == 2
            asked = len(b.server.asked)
            await b.resolver.resolve("d0.test")
            assert len(b.server.asked) == asked
            await b.resolver.resolve("d1.test")
            assert len(b.server.asked) > asked

    async def test_one_look_up_at_a_time_per_domain(self):
        """Many who ask at once share one look-up."""
        async with bench(ZONE) as b:
            answers = await asyncio.gather(*[b.resolver.resolve("example.org") for _ in range(50)])
            assert len(set(answers)) == 1
            assert b.server.asked.count("example.org MX") == 1
            assert (b.resolver.stats.misses, b.resolver.stats.joined) == (1, 49)

    async def test_flush(self):
        """After a flush everything is asked again, even what was on its way."""
        async with bench(ZONE) as b:
            await b.resolver.resolve("example.org")
            b.resolver.flush()
            assert len(b.resolver) == 0
            first = asyncio.ensure_future(b.resolver.resolve("example.org"))
            await asyncio.sleep(0)
            b.resolver.flush()
            second = asyncio.ensure_future(b.resolver.resolve("example.org"))
            assert await first == await second
            assert b.server.asked.count("example.org MX") == 3
            assert len(b.resolver) == 1
