"""`efface adapter`: listing, out to folders, OCI layouts and the Hub, back in again, and the end with its plan."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from audit_kit import report
from cli_kit import checked, efface
from foreign_kit import WEIGHTS_NAME, HubStub, Repo, base_folder, files, hub_at
from registry_kit import BASE, answered, ask, audited, contents, lora, release, seal, stack, weights_file

from efface.registry import Adapter, Registry, get_adapter
from efface.registry.oci import read_layout
from efface.registry.peft_folder import read

ONE, TWO = "req-000001", "req-000002"
REPO = "acme/forgetting"
# huggingface_hub hands the bytes of an LFS upload to its HTTP client as `data`; nothing that we call.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=<...>' to upload raw bytes:DeprecationWarning")


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[HubStub]:
    with hub_at(monkeypatch) as stub:
        yield stub


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """Two requests, each with an adapter; nothing is released."""
    root = tmp_path / "registry"
    with Registry.open(root, create=True) as reg:
        for seed in (1, 2):
            answered(reg, tmp_path, seed)
    return root


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return base_folder(tmp_path / "model")


def adapters(root: Path) -> list[str]:
    return [record["digest"] for record in checked(root, "adapter", "list")]


def rendered(root: Path, work: Path) -> Adapter:
    """The stack of both, as `release create` renders it: released, on an audit with figures."""
    with Registry.open(root) as reg:
        both = stack([get_adapter(reg, digest) for digest in adapters(root)])
        made = seal(
            reg,
            lora(work / "rendered", 9),
            [ONE, TWO],
            kind="rendered",
            facts={"composition": both.digest},
        )
        release(reg, both)
        audited(reg, both, report=json.dumps(report().to_json()).encode())
    return made


def test_lists_and_pages(home: Path) -> None:
    one, two = adapters(home)
    assert [r["digest"] for r in checked(home, "adapter", "list", "--request", TWO)] == [two]
    assert [r["digest"] for r in checked(home, "adapter", "list", "--after", one, "--limit", 1)] == [two]
    assert checked(home, "adapter", "list", "--state", "retired") == []
    text = efface("adapter", "list", "--registry", home)
    assert [line.split()[:4] for line in text.out.splitlines()[1:]] == [
        [one[:19], "trained", "SEALED", ONE],
        [two[:19], "trained", "SEALED", TWO],
    ]


def test_show_takes_a_prefix(home: Path) -> None:
    (one, _) = adapters(home)
    shown = checked(home, "adapter", "show", one[7:17])
    assert (shown["digest"], shown["facts"]["objective"], shown["state"]) == (one, "simnpo", "SEALED")
    text = efface("adapter", "show", one, "--registry", home).out
    assert "facts          objective: simnpo" in text and "trained_on     –" in text


def test_an_adapter_of_one_request_leaves_only_when_told_to(home: Path, tmp_path: Path) -> None:
    (one, _) = adapters(home)
    for target in (tmp_path / "out", f"oci:{tmp_path / 'out'}", "hub://acme/one"):
        refused = efface("adapter", "export", one, target, "--registry", home)
        assert (refused.code, (tmp_path / "out").exists()) == (2, False)
        assert "points at what one request had forgotten" in refused.err
    done = checked(home, "adapter", "export", one, tmp_path / "out", "--single-request")
    assert (done["adapter"], done["kind"], done["audit"]) == (one, "folder", None)
    assert read(tmp_path / "out") == read(tmp_path / "lora-1")
    assert "No audit of it is published here" in (tmp_path / "out" / "README.md").read_text()
    again = efface("adapter", "export", one, tmp_path / "out", "--single-request", "--registry", home)
    assert again.code == 2


def test_the_card_of_a_stack_has_the_newest_audits_figures(home: Path, tmp_path: Path) -> None:
    made = rendered(home, tmp_path)
    words = ("--license", "apache-2.0", "--base-name", "org/base")
    done = checked(home, "adapter", "export", made.digest, tmp_path / "out", *words)
    card = (tmp_path / "out" / "README.md").read_text()
    assert f"| audit | `{done['audit']}` |" in card
    assert "| forget.rouge_l | `" in card and "| retain.probability | `" in card
    assert 'license: "apache-2.0"' in card and 'base_model: "org/base"' in card
    assert "suppresses" in card and ONE not in card


def test_a_compressed_adapter_leaves_with_its_error_bound(home: Path, tmp_path: Path) -> None:
    with Registry.open(home) as reg:
        bounded = seal(reg, lora(tmp_path / "small", 6), [ONE, TWO], kind="consolidated", error_bound="0.001")
    assert checked(home, "adapter", "show", bounded.digest)["error_bound"] == "0.001"
    checked(home, "adapter", "export", bounded.digest, f"oci:{tmp_path / 'image'}")
    assert read_layout(tmp_path / "image").digest == bounded.digest


def test_to_the_hub_and_back(home: Path, tmp_path: Path, hub: HubStub, model: Path) -> None:
    made = rendered(home, tmp_path)
    pushed = checked(home, "adapter", "export", made.digest, f"hub://{REPO}@v1")
    commit = hub.repos[REPO].branches["v1"]
    assert pushed["address"] == f"{hub.url}/{REPO}/commit/{commit}"
    assert hub.repos[REPO].private
    with Registry.open(home) as reg:
        ask(reg)
    taken = checked(
        home, "adapter", "import", f"hub://{REPO}@v1", "--request", "req-000003", "--model", model
    )
    assert taken["facts"] == {"imported_from": f"hub://{REPO}@{commit}", "objective": "unknown"}
    assert taken["files"][WEIGHTS_NAME] == made.files[WEIGHTS_NAME]


def test_public_is_asked_for(home: Path, tmp_path: Path, hub: HubStub) -> None:
    made = rendered(home, tmp_path)
    hub.repos[REPO] = Repo(private=False)
    hub.repos[REPO].commit("main", {})
    assert efface("adapter", "export", made.digest, f"hub://{REPO}", "--registry", home).code == 2
    checked(home, "adapter", "export", made.digest, f"hub://{REPO}", "--public")


def test_import_binds_to_the_fingerprint_of_the_base(home: Path, tmp_path: Path, model: Path) -> None:
    with Registry.open(home) as reg:
        ask(reg)
    source = lora(tmp_path / "foreign", 7)
    taken = checked(
        home,
        "adapter",
        "import",
        source,
        "--request",
        "req-000003",
        "--model",
        model,
        "--quantization",
        "bf16",
    )
    base = checked(None, "model", "show", model)["digest"]
    assert (taken["kind"], taken["base"], taken["quantization"]) == ("trained", base, "bf16")
    assert taken["facts"] == {"imported_from": "folder", "objective": "unknown"}
    assert checked(home, "request", "show", "req-000003")["state"] == "TRAINED"
    assert checked(home, "verify", "--deep")["problems"] == []


def test_an_image_names_its_base(home: Path, tmp_path: Path, model: Path) -> None:
    (one, _) = adapters(home)
    layout = f"oci:{tmp_path / 'image'}"
    done = checked(home, "adapter", "export", one, layout, "--single-request")
    assert done["address"].startswith("sha256:")
    refused = efface("adapter", "import", layout, "--request", ONE, "--model", model, "--registry", home)
    assert refused.code == 2
    assert f"expected the base {BASE}, which it names" in refused.err


def test_a_folder_that_names_another_base_by_its_digest_is_refused(
    home: Path, tmp_path: Path, model: Path
) -> None:
    """Its shapes would fit; a name that its author gave the base says nothing."""
    source, config = tmp_path / "foreign", tmp_path / "foreign" / "adapter_config.json"
    source.mkdir()
    for name, data in files().items():
        (source / name).write_bytes(data)
    given = json.loads(config.read_text())
    words = ("adapter", "import", source, "--request", ONE, "--model", model)
    config.write_text(json.dumps(given | {"base_model_name_or_path": BASE}))
    before = contents(home)
    refused = efface(*words, "--registry", home)
    assert (refused.code, contents(home)) == (2, before)
    assert f"expected the base {BASE}, which it names" in refused.err
    config.write_text(json.dumps(given | {"base_model_name_or_path": "org/model"}))
    checked(home, *words)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda folder, model: (folder / WEIGHTS_NAME).write_bytes(b"junk"),
        lambda folder, model: (folder / WEIGHTS_NAME).unlink(),
        lambda folder, model: (model / "model.safetensors").write_bytes(
            weights_file({"layers.0.q_proj.weight": ("F32", [4, 4], bytes(64))})
        ),
        lambda folder, model: (model / "model.safetensors").unlink(),
        lambda folder, model: (folder / "link").symlink_to("/etc/passwd"),
    ],
)
def test_nothing_is_written_when_an_import_is_refused(home: Path, tmp_path: Path, model: Path, spoil) -> None:
    source = tmp_path / "foreign"
    source.mkdir()
    for name, data in files().items():
        (source / name).write_bytes(data)
    spoil(source, model)
    before = contents(home)
    ran = efface("adapter", "import", source, "--request", ONE, "--model", model, "--registry", home)
    assert (ran.code, ran.out) == (2, ""), ran
    assert contents(home) == before


@pytest.mark.parametrize(
    "words",
    [
        ["s3://bucket/x", "--request", ONE],
        ["hub:acme/x", "--request", ONE],
        ["oci:", "--request", ONE],
        ["foreign", "--request", "req-000009"],
        ["foreign", "--request", ONE, "--quantization", "int3"],
    ],
)
def test_bad_words_of_an_import(home: Path, tmp_path: Path, model: Path, words: list[str]) -> None:
    lora(tmp_path / "foreign")
    words[0] = words[0].replace("foreign", str(tmp_path / "foreign"))
    before = contents(home)
    assert efface("adapter", "import", *words, "--model", model, "--registry", home).code == 2
    assert contents(home) == before


def test_the_end_of_an_adapter_is_planned_first(home: Path) -> None:
    (one, _) = adapters(home)
    before = contents(home)
    planned = efface("adapter", "reject", one, "--reason", "failed", "--registry", home)
    assert (planned.code, contents(home)) == (0, before)
    assert "becomes REJECTED" in planned.out and "Nothing was changed" in planned.err
    done = checked(home, "adapter", "reject", one, "--reason", "failed", "--yes")
    assert (done["done"], done["adapter"]["state"]) == (True, "REJECTED")
    assert (
        checked(home, "adapter", "retire", one, "--reason", "failed", "--yes")["adapter"]["state"]
        == "RETIRED"
    )
    purged = checked(home, "adapter", "purge", one, "--reason", "retention over", "--yes")
    assert purged["plan"]["bytes_given_up"] > 0
    checked(home, "gc", "--yes")
    gone = efface("adapter", "export", one, "elsewhere", "--single-request", "--registry", home)
    assert (gone.code, "PURGED" in gone.err) == (2, True)
    assert checked(home, "verify", "--deep")["problems"] == []


def test_the_plan_names_what_needs_an_adapter(home: Path, tmp_path: Path) -> None:
    rendered(home, tmp_path)
    one, *_ = adapters(home)
    words = ("adapter", "retire", one, "--reason", "old")
    planned = efface(*words, "--format", "json", "--registry", home)
    plan = json.loads(planned.out)["plan"]
    assert (plan["needed_by"], plan["trained_on_it"]) == (["prod@1"], [])
    assert (planned.code, "one in prod@1" in planned.err, "--yes" in planned.err) == (2, True, False)
    planned = efface("adapter", "purge", one, "--reason", "old", "--registry", home)
    assert (planned.code, "SEALED" in planned.err or "QUALIFIED" in planned.err) == (2, True)
    assert "--yes" not in planned.err
    refused = efface(*words, "--yes", "--registry", home)
    assert (refused.code, "one in prod@1" in refused.err) == (2, True)
