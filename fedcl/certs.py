"""Certificates and keys of a federation over TLS: pure functions; their folder is in fedcl.certfolder.

A CA of the federation's own signs the SuperLink's certificate; every SuperNode has a key pair in OpenSSH's format,
which is what Flower reads. X.509 after RFC 5280, every key on the curve P-384.
"""

import ipaddress
import re
from base64 import b64decode
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

from fedcl import names
from fedcl.errors import ConfigError

if TYPE_CHECKING:
    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric import ec, rsa

    Key = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey

# The SuperLink's own processes reach it here when it listens on all addresses, so every server certificate holds them.
LOOPBACK = ("localhost", "127.0.0.1")
CA_DAYS, SERVER_DAYS = 3650, 365
SKEW = timedelta(hours=1)  # another machine's clock may be behind


def new_key() -> "ec.EllipticCurvePrivateKey":
    """Return a fresh private key on P-384, the curve of Flower's own examples."""
    from cryptography.hazmat.primitives.asymmetric import ec

    return ec.generate_private_key(ec.SECP384R1())


def _usage(*allowed: str) -> "x509.KeyUsage":
    from cryptography import x509

    every = "digital_signature content_commitment key_encipherment data_encipherment key_agreement key_cert_sign"
    every += " crl_sign encipher_only decipher_only"
    return x509.KeyUsage(**{each: each in allowed for each in every.split()})


def _unsigned(subject: "x509.Name", issuer: "x509.Name", key: "Key", start: datetime) -> "x509.CertificateBuilder":
    """Return what both certificates have in common; `start` is put back by SKEW."""
    from cryptography import x509

    builder = x509.CertificateBuilder().subject_name(subject).issuer_name(issuer).public_key(key.public_key())
    builder = builder.serial_number(x509.random_serial_number()).not_valid_before(start - SKEW)
    return builder.add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)


def _named(name: str) -> "x509.Name":
    from cryptography import x509
    from cryptography.x509.oid import NameOID

    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


def make_ca(key: "Key", *, start: datetime, days: int = CA_DAYS) -> "x509.Certificate":
    """Return a self-signed certificate that may sign server certificates, and no further CA.

    Its name is drawn from the key, so that two federations' CAs differ by name and one key always has one name.
    """
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes

    own = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
    name = _named(f"fedcl CA {own.digest.hex()[:16]}")
    builder = _unsigned(name, name, key, start).not_valid_after(start + timedelta(days=days))
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
    builder = builder.add_extension(_usage("key_cert_sign", "crl_sign"), critical=True)
    return builder.sign(key, hashes.SHA384())


def _signer(ca: "x509.Certificate") -> "x509.AuthorityKeyIdentifier":
    """Name the CA's key as the CA itself names it: one made elsewhere may use another digest."""
    from cryptography import x509

    try:
        own = ca.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    except x509.ExtensionNotFound:
        own = x509.SubjectKeyIdentifier.from_public_key(ca.public_key())
    return x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(own)


def make_server(
    ca: "x509.Certificate", ca_key: "Key", key: "Key", hosts: Sequence[str], *, start: datetime, days: int = SERVER_DAYS
) -> "x509.Certificate":
    """Return the SuperLink's certificate for `hosts` (as `checked_host` gives them); it never outlives the CA's."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes
    from cryptography.x509.oid import ExtendedKeyUsageOID

    end = min(start + timedelta(days=days), ca.not_valid_after_utc)
    builder = _unsigned(_named("fedcl SuperLink"), ca.subject, key, start).not_valid_after(end)
    for extension, critical in (
        (x509.BasicConstraints(ca=False, path_length=None), True),
        (_usage("digital_signature"), True),
        (x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), False),
        (x509.SubjectAlternativeName([_general_name(host) for host in hosts]), False),
        (_signer(ca), False),
    ):
        builder = builder.add_extension(extension, critical=critical)
    return builder.sign(ca_key, hashes.SHA384())


def _general_name(host: str) -> "x509.GeneralName":
    from cryptography import x509

    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def hosts_of(certificate: "x509.Certificate") -> list[str]:
    """Return the host names and IP addresses that a certificate is for."""
    from cryptography import x509

    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return []
    return [*names.get_values_for_type(x509.DNSName), *map(str, names.get_values_for_type(x509.IPAddress))]


def make_node(key: "ec.EllipticCurvePrivateKey", name: str) -> tuple[bytes, bytes]:
    """Return a SuperNode's private key and public key, as OpenSSH writes them; the public one carries `name`."""
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

    private = key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption())
    return private, key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH) + f" {name}\n".encode()


def checked_host(host: str) -> str:
    """Return a host name in lower case, or an IP address in its usual form.

    Raises:
        ConfigError: it is neither, or an address on which servers listen but at which none is reached.
    """
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        label = "(?!-)[a-z0-9-]{1,63}(?<!-)"
        if (
            host.isascii()
            and len(host) <= 253
            and re.fullmatch(rf"({label}\.)*(?![0-9]+\Z){label}", host.lower(), re.ASCII)
        ):
            return host.lower()
        raise ConfigError(
            f"host {host!r} is neither a host name (fed.example.org) nor an IP address (10.0.0.5); leave out https:// "
            "and the port"
        ) from None
    if address.is_unspecified or "%" in host:
        raise ConfigError(f"host {host!r} is where a server listens: name the address at which the nodes reach it")
    return str(address)


def checked_name(name: str) -> str:
    """Return a node's name as it is.

    Raises:
        ConfigError: it has other signs than letters, digits, - _ . or begins with one of those three, or is too long.
    """
    if re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", name):
        return name
    near = re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-._")[:64]
    hint = f"; {near!r} would do" if near else ""
    raise ConfigError(f"node {name!r}: up to 64 letters, digits, - _ . and first a letter or digit{hint}")


def load_key(data: bytes) -> "Key":
    """Return the private key of a CA or server, PEM without a passphrase; ValueError, TypeError if it is none."""
    from cryptography.hazmat.primitives.asymmetric import ec, rsa
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    key = load_pem_private_key(data, None)
    if not isinstance(key, ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey):
        raise ValueError(f"{type(key).__name__} is neither EC nor RSA")
    return key


def load_certificate(data: bytes) -> "x509.Certificate":
    """Return a certificate from PEM; ValueError if it is none."""
    from cryptography import x509

    return x509.load_pem_x509_certificate(data)


def load_node_key(data: bytes) -> "ec.EllipticCurvePrivateKey":
    """Return a SuperNode's private key, as Flower reads it; ValueError, TypeError if it is none."""
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.serialization import load_ssh_private_key

    key = load_ssh_private_key(data, None)
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise ValueError(f"{type(key).__name__} is not EC, and Flower takes no other")
    return key


def load_node_public(data: bytes) -> "ec.EllipticCurvePublicKey":
    """Return a SuperNode's public key, as Flower reads it; ValueError if it is none."""
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.serialization import load_ssh_public_key

    key = load_ssh_public_key(data)
    if not isinstance(key, ec.EllipticCurvePublicKey):
        raise ValueError(f"{type(key).__name__} is not EC, and Flower takes no other")
    return key


def node_name(public: "ec.EllipticCurvePublicKey") -> str:
    """Return the name that a SuperNode has by its public key (`fedcl.names`), whatever is written behind the key."""
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    # The middle one of "ecdsa-sha2-nistp384 BASE64 comment": `ssh-keygen -l` shows the same SHA-256, in base 64.
    return names.of_key(b64decode(public.public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).split()[1]))


def signed_by(certificate: "x509.Certificate", ca: "x509.Certificate") -> bool:
    """Say whether `certificate` names `ca` as its issuer and carries its signature; dates are not looked at."""
    from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm

    try:
        certificate.verify_directly_issued_by(ca)
    except (ValueError, TypeError, InvalidSignature, UnsupportedAlgorithm):
        return False
    return True


def pem_key(key: "Key") -> bytes:
    """Return a private key as PEM (PKCS #8), without a passphrase: a server starts alone."""
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def pem_certificate(certificate: "x509.Certificate") -> bytes:
    """Return a certificate as PEM."""
    from cryptography.hazmat.primitives.serialization import Encoding

    return certificate.public_bytes(Encoding.PEM)
