"""What TLS a connection is to have, decided before it is opened.

The levels are Postfix's (``smtp_tls_security_level``). A plan that may fail names the plan that comes after it: verified
while an MTA-STS policy is only being tested, then opportunistic, then in clear.
"""

from typing import Final, NamedTuple

from mta.smtphello import Hello, Login, TlsLevel


class Tlsa(NamedTuple):
    """One TLSA record (RFC 6698 2.1)."""

    usage: int
    selector: int
    """0: the whole certificate; 1: its public key."""
    matching: int
    """0: the thing itself; 1: SHA-256 of it; 2: SHA-512."""
    data: bytes


class TlsPlan(NamedTuple):
    """What is to happen on one connection."""

    hello: Hello = Hello()
    scheme: str = "smtp"
    """As OpenSMTPD's log and rules have it: ``smtp``, ``smtp+tls``, ``smtps``, ``smtp+notls``."""
    server_name: str = ""
    """Of SNI, and to be found in the certificate if ``verify``."""
    verify: bool = False
    """The certificate has to be good: authority, name, dates."""
    tlsa: tuple[Tlsa, ...] = ()
    """The certificate has to match one of these instead."""
    names: tuple[str, ...] = ()
    """Names of which one has to be in a certificate that a DANE-TA record vouches for (RFC 7672 3.2.2)."""
    fallback: "TlsPlan | None" = None
    """What to do on a new connection if TLS fails on this one."""
    notice: str = ""
    """What the log says when that happens."""
    refusal: str = ""
    """Do not connect at all, for this reason."""
    policy: str = ""
    """Whose wish this is, if not the operator's: for the log."""


DOWNGRADE: Final = "opportunistic TLS failed, downgrading to plain"
"""OpenSMTPD mta_session.c."""
TESTED: Final = "MTA-STS policy in testing would have refused"
TESTING: Final = "mta-sts-testing"
"""`TlsPlan.policy` of a plan that such a policy made."""
NOT_ALLOWED: Final = "454 4.7.5 Host is not in the MTA-STS policy of the domain"


def plan_for(
    level: TlsLevel, server_name: str, login: Login | None, *, login_in_clear: bool
) -> TlsPlan:
    """Return the plan of a level other than ``dane``, for which look-ups have to decide."""
    clear = Hello(login=login, login_in_clear=login_in_clear)
    match level:
        case "none":
            return TlsPlan(clear, "smtp+notls", server_name)
        case "encrypt":
            return TlsPlan(clear._replace(starttls=True, must=True), "smtp+tls", server_name)
        case "verify":
            hello = clear._replace(starttls=True, must=True)
            return TlsPlan(hello, "smtp+tls", server_name, verify=True)
        case "implicit":
            hello = clear._replace(implicit=True, must=True)
            return TlsPlan(hello, "smtps", server_name, verify=True)
        case _:
            hello = clear._replace(starttls=True)
            plain = TlsPlan(clear, "smtp+notls", server_name)
            return TlsPlan(hello, "smtp", server_name, fallback=plain, notice=DOWNGRADE)


def dane_plan(plan: TlsPlan, records: tuple[Tlsa, ...], *, names: tuple[str, ...]) -> TlsPlan:
    """Return an opportunistic plan as a host with TLSA records makes it: mandatory (RFC 7672 2.2).

    Args:
        plan: without DANE.
        records: those that are usable; without any, encryption is all that can be had (RFC 7672 2.2.1).
        names: see `TlsPlan.names`.
    """
    hello = plan.hello._replace(starttls=True, must=True)
    policy = "dane" if records else "dane-unusable"
    return plan._replace(
        hello=hello, tlsa=records, names=names, fallback=None, notice="", policy=policy
    )


def enforced_plan(plan: TlsPlan) -> TlsPlan:
    """Return a plan as an MTA-STS policy in mode ``enforce`` makes it (RFC 8461 5)."""
    hello = plan.hello._replace(starttls=True, must=True)
    return plan._replace(
        hello=hello, verify=True, fallback=None, notice="", policy="mta-sts-enforce"
    )


def tested_plan(plan: TlsPlan) -> TlsPlan:
    """Return a plan as an MTA-STS policy in mode ``testing`` makes it: as strict, and if that fails, as before."""
    return plan._replace(verify=True, fallback=plan, notice=TESTED, policy=TESTING)
