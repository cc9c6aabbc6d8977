"""Fuzzed folders: an OCI layout or a PEFT folder of anything is refused with our error, or gives what was sealed."""

import copy
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from foreign_kit import CONFIG_NAME, WEIGHTS_NAME, files, packed
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from story_kit import scratch

from efface.registry import RegistryError
from efface.registry.canon import digest_bytes
from efface.registry.oci import read_layout, write_layout
from efface.registry.package import Package
from efface.registry.peft_folder import read

read_only = [HealthCheck.function_scoped_fixture]
SEALED = packed()
anything = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 2**60) | st.floats() | st.text(max_size=6)
    | st.sampled_from(["sha256:" + "0" * 64, "../x", "adapter_config.json", "application/json"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=6,
)  # fmt: skip


@contextmanager
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(dir=scratch()) as name:
        yield Path(name)


@pytest.fixture(scope="module")
def layout() -> Iterator[Path]:
    with folder() as place:
        write_layout(SEALED, place / "layout")
        yield place / "layout"


def taken(place: Path) -> Package | None:
    """What is read; None where it is refused. Anything else goes through and fails the test."""
    try:
        return read_layout(place)
    except RegistryError:
        return None


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield path
    items = list(value.items()) if isinstance(value, dict) else []
    for key, item in items or (list(enumerate(value)) if isinstance(value, list) else []):
        yield from places(item, (*path, key))


def put(value: Any, path: tuple[Any, ...], new: Any) -> Any:
    if not path:
        return new
    value = copy.deepcopy(value)
    inner = value
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = new
    return value


def blob(place: Path, digest: str) -> Path:
    return place / "blobs" / "sha256" / digest.removeprefix("sha256:")


def store(place: Path, data: bytes) -> dict[str, Any]:
    """A blob under its true digest, and what a descriptor says of it."""
    digest = digest_bytes(data)
    blob(place, digest).unlink(missing_ok=True)
    blob(place, digest).write_bytes(data)
    return {"digest": digest, "size": len(data)}


@settings(max_examples=200, deadline=None, suppress_health_check=read_only)
@given(data=st.data(), document=st.sampled_from(["index", "image", "manifest"]), new=anything)
def test_any_json_in_any_place_of_a_layout(
    layout: Path, data: st.DataObject, document: str, new: Any
) -> None:
    """Put in by someone who makes every digest above it right."""
    index = json.loads((layout / "index.json").read_bytes())
    image = json.loads(blob(layout, index["manifests"][0]["digest"]).read_bytes())
    at = next(n for n, one in enumerate(image["layers"]) if one["mediaType"].endswith("adapter+json"))
    manifest = json.loads(blob(layout, image["layers"][at]["digest"]).read_bytes())
    with folder() as work:
        copied = Path(shutil.copytree(layout, work / "copy"))
        changed = {"index": index, "image": image, "manifest": manifest}
        path = data.draw(st.sampled_from(list(places(changed[document]))))
        changed[document] = put(changed[document], path, new)
        if document == "manifest":
            text = json.dumps(changed["manifest"], sort_keys=True, separators=(",", ":")).encode()
            image["layers"][at].update(store(copied, text))
        if document != "index":
            index["manifests"][0].update(store(copied, json.dumps(changed["image"]).encode()))
        (copied / "index.json").write_text(json.dumps(changed["index"]))
        found = taken(copied)
    assert found is None or found.files == SEALED.files
    if found is not None and document != "manifest":
        assert found.digest == SEALED.digest


@settings(max_examples=150, deadline=None, suppress_health_check=read_only)
@given(data=st.data(), way=st.sampled_from(["flip", "cut", "grow", "swap"]), mask=st.integers(1, 255))
def test_any_byte_of_a_layout(layout: Path, data: st.DataObject, way: str, mask: int) -> None:
    with folder() as work:
        copied = Path(shutil.copytree(layout, work / "copy"))
        names = sorted(path.relative_to(copied) for path in copied.rglob("*") if path.is_file())
        path = copied / data.draw(st.sampled_from(names))
        whole = path.read_bytes()
        at = data.draw(st.integers(0, len(whole) - 1))
        path.unlink()
        path.write_bytes(
            {
                "flip": whole[:at] + bytes([whole[at] ^ mask]) + whole[at + 1 :],
                "cut": whole[:at],
                "grow": whole[:at] + bytes([mask]) + whole[at:],
                "swap": (copied / data.draw(st.sampled_from([n for n in names if n != path.relative_to(copied)])))
                .read_bytes(),
            }[way]
        )  # fmt: skip
        found = taken(copied)
    assert found is None or found == SEALED


names = st.sampled_from(
    [
        CONFIG_NAME,
        WEIGHTS_NAME,
        CONFIG_NAME.upper(),
        "README.md",
        "pytorch_model.bin",
        "x.PKL",
        ".hidden",
        "ü",
    ]
) | st.text("ab. \\\n\x7f", min_size=1, max_size=12).filter(lambda name: name not in (".", ".."))
KINDS = ("whole", "text", "empty", "folder", "link", "dangling", "pipe", "hard link", "sparse", "looped")


def make(place: Path, name: str, kind: str, outside: Path) -> None:
    path = place / name
    good = files().get(name, b"words")
    makers = {
        "whole": lambda: path.write_bytes(good),
        "text": lambda: path.write_bytes(b"{}"),
        "empty": lambda: path.write_bytes(b""),
        "folder": lambda: path.mkdir(),
        "link": lambda: path.symlink_to(outside),
        "dangling": lambda: path.symlink_to("nowhere"),
        "pipe": lambda: os.mkfifo(path),
        "hard link": lambda: os.link(outside, path),
        "sparse": lambda: (path.touch(), os.truncate(path, 2**40)),
        "looped": lambda: path.symlink_to(name),
    }
    makers[kind]()


@settings(max_examples=250, deadline=2000)
@given(st.dictionaries(names, st.sampled_from(KINDS), max_size=5), st.booleans())
def test_a_folder_of_anything(entries: dict[str, str], good: bool) -> None:
    """Never what lies outside, never a wait for a pipe, never a terabyte."""
    if good:
        entries = {**entries, CONFIG_NAME: "whole", WEIGHTS_NAME: "whole"}
    with folder() as work:
        place, outside = work / "adapter", work / "outside"
        place.mkdir()
        outside.write_bytes(files()[CONFIG_NAME])
        for name, kind in entries.items():
            make(place, name, kind, outside)
        try:
            found = read(place)
        except RegistryError:
            whole = {name for name, kind in entries.items() if kind == "whole"}
            assert not {CONFIG_NAME, WEIGHTS_NAME} <= whole or len(entries) > 2
            return
    assert found == files()
    assert not {"link", "dangling", "pipe", "looped"} & set(entries.values())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", [CONFIG_NAME, WEIGHTS_NAME])
def test_only_plain_files_are_read(name: str, kind: str, tmp_path: Path) -> None:
    (tmp_path / "adapter").mkdir()
    (tmp_path / "outside").write_bytes(files()[name])
    for one in (CONFIG_NAME, WEIGHTS_NAME):
        make(tmp_path / "adapter", one, kind if one == name else "whole", tmp_path / "outside")
    if kind == "whole":
        assert read(tmp_path / "adapter") == files()
    else:
        with pytest.raises(RegistryError):
            read(tmp_path / "adapter")
