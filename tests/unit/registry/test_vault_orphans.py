"""Vault entries without a request: planned, destroyed on request, and nothing else with them."""

from pathlib import Path

import pytest
from registry_kit import CANARY, ask, contents

from efface.registry import NotFound, Registry, log, read_payload, verify
from efface.registry.vault_orphans import Orphan, drop_orphans, list_orphans


@pytest.fixture
def littered(reg: Registry) -> Registry:
    """One request; an entry of a request that never came, and one set aside."""
    ask(reg)
    reg.vault.put("req-000002", b"rows of a call that was killed")
    reg.vault.put("req-000009", b"rows of a newer ledger")
    reg.vault.path("req-000009").rename(reg.vault.folder / "req-000001.orphan-1.json")
    return reg


def names(reg: Registry) -> list[str]:
    return sorted(path.name for path in reg.vault.folder.iterdir())


def test_they_are_listed_and_nothing_is_written(littered: Registry) -> None:
    before = contents(littered.root)
    found = list_orphans(littered)
    assert [(one.name, one.set_aside) for one in found] == [
        ("req-000001.orphan-1.json", True),
        ("req-000002.json", False),
    ]
    sizes = {path.name: path.stat().st_size for path in littered.vault.folder.iterdir()}
    assert all(one.size == sizes[one.name] for one in found)
    assert list_orphans(littered, ["req-000002.json"]) == found[1:]
    assert contents(littered.root) == before


def test_they_are_destroyed_and_the_ledger_says_what_it_said(littered: Registry) -> None:
    events, kept = log(littered), set(names(littered))
    found = list_orphans(littered)
    assert verify(littered, deep=True).extras == tuple(sorted(f"vault/{one.name}" for one in found))
    assert drop_orphans(littered, [one.name for one in found], actor="ana") == found
    assert set(names(littered)) == kept - {one.name for one in found}
    assert list_orphans(littered) == []
    assert log(littered) == events
    result = verify(littered, deep=True)
    assert (result.ok, result.extras) == (True, ())
    assert read_payload(littered, "req-000001") == CANARY.encode()


def test_their_bytes_are_overwritten_first(littered: Registry, tmp_path: Path) -> None:
    """A second name for the same bytes shows what became of them."""
    path = littered.vault.folder / "req-000002.json"
    (tmp_path / "same").hardlink_to(path)
    size = path.stat().st_size
    drop_orphans(littered, [path.name], actor="ana")
    assert (tmp_path / "same").read_bytes() == bytes(size)


@pytest.mark.parametrize(
    "name", ["req-000001.json", "master.key", "subject.key", "../registry.db", "req-000003.json", ""]
)
def test_nothing_else_can_be_named(littered: Registry, name: str) -> None:
    before = contents(littered.root)
    for call in (
        lambda: list_orphans(littered, [name]),
        lambda: drop_orphans(littered, ["req-000002.json", name], actor="ana"),
    ):
        with pytest.raises(NotFound):
            call()
    assert contents(littered.root) == before


def test_links_and_other_files_are_not_ours_to_destroy(littered: Registry, tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("precious")
    (littered.vault.folder / "req-000077.json").symlink_to(tmp_path / "precious")
    (littered.vault.folder / "req-000078.json").mkdir()
    (littered.vault.folder / "req-000079.txt").write_text("x")
    found = [one.name for one in list_orphans(littered)]
    assert found == ["req-000001.orphan-1.json", "req-000002.json"]


def test_a_request_that_came_in_meanwhile_is_no_orphan_any_more(littered: Registry) -> None:
    planned: list[Orphan] = list_orphans(littered, ["req-000002.json"])
    assert ask(littered, b"rows of a call that was killed") == "req-000002"  # takes the entry up
    with pytest.raises(NotFound):
        drop_orphans(littered, [one.name for one in planned], actor="ana")
    assert read_payload(littered, "req-000002") == b"rows of a call that was killed"


def test_no_vault_has_no_orphans(reg: Registry) -> None:
    assert list_orphans(reg) == []
