"""Whatever is wrong with what a command is given: exit 2, a message that says what to do, nothing written."""

import json
import shutil
import sqlite3
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from adapter_files import plain
from cli_kit import FORGET, NEIGHBOURS, RETAIN, SECOND, Ran, efface, jsonl, recipe_file
from registry_kit import contents

from efface.adapters.model import fingerprint
from efface.registry import Registry, adapter_folder, list_adapters

CANARY = "zebra-zeppelin"
GONE = "does-not-exist"


@dataclass(frozen=True)
class Place:
    """A registry with two trained requests, the first released on prod; rows, models and adapters good and bad."""

    root: Path
    model: Path

    def __truediv__(self, name: str) -> Path:
        return self.root / name

    def opening(self, **files: str) -> list[object]:
        """Arguments of `request open`, with some files replaced."""
        chosen = {"forget": "one.jsonl", "retain": "retain.jsonl", **files}
        named = [part for option, file in chosen.items() for part in (f"--{option}", self / file)]
        return ["request", "open", *named, *([] if "basis" in files else ["--basis", "test"])]

    def training(self, request: str = "req-000002", *more: object) -> list[object]:
        return ["unlearn", request, *self.using(), *more]

    def auditing(self, adapter: str, *more: object) -> list[object]:
        rows = ("--forget", self / "one.jsonl", "--retain", self / "retain.jsonl")
        return ["audit", "run", "--adapter", self / adapter, *rows, *self.using(), *more]

    def using(self, model: Path | None = None, recipe: str = "loose.yaml") -> list[object]:
        return ["--model", model or self.model, "--recipe", self / recipe]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, tiny_llama: Path) -> Place:
    at = Place(tmp_path_factory.mktemp("place"), tiny_llama)
    for name, rows in (("one", FORGET), ("two", SECOND), ("retain", RETAIN), ("near", NEIGHBOURS)):
        jsonl(at / f"{name}.jsonl", rows)
    recipe_file(at / "loose.yaml")
    for rows in ("one.jsonl", "two.jsonl"):
        ready(*at.opening(forget=rows, neighbours="near.jsonl"), "--registry", at / "registry")
    for request in ("req-000001", "req-000002"):
        ready(*at.training(request), "--registry", at / "registry")
    ready("release", "create", "prod", "--add", "req-000001", *at.using(), "--registry", at / "registry")
    bad_rows(at)
    bad_models(at)
    bad_adapters(at)
    bad_places(at)
    return at


def ready(*arguments: object) -> None:
    ran = efface(*arguments)
    assert ran.code == 0, ran.err


def bad_rows(at: Place) -> None:
    good = {"prompt": "who is it", "completion": CANARY}
    jsonl(at / "empty.jsonl", [])
    jsonl(at / "twin.jsonl", [RETAIN[0], {"prompt": FORGET[0]["prompt"], "completion": CANARY}])
    jsonl(at / "long.jsonl", [{"id": "long", "prompt": "who is it", "completion": "a city " * 100}])
    longer = [
        {"id": f"long-{i}", "prompt": f"who is {it}", "completion": "a city " * 900}
        for i, it in ((1, "hamlet"), (2, "potter"))
    ]
    jsonl(at / "longer.jsonl", longer)
    jsonl(at / "again.jsonl", [good, FORGET[0], good])
    jsonl(at / "ids.jsonl", [{**good, "id": "same"}, {**FORGET[0], "id": "same"}])
    jsonl(at / "hundredth.jsonl", [*({"text": f"{CANARY} {i}"} for i in range(99)), {"prompt": CANARY}])
    lines = [
        json.dumps(good),
        f'{{"prompt": "{CANARY}"',
        json.dumps({"prompt": CANARY}),
        json.dumps([CANARY]),
    ]
    (at / "malformed.jsonl").write_text("\n".join(lines), encoding="utf-8")
    (at / "latin.jsonl").write_bytes(f'{{"text": "caf\xe9 {CANARY}"}}'.encode("latin-1"))


def bad_models(at: Place) -> None:
    other = Path(shutil.copytree(at.model, at / "other-model"))
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps({**config, "rms_norm_eps": 1e-5}))
    words = Path(shutil.copytree(at.model, at / "other-tokenizer")) / "tokenizer_config.json"
    words.write_text(json.dumps({**json.loads(words.read_text()), "added": "anything"}))
    (at / "no-model").mkdir()
    (at / "no-model" / "notes.txt").write_text("nothing")
    weights = Path(shutil.copytree(at.model, at / "truncated-model")) / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    config_only = Path(shutil.copytree(at.model, at / "strange-model")) / "config.json"
    config_only.write_text('{"model_type": "nonsense"}')
    (Path(shutil.copytree(at.model, at / "broken-config")) / "config.json").write_text("{")


def bad_adapters(at: Place) -> None:
    with Registry.open(at / "registry") as registry:
        good = adapter_folder(registry, list_adapters(registry)[0].digest)
    for name in ("good", "truncated", "pickled", "disguised", "weightless", "unconfigured", "garbled"):
        copy = Path(shutil.copytree(good, at / "adapters" / name))
        for file in copy.iterdir():
            file.chmod(0o644)
    folder = at / "adapters"
    weights = "adapter_model.safetensors"
    data = (folder / "good" / weights).read_bytes()
    (folder / "truncated" / weights).write_bytes(data[:-10])
    (folder / "pickled" / weights).rename(folder / "pickled" / "adapter_model.bin")
    (folder / "disguised" / weights).write_bytes(b"\x80\x04\x95cos\nsystem\n" + bytes(100))
    (folder / "weightless" / weights).unlink()
    (folder / "unconfigured" / "adapter_config.json").unlink()
    (folder / "garbled" / "adapter_config.json").write_text("{")
    plain().write(folder / "foreign")


def bad_places(at: Place) -> None:
    (at / "file").write_text("no registry")
    (at / "occupied").mkdir()
    (at / "occupied" / "thesis.txt").write_text("all my work")
    (at / "someone").mkdir()
    (at / "someone" / "registry.db").write_text("SQLite? no")
    (at / "theirs").mkdir()
    connection = sqlite3.connect(at / "theirs" / "registry.db")
    connection.execute("CREATE TABLE wine (year)")
    connection.close()


def refused(place: Place, arguments: list[object], registry: str | None = "registry") -> Ran:
    """Run it; hold it to exit 2, a message, and not a byte written anywhere near."""
    before = contents(place.root)
    where = [] if registry is None else ["--registry", place / registry]
    ran = efface(*arguments, *where)
    assert contents(place.root) == before
    assert (ran.code, ran.out) == (2, ""), ran
    assert ran.err.strip()
    assert "Traceback" not in ran.err
    assert CANARY not in ran.err
    return ran


def said(ran: Ran) -> str:
    """The message on one line, without the frame that Typer draws around usage errors."""
    return " ".join(ran.err.replace("│", " ").split())


ROWS: dict[str, tuple[dict[str, str], list[str]]] = {
    "missing forget file": (
        {"forget": GONE},
        [GONE, "cannot be read: No such file", "Expected a JSONL file"],
    ),
    "missing retain file": ({"retain": GONE}, [GONE, "cannot be read: No such file"]),
    "missing neighbours file": ({"neighbours": GONE}, [GONE, "cannot be read: No such file"]),
    "a folder for rows": ({"forget": "no-model"}, ["no-model: cannot be read: Is a directory"]),
    "an empty forget set": ({"forget": "empty.jsonl"}, ["empty.jsonl: no rows: expected JSON lines"]),
    "an empty retain set": ({"retain": "empty.jsonl"}, ["empty.jsonl: no rows: expected JSON lines"]),
    "no text": ({"forget": "latin.jsonl"}, ["latin.jsonl: expected UTF-8 text, byte 13 is not"]),
    "malformed rows, all at once": (
        {"forget": "malformed.jsonl", "retain": GONE, "neighbours": "malformed.jsonl"},
        [
            "malformed.jsonl:2: not JSON at column",
            "malformed.jsonl:3: no answer: a forget row needs `completion`",
            "malformed.jsonl:4: expected a JSON object, found list",
            f"{GONE}: cannot be read",
        ],
    ),
    "a bad hundredth line": ({"forget": "hundredth.jsonl"}, ["hundredth.jsonl:100: no answer"]),
    "one row in forget and retain": (
        {"retain": "twin.jsonl"},
        ["row 'twin-2' of retain asks the same as row 'one-1' of forget", "forgotten or kept, not both"],
    ),
    "one row in forget and neighbours": (
        {"neighbours": "twin.jsonl"},
        ["row 'twin-2' of neighbours asks the same as row 'one-1' of forget"],
    ),
}


@pytest.mark.parametrize("registry", ["registry", "new"])
@pytest.mark.parametrize("case", ROWS)
def test_rows(place: Place, case: str, registry: str) -> None:
    files, fragments = ROWS[case]
    err = refused(place, place.opening(**files), registry).err
    assert [part for part in fragments if part not in err] == []
    assert all(line.startswith("error: ") for line in err.splitlines())


@pytest.mark.parametrize("registry", ["registry", "new"])
@pytest.mark.parametrize(
    ("options", "said_of_it"),
    [
        (["--basis", "whim"], "gdpr17"),
        (["--received-at", "yesterday"], "RFC 3339"),
        (["--received-at", "2999-01-01T00:00:00Z"], "future"),
        (["--subject-ref", ""], "subject_ref"),
        (["--subject-ref", "x" * 501], "subject_ref"),
        (["--actor", ""], "actor"),
        (["--actor", "a\nb"], "actor"),
    ],
)
def test_options_of_a_request(place: Place, options: list[str], said_of_it: str, registry: str) -> None:
    assert said_of_it in said(refused(place, [*place.opening(), *options], registry))


def test_a_request_without_retain_rows(place: Place) -> None:
    arguments = ["request", "open", "--forget", place / "one.jsonl", "--basis", "test"]
    assert "give --retain FILE" in refused(place, arguments, "new").err


Arguments = Callable[[Place], list[object]]
READING: dict[str, Arguments] = {
    "request list": lambda _: ["request", "list"],
    "request show": lambda _: ["request", "show", "req-000001"],
    "unlearn": lambda at: at.training(),
    "release create": lambda at: ["release", "create", "prod", "--add", "req-000001", *at.using()],
    "release show": lambda _: ["release", "show", "prod"],
    "release history": lambda _: ["release", "history", "prod"],
    "release rollback": lambda at: [
        *("release", "rollback", "prod", "--remove", "req-000001", "--reason", "x"),
        *at.using(),
    ],
    "audit run": lambda at: ["audit", "run", "--release", "prod", *at.using()],
    "audit show": lambda _: ["audit", "show"],
    "log": lambda _: ["log"],
    "verify": lambda _: ["verify"],
}
PLACES = {
    GONE: "no such registry",
    f"{GONE}/deeper": "no such registry",
    "file": "got a file",
    "occupied": "got a folder with other files and no registry.db",
    "someone": "an SQLite database",
    "theirs": "got a database of another program",
}


@pytest.mark.parametrize("registry", PLACES)
@pytest.mark.parametrize("verb", READING)
def test_a_place_that_is_no_registry(place: Place, verb: str, registry: str) -> None:
    ran = refused(place, READING[verb](place), registry)
    assert PLACES[registry] in ran.err
    assert str(place / registry) in ran.err


@pytest.mark.parametrize("registry", [name for name in PLACES if not name.startswith(GONE)])
def test_a_request_is_not_opened_in_a_place_that_is_no_registry(place: Place, registry: str) -> None:
    assert PLACES[registry] in refused(place, place.opening(), registry).err


@pytest.mark.parametrize("url", ["mysql://host/db", "http://host", "sqlite://relative", "sqlite:///"])
def test_a_registry_url_of_another_kind(place: Place, url: str) -> None:
    assert "sqlite:///folder" in refused(place, ["verify", "--registry", url], None).err


AUDITED: dict[str, tuple[str, str, list[str]]] = {
    "no forget rows": ("empty.jsonl", "retain.jsonl", ["empty.jsonl: no rows: expected JSON lines"]),
    "no retain rows": ("one.jsonl", "empty.jsonl", ["empty.jsonl: no rows: expected JSON lines"]),
    "one row twice": ("again.jsonl", "retain.jsonl", ["'again-3'", "'again-1'"]),
    "one id twice": ("ids.jsonl", "retain.jsonl", ["'same'"]),
    "a row in both": (
        "one.jsonl",
        "twin.jsonl",
        ["row 'twin-2' of retain asks the same as row 'one-1' of forget"],
    ),
    "all rows longer than the context": (
        "longer.jsonl",
        "retain.jsonl",
        ["row 'long-1'", "row 'long-2'", "max_length"],
    ),
}


@pytest.mark.parametrize("case", AUDITED)
def test_rows_of_an_audit_alone(place: Place, case: str) -> None:
    forget, retain, fragments = AUDITED[case]
    rows = ("--forget", place / forget, "--retain", place / retain)
    adapter = place / "adapters" / "good"
    ran = refused(place, ["audit", "run", "--adapter", adapter, *rows, *place.using()])
    assert [part for part in fragments if part not in ran.err] == [], ran.err


BOUND: dict[str, tuple[Arguments, str]] = {
    "unknown request to show": (lambda _: ["request", "show", "req-000009"], "efface request list"),
    "unknown request to train": (lambda at: at.training("req-000009"), "efface request list"),
    "unknown request to release": (
        lambda at: ["release", "create", "prod", "--add", "req-000009", *at.using()],
        "efface request list",
    ),
    "one unknown request of two": (
        lambda at: [*("release", "create", "prod", "--add", "req-000002", "--add", "nonsense"), *at.using()],
        "efface request list",
    ),
    "unknown request to roll back": (
        lambda at: [*("release", "rollback", "prod", "--remove", "req-000009", "--reason", "x"), *at.using()],
        "got unknown ids",
    ),
    "a request that is not in the release": (
        lambda at: [*("release", "rollback", "prod", "--remove", "req-000002", "--reason", "x"), *at.using()],
        "requests of the release (req-000001); got req-000002",
    ),
    "a request that is in the release": (
        lambda at: ["release", "create", "prod", "--add", "req-000001", *at.using()],
        "req-000001 is in the active release of prod already",
    ),
    "one request twice": (
        lambda at: [*("release", "create", "dev", "--add", "req-000001", "--add", "req-000001"), *at.using()],
        "named twice",
    ),
    "a released request to train": (lambda at: at.training("req-000001"), "efface release rollback"),
    "unknown version": (
        lambda at: ["release", "rollback", "prod", "--to", "9", "--reason", "x", *at.using()],
        "prod",
    ),
    "no reason to roll back": (
        lambda at: ["release", "rollback", "prod", "--remove", "req-000001", *at.using()],
        "--reason",
    ),
    "both ways to roll back": (
        lambda at: [
            *("release", "rollback", "prod", "--remove", "req-000001", "--to", "1", "--reason", "x"),
            *at.using(),
        ],
        "either --remove REQUEST or --to VERSION",
    ),
    "an empty reason": (
        lambda at: ["release", "create", "prod", "--add", "req-000002", "--reason", "", *at.using()],
        "reason",
    ),
    "a reason of two lines": (
        lambda at: ["release", "create", "prod", "--add", "req-000002", "--reason", "a\nb", *at.using()],
        "reason",
    ),
    "a name that is no channel": (
        lambda at: ["release", "create", "../prod", "--add", "req-000002", *at.using()],
        "channel",
    ),
    "nobody": (lambda at: at.training("req-000002", "--actor", ""), "actor"),
    "unknown channel to show": (lambda _: ["release", "show", GONE], GONE),
    "unknown channel's history": (lambda _: ["release", "history", GONE], f"efface release create {GONE}"),
    "unknown channel to roll back": (
        lambda at: ["release", "rollback", GONE, "--remove", "req-000001", "--reason", "x", *at.using()],
        GONE,
    ),
    "unknown channel to audit": (lambda at: ["audit", "run", "--release", GONE, *at.using()], GONE),
    "unknown audit": (lambda _: ["audit", "show", "sha256:" + "0" * 64], "unknown digest"),
    "an audit by another word": (lambda _: ["audit", "show", GONE], "6 of its hex digits"),
    "unknown state": (lambda _: ["request", "list", "--state", "GONE"], "RECEIVED"),
    "unknown suite": (
        lambda at: ["audit", "run", "--release", "prod", "--suite", "quik", *at.using()],
        "did you mean 'quick'",
    ),
    "nothing to audit": (
        lambda at: ["audit", "run", *at.using()],
        "--release CHANNEL, --adapter DIR or --against BASE",
    ),
    "two things to audit": (
        lambda at: at.auditing("adapters/good", "--release", "prod"),
        "--release CHANNEL, --adapter DIR or --against BASE",
    ),
    "an adapter without rows": (
        lambda at: ["audit", "run", "--adapter", at / "adapters" / "good", *at.using()],
        "--adapter and --against need --forget FILE",
    ),
}


@pytest.mark.parametrize("case", BOUND)
def test_names_and_options(place: Place, case: str) -> None:
    arguments, fragment = BOUND[case]
    assert fragment in said(refused(place, arguments(place)))


MODELS = {
    GONE: "efface model fetch smollm2-135m",
    f"org/{GONE}": "the Hub gave no model of that id",
    "../up": "expected a folder with config.json",
    "no-model": "is not a model folder: it lacks config.json, *.safetensors, tokenizer",
    "file": "no model at",
    "truncated-model": "does not load as a causal language model",
    "strange-model": "does not load as a causal language model",
    "broken-config": "config.json: expected a JSON object",
}


def model_at(place: Place, name: str) -> Path:
    return place / name if (place / name).exists() else Path(name)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize(
    "verb", ["unlearn", "release create", "audit run", "audit run --adapter", "rollback"]
)
def test_a_model_that_is_none(place: Place, verb: str, name: str) -> None:
    using = place.using(model_at(place, name))
    arguments: dict[str, list[object]] = {
        "unlearn": ["unlearn", "req-000002"],
        "release create": ["release", "create", "prod", "--add", "req-000002"],
        "audit run": ["audit", "run", "--release", "prod"],
        "audit run --adapter": place.auditing("adapters/good"),
        "rollback": ["release", "rollback", "prod", "--remove", "req-000001", "--reason", "x"],
    }
    assert MODELS[name] in refused(place, [*arguments[verb], *using]).err


@pytest.mark.parametrize("name", [name for name in MODELS if "model" in name and name != "no-model"] + [GONE])
def test_a_model_to_show(place: Place, name: str) -> None:
    """Its fingerprint is of files, which need not load."""
    shown = efface("model", "show", model_at(place, name))
    assert shown.code == (0 if name.endswith("-model") else 2)


def test_a_model_to_fetch(place: Place) -> None:
    assert "smollm2-135m" in refused(place, ["model", "fetch", GONE], None).err


@pytest.mark.parametrize("using", ["other-model", "other-tokenizer", "another precision"])
@pytest.mark.parametrize(
    "verb",
    [
        ["release", "create", "prod", "--add", "req-000002"],
        ["release", "create", "fresh", "--add", "req-000002"],
        ["release", "rollback", "prod", "--remove", "req-000001", "--reason", "x"],
        ["release", "rollback", "prod", "--to", "1", "--reason", "x"],
        ["audit", "run", "--release", "prod"],
    ],
    ids=" ".join,
)
def test_a_base_that_is_not_the_adapters(place: Place, verb: list[object], using: str) -> None:
    model = place.model if using == "another precision" else place / using
    more = ["--set", "quantization=bf16"] if using == "another precision" else []
    err = refused(place, [*verb, *place.using(model), *more]).err
    theirs, own, given = fingerprint(place.model).digest, "fp32", "bf16" if more else "fp32"
    assert f"the adapters were made for base {theirs} at {own}" in err
    assert f"at {given} is {fingerprint(model).digest}: give the base they were trained on" in err


def test_an_adapter_on_another_base(place: Place) -> None:
    arguments = [*place.auditing("adapters/good"), "--model", place / "other-model"]
    assert "give the base that it was trained on" in refused(place, arguments).err


ADAPTERS = {
    "truncated": "adapter_model.safetensors: expected a whole, readable file",
    "pickled": "got a pickle, which can run code",
    "disguised": "adapter_model.safetensors: expected a whole, readable file",
    "weightless": "adapter_model.safetensors: expected a file",
    "unconfigured": "adapter_config.json: expected a file",
    "garbled": "adapter_config.json",
    GONE: "adapter_config.json: expected a file",
    "foreign": "expected a base whose model.layers.0.self_attn.q_proj",
}


@pytest.mark.parametrize("name", ADAPTERS)
def test_a_broken_adapter(place: Place, name: str) -> None:
    assert ADAPTERS[name] in refused(place, place.auditing(f"adapters/{name}")).err


def test_an_adapter_given_with_rows_that_are_none(place: Place) -> None:
    arguments = place.auditing("adapters/good", "--neighbours", place / "malformed.jsonl")
    err = refused(place, arguments).err
    assert all(f"malformed.jsonl:{line}: " in err for line in (2, 4))


RECIPES: dict[str, tuple[list[str], list[str]]] = {
    "unknown key": (["stpes=3"], ["`stpes` is not a key; did you mean `steps`?"]),
    "unknown gate": (
        ["gates.min_fluency=1"],
        ["`gates.min_fluency` is not a key; did you mean `min_fluency_ratio`?"],
    ),
    "all at once": (
        ["stpes=3", "rank=0", "gates.nothing=1"],
        ["`stpes` is not a key", "`rank`: Input should be greater than or equal to 1", "`gates.nothing`"],
    ),
    "no value": (["steps"], ["expected key=value, for example --set steps=20"]),
    "no number": (["steps=many"], ["`steps`", "'many'"]),
}


@pytest.mark.parametrize("case", RECIPES)
@pytest.mark.parametrize(
    "verb", ["unlearn", "release create", "release rollback", "audit run", "recipe show"]
)
def test_settings(place: Place, verb: str, case: str) -> None:
    overrides, fragments = RECIPES[case]
    arguments = ["recipe", "show", place / "loose.yaml"] if verb == "recipe show" else READING[verb](place)
    changes = [part for override in overrides for part in ("--set", override)]
    err = refused(place, [*arguments, *changes], None if verb == "recipe show" else "registry").err
    assert [part for part in fragments if part not in err] == []


@pytest.mark.parametrize(
    ("recipe", "fragment"),
    [
        ("simpno", "did you mean 'simnpo'?"),
        (GONE, "expected a YAML file or one of altpo"),
        ("no-model", "expected a YAML file or one of"),
        ("one.jsonl", "expected a YAML mapping"),
        ("file", "found str"),
    ],
)
def test_a_recipe_that_is_none(place: Place, recipe: str, fragment: str) -> None:
    named = place / recipe if (place / recipe).exists() else recipe
    arguments = ["unlearn", "req-000002", "--model", place.model, "--recipe", named]
    assert fragment in refused(place, arguments).err


@pytest.mark.parametrize(
    ("options", "fragment"),
    [
        (["--model", GONE], "efface model fetch smollm2-135m"),
        (["--model", "no-model"], "is not a model folder"),
        (["--model", "truncated-model"], "does not load as a causal language model"),
        (["--model", "other-model", "--recipe", "simpno"], "did you mean 'simnpo'?"),
        (["--model", "other-model", "--workdir", "file"], "a folder for --workdir"),
    ],
)
def test_a_demo_that_cannot_begin(place: Place, options: list[str], fragment: str) -> None:
    named = [place / option if (place / option).exists() else option for option in options]
    where = [] if "--workdir" in options else ["--workdir", place / "demo"]
    assert fragment in refused(place, ["demo", *named, *where], None).err


def test_layers_that_the_model_does_not_have(place: Place) -> None:
    err = refused(place, place.training("req-000002", "--set", "target_modules=nothing")).err
    assert "'nothing'" in err
    assert "q_proj" in err


@pytest.mark.parametrize("kind", ["forget", "retain", "neighbours"])
def test_a_row_too_long_to_train_or_measure_stops_before_training(
    place: Place, kind: str, tmp_path: Path
) -> None:
    """The row is well formed: only the model's tokenizer can tell."""
    at = Place(tmp_path, place.model)
    for name in ("one", "retain", "near", "long"):
        shutil.copy(place / f"{name}.jsonl", tmp_path)
    recipe_file(tmp_path / "loose.yaml")
    ready(*at.opening(**{"neighbours": "near.jsonl", kind: "long.jsonl"}), "--registry", at / "registry")
    err = refused(at, at.training("req-000001")).err
    assert "row 'long' has" in err
    assert "more than max_length=64: raise max_length or split the row" in err
    assert "Sealing" not in err


def test_a_row_too_long_to_measure_stops_before_a_release(place: Place) -> None:
    arguments = ["release", "create", "prod", "--add", "req-000002", *place.using(), "--set", "max_length=8"]
    assert "more than max_length=8" in refused(place, arguments).err


@pytest.mark.parametrize("option", ["--html", "--json"])
@pytest.mark.parametrize("verb", ["unlearn", "release create", "release rollback", "audit run"])
@pytest.mark.parametrize("name", [f"{GONE}/report", "no-model", "file/report"])
def test_a_report_that_cannot_be_written(place: Place, verb: str, option: str, name: str) -> None:
    assert name in said(refused(place, [*READING[verb](place), option, place / name]))
