"""From attack results to the pictures and the table of an audit page."""

from __future__ import annotations

from collections.abc import Sequence

from .attack import AttackResult, Point
from .charts import Recovery, Strip, recovery_chart
from .curves import MOST_SERIES, Series, Spot, curves_chart
from .markup import EMPTY, Markup, element, join
from .names import metric_name, request_name, short_name
from .tables import grid

Panel = tuple[str, str, str | None, float, float]


def attack_section(attacks: Sequence[AttackResult]) -> Markup:
    """All attacks at a glance, then a curve for each scale, then precisions side by side, then the figures."""
    if not attacks:
        return EMPTY
    return element(
        "section",
        element("h2", "What attacks bring back"),
        element(
            "p",
            "Each line starts at what the suppression left and ends at the worst value that the attack reached; "
            "the far end is what the base knew. Less movement is better.",
            class_="muted",
        ),
        _overview(attacks),
        *(_curves(panel, some) for panel, some in _panels(attacks).items()),
        _precisions(attacks),
        attacks_table(attacks),
    )


def worst_first(attacks: Sequence[AttackResult]) -> list[AttackResult]:
    """By the share recovered; those where nothing was left to recover come last."""
    return sorted(attacks, key=lambda one: (-_share(one), one.name, one.request or ""))


def attacks_table(attacks: Sequence[AttackResult]) -> Markup:
    """One row per attack with the words of its finding."""
    head = ("Attack", "Request", "Known", "Suppressed", "Attacked", "Brought back", "Finding")
    return grid(head, [_row(one) for one in worst_first(attacks)], class_="attacks")


def brought_back(attack: AttackResult) -> str:
    """The share recovered in words; "nothing to bring back" where the suppression took nothing."""
    share = attack.recovered
    if share is None:
        return "nothing to bring back"
    return "none" if share <= 0 else f"{share:.0%}"


def _share(attack: AttackResult) -> float:
    return -1.0 if attack.recovered is None else attack.recovered


def _overview(attacks: Sequence[AttackResult]) -> Markup:
    lanes = [
        Recovery(
            one.name,
            f"{short_name(one.request)} · {metric_name(one.metric)} · n = {one.n}",
            one.known,
            one.suppressed,
            _strip(one),
            brought_back(one),
        )
        for one in worst_first(attacks)
    ]
    described = "; ".join(f"{lane.name}, {lane.note}: {lane.figures}" for lane in lanes)
    return recovery_chart(lanes, "What each attack brings back", described)


def _strip(attack: AttackResult) -> Strip:
    """The attacked figure, with the interval of the point that it was reached at."""
    worst = [p for p in attack.points if p.y == attack.attacked and p.low is not None and p.high is not None]
    low, high = (worst[0].low, worst[0].high) if worst else (None, None)
    return Strip(
        attack.attacked, attack.attacked if low is None else low, attack.attacked if high is None else high
    )


def _panels(attacks: Sequence[AttackResult]) -> dict[Panel, list[AttackResult]]:
    """Attacks with a curve, by what can share one drawing, at most `MOST_SERIES` each."""
    found: dict[Panel, list[AttackResult]] = {}
    for one in attacks:
        if one.points and not _labelled(one):
            key = (one.x_label, one.metric, one.request, one.known, one.suppressed)
            found.setdefault(key, []).append(one)
    return found


def _curves(panel: Panel, attacks: Sequence[AttackResult]) -> Markup:
    scale, metric, request, known, suppressed = panel
    heading = f"{_scale_name(attacks[0])}: {metric_name(metric)} over {scale}, {request_name(request)}"
    parts = [attacks[i : i + MOST_SERIES] for i in range(0, len(attacks), MOST_SERIES)]
    return join(
        element("h3", heading),
        *(curves_chart(_series(p), known, suppressed, scale, heading, _described(p)) for p in parts),
    )


def _series(attacks: Sequence[AttackResult]) -> list[Series]:
    return [Series(one.name, tuple(Spot(p.x, p.y, p.low, p.high) for p in one.points)) for one in attacks]


def _described(attacks: Sequence[AttackResult]) -> str:
    return "; ".join(
        f"{one.name}: " + ", ".join(f"{p.x:g} → {p.y:.2f}" for p in one.points) for one in attacks
    )


def _scale_name(attack: AttackResult) -> str:
    names = {"relearning": "Relearning", "sampling": "Sampling"}
    return names.get(attack.kind, attack.kind.capitalize())


def _precisions(attacks: Sequence[AttackResult]) -> Markup:
    """Attacks whose points have names instead of a scale: precisions, wordings."""
    lanes = [(one, point) for one in attacks if _labelled(one) for point in one.points]
    if not lanes:
        return EMPTY
    drawn = [_point_lane(one, point) for one, point in lanes]
    described = "; ".join(f"{lane.name}, {lane.note}: {lane.figures}" for lane in drawn)
    title = "Precisions and variants compared"
    return join(element("h3", title), recovery_chart(drawn, title, described))


def _point_lane(attack: AttackResult, point: Point) -> Recovery:
    low = point.y if point.low is None else point.low
    high = point.y if point.high is None else point.high
    return Recovery(
        point.label,
        f"{attack.name} · {short_name(attack.request)}",
        attack.known,
        attack.suppressed,
        Strip(point.y, low, high),
        f"{point.y:.2f}",
    )


def _labelled(attack: AttackResult) -> bool:
    return bool(attack.points) and all(point.label for point in attack.points)


def _row(one: AttackResult) -> list[Markup]:
    figures = (one.known, one.suppressed, one.attacked)
    return [
        element("td", one.name, element("span", metric_name(one.metric), class_="gate")),
        element("td", request_name(one.request)),
        *(element("td", f"{figure:.2f}", class_="number") for figure in figures),
        element("td", brought_back(one), class_="number"),
        element("td", one.finding, element("span", _settings(one), class_="gate")),
    ]


def _settings(one: AttackResult) -> str:
    parts = [f"n = {one.n}", f"{one.seconds:.0f} s", *(f"{k} {v}" for k, v in one.settings.items())]
    return " · ".join(parts)
