"""DANE for SMTP: does a certificate match what the DNS vouches for? RFC 6698, 7671, 7672.

Pure: records and certificates in, a verdict out. Usages 2 (DANE-TA) and 3 (DANE-EE) count; 0 and 1 do not, because mail
has no agreed authorities (RFC 7672 3.1.3). What can't be parsed does not match; it never raises.
"""

import datetime
import hashlib
from collections.abc import Iterable, Sequence
from typing import Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from mta.tlsplan import Tlsa

DANE_TA: Final = 2
DANE_EE: Final = 3
RECORDS_MAX: Final = 32
"""TLSA records of one name that are looked at. Ours; four is many."""
DEPTH_MAX: Final = 10
"""Certificates between the host's and the anchor's."""
_DIGEST_BYTES: Final = {1: 32, 2: 64}


def usable(records: Iterable[Tlsa]) -> tuple[Tlsa, ...]:
    """Return the records that can be checked (RFC 7672 2.1, 3.1); none means: encrypt, with anybody.

    Of records that differ in nothing but the digest, those with the stronger one count (RFC 7671 9).
    """
    good = [
        record
        for record in records
        if record.usage in (DANE_TA, DANE_EE)
        and record.selector in (0, 1)
        and record.matching in (0, 1, 2)
        and len(record.data) == _DIGEST_BYTES.get(record.matching, len(record.data))
        and record.data
    ][:RECORDS_MAX]
    strong = {(r.usage, r.selector) for r in good if r.matching == 2}
    return tuple([r for r in good if not (r.matching == 1 and (r.usage, r.selector) in strong)])


def failure(
    records: Sequence[Tlsa], chain: Sequence[bytes], names: Sequence[str], now: float
) -> str:
    """Return why a chain of certificates does not match, or nothing if it does.

    Args:
        records: `usable` ones.
        chain: what the host sent in DER, its own certificate first.
        names: of the host and of the domain; for DANE-TA the certificate has to have one of them. With DANE-EE the
            record alone binds certificate and name, and dates do not count (RFC 7672 3.1.1).
        now: seconds since the epoch.
    """
    certificates = _parse(chain)
    if not certificates:
        return "no certificate that can be read"
    leaf = certificates[0]
    if any(record.usage == DANE_EE and _matches(record, leaf) for record in records):
        return ""
    anchors = [record for record in records if record.usage == DANE_TA]
    if not anchors:
        return "certificate does not match TLSA records"
    why = _chain_failure(anchors, certificates, now)
    if why:
        return why
    if not any(_has_name(leaf, name) for name in names):
        return "certificate is for another name"
    return ""


def _chain_failure(
    anchors: Sequence[Tlsa], certificates: Sequence[x509.Certificate], now: float
) -> str:
    """Go from the host's certificate up, issuer by issuer, to one that a record means."""
    # An anchor that is a whole certificate need not be sent.
    whole = _parse([each.data for each in anchors if (each.selector, each.matching) == (0, 0)])
    candidates = [*certificates[1 : DEPTH_MAX + 1], *whole]
    current = certificates[0]
    for below in range(DEPTH_MAX):
        if not _is_current(current, now):
            return "certificate has expired or is not yet valid"
        issuer = next((each for each in candidates if _has_issued(each, current, below)), None)
        if issuer is None:
            return "certificate does not match TLSA records"
        if any(_matches(record, issuer) for record in anchors):
            return ""
        candidates.remove(issuer)
        current = issuer
    return "certificate chain is too long"


def _parse(chain: Iterable[bytes]) -> list[x509.Certificate]:
    found: list[x509.Certificate] = []
    for der in chain:
        try:
            found.append(x509.load_der_x509_certificate(der))
        except ValueError:
            # What follows a certificate that nobody can read may still be the anchor; not the first.
            if not found:
                return []
    return found


def _matches(record: Tlsa, certificate: x509.Certificate) -> bool:
    if record.selector == 0:
        thing = certificate.public_bytes(Encoding.DER)
    else:
        try:
            key = certificate.public_key()
            thing = key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        except (ValueError, UnsupportedAlgorithm):
            return False
    if record.matching == 1:
        thing = hashlib.sha256(thing).digest()
    elif record.matching == 2:
        thing = hashlib.sha512(thing).digest()
    return thing == record.data


def _is_current(certificate: x509.Certificate, now: float) -> bool:
    instant = datetime.datetime.fromtimestamp(now, datetime.UTC)
    return certificate.not_valid_before_utc <= instant <= certificate.not_valid_after_utc


def _has_issued(issuer: x509.Certificate, certificate: x509.Certificate, below: int) -> bool:
    """Whether an authority that may have so many others ``below`` it signed a certificate (RFC 5280 4.2.1.9)."""
    try:
        extensions = issuer.extensions
        basic = extensions.get_extension_for_class(x509.BasicConstraints).value
        if not basic.ca or (basic.path_length is not None and basic.path_length < below):
            return False
        usages = [each.value for each in extensions if isinstance(each.value, x509.KeyUsage)]
        if not all(usage.key_cert_sign for usage in usages):
            return False
        certificate.verify_directly_issued_by(issuer)
    except (ValueError, TypeError, InvalidSignature, UnsupportedAlgorithm, x509.ExtensionNotFound):
        return False
    except (x509.DuplicateExtension, x509.InvalidVersion):
        return False
    return True


def _has_name(certificate: x509.Certificate, name: str) -> bool:
    """Whether a certificate is for a name; ``*`` stands for one whole label on the left (RFC 6125 6.4.3)."""
    wanted = name.lower().rstrip(".")
    try:
        found = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
        names = [each.lower() for each in found.value.get_values_for_type(x509.DNSName)]
    except (ValueError, x509.ExtensionNotFound, x509.DuplicateExtension):
        names = []
    if wanted in names:
        return True
    first, _, rest = wanted.partition(".")
    return bool(first and "." in rest) and f"*.{rest}" in names
