"""Check an evidence bundle offline: no registry, no database, no network, nothing trusted but what is computed here.

Every check is derived from the members: hashes of events, their place in the tree, signatures of checkpoints and
statements, records against events, and the summary against everything. A bundle that says anything else than its
events fails; what no bundle can show is in its summary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from . import bundle_checks, bundle_read, signing
from .bundle_ledger import EMPTY, Ledger, Withheld, read_checkpoints, read_ledger
from .bundle_read import Bundle
from .canon import digest_bytes
from .errors import GateFailed, RegistryError
from .log_checkpoints import SignedCheckpoint
from .signatures import Known
from .trust import TrustedKey

MALFORMED = (RegistryError, LookupError, TypeError, ValueError, AttributeError, OverflowError)
"""What checking values that someone else wrote can end in."""
_T = TypeVar("_T")
TOFU = (
    "The signatures are by keys that only this bundle names: anyone can make such a bundle. Pass the log's public key,"
    " as you were given it another way."
)
WITHHELD = "its first event holds a keyed reference to who asked and is here as a hash."
UNSIGNED = "No signed checkpoint covers these events: the registry could have written them today."


@dataclass(frozen=True, slots=True)
class BundleProblem:
    """One thing in a bundle that is not what it should be."""

    where: str
    expected: str
    found: str


@dataclass(frozen=True, slots=True)
class Signer:
    """A key that signed. `known`: the caller named it; else only the bundle does."""

    key_id: str
    name: str
    roles: tuple[str, ...]
    signed: tuple[str, ...]
    known: bool


@dataclass(frozen=True, slots=True)
class BundleVerification:
    """What a bundle shows. Without problems it is what it says; `warnings` say what that is worth."""

    kind: str
    id: str
    digest: str
    tree_size: int
    events: int
    withheld: int
    signed_size: int | None
    signers: tuple[Signer, ...]
    problems: tuple[BundleProblem, ...]
    warnings: tuple[str, ...]
    facts: Mapping[str, Any]
    """What the events say, as `facts.json` has it: to be believed only where there is no problem."""

    @property
    def ok(self) -> bool:
        """True when nothing is wrong."""
        return not self.problems


def verify_bundle(path: Path, *, trusted_keys: Iterable[str] | None = None) -> BundleVerification:
    """Check the bundle in a file. One of `trusted_keys` (PEM) must have signed a checkpoint of all its events.

    Without them a signature shows only that whoever made the bundle had some key, and a warning says so. Raises
    NotFound or InvalidInput for what is no bundle or no key; everything else that is wrong is a problem.
    """
    trusted = None if trusted_keys is None else frozenset(signing.key_id(pem) for pem in trusted_keys)
    data = bundle_read.read_bytes(Path(path))
    try:
        bundle = bundle_read.parse_bundle(data)
    except GateFailed as error:
        problem = BundleProblem("file", error.expected, error.came)
        return BundleVerification("", "", digest_bytes(data), 0, 0, 0, None, (), (problem,), (), {})
    return _verified(bundle, digest_bytes(data), trusted)


def _verified(bundle: Bundle, digest: str, trusted: frozenset[str] | None) -> BundleVerification:
    problems: list[BundleProblem] = []

    def attempt(where: str, check: Callable[[], _T], otherwise: _T) -> _T:
        try:
            return check()
        except MALFORMED as error:
            problems.append(_problem(where, error))
            return otherwise

    ledger = attempt("ledger.json", lambda: read_ledger(bundle.ledger), EMPTY)
    known = attempt("keys.json", lambda: bundle_checks.keys(bundle, ledger), Known([], {}))
    stored = attempt("checkpoints.json", lambda: read_checkpoints(bundle.checkpoints, ledger, known), [])
    newest = stored[-1] if stored else None
    attempt("manifest.json", lambda: bundle_checks.subject(bundle), None)
    attempt("facts.json", lambda: bundle_checks.facts(bundle, ledger), None)
    attempt("records", lambda: bundle_checks.records(bundle, ledger), None)
    signed = attempt("attestations", lambda: bundle_checks.attestations(bundle, ledger, known), {})
    attempt("summary.html", lambda: bundle_checks.summary(bundle, known, newest), None)
    if trusted is not None:
        problems += _uncovered(ledger, stored, trusted)
    size = newest.checkpoint.tree_size if newest else None
    return BundleVerification(
        kind=bundle.kind,
        id=bundle.id,
        digest=digest,
        tree_size=ledger.tree_size,
        events=len(ledger.events),
        withheld=len(ledger.withheld),
        signed_size=size,
        signers=tuple(_signers(known.keys, signed, newest, trusted or frozenset())),
        problems=tuple(problems),
        warnings=tuple(_warnings(ledger.tree_size, ledger.withheld, size, trusted)),
        facts=bundle.facts,
    )


def _uncovered(
    ledger: Ledger, stored: Iterable[SignedCheckpoint], trusted: frozenset[str]
) -> Iterator[BundleProblem]:
    """Events beyond what a trusted key signed may be anybody's: whoever named keys wants them signed."""
    last = max((one.seq for one in (*ledger.events, *ledger.withheld)), default=0)
    sizes = (one.checkpoint.tree_size for one in stored if trusted & set(one.keys))
    if (signed := max(sizes, default=0)) < max(last, 1):
        expected = f"the signature of a key that you trust over {last} events"
        yield BundleProblem("checkpoints.json", expected, f"over {signed}" if signed else "none")


def _signers(
    keys: Iterable[TrustedKey],
    statements: Mapping[str, list[str]],
    newest: SignedCheckpoint | None,
    trusted: frozenset[str],
) -> Iterator[Signer]:
    """Each key with what it signed here."""
    for key in keys:
        signed = list(statements.get(key.key_id, ()))
        if newest and key.key_id in newest.keys:
            signed.append("checkpoint")
        if signed:
            yield Signer(key.key_id, key.name, key.roles, tuple(signed), key.key_id in trusted)


def _warnings(
    tree_size: int, withheld: Iterable[Withheld], signed: int | None, trusted: frozenset[str] | None
) -> Iterator[str]:
    if signed is None:
        yield UNSIGNED
    elif signed < tree_size:
        yield f"{UNSIGNED} Only the first {signed} of {tree_size} events are signed."
    if signed is not None and trusted is None:
        yield TOFU
    if hidden := sorted(one.request for one in withheld):
        yield f"How {', '.join(hidden)} came in (basis, rows, dates) is the word of whoever exported this: {WITHHELD}"


def _problem(where: str, error: Exception) -> BundleProblem:
    """What went wrong, in words of ours: the values may be anything."""
    if isinstance(error, RegistryError):
        return BundleProblem(where, error.expected, error.came)
    return BundleProblem(where, "values of this format", type(error).__name__)
