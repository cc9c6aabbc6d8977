"""Gates of a channel: bounds that an audit must have been judged under, or its release is never served.

The registry does not measure, and does not know what a figure means. A gate is a name and a decimal: `max_…` is
stricter the smaller it is, `min_…`, `confidence` and `few_rows` the larger. An audit says which gates decided its
verdict (`record_audit`), and one carries a release on a channel only where each of the channel's gates is among them,
as strict or stricter. `efface.audits.gates` has the names and measures them.

The fold of events asks again, at approval and at activation: a candidate that was approved before a gate was set is not
served under it. The bare base suppresses nothing, so no gate holds it: a request can always be taken off.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from decimal import Decimal, InvalidOperation
from typing import Any

from . import channel_rules, checks, ledger
from .canon import JSON, canonical, parse, weight
from .errors import BrokenRegistry, InvalidInput
from .registry import Registry
from .tables import Tables
from .types import Channel

Number = str | int | float | Decimal
_NAME = re.compile(
    r"(?:(?:max|min)_[a-z][a-z0-9_]{0,58}(?:\.[a-z0-9][a-z0-9._/%+-]{0,63})?|confidence|few_rows)"
)
LIMIT = 100


def gate_channel(
    reg: Registry, channel: str, gates: Mapping[str, Number | None], *, reason: str, actor: str
) -> Channel:
    """Set gates of a channel, which need not have a release yet; None takes one off.

    Setting what holds already changes nothing. Raises InvalidInput for what is no gate.
    """
    checks.channel(channel)
    checks.reason(reason)
    checked({name: value for name, value in gates.items() if value is not None})
    with reg.write(actor) as tx:
        old = stored((tx.db.get("channel", channel) or {}).get("gates"))
        kept = {**old, **{name: value for name, value in gates.items() if value is not None}}
        new = checked({name: value for name, value in kept.items() if gates.get(name, value) is not None})
        if new != old:
            ledger.append(tx, "channel.gated", channel, {"gates": new, "reason": reason})
        return channel_rules.channel_of(channel, tx.db.get("channel", channel))


def checked(gates: Mapping[str, Number]) -> dict[str, JSON]:
    """The gates with their canonical decimals. Raises InvalidInput."""
    if len(gates) > LIMIT:
        raise InvalidInput(f"at most {LIMIT} gates", f"{len(gates)}", "Keep those that matter.")
    found: dict[str, JSON] = {}
    for name, value in gates.items():
        if not isinstance(name, str) or not _NAME.fullmatch(name):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise InvalidInput(
                "gates named max_…, min_…, confidence or few_rows", "another name", "See docs/audits.md."
            )
        found[name] = weight(value)
        if Decimal(weight(value)) < 0:
            raise InvalidInput(f"{name} of at least 0", "a negative number", "Set it to 0 or more.")
    return dict(sorted(found.items()))


def stored(text: str | None) -> dict[str, str]:
    """The gates in a column; none where nothing was ever set."""
    found: Any = parse(text) if text else {}
    return dict(found)


def text_of(gates: Any) -> str:
    """The column of gates that an event holds. Raises BrokenRegistry for what `checked` would not have let through."""
    try:
        if not isinstance(gates, Mapping) or checked(gates) != dict(gates):
            raise ValueError
    except (InvalidInput, ValueError, TypeError, InvalidOperation):
        raise BrokenRegistry(
            "gates as names and canonical decimals", "something else", "Run `efface verify`."
        ) from None
    return canonical(dict(gates)).decode()


def unmet(asked: Mapping[str, str], judged: Mapping[str, str] | None) -> list[str]:
    """The gates in ``asked`` under which an audit that was ``judged`` so (None: it does not say) was not judged."""
    return sorted(
        name for name, bound in asked.items() if not _as_strict(name, (judged or {}).get(name), bound)
    )


def check_gates(asked: Mapping[str, str], judged: Mapping[str, str] | None, *, bare: bool) -> None:
    """Raise BrokenRegistry where a release went through an audit that the channel's gates do not accept."""
    if not bare and (lacking := unmet(asked, judged)):
        expected = "an audit judged under the gates of its channel"
        raise BrokenRegistry(
            expected, f"one without {', '.join(lacking)}", "Look at who approved the release."
        )


def channel_gates(reg: Registry, channel: str) -> dict[str, str]:
    """The gates of a channel, which need not exist yet."""
    checks.channel(channel)
    with reg.read() as db:
        return of_channel(db, channel)


def of_channel(db: Tables, channel: str) -> dict[str, str]:
    """The gates of a channel, inside a transaction."""
    return stored((db.get("channel", channel) or {}).get("gates"))


def _as_strict(name: str, judged: str | None, bound: str) -> bool:
    if judged is None:
        return False
    ours, theirs = Decimal(judged), Decimal(bound)
    return ours <= theirs if name.startswith("max_") else ours >= theirs
