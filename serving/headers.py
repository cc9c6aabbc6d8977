"""Names that clients, gateway and the parts inside vLLM share; no imports, so that each can have them."""

from __future__ import annotations

ADMIN_HEADER = "x-efface-admin"
"""Carries the admin token to `efface.serving.middleware` inside the server."""
RELEASE_HEADER = "x-efface-release"
"""Names the adapter that answered, such as ``prod@7.0123456789ab``, on every answer."""
