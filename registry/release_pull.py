"""A pushed release, checked before anything of it is used: the files, what it says, and who vouches for it.

Always checked: a plain LoRA (`peft_folder`) whose two files have the digests that the release file names, and a release
file that is consistent. With an evidence bundle beside it: the bundle is whole, is about this channel, and its events
made this version of this composition, rendered as an adapter of these very files. With keys (PEM, as the publisher gave
them another way): there is such a bundle, and one of the keys signed a checkpoint of all its events.

What is pulled is an adapter like any other that was made elsewhere: nothing here makes it a release (`efface release
pull` seals it for requests of this registry; an audit here decides what it may be served for).
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import bundle_verify, peft_folder, release_file
from .bundle_verify import BundleVerification
from .canon import JSON, digest_bytes
from .errors import GateFailed, InvalidInput, NotFound
from .exports import CARD
from .release_file import EVIDENCE, NAME, Stated

_THEN = "Pull another revision, or ask the publisher."


@dataclass(frozen=True, slots=True)
class CheckedRelease:
    """A release that was pulled and checked. `evidence` is None where none was published."""

    stated: Stated
    adapter: Mapping[str, bytes]
    """The two files."""
    files: Mapping[str, bytes]
    """Everything that was pulled, these two included."""
    evidence: BundleVerification | None
    vouched: bool
    """Whether a key that the caller named signed all events of the evidence."""

    @property
    def signed_by(self) -> tuple[str, ...]:
        """Ids of the keys that the caller named and that signed something in the evidence."""
        return tuple(one.key_id for one in (self.evidence.signers if self.evidence else ()) if one.known)

    def provenance(self) -> dict[str, JSON]:
        """What an imported adapter's manifest keeps of it: names and digests."""
        digests = {name: digest_bytes(self.files[name]) for name in (CARD, EVIDENCE) if name in self.files}
        return {
            "release": f"{self.stated.channel}@{self.stated.version}",
            "composition": self.stated.composition.digest,
            "adapter": self.stated.adapter,
            "audit": self.stated.audit,
            "card": digests.get(CARD),
            "evidence": digests.get(EVIDENCE),
            "signed_by": list(self.signed_by),
        }


def check(files: Mapping[str, bytes], *, trusted_keys: Iterable[str] | None = None) -> CheckedRelease:
    """The release in these files, by name. `trusted_keys` are PEM: one of them must have signed the evidence.

    Raises InvalidInput for what is no release that efface pushed, GateFailed when files, release and evidence
    contradict each other, NotFound for evidence that is asked for and not there.
    """
    if NAME not in files:
        then = "Import its adapter alone: efface adapter import SOURCE --request REQUEST --model BASE"
        raise InvalidInput(f"a release with {NAME}", "a folder without one", then)
    stated = release_file.read(files[NAME])
    adapter = {name: files[name] for name in peft_folder.LIMITS if name in files}
    peft_folder.check(adapter)
    if {name: digest_bytes(data) for name, data in adapter.items()} != dict(stated.files):
        raise GateFailed("the files that the release names", "others", _THEN)
    keys = None if trusted_keys is None else list(trusted_keys)
    found = _evidence(files, stated, keys)
    return CheckedRelease(stated, adapter, dict(files), found, vouched=keys is not None)


def check_evidence(data: bytes, stated: Stated, keys: list[str] | None = None) -> BundleVerification:
    """The evidence bundle in these bytes, which shows this very release. Raises GateFailed, InvalidInput."""
    with tempfile.TemporaryDirectory(prefix="efface-evidence-") as scratch:
        path = Path(scratch) / EVIDENCE
        path.write_bytes(data)
        found = bundle_verify.verify_bundle(path, trusted_keys=keys)
    if not found.ok:
        first = found.problems[0]
        raise GateFailed(f"evidence with {first.expected} ({first.where})", first.found, _THEN)
    if (found.kind, found.id) != ("channel", stated.channel):
        raise GateFailed(f"evidence about the channel {stated.channel}", f"about a {found.kind}", _THEN)
    if not any(_is_it(row, stated) for row in found.facts["releases"]):
        then = "Export it anew: efface bundle export CHANNEL --out FILE"
        raise GateFailed(f"evidence of {stated.channel}@{stated.version}, rendered", "none of it", then)
    if not any(_is_of(row, stated) for row in found.facts["adapters"]):
        raise GateFailed(f"evidence of the adapter {stated.adapter}", "one of other files", _THEN)
    return found


def _evidence(
    files: Mapping[str, bytes], stated: Stated, keys: list[str] | None
) -> BundleVerification | None:
    if EVIDENCE in files:
        return check_evidence(files[EVIDENCE], stated, keys)
    if keys is not None:
        raise NotFound(f"evidence ({EVIDENCE}) that a key could have signed", "none", _THEN)
    return None


def _is_it(row: Mapping[str, Any], stated: Stated) -> bool:
    said = (stated.channel, stated.version, stated.composition.digest, stated.adapter, stated.audit)
    found = tuple(row[name] for name in ("channel", "version", "digest", "rendered", "audit"))
    return found == said and row["state"] in ("ACTIVE", "SUPERSEDED")


def _is_of(row: Mapping[str, Any], stated: Stated) -> bool:
    return (row["digest"], row["kind"], row["files"]) == (stated.adapter, "rendered", dict(stated.files))
