"""The scripted Internet's certificates: an authority and host keys, all derived from the scenario's seed.

Why derived? The processes of a world, and its name server with the TLSA records, agree on every key without telling each
other. So these keys are no secret: they are good for a test-bed and for nothing else.
"""

import datetime
import hashlib
import ipaddress
import ssl
import tempfile
from collections.abc import Mapping
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from sim.scenario import Destination, Scenario

_ORDER: Final = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
"""Of the curve P-256."""
_DAY: Final = datetime.timedelta(days=1)
_LIFE: Final = 90 * _DAY


class Authority:
    """Issues the certificates of one world."""

    def __init__(self, seed: int, now: float) -> None:
        """Make the authority.

        Args:
            seed: of the scenario; the same seed makes the same keys.
            now: seconds since the epoch: certificates begin a day before, and last 90 days.
        """
        self._seed = seed
        self._now = datetime.datetime.fromtimestamp(now, datetime.UTC)
        self._key = self._derive("authority")
        self._name = x509.Name(
            [x509.NameAttribute(NameOID.COMMON_NAME, f"Test-bed authority {seed}")]
        )
        self._certificate = self._sign(
            self._name, self._key, [], ends=self._now + _LIFE, authority=True
        )

    def pem(self) -> bytes:
        """Return the authority's certificate, for those who are to trust it."""
        return self._certificate.public_bytes(Encoding.PEM)

    def pair(self, host: str, address: str, mode: str = "offered") -> tuple[bytes, bytes]:
        """Return a host's certificate and key, in PEM.

        Args:
            host: its name.
            address: its address.
            mode: ``expired`` and ``wrong-name`` are what they say, ``self-signed`` has no authority; all others are in order.
        """
        key = self._derive(f"host {host}")
        name = f"wrong.{host}" if mode == "wrong-name" else host
        names: list[x509.GeneralName] = [x509.DNSName(name)]
        if mode != "wrong-name":
            names.append(x509.IPAddress(ipaddress.ip_address(address)))
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name[:64])])
        ends = self._now - _DAY / 2 if mode == "expired" else self._now + _LIFE
        certificate = self._sign(
            subject, key, names, ends=ends, authority=False, alone=mode == "self-signed"
        )
        secret = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        return certificate.public_bytes(Encoding.PEM), secret

    def context(self, host: str, address: str, mode: str) -> ssl.SSLContext:
        """Return what a host needs to speak TLS; see `pair`."""
        certificate, secret = self.pair(host, address, mode)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        # OpenSSL reads them from files only.
        with tempfile.NamedTemporaryFile(prefix="testbed-", suffix=".pem") as file:
            file.write(secret + certificate)
            file.flush()
            context.load_cert_chain(file.name)
        return context

    def tlsa(self, host: str) -> str:
        """Return the TLSA record that means a host's key, as in a zone file: ``3 1 1 digest``."""
        public = self._derive(f"host {host}").public_key()
        data = public.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        return f"3 1 1 {hashlib.sha256(data).hexdigest()}"

    def _derive(self, what: str) -> ec.EllipticCurvePrivateKey:
        digest = hashlib.sha512(f"{self._seed}/{what}".encode()).digest()
        return ec.derive_private_key(
            int.from_bytes(digest, "big") % (_ORDER - 1) + 1, ec.SECP256R1()
        )

    def _sign(
        self,
        subject: x509.Name,
        key: ec.EllipticCurvePrivateKey,
        names: list[x509.GeneralName],
        *,
        ends: datetime.datetime,
        authority: bool,
        alone: bool = False,
    ) -> x509.Certificate:
        by, issuer = (key, subject) if alone or authority else (self._key, self._name)
        builder = (
            x509.CertificateBuilder(issuer, subject, key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(self._now - _DAY)
            .not_valid_after(ends)
            .add_extension(x509.BasicConstraints(authority, None), critical=True)
            .add_extension(
                x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False
            )
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(by.public_key()), critical=False
            )
            .add_extension(
                x509.KeyUsage(
                    digital_signature=True,
                    content_commitment=False,
                    key_encipherment=False,
                    data_encipherment=False,
                    key_agreement=False,
                    key_cert_sign=authority,
                    crl_sign=authority,
                    encipher_only=False,
                    decipher_only=False,
                ),
                critical=True,
            )
        )
        if names:
            usage = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH])
            builder = builder.add_extension(usage, critical=False)
            builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
        return builder.sign(by, hashes.SHA256())


def hosts_of(destination: Destination) -> list[str]:
    """Return the names of a destination's hosts."""
    return [f"mx{number}.{destination.domain}" for number in range(destination.hosts)]


def tls_modes(scenario: Scenario) -> dict[str, str]:
    """Return how each host does TLS, by name; those without are absent."""
    return {
        host: destination.tls
        for destination in scenario.destinations
        if destination.tls != "none"
        for host in hosts_of(destination)
    }


def tlsa_records(scenario: Scenario, authority: Authority, port: int) -> Mapping[str, str]:
    """Return the TLSA record of each host that has one, by the name where it is: ``_25._tcp.host``."""
    records: dict[str, str] = {}
    for destination in scenario.destinations:
        if destination.dane == "none":
            continue
        for host in hosts_of(destination):
            meant = host if destination.dane == "valid" else f"not {host}"
            records[f"_{port}._tcp.{host}"] = authority.tlsa(meant)
    return records
