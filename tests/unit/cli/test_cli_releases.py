"""`efface release`: two-step approval, what changed, what goes out; no model is loaded."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from cli_kit import checked, efface
from foreign_kit import HubStub, hub_at
from registry_kit import Clock, answered, audited, contents, lora, seal, stack

from efface.registry import Composition, Registry, create_release, get_adapter, list_adapters
from efface.registry.peft_folder import read

ONE, TWO = "req-000001", "req-000002"
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=<...>' to upload raw bytes:DeprecationWarning")


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[HubStub]:
    with hub_at(monkeypatch) as stub:
        yield stub


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """Candidates prod@1 (the first request) and prod@2 (both, rendered), each with a passing audit."""
    root = tmp_path / "registry"
    with Registry.open(root, create=True, clock=Clock()) as reg:
        first, second = (answered(reg, tmp_path, seed)[1] for seed in (1, 2))
        alone, both = stack([first]), stack([first, second])
        create_release(reg, "prod", alone, rendered=None, reason="first", actor="ana")
        made = seal(
            reg, lora(tmp_path / "both", 9), [ONE, TWO], kind="rendered", facts={"composition": both.digest}
        )
        create_release(reg, "prod", both, rendered=made.digest, reason="second", actor="ana")
        for composition in (alone, both):
            audited(reg, composition)
    return root


def audit_of(root: Path, number: int, verdict: str = "pass") -> str:
    (found,) = [
        audit["digest"]
        for audit in checked(root, "audit", "show")
        if audit["composition"] == composition(root, number).digest and audit["verdict"] == verdict
    ]
    return found


def composition(root: Path, number: int) -> Composition:
    with Registry.open(root) as reg:
        trained = [adapter for adapter in list_adapters(reg) if adapter.kind == "trained"]
    return stack(trained[:number])


def serve(root: Path, number: int) -> None:
    checked(root, "release", "approve", "prod", number, "--audit", audit_of(root, number))
    checked(root, "release", "activate", "prod", number)


def test_two_steps_by_two_people(home: Path) -> None:
    early = efface("release", "activate", "prod", 1, "--registry", home)
    assert early.code == 1
    assert "efface release approve prod 1 --audit DIGEST" in early.err
    approved = checked(
        home, "release", "approve", "prod", 1, "--audit", audit_of(home, 1)[7:17], "--actor", "ben"
    )
    assert (approved["state"], approved["approved_by"]) == ("APPROVED", "ben")
    assert efface("release", "show", "prod", "--registry", home).code == 2
    active = checked(home, "release", "activate", "prod", 1, "--actor", "cleo")
    assert (active["state"], active["requests"]) == ("ACTIVE", [ONE])
    assert [event["actor"] for event in checked(home, "log", "--kind", "release.active")] == ["cleo"]
    assert checked(home, "release", "show", "prod") == active


def test_the_rule_of_a_channel(home: Path) -> None:
    protect = ("release", "protect", "prod")
    nothing = {"two_person": False, "gates": {}}
    assert checked(home, *protect) == {"channel": "prod", "versions": 2, "active": None, **nothing}
    unreasoned = efface(*protect, "--two-person", "--registry", home)
    assert (unreasoned.code, "--reason" in unreasoned.err) == (2, True)
    assert checked(home, *protect, "--two-person", "--reason", "four eyes")["two_person"] is True
    approve = ("release", "approve", "prod", 1, "--audit", audit_of(home, 1), "--registry", home)
    before = contents(home)
    refused = efface(*approve, "--actor", "Ana")
    assert refused.code == 1
    assert "somebody else" in refused.err
    assert "na, " not in refused.err  # names are free text
    assert contents(home) == before
    assert checked(home, *protect, "--no-two-person", "--reason", "on leave")["two_person"] is False
    assert efface(*approve, "--actor", "Ana").code == 0
    ruled = checked(home, "log", "--kind", "channel.ruled")
    assert [event["body"]["reason"] for event in ruled] == ["four eyes", "on leave"]
    assert efface("release", "protect", "none", "--registry", home).code == 2


def test_the_wrong_audit_is_exit_1_and_changes_nothing(home: Path) -> None:
    with Registry.open(home) as reg:
        audited(reg, composition(home, 1), verdict="fail")
    before = contents(home)
    for evidence in (audit_of(home, 2), audit_of(home, 1, "fail")):
        assert efface("release", "approve", "prod", 1, "--audit", evidence, "--registry", home).code == 1
    assert efface("release", "approve", "prod", 3, "--audit", evidence, "--registry", home).code == 2
    assert contents(home) == before


def test_a_candidate_is_withdrawn_and_an_active_one_is_not(home: Path) -> None:
    serve(home, 1)
    refused = efface("release", "withdraw", "prod", 1, "--reason", "why", "--registry", home)
    assert (refused.code, "efface release rollback prod" in refused.err) == (2, True)
    assert checked(home, "release", "withdraw", "prod", 2, "--reason", "why")["state"] == "WITHDRAWN"


def test_a_difference_reads_both_ways(home: Path) -> None:
    there, back = (checked(home, "release", "diff", "prod", *pair) for pair in ((1, 2), (2, 1)))
    assert (there["requests_added"], there["requests_removed"]) == ([TWO], [])
    assert there["adapters_added"] == back["adapters_removed"] != []
    text = efface("release", "diff", "prod", 1, 2, "--registry", home).out.splitlines()
    assert text == [f"+ {TWO}", f"+ {there['adapters_added'][0]}"]
    assert efface("release", "diff", "prod", 1, 1, "--registry", home).out == "no difference\n"


def test_what_is_served_goes_to_a_folder_an_image_and_the_hub(
    home: Path, tmp_path: Path, hub: HubStub
) -> None:
    serve(home, 2)
    made = checked(home, "release", "push", "prod", tmp_path / "out", "--license", "mit")
    assert made["release"] == {"channel": "prod", "version": 2}
    assert made["audit"] == audit_of(home, 2)
    assert read(tmp_path / "out") == read(tmp_path / "both")
    assert made["audit"] in (tmp_path / "out" / "README.md").read_text()
    assert checked(home, "release", "push", "prod", f"oci:{tmp_path / 'image'}")["kind"] == "oci"
    assert checked(home, "release", "push", "prod", "hub://acme/stack")["address"].startswith(hub.url)


def test_a_release_without_a_rendered_adapter_is_not_pushed(home: Path, tmp_path: Path) -> None:
    serve(home, 1)
    refused = efface("release", "push", "prod", tmp_path / "out", "--registry", home)
    assert refused.code == 2
    assert "efface adapter export" in refused.err


def test_an_audit_without_a_request_needs_a_release(home: Path) -> None:
    words = ("audit", "run", "--adapter", "x", "--forget", "y", "--without", ONE, "--model", "z")
    refused = efface(*words, "--registry", home)
    assert (refused.code, "--without needs --release" in refused.err) == (2, True)


def test_the_composition_that_a_removal_leaves(home: Path) -> None:
    from efface.recipes.errors import RequestError
    from efface.recipes.release import composition_without

    both = composition(home, 2)
    with Registry.open(home) as reg:
        assert composition_without(reg, both, [TWO]) == composition(home, 1)
        for words in ([], [ONE, TWO], ["req-000003"]):
            with pytest.raises(RequestError):
                composition_without(reg, both, words)
        shared = seal(reg, lora(home.parent / "shared", 5), [ONE, TWO])
        with pytest.raises(RequestError, match="also forgets req-000002"):
            composition_without(reg, stack([shared, get_adapter(reg, both.adapters[0])]), [ONE])


def test_gates_are_set_shown_and_taken_off(home: Path) -> None:
    gate = ("release", "gate", "prod")
    assert checked(home, *gate)["gates"] == {}
    bounds = ("--set", "max_extraction_strength_forget=0.20", "--set", "max_recovered.prompt=0.3")
    assert efface(*gate, *bounds, "--registry", home).code == 2
    held = {"max_extraction_strength_forget": "0.2", "max_recovered.prompt": "0.3"}
    assert checked(home, *gate, *bounds, "--reason", "policy 7")["gates"] == held
    assert checked(home, *gate)["gates"] == held
    refused = efface(
        "release", "approve", "prod", "1", "--audit", audit_of(home, 1), "--registry", home, "--actor", "ben"
    )
    assert refused.code == 1
    assert "max_recovered.prompt" in refused.err
    off = ("--unset", "max_recovered.prompt", "--unset", "max_extraction_strength_forget", "--reason", "r")
    assert checked(home, *gate, *off)["gates"] == {}
    serve(home, 1)
    shown = efface("release", "show", "prod", "--registry", home)
    assert "gates        no gates" in shown.out


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (("--set", "max_extraction_strength=0.2"), "did you mean 'max_extraction_strength_forget'"),
        (("--set", "max_recovered.promt=0.2"), "did you mean 'prompt'"),
        (("--set", "max_rebound=many"), "expected GATE=NUMBER"),
        (("--set", "max_rebound=-0.1"), "greater than or equal to 0"),
        (("--set", "max_mention_rate_forget=nan"), "max_mention_rate_forget"),
        (("--unset", "max_rebound"), "which it does not have"),
    ],
)
def test_what_is_no_gate_is_refused_and_named(home: Path, change: tuple[str, str], expected: str) -> None:
    before = contents(home)
    found = efface("release", "gate", "prod", *change, "--reason", "r", "--registry", home)
    assert found.code == 2
    assert expected in " ".join(found.err.replace("│", " ").split())
    assert contents(home) == before
