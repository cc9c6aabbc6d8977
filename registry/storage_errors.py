"""What went wrong at a remote store, as a RegistryError. Only names and codes are repeated, never texts."""

from __future__ import annotations

import errno
import re
from typing import Any

from .errors import RegistryError

_MODULES = {"aiobotocore", "aiohttp", "botocore", "fsspec", "gcsfs", "google", "s3fs", "adlfs", "azure"}
_CODE = re.compile(r"[A-Za-z0-9]{1,64}")
_CREDENTIALS = {
    "NoCredentialsError",
    "PartialCredentialsError",
    "CredentialRetrievalError",
    "ProfileNotFound",
    "TokenRetrievalError",
    "SSOError",
    "DefaultCredentialsError",
    "RefreshError",
}
_UNREACHABLE = {
    "ConnectionError",
    "TimeoutError",
    "EndpointConnectionError",
    "HTTPClientError",
    "ClientConnectionError",
    "gaierror",
}
_ACTIONS = "s3:GetObject, PutObject, DeleteObject, ListBucket, AbortMultipartUpload"


def translation(error: Exception, url: str) -> RegistryError | None:
    """The error to raise instead; None for what is no failure of the store but a bug of ours."""
    kinds = {kind.__name__ for kind in type(error).__mro__}
    package = type(error).__module__.partition(".")[0]
    if not isinstance(error, OSError) and package not in _MODULES:
        return None
    expected, came = f"to use {url}", code_of(error) or _name(error)
    if kinds & _CREDENTIALS:
        then = "Set AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY."
        return RegistryError(f"credentials for {url}", f"none that work ({came})", then)
    if isinstance(error, PermissionError):
        then = f"Give this identity {_ACTIONS} there, or use another one (AWS_PROFILE)."
        return RegistryError(expected, f"no permission ({came})", then)
    if kinds & _UNREACHABLE:
        then = "Check the network and AWS_ENDPOINT_URL, then run it again."
        return RegistryError(f"an answer from {url}", f"none ({came})", then)
    return RegistryError(expected, *_by_errno(error, came))


def code_of(error: Any) -> str:
    """The service's own code (`AccessDenied`, `412`) where there is one; else empty."""
    for candidate in (error, error.__cause__):
        response: Any = getattr(candidate, "response", None)
        if isinstance(response, dict):
            code = str(response.get("Error", {}).get("Code", ""))
            return code if _CODE.fullmatch(code) else ""
    return ""


def _by_errno(error: Exception, came: str) -> tuple[str, str]:
    number = getattr(error, "errno", None)
    if number in (errno.ENOSPC, errno.EDQUOT) or "Full" in came:
        return f"no space ({came})", "Free some space there and run it again."
    if number == errno.EBUSY:
        return f"a busy store ({came})", "Run it again later."
    if number == errno.ENOSYS:
        return f"a store without this operation ({came})", "Use one with conditional writes (If-None-Match)."
    return f"an error of the store ({came})", "Check the store, then run it again."


def _name(error: Exception) -> str:
    number = getattr(error, "errno", None)
    return errno.errorcode.get(number or 0, type(error).__name__)
