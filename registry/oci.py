"""An adapter as an OCI image layout: a folder that registries of container images store and copy.

Written after image-spec 1.1: an image manifest with `artifactType`, the empty config, and one layer per file with
its title. There is no client of a registry in here: `oras cp --from-oci-layout DIR:TAG REGISTRY/NAME:TAG` and
`skopeo copy oci:DIR:TAG docker://…` move such folders both ways.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from . import peft_folder, plain_files
from .canon import JSON, digest_bytes, parse
from .errors import InvalidInput, RegistryError
from .package import MANIFEST_LIMIT, Package, check_publishable, package
from .plain_files import Source

ARTIFACT_TYPE = "application/vnd.efface.adapter.v1"
INDEX_TYPE = "application/vnd.oci.image.index.v1+json"
MANIFEST_TYPE = "application/vnd.oci.image.manifest.v1+json"
EMPTY_TYPE = "application/vnd.oci.empty.v1+json"
TITLE = "org.opencontainers.image.title"
REF_NAME = "org.opencontainers.image.ref.name"
MANIFEST = "manifest.json"
"""The title of the layer that holds efface's own manifest of the adapter."""

_EMPTY = b"{}"
_MEDIA = {
    peft_folder.CONFIG: "application/json",
    peft_folder.WEIGHTS: "application/x-safetensors",
    MANIFEST: "application/vnd.efface.adapter+json",
}
_LIMITS = {**peft_folder.LIMITS, MANIFEST: MANIFEST_LIMIT}
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}", re.ASCII)
_DIGEST = re.compile(r"sha256:([0-9a-f]{64})")
_DOCUMENT_LIMIT = 2**22
_THEN = "Copy the image again, for example with oras."


def write_layout(made: Package, folder: Path, *, tag: str = "latest", single_request: bool = False) -> str:
    """Write the layout to the new or empty `folder`; returns the digest of the image manifest.

    The same adapter gives the same bytes. Raises InvalidInput and Conflict as `exports.export_folder` does.
    """
    check_publishable(made, single_request=single_request)
    if not _TAG.fullmatch(tag):
        raise InvalidInput("a tag of 1 to 128 letters, digits, '.', '_' or '-'", "another name", "Rename it.")
    layers = {**made.files, MANIFEST: made.manifest}
    manifest = _json(_image(layers))
    described = {**_descriptor(MANIFEST_TYPE, manifest), "artifactType": ARTIFACT_TYPE}
    index: dict[str, JSON] = {
        "schemaVersion": 2,
        "mediaType": INDEX_TYPE,
        "manifests": [{**described, "annotations": {REF_NAME: tag}}],
    }
    blobs = {_blob_path(data): data for data in (*layers.values(), manifest, _EMPTY)}
    layout = {"oci-layout": _json({"imageLayoutVersion": "1.0.0"}), "index.json": _json(index)}
    plain_files.write_folder(Path(folder), {**blobs, **layout})
    return digest_bytes(manifest)


def read_layout(folder: Path, *, tag: str | None = None) -> Package:
    """The adapter in a layout; `tag` chooses where it holds several. Raises InvalidInput.

    Digests and sizes of every blob that is read are checked, then the adapter as any foreign one.
    """
    with plain_files.opened(Path(folder), Source("an OCI image layout", _THEN)) as opened:
        _check_version(_document(_plain(opened, "oci-layout")))
        image = _blob(opened, _chosen(_document(_plain(opened, "index.json")), tag), _DOCUMENT_LIMIT)
        layers = _layers(_document(image))
        found = {name: _blob(opened, layer, _LIMITS[name]) for name, layer in layers.items()}
    return package(found.pop(MANIFEST), found)


def _image(layers: Mapping[str, bytes]) -> dict[str, JSON]:
    described: list[JSON] = [
        {**_descriptor(_MEDIA[name], layers[name]), "annotations": {TITLE: name}} for name in sorted(layers)
    ]
    return {
        "schemaVersion": 2,
        "mediaType": MANIFEST_TYPE,
        "artifactType": ARTIFACT_TYPE,
        "config": {**_descriptor(EMPTY_TYPE, _EMPTY), "data": "e30="},
        "layers": described,
    }


def _descriptor(media_type: str, data: bytes) -> dict[str, JSON]:
    return {"mediaType": media_type, "digest": digest_bytes(data), "size": len(data)}


def _blob_path(data: bytes) -> str:
    return f"blobs/sha256/{digest_bytes(data).removeprefix('sha256:')}"


def _json(value: JSON) -> bytes:
    return json.dumps(value, separators=(",", ":"), sort_keys=True).encode("ascii")


def _check_version(layout: Mapping[str, Any]) -> None:
    if layout.get("imageLayoutVersion") != "1.0.0":
        raise _bad("image layout version 1.0.0", "another")


def _chosen(index: Mapping[str, Any], tag: str | None) -> Mapping[str, Any]:
    """The descriptor of the one adapter in the index, or of the one with this tag."""
    found = [
        image
        for image in _objects(index.get("manifests"))
        if image.get("mediaType") == MANIFEST_TYPE and (tag is None or _annotation(image, REF_NAME) == tag)
    ]
    if len(found) != 1:
        raise _bad(
            "one image manifest" if tag is None else "one image manifest with this tag", str(len(found))
        )
    return found[0]


def _layers(image: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    if image.get("schemaVersion") != 2 or image.get("artifactType") != ARTIFACT_TYPE:
        raise _bad(f"an artifact of type {ARTIFACT_TYPE}", "another")
    layers = _objects(image.get("layers"))
    named = {_annotation(layer, TITLE): layer for layer in layers}
    if len(layers) != len(_MEDIA) or any(name not in named for name in _MEDIA):
        raise _bad("exactly the layers of an adapter", "others")
    return {name: named[name] for name in _MEDIA}


def _blob(folder: int, descriptor: Mapping[str, Any], limit: int) -> bytes:
    """The bytes that a descriptor names. Its size is believed only to refuse it."""
    digest, size = descriptor.get("digest"), descriptor.get("size")
    match = _DIGEST.fullmatch(digest) if isinstance(digest, str) else None
    if match is None or type(size) is not int or not 0 < size <= limit:
        raise _bad(f"a sha256 descriptor of 1 to {limit} bytes", "another")
    source = Source(match[1], _THEN)
    blobs = Source("blobs", _THEN)
    with (
        plain_files.opened("blobs", blobs, inside=folder) as of_any,
        plain_files.opened("sha256", blobs, inside=of_any) as of_sha256,
    ):
        data = plain_files.read_file(of_sha256, source, size)
    if len(data) != size or digest_bytes(data) != digest:
        raise source.bad("the bytes of its digest", "others")
    return data


def _plain(folder: int, name: str) -> bytes:
    return plain_files.read_file(folder, Source(name, _THEN), _DOCUMENT_LIMIT)


def _document(data: bytes) -> Mapping[str, Any]:
    try:
        value = parse(data.decode("utf-8"))
    except (UnicodeDecodeError, RegistryError) as error:
        raise _bad("JSON documents", "no JSON") from error
    if not isinstance(value, Mapping):
        raise _bad("JSON objects", "other JSON")
    return cast("Mapping[str, Any]", value)


def _objects(value: Any) -> Sequence[Mapping[str, Any]]:
    items = cast("list[Any]", value if isinstance(value, list) else [])
    return [item for item in items if isinstance(item, Mapping)]


def _annotation(descriptor: Mapping[str, Any], name: str) -> str | None:
    annotations = descriptor.get("annotations")
    value = cast("Mapping[str, Any]", annotations).get(name) if isinstance(annotations, Mapping) else None
    return value if isinstance(value, str) else None


def _bad(expected: str, came: str) -> InvalidInput:
    return InvalidInput(f"{expected} in the OCI image layout", came, _THEN)
