"""What a suite measured beside rows and attacks, for a person: membership, drift, depth, TOFU, MUSE, tasks.

`SuiteRun.figures` are flat: a name's last part may be a side (before, after, reference), and an interval stands beside
its figure as ``…_low`` and ``…_high``. One line of the table is one figure with its sides, its interval, its meaning.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from .markup import EMPTY, Markup, element
from .suite_run import SuiteRun
from .tables import grid

SIDES = ("before", "after", "reference")
_BOUND = re.compile(r"(?:.*_|^)(?:low|high)$")
_ASIDE = ("patching/n", "patching/skipped")
"""Counts, which stand with the figure that they are of."""
MEANINGS: tuple[tuple[str, str], ...] = (
    (r"membership/.*auc", "do forget rows look more trained on than unseen ones? 0.5 is guessing, both ends leak"),
    (r"membership/.*privleak", "that AUC against a model that never saw them, in percent; 0 is as if never seen"),
    (r"membership/.*s_mia", "the same, cut to [0, 1]; 1 is as if never seen"),
    (r"drift/.*/probability", "change of the answer probability of kept rows; 0 is untouched"),
    (r"drift/.*/kl", "KL(before || after) per token of kept rows, in nats; 0 is untouched"),
    (r"patching/score", "Unlearning Depth Score: 1 the hidden states lost it too, 0 they still hold all of it"),
    (r"tofu/forget_truth_ratio", "TOFU's truth ratio on forget rows; 1 where right and wrong answers are as likely"),
    (r"tofu/forget_quality_p", "p of a Kolmogorov-Smirnov test against a model that never saw the rows; high is alike"),
    (r"tofu/forget_quality_ks", "the statistic of that test; 0 is alike"),
    (r"tofu/model_utility", "harmonic mean of nine figures of what is kept; up to 1"),
    (r"tofu/.*/(probability|rouge_l|truth_ratio)", "one of the nine figures of model utility; up to 1"),
    (r"muse/verbatim", "how much of the documents is continued word for word (MUSE); 0 none"),
    (r"muse/knowledge", "how well questions on the forget set are answered (MUSE); 0 not at all"),
    (r"muse/utility", "how well questions on kept rows are answered (MUSE)"),
    (r"muse/auc", "AUC of Min-K, forget rows against unseen ones; 0.5 is guessing, both ends leak"),
    (r"muse/privleak", "that AUC against a model that never saw them, in percent; 0 is as if never seen"),
    (r"muse/s_mia", "the same, cut to [0, 1]; 1 is as if never seen"),
    (r"lm-eval/.*", "a task of lm-evaluation-harness"),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Line:
    """A figure: its value by side ("" for one that compares two models), and the intervals of those that have one."""

    name: str
    values: Mapping[str, float] = field(default_factory=dict[str, float])
    intervals: Mapping[str, tuple[float, float]] = field(default_factory=dict[str, tuple[float, float]])

    @property
    def shown(self) -> str:
        """The values in words: before → after, then the reference's."""
        told = [f"{self.values[side]:.4g}" for side in ("", *SIDES[:2]) if side in self.values]
        reference = f"reference {self.values['reference']:.4g}" if "reference" in self.values else ""
        return "; ".join(one for one in (" → ".join(told), reference) if one)

    @property
    def spread(self) -> str:
        """The intervals in words, each with its side where the figure has more than one."""
        told = {side: f"{low:.4g} to {high:.4g}" for side, (low, high) in self.intervals.items()}
        named = len(self.values) > 1
        return (
            "; ".join(f"{side} {text}" if named and side else text for side, text in told.items()) or "none"
        )


def lines(figures: Mapping[str, float]) -> tuple[Line, ...]:
    """One for each figure, in the order measured; none is left out but bounds and counts that stand beside another."""
    sides: dict[str, dict[str, float]] = {}
    for name, value in figures.items():
        if not (_is_bound(name, figures) or (name in _ASIDE and "patching/score" in figures)):
            stem, side = _split(name)
            sides.setdefault(stem, {})[side] = value
    return tuple(Line(stem, values, _intervals(stem, values, figures)) for stem, values in sides.items())


def meaning(name: str) -> str:
    """What a figure says, in words; "" for one that this version does not know."""
    return next((words for pattern, words in MEANINGS if re.fullmatch(pattern, name)), "")


def further_section(run: SuiteRun | None) -> Markup:
    """The table, and nothing where a suite measured no such thing."""
    found = () if run is None else lines(run.figures)
    if run is None or not found:
        return EMPTY
    note = (
        "Of all requests in force together; of a figure with two values, the model before → the audited one."
    )
    head = ("Figure", "Value", "95 % interval", "What it means")
    return element(
        "section",
        element("h2", "Further figures"),
        element("p", note, class_="muted"),
        grid(head, [_row(one, run.figures) for one in found], class_="further"),
    )


def _row(one: Line, figures: Mapping[str, float]) -> list[Markup]:
    counts = ""
    if one.name == "patching/score" and "patching/n" in figures:
        counts = (
            f" (n = {figures['patching/n']:.0f}, without a gap: {figures.get('patching/skipped', 0):.0f})"
        )
    return [
        element("th", element("code", one.name), scope="row"),
        element("td", one.shown, class_="number"),
        element("td", one.spread, class_="number"),
        element("td", meaning(one.name) + counts),
    ]


def _split(name: str) -> tuple[str, str]:
    stem, _, side = name.rpartition("/")
    return (stem, side) if stem and side in SIDES else (name, "")


def _joined(stem: str, side: str) -> str:
    return f"{stem}/{side}" if side else stem


def _ends(stem: str, side: str) -> tuple[str, str]:
    """The names of the bounds of a figure."""
    beside = "patching/" if stem == "patching/score" else f"{stem}_"
    return _joined(f"{beside}low", side), _joined(f"{beside}high", side)


def _is_bound(name: str, figures: Mapping[str, float]) -> bool:
    """Whether ``name`` is a bound, and the figure that it bounds is shown, between two of them."""
    stem, side = _split(name)
    if not _BOUND.fullmatch(stem.rpartition("/")[2]):
        return False
    patched = stem in ("patching/low", "patching/high")
    bounded = "patching/score" if patched else re.sub(r"_(low|high)$", "", stem)
    whole, ends = _joined(bounded, side), _ends(bounded, side)
    return name in ends and all(one in figures for one in (whole, *ends)) and not _is_bound(whole, figures)


def _intervals(
    stem: str, values: Mapping[str, float], figures: Mapping[str, float]
) -> dict[str, tuple[float, float]]:
    ends = {side: _ends(stem, side) for side in values}
    return {
        side: (figures[low], figures[high])
        for side, (low, high) in ends.items()
        if low in figures and high in figures
    }
