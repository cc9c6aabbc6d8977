"""`gc` of a registry: what no event needs, planned from the ledger, executed under its lock, twice as good as once."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from lifecycle_kit import released
from registry_kit import BASE, Clock, answered, ask, audited, contents, lora, release, seal, stack

from efface.registry import (
    Digest,
    InvalidInput,
    Registry,
    adapter_folder,
    collect,
    compose,
    list_adapters,
    log,
    plan_collection,
    purge_adapter,
    read_payload,
    retire_adapter,
    verify,
)
from efface.registry.gc import GcPlan, plan_from_json

ORPHAN = b"of a process that died before its event"


@pytest.fixture
def reg(tmp_path: Path) -> Iterator[Registry]:
    """As the others' registry, years later: files are as old as they are."""
    clock = Clock(datetime.now(UTC) + timedelta(days=365))
    with Registry.open(tmp_path / "registry", create=True, clock=clock) as opened:
        yield opened


def names(plan: GcPlan, kind: str = "blob") -> set[str]:
    return {item.name for item in plan.items if item.kind == kind}


def test_a_whole_registry_has_nothing_to_collect(reg: Registry, tmp_path: Path) -> None:
    _, adapter = released(reg, tmp_path)
    adapter_folder(reg, adapter.digest)
    before = contents(reg.root)
    plan = plan_collection(reg)
    assert (plan.items, plan.size) == ((), 0)
    assert collect(reg, plan, actor="ana").deleted == ()
    assert contents(reg.root) == before


def test_what_no_event_names_goes(reg: Registry, tmp_path: Path) -> None:
    _, adapter = released(reg, tmp_path)
    adapter_folder(reg, adapter.digest)
    before = contents(reg.root)
    digest = reg.blobs.put(ORPHAN)
    (reg.root / "blobs" / "sha256" / ".tmp-12").write_bytes(b"half")
    stale = reg.root / "cache" / "adapters" / ("0" * 64)
    stale.mkdir()
    (stale / "adapter_config.json").write_text("{}")
    plan = plan_collection(reg)
    assert names(plan) == {digest} == set(verify(reg, deep=True).extras)
    assert names(plan, "cache") == {str(stale.absolute())}
    assert names(plan, "leftover") == {"sha256/.tmp-12"}
    assert collect(reg, plan, actor="ana").deleted == plan.items
    kept = {name: found for name, found in contents(reg.root).items() if "sha256/" not in name or found[1]}
    assert kept.keys() == {name for name, found in before.items() if "sha256/" not in name or found[1]}
    assert collect(reg, plan, actor="ana").deleted == ()
    assert plan_collection(reg).items == ()
    assert verify(reg, deep=True).extras == ()


def test_the_ledger_says_nothing_of_it(reg: Registry) -> None:
    ask(reg)
    reg.blobs.put(ORPHAN)
    before = log(reg)
    collect(reg, plan_collection(reg), actor="ana")
    assert log(reg) == before


def test_what_is_young_may_be_a_write_that_is_not_done(tmp_path: Path) -> None:
    with Registry.open(tmp_path / "registry", create=True) as reg:
        digest = reg.blobs.put(ORPHAN)
        assert plan_collection(reg).items == ()
        assert names(plan_collection(reg, min_age=timedelta(0))) == {digest}
        with pytest.raises(InvalidInput):
            plan_collection(reg, min_age=timedelta(-1))


def test_what_became_needed_since_the_plan_stays(reg: Registry, tmp_path: Path) -> None:
    folder, request_id = lora(tmp_path / "lora", 1), ask(reg)
    for path in folder.iterdir():
        reg.blobs.put(path.read_bytes())
    plan = plan_collection(reg)
    assert len(plan.items) == 2
    adapter = seal(reg, folder, [request_id])
    done = collect(reg, plan, actor="ana")
    assert (done.deleted, done.left) == ((), plan.items)
    assert adapter_folder(reg, adapter.digest).is_dir()


def test_reports_of_audits_stay(reg: Registry) -> None:
    evidence = audited(reg, compose(BASE, "nf4", []))
    assert plan_collection(reg, min_age=timedelta(0)).items == ()
    assert reg.blobs.size(evidence.report) is not None


def test_files_that_another_adapter_shares_stay(reg: Registry, tmp_path: Path) -> None:
    _, one = answered(reg, tmp_path, 1)
    _, two = answered(reg, tmp_path, 2)
    retire_adapter(reg, one.digest, reason="r", actor="a")
    assert plan_collection(reg).items == ()
    purge_adapter(reg, one.digest, reason="r", actor="a")
    assert names(plan_collection(reg)) == {one.digest, one.files["adapter_model.safetensors"]}
    collect(reg, plan_collection(reg), actor="ana")
    assert {Digest(digest) for digest in reg.blobs} == {two.digest, *two.files.values()}
    assert verify(reg, deep=True).ok


def test_a_plan_that_was_altered_deletes_nothing(reg: Registry) -> None:
    digest = reg.blobs.put(ORPHAN)
    plan = plan_collection(reg).as_json()
    assert plan_from_json(plan) == plan_collection(reg)
    items = plan["items"]
    assert isinstance(items, list)
    for change in ({"items": [*items, *items]}, {"min_age_seconds": 1}):
        with pytest.raises(InvalidInput, match="plan"):
            collect(reg, plan_from_json({**plan, **change}), actor="ana")
    with pytest.raises(InvalidInput, match="actor"):
        collect(reg, plan_collection(reg), actor="")
    assert set(reg.blobs) == {digest}


def test_the_vault_is_swept_and_kept(reg: Registry, tmp_path: Path) -> None:
    request_id, _ = released(reg, tmp_path)
    (reg.vault.folder / ".tmp-0011").write_bytes(b"unfinished entry")
    collect(reg, plan_collection(reg), actor="ana")
    assert not list(reg.vault.folder.glob(".tmp-*"))
    assert read_payload(reg, request_id)
    assert verify(reg, deep=True).ok


def test_it_is_collected_with_an_old_plan_after_much_has_happened(reg: Registry, tmp_path: Path) -> None:
    _, one = answered(reg, tmp_path, 1)
    retire_adapter(reg, one.digest, reason="r", actor="a")
    purge_adapter(reg, one.digest, reason="r", actor="a")
    old = plan_collection(reg)
    again = seal(reg, tmp_path / "lora-1", [ask(reg)])
    release(reg, stack([again]))
    collect(reg, old, actor="ana")
    assert verify(reg, deep=True).ok
    assert [adapter.state for adapter in list_adapters(reg)] == ["PURGED", "QUALIFIED"]
    assert adapter_folder(reg, again.digest).is_dir()
