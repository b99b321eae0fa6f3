"""Both ends show who they are, and nobody between them reads or changes a byte: mutual TLS (lesson 25).

An authority signs a certificate for each party: "this public key belongs to this name, until then". A context for
`ssl` trusts that authority alone, shows the party's own certificate, and asks for the other's: TLS 1.3, both sides
verified. All keys are made here and now, and live for an hour: nothing that could be stolen later.

Source: RFC 8446 (TLS 1.3), §4.4; RFC 5280 (certificates).
"""

import datetime
import ipaddress
import os
import ssl
import tempfile
from pathlib import Path
from typing import NamedTuple

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

SERVER, CLIENT = ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH


class Identity(NamedTuple):
    """What a party shows, and what it keeps.

    Attributes:
        certificate: PEM, bytes; for all to see.
        key: PEM, bytes; the private key, for nobody else.
    """

    certificate: bytes
    key: bytes


class Authority:
    """Signs certificates that contexts made with its own certificate trust.

    Args:
        name: of the authority.
        lifetime_s: how long it and all that it signs may last, in seconds.

    Attributes:
        certificate: PEM, bytes: what everyone needs to verify the others.

    Raises:
        ValueError: the lifetime is out of range.
    """

    def __init__(self, name="lessons", lifetime_s=3600):
        if not 0 < lifetime_s < 10**9:
            raise ValueError(f"lifetime_s={lifetime_s!r}: a number above 0 is needed")
        self._key, self._name = ec.generate_private_key(ec.SECP256R1()), _name(name)
        start = _now() - datetime.timedelta(minutes=1)  # clocks of machines differ
        self._end = _now() + datetime.timedelta(seconds=lifetime_s)
        builder = _builder(self._name, self._name, self._key.public_key(), start, self._end)
        builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        builder = builder.add_extension(_usage(signs_certificates=True), critical=True)
        self.certificate = _pem(builder.sign(self._key, hashes.SHA256()))

    def issue(self, name, addresses=(), purpose=CLIENT, starts_in_s=-60.0, ends_in_s=3600.0):
        """Make a key and a certificate for it.

        Args:
            name: of the party, as `peer_name` gives it to the other side.
            addresses: host names and IP addresses at which a server may be reached, such as "localhost", "127.0.0.1".
            purpose: SERVER or CLIENT: a client's certificate is refused of a server.
            starts_in_s, ends_in_s: seconds from now between which it is valid, at most as long as the authority.

        Returns:
            `Identity`.

        Raises:
            ValueError: it ends before it starts, or a server has no address.
        """
        if not starts_in_s < ends_in_s:
            raise ValueError(f"{starts_in_s=}, {ends_in_s=}: an end after the start is needed")
        if purpose == SERVER and not addresses:
            raise ValueError("addresses=(): a server needs one, which its clients compare with the one they called")
        key = ec.generate_private_key(ec.SECP256R1())
        start, end = (_now() + datetime.timedelta(seconds=s) for s in (starts_in_s, ends_in_s))
        builder = _builder(_name(name), self._name, key.public_key(), start, min(end, max(self._end, start)))
        builder = builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        builder = builder.add_extension(_usage(signs_certificates=False), critical=True)
        builder = builder.add_extension(x509.ExtendedKeyUsage([purpose]), critical=False)
        signer = x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key())
        builder = builder.add_extension(signer, critical=False)
        if addresses:
            builder = builder.add_extension(
                x509.SubjectAlternativeName([_address(a) for a in addresses]), critical=False
            )
        form = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        secret = key.private_bytes(serialization.Encoding.PEM, *form)
        return Identity(_pem(builder.sign(self._key, hashes.SHA256())), secret)


def server_context(identity, authority_certificate):
    """An `ssl.SSLContext` for a server that lets in whom the authority has signed, and nobody else.

    Args:
        identity: with purpose SERVER.
        authority_certificate: PEM, bytes.
    """
    return _context(ssl.PROTOCOL_TLS_SERVER, identity, authority_certificate)


def client_context(identity, authority_certificate):
    """An `ssl.SSLContext` for a client; `wrap_socket(sock, server_hostname=...)` names whom it wants to reach.

    Under TLS 1.3 a client's handshake ends before the server has judged its certificate: that it was refused shows at
    the first read.

    Args:
        identity: with purpose CLIENT.
        authority_certificate: PEM, bytes.
    """
    return _context(ssl.PROTOCOL_TLS_CLIENT, identity, authority_certificate)


def peer_name(connection):
    """The name in the verified certificate of the other side of an `ssl.SSLSocket`: who it is, for `Gate` and the log.

    Raises:
        ValueError: the other side has shown none, so that the context asks for none.
    """
    names = dict(pair for part in (connection.getpeercert() or {}).get("subject", ()) for pair in part)
    if "commonName" not in names:
        raise ValueError("the other side has shown no certificate: a context that asks for one is needed")
    return names["commonName"]


def _context(protocol, identity, authority_certificate):
    context = ssl.SSLContext(protocol)  # trusts nobody yet; of a client, it compares names
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.verify_mode = ssl.CERT_REQUIRED
    context.verify_flags |= ssl.VERIFY_X509_STRICT
    context.load_verify_locations(cadata=authority_certificate.decode())
    handle, path = tempfile.mkstemp()  # ssl reads keys from files alone; this one is its owner's, and gone at once
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(identity.key + identity.certificate)
        context.load_cert_chain(path)
    finally:
        Path(path).unlink()
    return context


def _builder(subject, issuer, public_key, start, end):
    builder = x509.CertificateBuilder().subject_name(subject).issuer_name(issuer).public_key(public_key)
    builder = builder.serial_number(x509.random_serial_number()).not_valid_before(start).not_valid_after(end)
    return builder.add_extension(x509.SubjectKeyIdentifier.from_public_key(public_key), critical=False)


def _usage(signs_certificates):
    names = (
        "content_commitment",
        "key_encipherment",
        "data_encipherment",
        "key_agreement",
        "encipher_only",
        "decipher_only",
    )
    uses = {"digital_signature": not signs_certificates, "key_cert_sign": signs_certificates, "crl_sign": False}
    return x509.KeyUsage(**uses, **dict.fromkeys(names, False))


def _name(name):
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


def _address(address):
    try:
        return x509.IPAddress(ipaddress.ip_address(address))
    except ValueError:
        return x509.DNSName(address)


def _pem(certificate):
    return certificate.public_bytes(serialization.Encoding.PEM)


def _now():
    return datetime.datetime.now(datetime.timezone.utc)
