"""The page of a bundle that people read, derived from its facts alone.

A verifier writes it again and compares the bytes, so it cannot say anything else than the events do. That pins these
words: changing them is a new version of the format (`bundle_members.VERSION`), and a test says so.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

from . import support
from .checkpoints import Checkpoint
from .trust import TrustedKey

Facts = Mapping[str, Any]
_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z", re.ASCII)
_STYLE = (
    "body{font:16px/1.5 system-ui,sans-serif;max-width:64rem;margin:2rem auto;padding:0 1rem;color:#1a1a1a}"
    "h1{font-size:1.6rem}h2{font-size:1.2rem;margin-top:2rem}table{border-collapse:collapse;width:100%}"
    "th,td{text-align:left;vertical-align:top;padding:.3rem .6rem .3rem 0;border-bottom:1px solid #ddd}"
    "td{overflow-wrap:break-word}code{font-size:.85em;word-break:break-all}.no{color:#a00;font-weight:600}"
)
UNDO: Mapping[str | None, str] = {
    None: "Nothing is claimed.",
    "suppressed": "Yes: whoever runs the model can serve it without the adapter, and what was suppressed is back."
    " No weight of the base was changed.",
    "consolidated": "Not by taking an adapter off: the forgetting is in the weights, and the base before was withdrawn."
    " Whoever kept a copy of that base still has the rest.",
    "erased": "Not in this model: it was trained without the rows, or what held them was dropped. Copies of an earlier"
    " model are another matter.",
}
"""Whether a claim can be undone."""
TWO_PERSON = "A release is approved by somebody else than who created it, by what each said of themselves."
ONE_PERSON = "Given up: one person may create and approve a release."
BEYOND = "More is claimed than these events show."
_PROVES = (
    "Every event shown here is in the ledger whose Merkle root is above, where it says, as it was recorded.",
    "The digests of adapters, audit records and reports are those of the files here or of the files they name.",
    "This page says what those events say: a verifier derives it again and compares it byte by byte.",
)
_PROVES_SIGNED = (
    "The keys named above signed that root: they cannot have had another ledger of that size without two signatures"
    " that contradict each other."
)
_NOT_SIGNED = (
    "Nobody signed this root, or not all of it: the registry could have written these events today. Compare the"
    " root with one that you were given earlier, or ask for a bundle with a checkpoint."
)
_NOT = (
    "That an audit measured well: it says what was measured, by which suite and at which precision. At another"
    " precision the same adapter may behave otherwise.",
    "That nothing else happened: later events are not here, and nobody can prove from this file alone that no event"
    " was left out. Ask for a newer bundle to see whether a release was rolled back.",
    "Whose the keys are: compare their ids with those you were given another way.",
    "That no other release serves the base before a merge or a retraining, or that one does: only the releases that"
    " are here were looked at.",
    "That no copy of the rows or of another model exists elsewhere.",
)


def proof_of(
    ledger: Mapping[str, Any], newest: Checkpoint | None, signers: Sequence[TrustedKey]
) -> dict[str, Any]:
    """What the page says of the ledger and of who signed it."""
    return {
        "tree_size": ledger["tree_size"],
        "root": ledger["root"],
        "events": len(ledger["events"]),
        "withheld": [entry["request"] for entry in ledger["withheld"]],
        "checkpoint": None if newest is None else newest.record(),
        "signers": [f"{key.name} ({key.key_id})" for key in signers],
    }


def html(about: Mapping[str, Any], facts: Facts, proof: Mapping[str, Any]) -> bytes:
    """The page, UTF-8, with nothing to load from elsewhere. Everything in it is escaped."""
    title = f"Evidence: {about['kind']} {about['id']}"
    parts = (
        _heading(1, title),
        _section("What was asked", _table(_ASKED, map(_asked, facts["requests"]))),
        _section("What is claimed", _table(_CLAIMED, map(_claimed, facts["requests"]))),
        _section("Releases", _table(_RELEASES, map(_release, facts["releases"]))),
        _section("Rules of channels", _table(_RULES, map(_rule, _ruled(facts["channels"])))),
        *_gates(facts["channels"]),
        _section("Adapters", _table(_ADAPTERS, map(_adapter, facts["adapters"]))),
        _section("Audits", _table(_AUDITS, map(_audit, facts["audits"]))),
        _section("Merged or trained again", _table(_EVIDENCE, map(_evidence, facts["evidence"]))),
        _section("Signed statements", _table(_ATTESTED, map(_attested, facts["attestations"]))),
        _section("The ledger", _table(("", ""), _ledger(proof))),
        _section("What this file shows", _bullets(_shows(proof))),
        _section("What it does not show", _bullets(_NOT)),
    )
    page = (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        f"<style>{_STYLE}</style></head>\n<body>\n{''.join(parts)}</body></html>\n"
    )
    return page.encode()


def deadline(request: Mapping[str, Any]) -> str:
    """Whether a request was answered in time."""
    due, answered = request["extended_to"] or request["due_at"], request["answered_at"]
    if due is None:
        return "no deadline"
    if answered is None:
        return f"due {_moment(due)}, not answered in these events"
    return f"{'met' if answered <= due else 'missed'}: due {_moment(due)}"


_ASKED = ("Request", "Basis", "Rows", "Received", "Answered", "Deadline", "State", "Rows destroyed")
_CLAIMED = ("Request", "Claimed on closing", "What the evidence shows", "Can it be undone?")
_RELEASES = (
    "Release",
    "State",
    "Composition",
    "Served as",
    "Audit",
    "Created by",
    "Approved by",
    "Activated",
    "Why",
)
_RULES = ("Channel", "Rule", "Since", "Set by", "Why")
_GATES = ("Channel", "Gates", "Since", "Set by", "Why")
_SET = ("since", "by", "reason")
_ADAPTERS = ("Adapter", "Kind", "State", "Answers", "Base", "Trained on")
_AUDITS = ("Audit", "Verdict", "Suite", "Precision", "Composition", "Recorded", "Report")
_EVIDENCE = ("Request", "Method", "Level", "Model", "Audit", "In words", "Recorded")
_ATTESTED = ("About", "Which", "Type", "Keys", "Recorded")


def _asked(row: Facts) -> tuple[Any, ...]:
    names = ("id", "basis", "n_items", "received_at", "answered_at")
    return (*(row[name] for name in names), deadline(row), row["state"], row["shredded_at"])


def _claimed(row: Facts) -> tuple[Any, ...]:
    """What is claimed is described by no more than what is shown, and a claim beyond that stands out."""
    claim, shown = row["claim"], row["supported"]
    if support.rank(claim) > support.rank(shown):
        undo = f"{BEYOND} {UNDO[shown] if shown else 'Nothing is shown.'}"
    else:
        undo = UNDO[claim or shown]
    return row["id"], claim, shown, undo


def _release(row: Facts) -> tuple[Any, ...]:
    name = f"{row['channel']}@{row['version']}"
    rest = ("state", "digest", "rendered", "audit", "created_by", "approved_by", "activated_at", "reason")
    return (name, *(row[field] for field in rest))


def _ruled(rows: Iterable[Facts]) -> list[Facts]:
    """Those of which a rule was ever set, be it given up again."""
    return [row for row in rows if row["two_person"] is not None]


def _gates(rows: Iterable[Facts]) -> list[str]:
    """Nothing where no channel ever had a gate."""
    gated = [row for row in rows if row.get("gates_since")]
    lines = [(row["channel"], _said(row["gates"]), *(row[f"gates_{name}"] for name in _SET)) for row in gated]
    return [_section("Gates of channels", _table(_GATES, lines))] if lines else []


def _said(gates: Mapping[str, str]) -> str:
    return ", ".join(map(" ".join, gates.items())) or "none"


def _rule(row: Facts) -> tuple[Any, ...]:
    rule = ONE_PERSON if not row["two_person"] else TWO_PERSON
    return row["channel"], rule, row["since"], row["by"], row["reason"]


def _adapter(row: Facts) -> tuple[Any, ...]:
    base = f"{row['base']} at {row['quantization']}"
    return row["digest"], row["kind"], row["state"], ", ".join(row["requests"]), base, row["trained_on"]


def _audit(row: Facts) -> tuple[Any, ...]:
    names = ("digest", "verdict", "suite", "precision", "composition", "at", "report")
    return tuple(row[name] for name in names)


def _evidence(row: Facts) -> tuple[Any, ...]:
    names = ("request", "method", "level", "artefact", "audit", "statement", "at")
    return tuple(row[name] for name in names)


def _attested(row: Facts) -> tuple[Any, ...]:
    about, keys = row["about"], ", ".join(row["keys"])
    return about["kind"], about["id"], row["predicate"], keys, row["at"]


def _ledger(proof: Mapping[str, Any]) -> list[tuple[Any, ...]]:
    signed = proof["checkpoint"]
    rows: list[tuple[Any, ...]] = [
        ("Events in the ledger", proof["tree_size"]),
        ("Merkle root (RFC 6962)", proof["root"]),
        ("Events shown here", proof["events"]),
    ]
    if proof["withheld"]:
        came = (
            "as a hash, because it holds a keyed reference to who asked: basis, rows, receipt and due date are"
            " the word of whoever exported this"
        )
        rows.append((f"First event of {', '.join(proof['withheld'])}", came))
    if signed is None:
        return [*rows, ("Signed checkpoint", "none")]
    return [
        *rows,
        (
            "Signed checkpoint",
            f"{signed['tree_size']} events of {signed['origin']} on {_moment(signed['at'])}",
        ),
        ("Signed by", ", ".join(proof["signers"])),
    ]


def _shows(proof: Mapping[str, Any]) -> tuple[str, ...]:
    signed = proof["checkpoint"]
    whole = signed is not None and signed["tree_size"] == proof["tree_size"]
    return (*_PROVES, _PROVES_SIGNED if whole else _NOT_SIGNED)


def _moment(text: str) -> str:
    """A time of the registry to the second; other text as it is."""
    return f"{text[:10]} {text[11:19]} UTC" if _TIME.fullmatch(text) else text


def _heading(level: int, text: str) -> str:
    return f"<h{level}>{escape(text)}</h{level}>\n"


def _section(title: str, body: str) -> str:
    return _heading(2, title) + body


def _table(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    lines = [f"<tr>{''.join(f'<td>{_cell(cell)}</td>' for cell in row)}</tr>\n" for row in rows]
    if not lines:
        return "<p>None.</p>\n"
    titles = "".join(f"<th>{escape(title)}</th>" for title in head) if any(head) else ""
    return f"<table>\n{f'<tr>{titles}</tr>' if titles else ''}\n{''.join(lines)}</table>\n"


def _cell(value: Any) -> str:
    """Digests in code; what is bad news stands out."""
    if value is None:
        return "–"
    text = escape(_moment(str(value)))
    if text.startswith(("sha256:", "https:")):
        return f"<code>{text}</code>"
    return (
        f'<span class="no">{text}</span>' if text == "fail" or text.startswith(("missed", BEYOND)) else text
    )


def _bullets(lines: Iterable[str]) -> str:
    return f"<ul>\n{''.join(f'<li>{escape(line)}</li>' + chr(10) for line in lines)}</ul>\n"
