"""What passes to a server, and that nothing else does."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from efface.serving.names import is_channel, parse_name, served_name
from efface.serving.rules import ADMIN, COMPLETIONS, FIELDS, OPEN, Refusal, parse_body, refused

GOOD = {"model": "prod@7", "prompt": [1, 2, 3], "max_tokens": 4, "temperature": 0}


def serves(name: str) -> bool:
    return name == "prod@7"


def asked(
    body: bytes | dict[str, Any], path: str = "/v1/completions", method: str = "POST"
) -> Refusal | None:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    return refused(path, method, data, serves=serves)


def test_a_plain_question_passes() -> None:
    assert asked(GOOD) is None
    assert asked({"model": "prod@7", "messages": [], "stream": True}, "/v1/chat/completions") is None


@pytest.mark.parametrize(
    "model",
    [
        "base",
        "",
        "PROD@7",
        "prod@7 ",
        "prod@7\n",
        "../prod@7",
        "prod@8",
        "prod\u0040\uff17",
        None,
        7,
        True,
        ["prod@7"],
        {"model": "prod@7"},
        [],
        "prod@7\x00",
        "prod%407",
        "./prod@7",
    ],
)
def test_other_models_do_not(model: Any) -> None:
    came = asked({**GOOD, "model": model})
    assert came is not None
    assert came.status == 404


def test_a_missing_model_does_not_pass() -> None:
    came = asked({"prompt": "x"})
    assert came is not None
    assert came.status == 404


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"null",
        b"[]",
        b'"prod@7"',
        b'{"model":"prod@7","model":"base"}',
        b'{"model":"base","model":"prod@7"}',
        b'{"model":"prod@7","prompt":"x","prompt":"y"}',
        b'{"model":"prod@7","temperature":NaN}',
        b'{"model":"prod@7"}{"model":"base"}',
        b'{"model":"prod@7",}',
        b"\xef\xbb\xbf" + b'{"model":"prod@7"}',
        '{"model":"prod@7"}'.encode("utf-16"),
        '{"model":"prod@7"}'.encode("utf-32"),
        b'{"model":"prod@7","prompt":"\xff"}',
        b'{"model":"prod@7","prompt":' + b"[" * 200_000,
    ],
)
def test_bodies_that_parsers_read_differently_do_not(body: bytes) -> None:
    came = asked(body)
    assert came is not None
    assert came.status == 400


@pytest.mark.parametrize(
    "field",
    [
        "lora_path",
        "lora_name",
        "adapter_id",
        "adapter_source",
        "kv_transfer_params",
        "vllm_xargs",
        "chat_template",
        "prompt_embeds",
        "Model",
        "model\u200b",
        "mm_processor_kwargs",
        "documents",
        "logits_processors",
    ],
)
def test_fields_of_a_server_do_not(field: str) -> None:
    came = asked({**GOOD, field: None})
    assert came is not None
    assert came.code == "unknown_field"


@pytest.mark.parametrize(
    "path",
    [
        *sorted(ADMIN),
        "/",
        "",
        "/v1/completions/",
        "//v1/completions",
        "/V1/completions",
        "/v1/embeddings",
        "/v1/responses",
        "/v1/messages",
        "/tokenize",
        "/collective_rpc",
        "/adapters",
        "/docs",
        "/openapi.json",
        "/invocations",
        "/generate",
        "/v1/completions/../load_lora_adapter",
        "/v1/completions%2f",
        "/sleep",
        "/server_info",
        "/v1/realtime",
    ],
)
def test_other_endpoints_do_not(path: str) -> None:
    came = asked(GOOD, path)
    assert came is not None
    assert came.status == 404


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "OPTIONS", "TRACE", "post", ""])
def test_other_methods_do_not(method: str) -> None:
    came = asked(GOOD, method=method)
    assert came is not None
    assert came.status == 405


@pytest.mark.parametrize("path", sorted(OPEN))
def test_open_endpoints_are_read_only(path: str) -> None:
    assert asked(b"", path, "GET") is None
    assert asked(b"", path, "POST") is not None
    assert asked(GOOD, path, "GET") is not None


def test_a_huge_body_does_not_pass() -> None:
    came = asked(b'{"model":"prod@7","prompt":"' + b"x" * (8 << 20) + b'"}')
    assert came is not None
    assert came.status == 413


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8) | st.floats(allow_nan=False),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


@given(
    st.sampled_from(sorted({*COMPLETIONS, *OPEN, *ADMIN, "/x"})),
    st.sampled_from(["GET", "POST", "PUT"]),
    st.dictionaries(st.sampled_from(sorted(FIELDS)) | st.text(max_size=6), json_values, max_size=4).map(
        lambda value: json.dumps(value).encode()
    )
    | st.binary(max_size=40),
)
def test_what_passes_names_a_served_model_or_none(path: str, method: str, body: bytes) -> None:
    if refused(path, method, body, serves=serves) is not None:
        return
    if path in OPEN:
        assert (method, body) == ("GET", b"")
    else:
        assert path in COMPLETIONS
        assert json.loads(body)["model"] == "prod@7"
        assert set(json.loads(body)) <= FIELDS


@given(json_values)
def test_a_refusal_repeats_nothing(model: Any) -> None:
    canary = "heron-under-the-stair"
    came = asked({"model": [model, canary], "prompt": canary, canary: 1})
    assert came is not None
    assert canary not in came.body().decode()


def test_parse_body_reads_what_json_reads() -> None:
    assert parse_body(json.dumps(GOOD).encode()) == GOOD


@given(st.from_regex(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,63}", fullmatch=True), st.integers(1, 999_999_999))
def test_names_go_there_and_back(channel: str, version: int) -> None:
    name = served_name(channel, version, "sha256:" + "ab" * 32)
    found = parse_name(name)
    assert found is not None
    assert (found.channel, found.version, found.digest) == (channel, version, "ab" * 6)
    assert is_channel(channel)


@pytest.mark.parametrize(
    "name",
    [
        "prod",
        "prod@",
        "prod@0",
        "prod@07",
        "prod@-1",
        "prod@1/..",
        "../prod@1",
        ".prod@1",
        "prod@1.",
        "prod@1.AB" * 6,
        "prod@\u0661",
        "prod@1\n",
        " prod@1",
        "prod@@1",
        "a" * 65 + "@1",
        "prod@1.abcdefabcdeg",
        "",
        "prod@9999999999",
    ],
)
def test_other_names_are_none(name: str) -> None:
    assert parse_name(name) is None
