"""TLS for links between hosts: who dials checks the certificate; the shared key proves both ends
besides, so no client certificates are needed.
"""

from __future__ import annotations

import ssl

from infra.errors import ConfigError


def listening(certificate: str, key: str) -> ssl.SSLContext:
    """Shows the PEM chain. Raises ConfigError."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    try:
        context.load_cert_chain(certificate, key or None)
    except (OSError, ValueError) as error:
        raise ConfigError(f"link_certificate {certificate}: {error}") from error
    return context


def dialling(ca: str) -> ssl.SSLContext:
    """Trusts what `ca` has signed, or where it is empty what the system trusts."""
    try:
        context = ssl.create_default_context(cafile=ca or None)
    except (OSError, ValueError) as error:
        raise ConfigError(f"link_ca {ca}: {error}") from error
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    return context
