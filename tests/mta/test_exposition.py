import asyncio
import contextlib

import pytest
from prometheus_client.parser import text_string_to_metric_families

from mta.core.metrics import METRICS, Kind, Metrics
from mta.effects import Effects, NotLoopbackError
from mta.exposition import Exposition, ExpositionLimits, prometheus_name


@contextlib.asynccontextmanager
async def serving(metrics=None, limits=None, address="127.0.0.1"):
    exposition = Exposition((metrics or Metrics()).snapshot, Effects(), limits=limits)
    port = await exposition.start(address, 0)
    try:
        async with asyncio.timeout(20):
            yield exposition, port
    finally:
        await exposition.close()
        await exposition.close()


async def http(port, data, *, end=False):
    """Say something and return everything that comes back."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(data)
    if end:
        writer.write_eof()
    answer = b""
    with contextlib.suppress(ConnectionError):
        answer = await reader.read()
    writer.close()
    with contextlib.suppress(ConnectionError):
        await writer.wait_closed()
    return answer


def test_every_metric_has_a_name_of_its_own():
    """Prometheus' names are derived, and none of them clashes, `_total` included."""
    names = [
        prometheus_name(name) + ("_total" if metric.kind is Kind.COUNTER else "")
        for name, metric in METRICS.items()
    ]
    assert len(METRICS) == len(set(names))
    assert "mta_scheduler_envelope_inflight" in names
    assert "mta_session" in names


async def test_the_page_has_every_metric():
    """What Prometheus parses are our names, kinds and values, and the memory of the process."""
    metrics = Metrics()
    metrics.inc("scheduler.delivery.ok", 7)
    metrics.set("mta.session", 3)
    async with serving(metrics) as (_, port):
        answer = await http(port, b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n")
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 OK\r\nContent-Type: text/plain; version=")
    assert b"Content-Length: %d\r\n" % len(body) in head + b"\r\n"
    families = {family.name: family for family in text_string_to_metric_families(body.decode())}
    ours = {prometheus_name(name): metric for name, metric in METRICS.items()}
    assert ours.keys() <= families.keys()
    for name, metric in ours.items():
        assert metric.kind.value == families[name].type
        assert metric.help == families[name].documentation
    assert 7.0 == families["mta_scheduler_delivery_ok"].samples[0].value
    assert 3.0 == families["mta_session"].samples[0].value
    assert families["process_resident_memory_bytes"].samples[0].value > 1e6
    assert "python_info" not in families


async def test_listeners_are_labels():
    """A name of the operator's is no part of a metric's name."""

    class Listening(Metrics):
        def snapshot(self):
            mine = {"smtp.listener.s.session": 2, "smtp.listener.s.accepted": 5}
            return {**super().snapshot(), **mine}

    async with serving(Listening()) as (_, port):
        answer = await http(port, b"GET /metrics HTTP/1.0\r\n\r\n")
    assert b'\nmta_smtp_listener_session{listener="s"} 2.0\n' in answer
    assert b'\nmta_smtp_listener_accepted_total{listener="s"} 5.0\n' in answer


@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        (b"GET /metrics?name[]=x HTTP/1.0\r\n\r\n", b"200"),
        (b"GET /metrics HTTP/1.1\n\n", b"200"),
        (b"GET / HTTP/1.1\r\n\r\n", b"404"),
        (b"GET /metrics/../etc/passwd HTTP/1.1\r\n\r\n", b"404"),
        (b"POST /metrics HTTP/1.1\r\nContent-Length: 0\r\n\r\n", b"405"),
        (b"GET /metrics\r\n\r\n", b"400"),
        (b"\x16\x03\x01\x00\r\n\r\n", b"400"),
        (b"EHLO client\r\n\r\n", b"400"),
        (b"GET /metrics HTTP/1.1\r\nX: " + b"a" * 9000, b"431"),
    ],
)
async def test_requests(request_bytes, status):
    """One path, one answer per connection, and no more than a request's worth of bytes."""
    async with serving() as (_, port):
        assert status == (await http(port, request_bytes)).split(b" ")[1]


async def test_head_has_no_body():
    """HEAD tells how long the page is, and ends there."""
    async with serving() as (_, port):
        answer = await http(port, b"HEAD /metrics HTTP/1.1\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 200 OK\r\n")
    assert answer.endswith(b"\r\n\r\n")


async def test_half_a_request():
    """A client that stops in the middle is told; one that says nothing is cut off in time."""
    async with serving(limits=ExpositionLimits(timeout_s=0.1)) as (_, port):
        assert b"400" == (await http(port, b"GET /met", end=True)).split(b" ")[1]
        assert b"" == await http(port, b"GET /met")


async def test_too_many_connections():
    """One more than the limit gets 503; once the others are gone there is room again."""
    async with serving(limits=ExpositionLimits(max_conn=2)) as (_, port):
        held = [await asyncio.open_connection("127.0.0.1", port) for _ in range(2)]
        assert b"503" == (await http(port, b"GET /metrics HTTP/1.1\r\n\r\n")).split(b" ")[1]
        for _, writer in held:
            writer.close()
            await writer.wait_closed()
        while b"200" not in (await http(port, b"GET /metrics HTTP/1.1\r\n\r\n"))[:15]:
            pass


async def test_a_taken_port_is_an_error():
    """The server can tell the operator in one line."""
    async with serving() as (_, port):
        second = Exposition(Metrics().snapshot, Effects())
        with pytest.raises(OSError, match=r"address already in use|Address already in use"):
            await second.start("127.0.0.1", port)
        await second.close()


async def test_only_loopback():
    """Figures about mail are nobody else's business."""
    with pytest.raises(NotLoopbackError):
        await Exposition(Metrics().snapshot, Effects()).start("0.0.0.0", 0)


async def test_close_cuts_connections_off(fds):
    """Nothing stays open."""
    async with serving() as (exposition, port):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"GET /")
        await exposition.close()
        with contextlib.suppress(ConnectionError):
            assert await reader.read() == b""
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()
