"""OCI image layouts: written as image-spec 1.1 has them, read with every digest and size checked."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from foreign_kit import files, packed
from registry_kit import contents

from efface.registry.canon import digest_bytes
from efface.registry.errors import Conflict, InvalidInput
from efface.registry.oci import read_layout, write_layout

EMPTY = "sha256:44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a"
"""The digest of the empty descriptor, as image-spec 1.1 publishes it."""


@pytest.fixture
def layout(tmp_path: Path) -> Path:
    write_layout(packed(), tmp_path / "layout", tag="v1")
    return tmp_path / "layout"


def blob(layout: Path, digest: str) -> Path:
    return layout / "blobs" / "sha256" / digest.removeprefix("sha256:")


def load(path: Path) -> Any:
    return json.loads(path.read_bytes())


def image(layout: Path) -> Any:
    return load(blob(layout, load(layout / "index.json")["manifests"][0]["digest"]))


def test_the_layout_is_that_of_the_specification(layout: Path) -> None:
    assert load(layout / "oci-layout") == {"imageLayoutVersion": "1.0.0"}
    index = load(layout / "index.json")
    assert (index["schemaVersion"], index["mediaType"]) == (2, "application/vnd.oci.image.index.v1+json")
    (described,) = index["manifests"]
    assert described["artifactType"] == "application/vnd.efface.adapter.v1"
    assert described["annotations"] == {"org.opencontainers.image.ref.name": "v1"}
    manifest = image(layout)
    assert manifest["mediaType"] == described["mediaType"] == "application/vnd.oci.image.manifest.v1+json"
    assert manifest["artifactType"] == "application/vnd.efface.adapter.v1"
    assert manifest["config"] == {
        "mediaType": "application/vnd.oci.empty.v1+json",
        "digest": EMPTY,
        "size": 2,
        "data": "e30=",
    }
    titles = [layer["annotations"]["org.opencontainers.image.title"] for layer in manifest["layers"]]
    assert titles == ["adapter_config.json", "adapter_model.safetensors", "manifest.json"]


def test_every_blob_is_named_by_its_digest_and_reachable(layout: Path) -> None:
    manifest = image(layout)
    reachable = [*load(layout / "index.json")["manifests"], manifest["config"], *manifest["layers"]]
    found = {path.name: path.read_bytes() for path in (layout / "blobs" / "sha256").iterdir()}
    assert {f"sha256:{name}": len(data) for name, data in found.items()} == {
        described["digest"]: described["size"] for described in reachable
    }
    assert all(digest_bytes(data) == f"sha256:{name}" for name, data in found.items())


def test_what_is_written_is_read(layout: Path) -> None:
    assert read_layout(layout) == read_layout(layout, tag="v1") == packed()
    assert read_layout(layout).files == files()


def test_the_same_adapter_gives_the_same_bytes(layout: Path, tmp_path: Path) -> None:
    digest = write_layout(packed(), tmp_path / "again", tag="v1")
    assert contents(tmp_path / "again") == contents(layout)
    assert load(layout / "index.json")["manifests"][0]["digest"] == digest


def test_one_of_several_is_chosen_by_tag(layout: Path, tmp_path: Path) -> None:
    other = packed(["req-000008", "req-000009"])
    write_layout(other, tmp_path / "other", tag="v2")
    shutil.copytree(tmp_path / "other" / "blobs", layout / "blobs", dirs_exist_ok=True)
    both = load(layout / "index.json")["manifests"] + load(tmp_path / "other" / "index.json")["manifests"]
    (layout / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": both}))
    assert read_layout(layout, tag="v2") == other
    assert read_layout(layout, tag="v1") == packed()
    for tag in (None, "v3"):
        with pytest.raises(InvalidInput, match="one image"):
            read_layout(layout, tag=tag)


def test_an_adapter_of_one_request_goes_out_only_when_asked(tmp_path: Path) -> None:
    with pytest.raises(Conflict):
        write_layout(packed(["req-000001"]), tmp_path / "out")
    assert contents(tmp_path) == {}
    write_layout(packed(["req-000001"]), tmp_path / "out", single_request=True)


@pytest.mark.parametrize("tag", ["", "../x", "a/b", "a b", ".x", "x" * 129, "v1\n"])
def test_bad_tags_are_refused(tmp_path: Path, tag: str) -> None:
    with pytest.raises(InvalidInput, match="tag"):
        write_layout(packed(), tmp_path / "out", tag=tag)
    assert contents(tmp_path) == {}


def test_a_folder_in_use_is_left_alone(layout: Path) -> None:
    before = contents(layout)
    with pytest.raises(InvalidInput, match="empty"):
        write_layout(packed(), layout)
    assert contents(layout) == before


def _index(change: Callable[[Any], object]) -> Callable[[Path], object]:
    def fault(layout: Path) -> None:
        index = load(layout / "index.json")
        change(index)
        (layout / "index.json").write_text(json.dumps(index))

    return fault


def _image(change: Callable[[Any], object]) -> Callable[[Path], object]:
    """A changed image manifest under its true digest."""

    def fault(layout: Path) -> None:
        manifest = image(layout)
        change(manifest)
        data = json.dumps(manifest).encode()
        blob(layout, digest_bytes(data)).write_bytes(data)
        _index(lambda i: i["manifests"][0].update(digest=digest_bytes(data), size=len(data)))(layout)

    return fault


def _layer(at: int, change: Callable[[Path], object]) -> Callable[[Path], object]:
    return lambda layout: change(blob(layout, image(layout)["layers"][at]["digest"]))


def _flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.chmod(0o644)
    path.write_bytes(data)


def _to_link(path: Path) -> None:
    path.rename(path.parent / "moved")
    path.symlink_to("moved")


def _linked_blobs(layout: Path) -> None:
    (layout / "blobs").rename(layout / "moved")
    (layout / "blobs").symlink_to("moved")


def _fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


BROKEN: dict[str, Callable[[Path], object]] = {
    "no layout file": lambda layout: (layout / "oci-layout").unlink(),
    "another layout version": lambda layout: (layout / "oci-layout").write_text(
        '{"imageLayoutVersion":"2.0.0"}'
    ),
    "a layout that is no JSON": lambda layout: (layout / "oci-layout").write_bytes(b"\xff"),
    "no index": lambda layout: (layout / "index.json").unlink(),
    "an index that is a list": lambda layout: (layout / "index.json").write_text("[]"),
    "an index of nothing": _index(lambda i: i.update(manifests=[])),
    "an index of words": _index(lambda i: i.update(manifests=["x", 1])),
    "an index of something else": _index(lambda i: i["manifests"][0].update(mediaType="text/plain")),
    "a digest that is a path": _index(lambda i: i["manifests"][0].update(digest="sha256:../../oci-layout")),
    "a digest of another kind": _index(lambda i: i["manifests"][0].update(digest="sha512:" + "0" * 128)),
    "a digest that is a number": _index(lambda i: i["manifests"][0].update(digest=1)),
    "a digest in capitals": _index(
        lambda i: i["manifests"][0].update(digest=i["manifests"][0]["digest"].upper())
    ),
    "an image that is not there": _index(lambda i: i["manifests"][0].update(digest="sha256:" + "0" * 64)),
    "another size": _index(lambda i: i["manifests"][0].update(size=i["manifests"][0]["size"] + 1)),
    "a smaller size": _index(lambda i: i["manifests"][0].update(size=10)),
    "a size in words": _index(lambda i: i["manifests"][0].update(size="big")),
    "an image too large": _index(lambda i: i["manifests"][0].update(size=2**40)),
    "another artifact": _image(lambda m: m.update(artifactType="application/x")),
    "no artifact type": _image(lambda m: m.pop("artifactType")),
    "another schema": _image(lambda m: m.update(schemaVersion=1)),
    "a layer missing": _image(lambda m: m["layers"].pop()),
    "a layer twice": _image(lambda m: m["layers"].append(m["layers"][0])),
    "a title that is a path": _image(
        lambda m: m["layers"][0]["annotations"].update(
            {"org.opencontainers.image.title": "../adapter_config.json"}
        )
    ),
    "no title": _image(lambda m: m["layers"][0].pop("annotations")),
    "annotations that are a list": _image(lambda m: m["layers"][0].update(annotations=[])),
    "layers that are words": _image(lambda m: m.update(layers=["x", "y", "z"])),
    "a layer too large": _image(lambda m: m["layers"][0].update(size=2**21)),
    "titles changed over": _image(
        lambda m: (
            m["layers"][0].update(annotations=m["layers"][2]["annotations"]),
            m["layers"][2].update(annotations={"org.opencontainers.image.title": "adapter_config.json"}),
        )
    ),
    "a flipped bit in the config": _layer(0, _flip),
    "a flipped bit in the weights": _layer(1, _flip),
    "a flipped bit in the manifest": _layer(2, _flip),
    "weights cut short": _layer(1, lambda path: os.truncate(path, 9)),
    "a layer that is a link": _layer(1, _to_link),
    "a layer that is a pipe": _layer(1, _fifo),
    "a layer with another name": _layer(1, lambda path: os.link(path, path.parent / "x")),
    "blobs behind a link": _linked_blobs,
    "no blobs": lambda layout: shutil.rmtree(layout / "blobs"),
}


@pytest.mark.parametrize("fault", BROKEN)
def test_a_broken_layout_is_refused(layout: Path, fault: str) -> None:
    BROKEN[fault](layout)
    with pytest.raises(InvalidInput):
        read_layout(layout)


def test_a_link_to_a_layout_is_refused(layout: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(layout)
    with pytest.raises(InvalidInput, match="link"):
        read_layout(tmp_path / "link")
