"""Addresses and the arguments of MAIL and RCPT, read strictly.

Small on purpose: what is not plainly an address of RFC 5321 4.1.2 (with RFC 6531 for UTF-8) is none.
Nothing here guesses, and every pattern runs in linear time. What the client did wrong is a `Reply`.
"""

import ipaddress
import re
import unicodedata
from typing import NamedTuple

from mta.core.reply import Reply

LOCAL_MAX = 255
"""Octets of a local part. RFC 5321 4.5.3.1.1 promises clients 64; VERP and SRS need more; OpenSMTPD: 255."""
DOMAIN_MAX = 255
"""Octets of a domain, as A-labels. RFC 5321 4.5.3.1.2."""
ENVID_MAX = 100
"""Characters of ENVID. RFC 3461 5.4."""
ORCPT_MAX = 500
"""Characters of ORCPT. RFC 3461 5.4."""

_HIGH = "\u00a0-\u2027\u202a-\ud7ff\ue000-\U0010ffff"  # no C1 controls, no line separators, no surrogates
_ATEXT = rf"[A-Za-z0-9!#$%&'*+/=?^_`{{|}}~{_HIGH}-]"
_DOT_STRING = rf"{_ATEXT}+(?:\.{_ATEXT}+)*"
_QUOTED = rf'"(?:[ !#-\[\]-~{_HIGH}]|\\[ -~])*"'
_NAME = rf"[A-Za-z0-9.{_HIGH}-]+"
_LITERAL = r"\[[A-Za-z0-9:.]{1,60}\]"
_LABEL = r"[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?"

# The path of nearly every command: no quotes, no route, plain ASCII.
_PLAIN = re.compile(
    r"<([A-Za-z0-9!#$%&'*+/=?^_`{|}~-]+(?:\.[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]+)*)@([A-Za-z0-9.-]+)>"
)
_PATH = re.compile(
    rf"<(?:@(?P<route>{_NAME}(?:,@{_NAME})*):)?(?P<local>{_DOT_STRING}|{_QUOTED})@(?P<domain>{_NAME}|{_LITERAL})>"
)
_ONLY_DOT_STRING = re.compile(_DOT_STRING)
_LDH = re.compile(rf"{_LABEL}(?:\.{_LABEL})*")
_XTEXT = re.compile(r"(?:[!-*,-<>-~]|\+[0-9A-F]{2})+")
_ORCPT = re.compile(rf"[A-Za-z0-9-]+;(?:[!-*,-<>-~{_HIGH}]|\+[0-9A-F]{{2}})+")
_HEX = re.compile(r"\+([0-9A-F]{2})")
_PARAMETER = re.compile(rf"([A-Za-z0-9][A-Za-z0-9-]*)(?:=([!-<>-~{_HIGH}]+))?")
_HELO = re.compile(r"[A-Za-z0-9._-]{1,255}|\[[A-Za-z0-9:.-]{1,253}\]")


class Path(NamedTuple):
    """A mailbox, or the null sender."""

    address: str
    """``local@domain``, the domain lower case, needless quotes removed; empty for ``<>``."""
    domain: str
    """What the address is routed by: lower case, A-labels, or ``[address]``; empty for ``<>``."""

    @property
    def is_ascii(self) -> bool:
        """The address can be sent without SMTPUTF8."""
        return self.address.isascii()


NULL_PATH = Path("", "")
"""The reverse-path ``<>`` (RFC 5321 4.5.5)."""


class MailArguments(NamedTuple):
    """What MAIL said."""

    path: Path
    size: int = 0
    """SIZE= (RFC 1870), or 0."""
    body_type: str = ""
    """``7BIT``, ``8BITMIME`` or empty (RFC 6152)."""
    smtputf8: bool = False
    ret: str = ""
    """``FULL``, ``HDRS`` or empty (RFC 3461 4.3)."""
    envid: str = ""
    """ENVID as sent, in xtext (RFC 3461 4.4)."""


class RcptArguments(NamedTuple):
    """What RCPT said."""

    path: Path
    notify: str = ""
    """``NEVER`` or a list of ``SUCCESS``, ``FAILURE``, ``DELAY`` (RFC 3461 4.1)."""
    orcpt: str = ""
    """ORCPT as sent (RFC 3461 4.2)."""


def domain_key(domain: str) -> str | None:
    """Return a domain in lower case and A-labels, an address literal as is, or None if it is neither.

    The U-label and the A-label of one domain have one key. Unlike the ``idna`` codec (IDNA 2003) this
    never maps one letter to others, so ``ß`` is not ``ss``: mail for one domain can't go to another.
    A label that is not in the form that RFC 5891 4.2 wants (NFC, no compatibility characters, letters,
    marks, digits, hyphens) is refused. A numeric last label is refused: it is an address without brackets.
    """
    if domain[:1] == "[":
        return _literal(domain)
    if len(domain) > DOMAIN_MAX:
        return None
    key = domain.lower()
    if not key.isascii() or "xn--" in key:
        labels = [_a_label(label) for label in unicodedata.normalize("NFC", key).split(".")]
        if None in labels:
            return None
        key = ".".join(label for label in labels if label)
    if len(key) > DOMAIN_MAX or not _LDH.fullmatch(key):
        return None
    return None if key[key.rfind(".") + 1 :].isdigit() else key


def _a_label(label: str) -> str | None:
    """Return one label as A-label, or None if it can't be one."""
    if label.isascii():
        if not label.startswith("xn--"):
            return label or None
        try:
            unicode = label[4:].encode("ascii").decode("punycode")
        except (UnicodeError, ValueError, OverflowError):
            return None
        # Only what a U-label would be turned into: xn--abc-, xn--- and the like are other spellings.
        return label if not unicode.isascii() and _a_label(unicode) == label else None
    if len(label) > 63 or label != label.lower() or unicodedata.normalize("NFKC", label) != label:
        return None
    categories = {unicodedata.category(letter) for letter in label if letter != "-"}
    if (
        not categories <= {"Ll", "Lo", "Lm", "Mn", "Mc", "Nd"}
        or label[0] == "-"
        or label[-1] == "-"
    ):
        return None
    if unicodedata.category(label[0]).startswith("M"):
        return None
    return "xn--" + label.encode("punycode").decode("ascii")


def _literal(domain: str) -> str | None:
    """Return an address literal of RFC 5321 4.1.3 in one spelling, or None."""
    if domain[-1:] != "]":
        return None
    text = domain[1:-1]
    try:
        if text[:5].upper() == "IPV6:":
            return f"[IPv6:{ipaddress.IPv6Address(text[5:])}]"
        return f"[{ipaddress.IPv4Address(text)}]"
    except ValueError:
        return None


def parse_path(text: str) -> Path | None:
    """Return the mailbox that ``<local@domain>`` names, `NULL_PATH` for ``<>``, or None.

    A source route is dropped, as RFC 5321 4.1.2 and appendix C say. Nothing inside the local part
    (``%``, ``!``, a quoted ``@``) means a route to anywhere: the domain is what follows the last ``@``.
    """
    if text == "<>":
        return NULL_PATH
    plain = _PLAIN.fullmatch(text)
    if plain is not None:
        local, domain = plain.groups()
    else:
        match = _PATH.fullmatch(text)
        if match is None:
            return None
        local, domain = match["local"], match["domain"]
        route = match["route"]
        if route is not None and any(
            domain_key(hop.lstrip("@")) is None for hop in route.split(",")
        ):
            return None
        if local[0] == '"':
            local = _canonical(local)
    key = domain_key(domain)
    if key is None or len(local.encode()) > LOCAL_MAX:
        return None
    return Path(f"{local}@{key if domain[0] == '[' else domain.lower()}", key)


def _canonical(quoted: str) -> str:
    """Return a quoted local part with no more quotes and backslashes than it needs (RFC 5321 4.1.2)."""
    content = re.sub(r"\\(.)", r"\1", quoted[1:-1])
    if _ONLY_DOT_STRING.fullmatch(content):
        return content
    return '"' + re.sub(r'(["\\])', r"\\\1", content) + '"'


def mailbox_key(address: str) -> str:
    """Return an address in the form in which recipients are compared: only local parts have case (RFC 5321 2.4)."""
    local, at, domain = address.rpartition("@")
    return f"{local}{at}{domain.lower()}"


def is_helo_name(text: str) -> bool:
    """Return whether HELO may say this: a name or an address literal, nothing that could break a header.

    Underscores pass, because Windows hosts have them; no check against DNS.
    """
    return _HELO.fullmatch(text) is not None


def _split(text: str) -> tuple[str, str] | None:
    """Split ``<path> parameters`` where the path ends; quoted strings may hold ``>`` and spaces."""
    if text[:1] != "<":
        return None
    end = text.find(">")
    quote = text.find('"')
    if -1 < quote < end:
        match = re.match(rf"<[^\"<>]*{_QUOTED}[^\"<>]*>", text)
        if match is None:
            return None
        end = match.end() - 1
    if end < 0:
        return None
    rest = text[end + 1 :]
    return None if rest and rest[0] != " " else (text[: end + 1], rest.strip(" "))


_BAD_PARAMETER = Reply(501, "5.5.4", "Invalid parameter")


def _parameters(text: str) -> dict[str, str] | None:
    """Return ESMTP parameters by keyword, or None if one is malformed or given twice."""
    found: dict[str, str] = {}
    for word in text.split():
        match = _PARAMETER.fullmatch(word)
        if match is None or match[1].upper() in found:
            return None
        found[match[1].upper()] = match[2] or ""
    return found


def _unsupported(keyword: str) -> Reply:
    return Reply(555, "5.5.4", f"Unsupported option: {keyword[:40]}")


def _xtext_is_printable(text: str) -> bool:
    """Return whether what xtext encodes is printable: ``+0A`` once was a way into Exim's queue files."""
    return all(0x20 <= int(code, 16) <= 0x7E for code in _HEX.findall(text))


def parse_mail(arguments: str, *, esmtp: bool = True) -> MailArguments | Reply:
    """Read what follows the word MAIL; on an error return the reply.

    Recognises SIZE, BODY, SMTPUTF8, AUTH (ignored) and, of RFC 3461, RET and ENVID. After HELO no
    parameter is allowed.
    """
    if arguments[:5].upper() != "FROM:":
        return Reply(501, "5.5.2", "Syntax: MAIL FROM:<address> [parameters]")
    pair = _split(arguments[5:].strip(" "))
    path = None if pair is None else parse_path(pair[0])
    if pair is None or path is None:
        return Reply(501, "5.1.7", "Bad sender's mailbox address syntax")
    if pair[1]:
        parsed = _mail_parameters(path, pair[1], esmtp)
        if isinstance(parsed, Reply):
            return parsed
    else:
        parsed = MailArguments(path)
    if not parsed.smtputf8 and not path.is_ascii:
        return Reply(553, "5.6.7", "Non-ASCII address needs SMTPUTF8")
    return parsed


def _mail_parameters(path: Path, text: str, esmtp: bool) -> MailArguments | Reply:
    found = _parameters(text)
    if found is None:
        return _BAD_PARAMETER
    size, body_type, smtputf8, ret, envid = 0, "", False, "", ""
    for keyword, value in found.items():
        if not esmtp:
            return _unsupported(keyword)
        match keyword:
            case "SIZE":
                # RFC 1870 3: 1 to 20 digits. ASCII ones: str.isdigit() takes any script's.
                if not re.fullmatch(r"[0-9]{1,20}", value):
                    return _BAD_PARAMETER
                size = int(value)
            case "BODY":
                body_type = value.upper()
                if body_type not in ("7BIT", "8BITMIME"):
                    return _BAD_PARAMETER
            case "SMTPUTF8":
                if value:
                    return _BAD_PARAMETER
                smtputf8 = True
            case "AUTH":
                if value != "<>" and not _XTEXT.fullmatch(value):
                    return _BAD_PARAMETER
            case "RET":
                ret = value.upper()
                if ret not in ("FULL", "HDRS"):
                    return _BAD_PARAMETER
            case "ENVID":
                envid = value
                if (
                    len(envid) > ENVID_MAX
                    or not _XTEXT.fullmatch(envid)
                    or not _xtext_is_printable(envid)
                ):
                    return _BAD_PARAMETER
            case _:
                return _unsupported(keyword)
    return MailArguments(path, size, body_type, smtputf8, ret, envid)


def parse_rcpt(
    arguments: str, *, hostname: str, esmtp: bool = True, smtputf8: bool = False
) -> RcptArguments | Reply:
    """Read what follows the word RCPT; on an error return the reply.

    ``<postmaster>`` without a domain is ours (RFC 5321 4.1.1.3): ``postmaster@hostname``.
    Recognises, of RFC 3461, NOTIFY and ORCPT.
    """
    if arguments[:3].upper() != "TO:":
        return Reply(501, "5.5.2", "Syntax: RCPT TO:<address> [parameters]")
    pair = _split(arguments[3:].strip(" "))
    if pair is None:
        path = None
    elif pair[0].lower() == "<postmaster>":
        path = parse_path(f"<postmaster@{hostname}>")
    else:
        path = parse_path(pair[0])
    if pair is None or path is None or not path.address:
        return Reply(501, "5.1.3", "Bad destination mailbox address syntax")
    if not smtputf8 and not path.is_ascii:
        return Reply(553, "5.6.7", "Non-ASCII address needs SMTPUTF8")
    if not pair[1]:
        return RcptArguments(path)
    found = _parameters(pair[1])
    if found is None:
        return _BAD_PARAMETER
    notify, orcpt = "", ""
    for keyword, value in found.items():
        if not esmtp:
            return _unsupported(keyword)
        match keyword:
            case "NOTIFY":
                notify = value.upper()
                words = notify.split(",")
                if notify != "NEVER" and not (
                    set(words) <= {"SUCCESS", "FAILURE", "DELAY"} and len(set(words)) == len(words)
                ):
                    return _BAD_PARAMETER
            case "ORCPT":
                orcpt = value
                if (
                    len(orcpt) > ORCPT_MAX
                    or not _ORCPT.fullmatch(orcpt)
                    or not _xtext_is_printable(orcpt)
                    or not (smtputf8 or orcpt.isascii())
                ):
                    return _BAD_PARAMETER
            case _:
                return _unsupported(keyword)
    return RcptArguments(path, notify, orcpt)
