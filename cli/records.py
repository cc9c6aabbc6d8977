"""Registry records as plain JSON, the shape of every `--format json`."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from ..registry import Adapter, Audit, Composition, Event, ForgetRequest, Release


def request_json(request: ForgetRequest) -> dict[str, Any]:
    """A request; the rows themselves stay in the vault."""
    return asdict(request)


def adapter_json(adapter: Adapter) -> dict[str, Any]:
    """An adapter with its manifest's facts."""
    return {**asdict(adapter), "files": dict(adapter.files), "facts": dict(adapter.facts)}


def audit_json(audit: Audit) -> dict[str, Any]:
    """An audit record; its report is the blob `report`."""
    return {**asdict(audit), "environment": dict(audit.environment)}


def composition_json(composition: Composition) -> dict[str, Any]:
    """A composition with its digest."""
    return {"digest": composition.digest, **composition.record()}


def release_json(release: Release, requests: list[str]) -> dict[str, Any]:
    """A release with the requests that it suppresses."""
    return {
        "channel": release.channel,
        "version": release.version,
        "state": release.state,
        "requests": requests,
        "composition": composition_json(release.composition),
        "rendered": release.rendered,
        "audit": release.audit,
        "approved_by": release.approved_by,
        "reason": release.reason,
        "created_at": release.created_at,
    }


def event_json(event: Event) -> dict[str, Any]:
    """One line of the ledger."""
    return {**asdict(event), "body": event.body}
