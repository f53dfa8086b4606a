"""Sessions of the client's half of SMTP at any stage, with nothing to connect to."""

from mta.core.envelopes.base import MtaEnvelope
from mta.core.reply import Outcome
from mta.smtpclient import (
    ClientSession,
    Ready,
)

OK = Outcome.OK


TEMPFAIL = Outcome.TEMPFAIL


PERMFAIL = Outcome.PERMFAIL


EHLO_ALL = (
    b"250-mx.example greets you\r\n250-PIPELINING\r\n250-SIZE 10000000\r\n250-8BITMIME\r\n"
    b"250-SMTPUTF8\r\n250-DSN\r\n250 ENHANCEDSTATUSCODES\r\n"
)


EHLO_PIPELINING = b"250-mx.example\r\n250 PIPELINING\r\n"


EHLO_PLAIN = b"250 mx.example\r\n"


BODY = b"Subject: hello\r\n\r\nworld\r\n"


def envelope(rcpt: str = "to@example.org", *options: str, sender: str = "from@example.com"):
    return MtaEnvelope(sender, rcpt, 0.0, len(BODY), options)


def envelopes(count: int) -> list[MtaEnvelope]:
    return [envelope(f"r{number}@example.org") for number in range(count)]


def ready(ehlo: bytes = EHLO_PIPELINING, **options: object) -> ClientSession:
    """Return a session that was greeted and is ready at time 0."""
    session = ClientSession("client.example", now=0.0, **options)  # type: ignore[arg-type]
    assert session.receive(b"220 mx.example ESMTP\r\n", 0.0) == []
    assert session.data_to_send(0.0) == b"EHLO client.example\r\n"
    (event,) = session.receive(ehlo, 0.0)
    assert isinstance(event, Ready)
    return session


def sent(session: ClientSession, now: float = 0.0) -> bytes:
    """Take all that the session wants to send."""
    out = b""
    while chunk := session.data_to_send(now):
        out += chunk
    return out


def at_stage(stage: str) -> ClientSession:
    """Return a session that waits for the answer to ``stage``, everything before it being fine."""
    session = ClientSession("client.example", now=0.0)
    if stage == "banner":
        return session
    session.receive(b"220 mx\r\n", 0.0)
    sent(session)
    if stage == "ehlo":
        return session
    session.receive(EHLO_PLAIN, 0.0)
    if stage == "ready":
        return session
    session.start([envelope()], BODY, 0.0)
    for name, reply in (("mail", b"250 a\r\n"), ("rcpt", b"250 b\r\n"), ("data", b"354 c\r\n")):
        sent(session)
        if stage == name:
            return session
        session.receive(reply, 0.0)
    sent(session)
    assert stage == "dot", stage
    return session


def reset(session: ClientSession) -> list[object]:
    """Answer the RSET that the session wants."""
    assert sent(session) == b"RSET\r\n"
    return list(session.receive(b"250 ok\r\n", 0.0))
