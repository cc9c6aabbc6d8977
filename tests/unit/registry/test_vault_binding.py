"""A registry knows its vault: a host with another one may neither open nor write it."""

import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from urllib.parse import quote

import pytest
from lifecycle_kit import rejected
from registry_backends import Backend
from registry_kit import Clock, answered, ask, contents, release, stack

from efface.registry import (
    BrokenRegistry,
    Conflict,
    NotFound,
    Registry,
    ledger,
    log,
    projections,
    read_payload,
    verify,
)
from efface.registry.canon import parse
from efface.registry.registry import Writer
from efface.registry.vault_bind import Binding, bind_vault, plan_binding


def vault_of(reg: Registry) -> str:
    return (reg.vault.folder / "vault.id").read_text()


def kinds(reg: Registry) -> set[str]:
    return {problem.kind for problem in verify(reg).problems}


@pytest.fixture
def other(reg: Registry, tmp_path: Path) -> Iterator[Registry]:
    """The same database, as another host sees it that has made a vault of its own."""
    ask(reg)
    shutil.copytree(reg.root, tmp_path / "other")
    shutil.rmtree(tmp_path / "other/vault")
    with Registry.open(tmp_path / "new", create=True) as new:
        ask(new)
    shutil.copytree(tmp_path / "new/vault", tmp_path / "other/vault")
    with Registry.open(tmp_path / "other", any_vault=True) as opened:
        yield opened


def test_each_request_says_which_vault_its_rows_went_into(reg: Registry) -> None:
    ask(reg)
    ask(reg)
    assert [event.body["vault"] for event in log(reg)] == [vault_of(reg)] * 2
    assert verify(reg, deep=True).ok


def test_another_vault_is_refused_at_opening_and_verify_names_it(reg: Registry, other: Registry) -> None:
    with pytest.raises(Conflict, match=f"the vault {vault_of(reg)} of this registry") as refused:
        Registry.open(other.root)
    assert vault_of(other) in str(refused.value)
    assert "efface vault bind" in str(refused.value)
    problems = verify(other).problems
    assert [(p.kind, p.where) for p in problems] == [("vault-other", "vault.id")]
    assert (problems[0].expected, problems[0].found) == (f"the vault {vault_of(reg)}", vault_of(other))


def test_a_vault_that_comes_later_is_refused_at_writing(reg: Registry, other: Registry) -> None:
    answered(reg, reg.root.parent, 1)
    shutil.rmtree(reg.vault.folder)
    shutil.copytree(other.vault.folder, reg.vault.folder)
    for call in (lambda: ask(reg), lambda: answered(reg, reg.root.parent / "more", 2)):
        rejected(reg, Conflict, call, "of this registry")
    with pytest.raises(Conflict, match="of this registry"):
        ask(other)  # `any_vault` lets look and bind, not put rows into the wrong place


def test_a_host_without_a_vault_does_all_but_open_requests(reg: Registry, tmp_path: Path) -> None:
    _, adapter = answered(reg, tmp_path, 1)
    before = vault_of(reg)
    shutil.move(reg.vault.folder, tmp_path / "elsewhere")
    with Registry.open(reg.root, clock=reg.clock) as served:
        release(served, stack([adapter]))
        rejected(
            served, Conflict, lambda: ask(served), f"the vault {before} of this registry at .*; got no vault"
        )
        assert not served.vault.folder.exists()
        shutil.move(tmp_path / "elsewhere", reg.vault.folder)
        ask(served)
        assert verify(served, deep=True).ok


def test_a_lost_vault_is_replaced_when_somebody_says_so(reg: Registry, other: Registry) -> None:
    old, new = vault_of(reg), vault_of(other)
    with Registry.open(reg.root) as right:
        assert plan_binding(right) == Binding(old, old, ())
        rejected(right, NotFound, lambda: _without(right), "a vault at")
    plan = plan_binding(other)
    assert plan == Binding(
        old, new, ()
    )  # the entry of the same name is there; `verify --deep` says it is another
    assert bind_vault(other, reason="disk lost", actor="ana") == plan
    event = log(other)[-1]
    assert (event.kind, event.actor, event.body) == (
        "vault.bound",
        "ana",
        {"vault": new, "reason": "disk lost"},
    )
    after = contents(other.root)
    assert bind_vault(other, reason="again", actor="ana").old == new
    assert contents(other.root) == after
    with Registry.open(other.root) as opened:
        ask(opened, b"new rows")
        assert "vault-other" not in kinds(opened)
        assert ledger.rebuild(opened) == len(log(opened))


def _without(reg: Registry) -> None:
    hidden = reg.vault.folder.rename(reg.root.parent / "hidden")
    try:
        bind_vault(reg, reason="r", actor="ana")
    finally:
        hidden.rename(reg.vault.folder)


def test_the_rows_that_a_binding_leaves_behind_are_named(reg: Registry, other: Registry) -> None:
    other.vault.discard("req-000001")
    assert plan_binding(other).missing == ("req-000001",)
    bind_vault(other, reason="disk lost", actor="ana")
    assert kinds(other) == {"vault-missing"}


def _as_before(reg: Registry) -> None:
    """As efface wrote it before vaults had ids: no file, and no word of it in the ledger."""
    (reg.vault.folder / "vault.id").unlink()
    with closing(sqlite3.connect(reg.root / "registry.db", isolation_level=None)) as db:
        rows = db.execute("SELECT kind, actor, subject_id, body FROM event ORDER BY seq").fetchall()
        triggers = db.execute("SELECT name, sql FROM sqlite_master WHERE type = 'trigger'").fetchall()
        for name, _ in triggers:
            db.execute(f"DROP TRIGGER {name}")
        db.execute("DELETE FROM event")
        for _, sql in triggers:
            db.execute(sql)
    with reg.database.writing() as tables:
        tables.update("head", (1,), seq=0, hash=ledger.GENESIS)
        projections.clear(tables)
        for kind, actor, subject, body in rows:
            value = parse(body)
            assert isinstance(value, dict)
            value.pop("vault", None)
            ledger.append(Writer(tables, "2026-03-01T12:00:00.000000Z", actor), kind, subject, value)


def test_registries_of_before_get_a_vault_with_their_next_request(reg: Registry) -> None:
    ask(reg)
    _as_before(reg)
    assert verify(reg, deep=True).ok
    assert plan_binding(reg) == Binding(None, None, ())
    with Registry.open(reg.root, clock=Clock()) as opened:
        ask(opened, b"next")
        assert log(opened)[-1].body["vault"] == vault_of(opened)
        assert read_payload(opened, "req-000001")


def test_registries_of_before_do_not_get_the_vault_of_a_host_without_their_rows(reg: Registry) -> None:
    ask(reg)
    _as_before(reg)
    shutil.rmtree(reg.vault.folder)
    rejected(reg, Conflict, lambda: ask(reg), "with the rows of req-000001")
    assert not reg.vault.folder.exists()


def test_a_vault_that_lost_its_id_is_not_taken_for_another(reg: Registry) -> None:
    ask(reg)
    kept = vault_of(reg)
    (reg.vault.folder / "vault.id").unlink()
    rejected(reg, Conflict, lambda: ask(reg), "a vault without an id")
    assert kinds(reg) == {"vault-other"}
    (reg.vault.folder / "vault.id").write_text("../x")
    with pytest.raises(BrokenRegistry, match=r"vault\.id"):
        ask(reg)
    assert kinds(Registry.open(reg.root)) == {"vault-damaged"}
    (reg.vault.folder / "vault.id").write_text(kept)
    assert verify(reg, deep=True).ok


@pytest.mark.parametrize("body", [{"vault": "x", "reason": "r"}, {"vault": None, "reason": "r"}])
def test_an_event_with_no_vault_in_it_cannot_follow(reg: Registry, body: dict) -> None:
    with pytest.raises(BrokenRegistry), reg.write("eve") as tx:
        ledger.append(tx, "vault.bound", "vault", body)


def test_two_hosts_on_one_server(postgres: Backend, tmp_path: Path) -> None:
    """The second has a folder of its own, and finds out before it writes a row."""
    first = postgres.open()
    ask(first)
    second = Registry.open(postgres.url.replace(quote(str(postgres.root)), str(tmp_path / "host-b")))
    assert second.root == tmp_path / "host-b"
    with closing(second):
        with pytest.raises(Conflict, match="got no vault"):
            ask(second)
        assert not second.vault.folder.exists()
        shutil.copytree(first.vault.folder, second.vault.folder)
        ask(second, b"shared")
    assert len(log(first)) == 2
