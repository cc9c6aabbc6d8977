"""The rule of a channel: whether one person alone may put a release on it.

Without a rule, who creates a release may let it through too. Under `two_person` a release is approved by somebody else
than who created it, or it never becomes active; the fold of events asks again, so `verify` names one that did without.
Giving the rule up is an event with a reason, like everything else. It compares what `actor` says, which is a process's
own word: who is behind it is for logins, and for signed approvals (`attest_release`), to prove.
"""

from __future__ import annotations

from typing import Any

from . import checks, ledger
from .canon import parse
from .errors import InvalidInput, NotFound
from .registry import Registry
from .tables import Row, Tables
from .types import Channel


def rule_channel(reg: Registry, channel: str, *, two_person: bool, reason: str, actor: str) -> Channel:
    """Set the rule of a channel, which need not have a release yet; setting what holds already changes nothing.

    A candidate that its creator approved before the rule cannot become active under it any more. Raises InvalidInput.
    """
    checks.channel(channel)
    checks.reason(reason)
    if not isinstance(two_person, bool):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise InvalidInput("two_person as true or false", "another value", "Say which.")
    with reg.write(actor) as tx:
        row = tx.db.get("channel", channel)
        if (row is not None and bool(row["two_person"])) != two_person:
            ledger.append(tx, "channel.ruled", channel, {"two_person": two_person, "reason": reason})
        return channel_of(channel, tx.db.get("channel", channel))


def get_channel(reg: Registry, channel: str) -> Channel:
    """A channel with its rule. Raises NotFound for one that has neither a release nor a rule."""
    checks.channel(channel)
    with reg.read() as db:
        return load(db, channel)


def load(db: Tables, channel: str) -> Channel:
    """As `get_channel`, inside a transaction."""
    if (row := db.get("channel", channel)) is None:
        raise NotFound("a channel of this registry", "none", "Create a release on it: efface release create")
    return channel_of(channel, row)


def channel_of(name: str, row: Row | None) -> Channel:
    """The channel in a row, or one that nothing was said of yet."""
    if row is None:
        return Channel(name, 0, None, two_person=False)
    gates: Any = parse(row["gates"]) if row["gates"] else {}
    return Channel(name, row["versions"], row["active"], two_person=bool(row["two_person"]), gates=gates)
