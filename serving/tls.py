"""What the gateway and its controller trust of a server's certificate: one answer, so that they agree."""

from __future__ import annotations

import ssl

import certifi


def tls_context() -> ssl.SSLContext:
    """The system's authorities (or those of SSL_CERT_FILE) and certifi's."""
    context = ssl.create_default_context()
    context.load_verify_locations(certifi.where())
    return context
