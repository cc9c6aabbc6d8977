"""When a request is due: calendar months, counted in UTC from receipt, and one extension of at most two of them."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from lifecycle_kit import rejected
from registry_kit import Clock, accept, answered, ask, contents, lora, release, seal, stack

from efface.registry import (
    Conflict,
    ForgetRequest,
    InvalidInput,
    NotFound,
    Registry,
    effective,
    extend_request,
    get_request,
    list_requests,
    log,
    overdue,
    shred_request,
    step_request,
    timestamp,
)
from efface.registry.canon import months_later, parse_timestamp
from efface.registry.compositions import compose
from efface.registry.deadlines import ANSWERED, PRIVACY_BASES, due, extension
from efface.registry.states import REQUEST

BASES = ("gdpr17", "uk_gdpr", "ccpa")
OPEN = ForgetRequest(
    id="req-000001",
    basis="gdpr17",
    state="RECEIVED",
    n_items=1,
    commitment="hmac-sha256:" + "0" * 64,
    subject_ref=None,
    received_at="2026-01-31T00:00:00.000000Z",
    due_at="2026-02-28T00:00:00.000000Z",
    extended_to=None,
    claim_level=None,
    shredding_at=None,
    shredded_at=None,
    updated_at="2026-01-31T00:00:00.000000Z",
)


def at(*parts: int) -> datetime:
    return datetime(*parts, tzinfo=UTC)  # pyright: ignore


@pytest.mark.parametrize(
    ("received", "months", "expected"),
    [
        (at(2026, 1, 31), 1, at(2026, 2, 28)),
        (at(2028, 1, 31), 1, at(2028, 2, 29)),
        (at(2100, 1, 31), 1, at(2100, 2, 28)),  # no leap year
        (at(2000, 1, 31), 1, at(2000, 2, 29)),  # one
        (at(2028, 1, 29), 1, at(2028, 2, 29)),
        (at(2027, 1, 29), 1, at(2027, 2, 28)),
        (at(2026, 12, 31), 1, at(2027, 1, 31)),
        (at(2026, 11, 30), 3, at(2027, 2, 28)),
        (at(2026, 12, 31), 2, at(2027, 2, 28)),
        (at(2026, 1, 31), 3, at(2026, 4, 30)),  # of receipt: not 28 April
        (at(2026, 2, 28), 1, at(2026, 3, 28)),  # nor the last day of March
        (at(2026, 5, 15, 23, 59, 59, 999999), 1, at(2026, 6, 15, 23, 59, 59, 999999)),
    ],
)
def test_months(received: datetime, months: int, expected: datetime) -> None:
    assert months_later(received, months) == expected


def slowly(moment: datetime, months: int) -> datetime:
    """Another way: walk day by day to the month that is meant, and stop at its last day or at the same day."""
    utc = moment.astimezone(UTC)
    passed, found = 0, utc
    while passed < months:
        following = found + timedelta(days=1)
        passed += following.day == 1
        found = following
    while found.day < utc.day and (found + timedelta(days=1)).month == found.month:
        found += timedelta(days=1)
    return found


zones = st.integers(-14 * 60, 14 * 60).map(lambda minutes: timezone(timedelta(minutes=minutes)))
moments = st.datetimes(datetime(1990, 1, 2), datetime(2199, 1, 1), timezones=zones)


@given(moments, st.integers(0, 3))
def test_months_against_a_walk_through_the_calendar(moment: datetime, months: int) -> None:
    assert months_later(moment, months) == slowly(moment, months)


@given(moments, moments)
def test_whoever_asks_first_is_due_first(one: datetime, two: datetime) -> None:
    first, second = sorted((one, two))
    assert months_later(first, 1) <= months_later(second, 1)
    assert timedelta(days=28) <= months_later(first, 1) - first <= timedelta(days=31)


@given(moments, st.sampled_from(BASES))
def test_it_is_due_by_the_earlier_of_two_calendars(moment: datetime, basis: str) -> None:
    """That of the zone in which it is said, whose last day it never passes, and that of UTC."""
    found, zone = due(basis, moment), moment.tzinfo
    assert found is not None
    there = slowly(moment.replace(tzinfo=UTC), 1).replace(tzinfo=zone)
    assert found == min(timestamp(there), timestamp(slowly(moment, 1)))
    assert parse_timestamp(found).astimezone(zone).date() <= there.date()
    assert due(basis, moment.astimezone(UTC)) == timestamp(slowly(moment, 1))
    assert due("test", moment) is None


@pytest.mark.parametrize(
    ("said", "hours", "expected", "extended"),
    [
        (
            datetime(2026, 1, 31, 23, 30),
            -5,
            "2026-03-01T04:30",
            "2026-05-01T04:30",
        ),  # of New York: 28 February
        (datetime(2026, 2, 28, 23, 0), -5, "2026-03-29T04:00", "2026-05-29T04:00"),  # not 1 April, as in UTC
        (datetime(2026, 10, 31, 0, 30), 2, "2026-11-29T22:30", "2027-01-29T22:30"),  # 30 November there
        (datetime(2026, 3, 1, 0, 30), 2, "2026-03-28T22:30", "2026-05-28T22:30"),  # in UTC of 28 February
    ],
)
def test_a_day_that_is_another_one_in_utc(
    reg: Registry, said: datetime, hours: int, expected: str, extended: str
) -> None:
    moment = said.replace(tzinfo=timezone(timedelta(hours=hours)))
    request_id = asked(reg, moment)
    assert get_request(reg, request_id).due_at == f"{expected}:00.000000Z"
    assert extend(reg, request_id).extended_to == f"{extended}:00.000000Z"


def clock_of(reg: Registry) -> Clock:
    assert isinstance(reg.clock, Clock)
    return reg.clock


def asked(reg: Registry, received: datetime, **changes: Any) -> str:
    clock_of(reg).now = received + timedelta(hours=1)
    return ask(reg, received_at=received, **{"basis": "gdpr17", **changes})


def extend(reg: Registry, request_id: str, months: int = 2, reason: str = "many rows"):
    return extend_request(reg, request_id, months=months, reason=reason, actor="ben")


@pytest.mark.parametrize(("months", "until"), [(1, "2026-03-31"), (2, "2026-04-30")])
def test_an_extension_counts_from_receipt(reg: Registry, months: int, until: str) -> None:
    request_id = asked(reg, at(2026, 1, 31, 9))
    extended = extend(reg, request_id, months)
    assert extended.extended_to == f"{until}T09:00:00.000000Z" == effective(extended)
    assert extended.due_at == "2026-02-28T09:00:00.000000Z"
    assert extended.state == "RECEIVED"
    last = log(reg)[-1]
    assert (last.kind, last.actor) == ("request.extended", "ben")
    assert last.body == {"until": extended.extended_to, "reason": "many rows"}
    assert extended.updated_at == last.at


@given(moments, st.integers(1, 2))
def test_an_extension_is_of_calendar_months(moment: datetime, months: int) -> None:
    fresh = replace(OPEN, received_at=timestamp(moment), due_at=due("gdpr17", moment))
    assert fresh.due_at is not None
    until = extension(fresh, months, timestamp(moment))
    assert until <= timestamp(slowly(moment, 1 + months))
    there = slowly(moment.replace(tzinfo=UTC), 1 + months).replace(tzinfo=moment.tzinfo)
    assert parse_timestamp(until).astimezone(moment.tzinfo).date() <= there.date()
    extension(fresh, months, fresh.due_at)
    past = timestamp(parse_timestamp(fresh.due_at) + timedelta(microseconds=1))
    with pytest.raises(Conflict, match="first month"):
        extension(fresh, months, past)


def test_only_once(reg: Registry) -> None:
    request_id = asked(reg, at(2026, 1, 31))
    extend(reg, request_id, 1)
    rejected(reg, Conflict, lambda: extend(reg, request_id, 1), "once")


@pytest.mark.parametrize("months", [0, 3, -1, 12])
def test_of_one_or_two_months(reg: Registry, months: int) -> None:
    request_id = asked(reg, at(2026, 1, 31))
    rejected(reg, InvalidInput, lambda: extend(reg, request_id, months), "12")


@pytest.mark.parametrize("reason", ["", "  ", "two\nlines", "x" * 501, None])
def test_with_a_reason(reg: Registry, reason: Any) -> None:
    request_id = asked(reg, at(2026, 1, 31))
    rejected(reg, InvalidInput, lambda: extend(reg, request_id, reason=reason), "reason")


def test_within_the_first_month(reg: Registry) -> None:
    request_id = asked(reg, at(2026, 1, 31, 9))
    clock_of(reg).now = at(2026, 2, 28, 9)
    rejected(reg, Conflict, lambda: extend(reg, request_id), "first month")
    clock_of(reg).now = at(2026, 2, 28, 8, 59, 59)  # ticks to the last moment that is allowed
    assert extend(reg, request_id).extended_to == "2026-04-30T09:00:00.000000Z"


def test_of_what_is_due(reg: Registry) -> None:
    request_id = ask(reg, basis="copyright")
    rejected(reg, Conflict, lambda: extend(reg, request_id), "due date")
    rejected(reg, NotFound, lambda: extend(reg, "req-000009"))


def test_not_of_what_is_answered(reg: Registry) -> None:
    request_id = asked(reg, at(2026, 1, 31))
    step_request(reg, request_id, "REFUSED", actor="ben", reason="no identity")
    rejected(reg, Conflict, lambda: extend(reg, request_id), "unanswered")


def test_every_state_is_answered_or_not() -> None:
    assert set(ANSWERED) < set(REQUEST)
    assert set(REQUEST) - set(ANSWERED) == {
        "RECEIVED",
        "VERIFIED",
        "ACCEPTED",
        "TRAINED",
        "AUDITED",
        "REOPENED",
    }
    assert set(PRIVACY_BASES) == set(BASES)


def test_overdue_is_derived(reg: Registry, tmp_path: Path) -> None:
    late = asked(reg, at(2026, 1, 31))
    longer = asked(reg, at(2026, 1, 31), basis="ccpa")
    never = asked(reg, at(2026, 1, 31), basis="safety")
    extend(reg, longer, 1)
    before = contents(reg.root)
    found = lambda: [request.id for request in list_requests(reg, overdue=True)]  # noqa: E731
    clock_of(reg).now = at(2026, 2, 27, 23, 59, 58)
    assert found() == []
    clock_of(reg).now = at(2026, 2, 28, 0, 0, 1)
    assert found() == [late]
    clock_of(reg).now = at(2026, 3, 31, 0, 0, 1)
    assert found() == [late, longer]
    assert [request.id for request in list_requests(reg, overdue=True, limit=1)] == [late]
    assert [request.id for request in list_requests(reg, overdue=True, after=late)] == [longer]
    assert list_requests(reg, "TRAINED", overdue=True) == []
    assert contents(reg.root) == before
    step_request(reg, late, "WITHDRAWN", actor="ben", reason="settled")
    assert found() == [longer]
    assert never not in found()


def test_what_is_rolled_back_is_due_again(reg: Registry, tmp_path: Path) -> None:
    clock_of(reg).now = at(2026, 2, 1)
    request_id, adapter = answered(reg, tmp_path, 1)
    legal = asked(reg, at(2026, 1, 31), basis="gdpr17")
    mine = seal(reg, lora(tmp_path / "legal", 7), [accept(reg, legal)])
    release(reg, stack([adapter, mine]))
    clock_of(reg).now = at(2027, 1, 1)
    assert list_requests(reg, overdue=True) == []
    shred_request(reg, legal, actor="ana")
    release(reg, compose(mine.base, "nf4", []), reason="a court order")
    (again,) = list_requests(reg, overdue=True)
    assert (again.id, again.state) == (legal, "REOPENED")
    assert get_request(reg, request_id).state == "REOPENED"
    assert overdue(again, timestamp(at(2027, 1, 1)))


@given(moments, st.sampled_from(sorted(REQUEST)), moments)
def test_overdue_is_past_due_and_unanswered(moment: datetime, state: Any, now: datetime) -> None:
    request = replace(OPEN, received_at=timestamp(moment), due_at=due("gdpr17", moment), state=state)
    assert overdue(request, timestamp(now)) == (state not in ANSWERED and now > slowly(moment, 1))
