"""Fuzzed imports: whatever the bytes are, they are refused with our error or they are a plain LoRA."""

import json
import math
import re
import struct
import time
import tracemalloc
from typing import Any

import pytest
import safetensors
from foreign_kit import CONFIG_NAME, WEIGHTS_NAME, files, pair
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from registry_kit import CONFIG, framed, weights_file

from efface.registry import RegistryError
from efface.registry.hub_names import parse_hub
from efface.registry.package import package
from efface.registry.peft_config import parse_config
from efface.registry.peft_folder import check, check_against
from efface.registry.peft_patterns import is_bounded, pattern
from efface.registry.safetensors_file import Tensor, is_finite

MODULES = ("model.layers.0.q_proj", "model.layers.1.q_proj")
PAIRS = {name: value for module in MODULES for name, value in pair(module).items()}
GOOD = files({"target_modules": ["q_proj"]}, weights_file(PAIRS, __metadata__={"format": "pt"}))
LENGTH = int.from_bytes(GOOD[WEIGHTS_NAME][:8], "little")
HEADER: dict[str, Any] = json.loads(GOOD[WEIGHTS_NAME][8 : 8 + LENGTH])
BODY = GOOD[WEIGHTS_NAME][8 + LENGTH :]

numbers = st.integers(-2, 200) | st.integers() | st.floats()
leaves = (
    st.none() | st.booleans() | numbers | st.text(max_size=8) | st.sampled_from([*MODULES, "F32", "(a+)+$"])
)
anything = st.recursive(
    leaves,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
)
KEYS = """peft_type r lora_alpha rank_pattern alpha_pattern use_rslora fan_in_fan_out bias init_lora_weights
target_modules exclude_modules layers_to_transform layers_pattern base_model_name_or_path revision auto_mapping
megatron_core modules_to_save use_dora loftq_config eva_config corda_config alora_invocation_tokens lora_bias"""
keys = st.sampled_from(KEYS.split())


def taken(adapter: dict[str, bytes]) -> bool:
    """Whether the adapter is taken; anything but our error goes through and fails the test."""
    tracemalloc.start()
    started = time.perf_counter()
    try:
        check(adapter)
        check_against(adapter, dict.fromkeys(MODULES, (4, 3)))
    except RegistryError:
        return False
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 4 * 2**20
        assert time.perf_counter() - started < 5
    return True


def test_the_unchanged_adapter_is_taken() -> None:
    assert taken(GOOD)


@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(st.integers(0, LENGTH + 7), st.integers(0, 255)), min_size=1, max_size=4))
def test_flipped_bytes_of_a_header(flips: list[tuple[int, int]]) -> None:
    data = bytearray(GOOD[WEIGHTS_NAME])
    for position, value in flips:
        data[position] = value
    if taken({**GOOD, WEIGHTS_NAME: bytes(data)}):
        safetensors.deserialize(bytes(data))


@settings(max_examples=200, deadline=None)
@given(st.integers(0, len(GOOD[WEIGHTS_NAME])), st.binary(max_size=9), st.booleans())
def test_bytes_put_in_or_cut_off(at: int, more: bytes, cut: bool) -> None:
    good = GOOD[WEIGHTS_NAME]
    data = good[:at] + more + (b"" if cut else good[at:])
    assume(data != good)
    if taken({**GOOD, WEIGHTS_NAME: data}):
        safetensors.deserialize(data)


@settings(max_examples=300, deadline=None)
@given(
    st.sampled_from(sorted(HEADER)), st.sampled_from(["dtype", "shape", "data_offsets", "", "new"]), anything
)
def test_changed_entries_of_a_header(name: str, key: str, value: Any) -> None:
    entry = {**HEADER[name], key: value} if key else value
    data = framed({**HEADER, name: entry}, BODY)
    if taken({**GOOD, WEIGHTS_NAME: data}):
        safetensors.deserialize(data)


@settings(max_examples=200, deadline=None)
@given(st.dictionaries(st.text(max_size=20) | st.sampled_from(sorted(HEADER)), anything, max_size=4))
def test_any_header(header: dict[str, Any]) -> None:
    assert not taken({**GOOD, WEIGHTS_NAME: framed(header, BODY)})


@settings(max_examples=400, deadline=None)
@given(st.dictionaries(keys | st.text(max_size=12), anything, min_size=1, max_size=3))
@example({"rank_pattern": {"(" * 5000: 2}})
@example({"target_modules": "(" * 1000 + ")" * 1000})
@example({"target_modules": "(a|a)*" * 20 + "b"})
@example({"r": 10**5000})
@example({"lora_alpha": 1e308})
def test_changed_configs(changes: dict[str, Any]) -> None:
    try:
        text = json.dumps({**CONFIG, "target_modules": ["q_proj"], **changes}).encode()
    except ValueError:  # Python itself writes no integer that long
        text = b'{"peft_type":"LORA","target_modules":["q_proj"],"lora_alpha":1,"r":' + b"9" * 5000 + b"}"
    if taken({**GOOD, CONFIG_NAME: text}):
        config = parse_config(text)
        assert config.r >= 1
        assert math.isfinite(config.lora_alpha)
        assert config.lora_alpha > 0


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=80) | st.text(max_size=80).map(str.encode))
def test_any_bytes_as_config_or_manifest(data: bytes) -> None:
    assert not taken({**GOOD, CONFIG_NAME: data})
    with pytest.raises(RegistryError):
        package(data, GOOD)


@given(st.text(max_size=40) | st.text(alphabet="ab/.@-_", max_size=20).map(lambda text: f"hub://{text}"))
def test_any_text_as_a_name_on_the_hub(text: str) -> None:
    try:
        name = parse_hub(text)
    except RegistryError:
        return
    rest = f"{name.repo_id}@{name.revision}" if name.revision else name.repo_id
    assert f"hub://{rest}" == text
    assert ".." not in text
    assert len(name.repo_id.split("/")) == 2


names = st.text(alphabet="ab._-0", min_size=1, max_size=12)
pattern_keys = st.builds(
    "{}{}{}".format,
    st.sampled_from(["", "^"]),
    st.text(alphabet="ab._-0", max_size=6) | names.map(re.escape),
    st.sampled_from(["", "$"]),
)


@settings(max_examples=500)
@given(pattern_keys, names)
@example("a.b", "xa_b")
@example("^a", "b.a")
@example("-b", "a.-b")
def test_patterns_match_as_in_peft(key: str, name: str) -> None:
    """The right-hand side is the expression in `peft.utils.other.get_pattern_key` (0.21.2)."""
    made = pattern(key)
    if made is None:
        assert key.strip("^$") == "" or "$" in key[:-1]
    else:
        assert made.matches(name) == (re.match(rf"(.*\.)?({key})$", name) is not None)


@given(st.text(alphabet="a.*+?()|^$\\dw:[]{}!=", max_size=30))
def test_expressions_that_are_let_through_compile_and_end(expression: str) -> None:
    if is_bounded(expression):
        started = time.perf_counter()
        re.fullmatch(expression, "model.layers.10.self_attn.q_proj" * 2)
        assert time.perf_counter() - started < 1


FORMATS = {"F64": "d", "F32": "f", "F16": "e"}


@settings(max_examples=300)
@given(st.sampled_from(sorted(FORMATS)), st.data())
def test_finite_is_what_arithmetic_says(dtype: str, data: st.DataObject) -> None:
    width = struct.calcsize(FORMATS[dtype])
    size = data.draw(st.integers(1, 5))
    edges = st.sampled_from([b"\x7f", b"\xff", b"\x80", b"\xf0", b"\x7c", b"\xfc", b"\x7b", b"\x00"])
    drawn = data.draw(
        st.lists(edges | st.binary(min_size=1, max_size=1), min_size=width * size, max_size=width * size)
    )
    values = b"".join(drawn)
    expected = all(math.isfinite(value) for value in struct.unpack(f"<{size}{FORMATS[dtype]}", values))
    assert is_finite(b"\xff\xff" + values, 2, Tensor(dtype, (1, size), 0, len(values))) == expected


@given(st.binary(min_size=2, max_size=2))
def test_bfloat16_is_the_top_half_of_a_float32(value: bytes) -> None:
    (expected,) = struct.unpack("<f", b"\x00\x00" + value)
    assert is_finite(value, 0, Tensor("BF16", (1, 1), 0, 2)) == math.isfinite(expected)
