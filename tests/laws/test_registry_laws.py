"""Laws of the registry's values and of tampering, over generated inputs (design §4, numbers 1, 3, 4, 7)."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path

import pytest
import safetensors
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from registry_kit import (
    BASE,
    accept,
    answered,
    contents,
    framed,
    lora,
    release,
    seal,
    stack,
    tensors,
    weights_file,
)

from efface.registry import (
    Composition,
    InvalidInput,
    Registry,
    RegistryError,
    canonical,
    compose,
    log,
    open_request,
    verify,
    without,
)
from efface.registry.canon import parse, weight
from efface.registry.peft_folder import check_config, check_weights

scalars = (
    st.none()
    | st.booleans()
    | st.integers(-(2**53) + 1, 2**53 - 1)
    | st.text()
    | st.floats(allow_nan=False, allow_infinity=False)
)
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)
digests = st.integers(0, 30).map(lambda n: "sha256:" + hashlib.sha256(bytes([n])).hexdigest())
weights = st.decimals(-100, 100, places=3).filter(lambda w: w != 0)
stacks = st.dictionaries(digests, weights, min_size=1, max_size=6)


@given(values)
def test_canonical_json_reads_back_to_the_same_bytes_and_value(value) -> None:
    data = canonical(value)
    assert canonical(parse(data)) == data
    assert parse(data) == value


@given(st.dictionaries(st.text(), scalars, max_size=6), st.randoms())
def test_the_order_of_keys_does_not_matter(value: dict[str, object], random) -> None:
    items = list(value.items())
    random.shuffle(items)
    assert canonical(dict(items)) == canonical(value)  # pyright: ignore


decimals = st.decimals(-(10**9), 10**9, places=4)


@given(decimals, decimals, st.integers(0, 4))
@example(Decimal("0"), Decimal("-0.000"), 0)
def test_weights_are_one_text_exactly_when_they_are_one_number(a: Decimal, b: Decimal, zeros: int) -> None:
    assert (weight(a) == weight(b)) == (a == b)
    assert weight(f"{a:f}" + "0" * zeros) == weight(a)
    assert Decimal(weight(a)) == a


@given(stacks, st.randoms())
def test_order_never_matters(parts: dict[str, Decimal], random) -> None:
    shuffled = list(parts.items())
    random.shuffle(shuffled)
    assert compose(BASE, "nf4", shuffled) == compose(BASE, "nf4", parts.items())


@given(stacks, st.data())
def test_removing_is_never_having_added(parts: dict[str, Decimal], data: st.DataObject) -> None:
    gone = data.draw(st.sets(st.sampled_from(sorted(parts))))
    kept = compose(BASE, "nf4", [(d, w) for d, w in parts.items() if d not in gone])
    left = without(compose(BASE, "nf4", parts.items()), gone)
    zeroed = compose(BASE, "nf4", [(d, 0 if d in gone else w) for d, w in parts.items()])
    assert left == kept == zeroed
    assert left.digest == kept.digest


@given(stacks, stacks)
def test_the_digest_is_that_of_the_value(one: dict[str, Decimal], two: dict[str, Decimal]) -> None:
    a, b = compose(BASE, "nf4", one.items()), compose(BASE, "nf4", two.items())
    assert (a.digest == b.digest) == (one == two) == (a == b)
    assert a.digest != compose(BASE, "int8", one.items()).digest


headers = values.map(framed) | st.binary(max_size=60).map(framed)


@given(st.binary(max_size=200) | st.builds(bytes.__add__, headers, st.binary(max_size=16)))
def test_any_bytes_as_weights_are_refused_cleanly(data: bytes) -> None:
    with pytest.raises(InvalidInput):
        check_weights(data)


@settings(max_examples=300)
@given(st.integers(1, 4), st.integers(1, 4), st.data())
def test_what_we_accept_the_safetensors_library_accepts(rank: int, width: int, data: st.DataObject) -> None:
    good = bytearray(weights_file(tensors(1, rank, width), __metadata__={"format": "pt"}))
    check_weights(bytes(good))
    for position in data.draw(st.lists(st.integers(0, len(good) - 1), max_size=3)):
        good[position] = data.draw(st.integers(0, 255))
    try:
        check_weights(bytes(good))
    except InvalidInput:
        return
    names = {name for name, _ in safetensors.deserialize(bytes(good))}
    assert all(".lora_A." in name or ".lora_B." in name for name in names)


@given(values)
def test_any_json_as_config_is_taken_or_refused_cleanly(value) -> None:
    for config in (
        value,
        {"peft_type": "LORA", "r": value},
        {"peft_type": "LORA", "r": 2, "use_dora": value},
    ):
        try:
            check_config(json.dumps(config).encode())
        except InvalidInput:
            continue
        assert isinstance(config, dict)
        assert config["peft_type"] == "LORA"


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory) -> Path:
    work = tmp_path_factory.mktemp("story")
    with Registry.open(work / "registry", create=True) as reg:
        _, first = answered(reg, work, 1)
        _, second = answered(reg, work, 2)
        release(reg, stack([first, second]))
        release(reg, stack([second]))
    return work / "registry"


def copied(story: Path) -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as folder:
        yield Path(shutil.copytree(story, Path(folder) / "copy"))


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_one_flipped_byte_of_an_event_is_named(story: Path, data: st.DataObject) -> None:
    """The byte is flipped in the file, not through the database, by looking for the event's own text."""
    events = log(Registry.open(story))
    event = data.draw(st.sampled_from(events))
    text = data.draw(st.sampled_from([canonical(event.body).decode(), event.hash, event.prev_hash]))
    offset = data.draw(st.integers(0, len(text.encode()) - 1))
    for root in copied(story):
        path = root / "registry.db"
        file = bytearray(path.read_bytes())
        row = file.index(event.prev_hash.encode() + event.hash.encode())  # the row ends with these two
        start = file.rindex(text.encode(), 0, row + 142)
        file[start + offset] ^= data.draw(st.integers(1, 127))
        path.write_bytes(file)
        problems = verify(Registry.open(root)).problems
    named = [problem.where for problem in problems if problem.kind.startswith("event")]
    assert named[0] == f"event {event.seq}"


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_any_damage_to_the_file_is_survived(story: Path, data: st.DataObject) -> None:
    for root in copied(story):
        path = root / "registry.db"
        file = bytearray(path.read_bytes())
        for _ in range(data.draw(st.integers(1, 40))):
            file[data.draw(st.integers(0, len(file) - 1))] = data.draw(st.integers(0, 255))
        path.write_bytes(file)
        try:
            result = verify(Registry.open(root), deep=True)
        except RegistryError:
            continue
        assert result.events <= 40


characters = st.characters(codec="utf-8", exclude_categories=("Cc", "Cs", "Zl", "Zp"))
phrases = st.text(characters, min_size=8, max_size=40).filter(lambda text: len(set(text.strip())) > 6)


def written(subject: str, rows: str) -> bytes:
    """Every byte that a registry with one sealed request about ``subject`` leaves on disk."""
    values = {"basis": "gdpr17", "n_items": 1, "subject_ref": subject, "actor": "a"}
    with tempfile.TemporaryDirectory() as folder, Registry.open(f"{folder}/registry", create=True) as reg:
        request = open_request(reg, payload=rows.encode(), **values)
        seal(reg, lora(Path(folder) / "lora"), [accept(reg, request.id)])
        return b"\n".join(data for _, data in contents(reg.root).values())


@pytest.fixture(scope="module")
def own_words() -> bytes:
    """What a registry holds whoever asks: Hypothesis also draws words of the code under test, such as "objective"."""
    return written("\N{SNOWMAN}" * 8, "\N{UMBRELLA}" * 8)


@settings(max_examples=15, deadline=None)
@given(phrases, phrases)
def test_forgotten_text_and_its_subject_are_in_no_byte(own_words: bytes, subject: str, rows: str) -> None:
    secrets = (rows, subject, subject.strip())
    assume(not any(secret.encode() in own_words for secret in secrets))
    stored = written(subject, rows)
    for secret in secrets:
        forms = [secret.encode(code) for code in ("utf-8", "utf-16-le", "utf-16-be")]
        bare = hashlib.sha256(secret.encode())
        assert not any(form in stored for form in (*forms, bare.digest(), bare.hexdigest().encode()))


def test_ids_are_the_same_in_every_process(tmp_path: Path) -> None:
    script = """
import sys, pathlib
from registry_kit import ask, lora, seal, stack
from efface.registry import Registry
root = pathlib.Path(sys.argv[1])
reg = Registry.open(root / "registry", create=True)
facts = {"b": 1.5, "a": [1, {"z": None, "y": True}]}
adapters = [seal(reg, lora(root / str(n), n), [ask(reg)], facts=facts) for n in (1, 2)]
print(*(a.digest for a in adapters), stack(adapters).digest)
"""
    printed = set()
    for seed in ("0", "1", "2"):
        (folder := tmp_path / seed).mkdir()
        environment = {**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": str(Path(__file__).parents[1])}
        command = [sys.executable, "-c", script, str(folder)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        printed.add(done.stdout)
    assert len(printed) == 1
    assert len(printed.pop().split()) == 3


def test_a_composition_is_hashable_and_immutable() -> None:
    composition = compose(BASE, "nf4", [("sha256:" + "1" * 64, 1)])
    assert {composition: 1}[compose(BASE, "nf4", [("sha256:" + "1" * 64, "1.0")])] == 1
    with pytest.raises(AttributeError):
        composition.base = "other"  # pyright: ignore
    assert isinstance(composition, Composition)
