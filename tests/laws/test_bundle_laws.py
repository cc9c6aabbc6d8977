"""A bundle fails after any change (design §4, number 11), and hostile ones are refused, not crashed on."""

import copy
import json
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from proof_kit import ORIGIN, open_as_0_1_0, pem, private, signed_story
from registry_backends import new_backend
from registry_kit import Clock, ask

from efface.registry import InvalidInput, Registry, bundle_members, bundle_zip, canonical
from efface.registry.bundle import export_bundle
from efface.registry.bundle_verify import BundleVerification, verify_bundle
from efface.registry.errors import GateFailed
from efface.registry.log_checkpoints import make_checkpoint

JSON_MEMBERS = ("checkpoints.json", "facts.json", "keys.json", "ledger.json")
STATED = ("basis", "n_items", "commitment", "received_at", "due_at")
fixture_is_read_only = [HealthCheck.function_scoped_fixture]


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """`small`: one event. `hashes`: a whole story, signed. `paths`: with audit paths, and an event withheld."""
    work = tmp_path_factory.mktemp("bundles")
    return exported(work, *(Registry.open(work / name, create=True, clock=Clock()) for name in "ab"))


@pytest.fixture(scope="module", params=["postgres", "postgres+s3"])
def served(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, bytes]]:
    """The same, out of a Postgres server, and with blobs on S3."""
    work = tmp_path_factory.mktemp("bundles")
    places = [new_backend(request.param, work, request) for _ in range(2)]
    yield exported(work, *(place.open(clock=Clock()) for place in places))
    for place in places:
        place.close()


def exported(work: Path, small: Registry, story: Registry) -> dict[str, bytes]:
    """What two new registries export."""
    with small as reg:
        export_bundle(reg, work / "small.zip", request=ask(reg))
    with story as reg:
        signed_story(reg, work)
        make_checkpoint(reg, private("log"), origin=ORIGIN)
        export_bundle(reg, work / "hashes.zip", request="req-000001")
        second = open_as_0_1_0(reg, "ada")
        for _ in range(30):
            ask(reg)
        make_checkpoint(reg, private("log"), origin=ORIGIN)
        export_bundle(reg, work / "paths.zip", request=second)
    return {name: (work / f"{name}.zip").read_bytes() for name in ("small", "hashes", "paths")}


def verify(data: bytes, folder: Path, *, trusted: bool = True) -> BundleVerification:
    path = folder / "bundle.zip"
    path.write_bytes(data)
    return verify_bundle(path, trusted_keys=[pem("log")] if trusted else None)


def passes(data: bytes, folder: Path, *, trusted: bool = True) -> bool:
    """Whether it is taken. Anything but a problem or InvalidInput goes through and fails the test."""
    started = time.perf_counter()
    try:
        return verify(data, folder, trusted=trusted).ok
    except InvalidInput:
        return False
    finally:
        assert time.perf_counter() - started < 5


def test_unchanged_ones_pass(bundles: dict[str, bytes], tmp_path: Path) -> None:
    assert passes(bundles["small"], tmp_path, trusted=False)
    assert verify(bundles["hashes"], tmp_path).problems == ()
    assert verify(bundles["paths"], tmp_path).problems == ()
    members = bundle_zip.unpack(bundles["paths"])
    ledger = json.loads(members["ledger.json"])
    assert ledger["withheld"][0]["path"]
    assert "hashes" in json.loads(bundle_zip.unpack(bundles["hashes"])["ledger.json"])


def test_every_byte_of_a_small_bundle_matters(bundles: dict[str, bytes], tmp_path: Path) -> None:
    """Trusted by nobody, without a signature: still no byte can change, be dropped or be added."""
    data = bundles["small"]
    assert len(data) < 20_000
    for position in range(len(data)):
        changed = bytearray(data)
        changed[position] ^= 1 << position % 8
        with pytest.raises((GateFailed, InvalidInput)):
            bundle_members.opened(bytes(changed))
    for position in range(0, len(data), 97):
        changed = bytearray(data)
        changed[position] = (changed[position] + 113) % 256
        assert not passes(bytes(changed), tmp_path, trusted=False)
        assert not passes(data[:position], tmp_path, trusted=False)
        assert not passes(data[:position] + b"\0" + data[position:], tmp_path, trusted=False)
        assert not passes(data[:position] + data[position + 1 :], tmp_path, trusted=False)
    assert not passes(data + b"\0", tmp_path, trusted=False)
    assert not passes(data + data, tmp_path, trusted=False)


@settings(max_examples=300, deadline=None, suppress_health_check=fixture_is_read_only)
@given(data=st.data(), name=st.sampled_from(["hashes", "paths"]), value=st.integers(1, 255))
def test_any_byte_of_a_signed_bundle(
    bundles: dict[str, bytes], tmp_path: Path, data: st.DataObject, name: str, value: int
) -> None:
    changed = bytearray(bundles[name])
    changed[data.draw(st.integers(0, len(changed) - 1))] ^= value
    assert not passes(bytes(changed), tmp_path)
    assert not passes(bytes(changed), tmp_path, trusted=False)


def leaves(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The place of each scalar, and of each empty list or object."""
    items = list(value.items()) if isinstance(value, dict) else []
    items = list(enumerate(value)) if isinstance(value, list) else items
    if not items:
        yield path
    for key, item in items:
        yield from leaves(item, (*path, key))


def other(value: Any) -> Any:
    """A neighbour of a scalar: another value of its type that a forger would like."""
    if isinstance(value, str) and value:
        digest = value.startswith(("sha256:", "hmac-"))
        new = "1" if value[-1 if digest else 0] == "0" else "0"
        return value[:-1] + new if digest else new + value[1:]
    if isinstance(value, int):
        return value + 1
    return "x"


def resealed(data: bytes, edit: Any) -> bytes:
    """What a forger does who knows the format: a member changed, and every digest and checksum made right."""
    manifest, members = bundle_members.opened(data)
    about = dict(manifest["about"])
    edit(members, about)
    return bundle_members.sealed(about, members)


@pytest.mark.parametrize("kind", ["hashes", "paths"])
@pytest.mark.parametrize("name", JSON_MEMBERS)
def test_a_forger_who_seals_again_is_found_out(
    bundles: dict[str, bytes], tmp_path: Path, kind: str, name: str
) -> None:
    """Each scalar of each member is changed alone."""
    value = json.loads(bundle_zip.unpack(bundles[kind])[name])
    places = list(leaves(value))
    for path in places[:: max(1, len(places) // 120)]:
        changed = copy.deepcopy(value)
        inner = changed
        for key in path[:-1]:
            inner = inner[key]
        if kind == "paths" and path[-1] in STATED:  # nobody signed how a withheld one came in
            continue
        inner[path[-1]] = other(inner[path[-1]])

        def edit(members: dict[str, bytes], _about: Any, changed: Any = changed) -> None:
            members[name] = canonical(changed)

        assert not passes(resealed(bundles[kind], edit), tmp_path), path
        assert not passes(resealed(bundles[kind], edit), tmp_path, trusted=False), path


def test_bundles_of_each_backend(bundles: dict[str, bytes], served: dict[str, bytes], tmp_path: Path) -> None:
    """They have the members and the facts of SQLite's (but for random commitments), and no byte of them can change."""
    for name, data in served.items():
        trusted = name != "small"
        assert verify(data, tmp_path, trusted=trusted).problems == ()
        ours, theirs = (bundle_zip.unpack(one) for one in (bundles[name], data))
        assert [one.partition("/")[0] for one in ours] == [one.partition("/")[0] for one in theirs]
        assert shape(json.loads(ours["facts.json"])) == shape(json.loads(theirs["facts.json"]))
        for position in range(0, len(data), len(data) // 40):
            changed = bytearray(data)
            changed[position] ^= 1 << position % 8
            assert not passes(bytes(changed), tmp_path, trusted=trusted), (name, position)


def shape(value: Any) -> Any:
    """A JSON value without what is random: digests, and MACs by a vault's own keys."""
    if isinstance(value, dict):
        return {key: shape(item) for key, item in value.items()}
    if isinstance(value, list):
        return [shape(item) for item in value]
    return (
        value.partition(":")[0]
        if isinstance(value, str) and value.startswith(("hmac-", "sha256:"))
        else value
    )


def test_a_forger_of_a_bundle_of_each_backend(served: dict[str, bytes], tmp_path: Path) -> None:
    for name in JSON_MEMBERS:
        whole = json.loads(bundle_zip.unpack(served["hashes"])[name])
        places = list(leaves(whole))
        for path in places[:: max(1, len(places) // 10)]:
            value = copy.deepcopy(whole)
            inner = value
            for key in path[:-1]:
                inner = inner[key]
            inner[path[-1]] = other(inner[path[-1]])
            edit = lambda m, a, n=name, v=value: m.update({n: canonical(v)})  # noqa: E731
            assert not passes(resealed(served["hashes"], edit), tmp_path), (name, path)


def test_members_dropped_added_or_changed(bundles: dict[str, bytes], tmp_path: Path) -> None:
    names = list(bundle_zip.unpack(bundles["hashes"]))
    for name in names:
        if name == bundle_members.MANIFEST:
            continue
        assert not passes(resealed(bundles["hashes"], lambda m, a, n=name: m.pop(n)), tmp_path), name
        assert not passes(
            resealed(bundles["hashes"], lambda m, a, n=name: m.update({n: m[n] + b" "})), tmp_path
        )
        assert not passes(resealed(bundles["hashes"], lambda m, a, n=name: m.update({n: b""})), tmp_path)
    further = "reports/" + "0" * 64 + ".json"
    assert not passes(resealed(bundles["hashes"], lambda m, a: m.update({further: b"{}"})), tmp_path)
    assert not passes(resealed(bundles["hashes"], lambda m, a: m.update({"notes.json": b"{}"})), tmp_path)
    for about in ({"id": "req-000002"}, {"kind": "channel"}, {"kind": "channel", "id": "prod"}, {"more": 1}):
        assert not passes(resealed(bundles["hashes"], lambda m, a, x=about: a.update(x)), tmp_path)
    swapped = json.loads(bundle_zip.unpack(bundles["paths"])["checkpoints.json"])[::-1]
    edit = lambda m, a: m.update({"checkpoints.json": canonical(swapped)})  # noqa: E731
    assert not passes(resealed(bundles["paths"], edit), tmp_path)


def test_events_left_out_in_the_middle_show(bundles: dict[str, bytes], tmp_path: Path) -> None:
    """Of a life that has states, no step can be left out; a last one can, and the summary says so."""
    ledger = json.loads(bundle_zip.unpack(bundles["hashes"])["ledger.json"])
    kinds = [entry["event"]["kind"] for entry in ledger["events"]]
    for kind in ("request.trained", "request.audited", "release.approved", "adapter.sealed", "key.added"):
        events = [entry for entry in ledger["events"] if entry["event"]["kind"] != kind]
        assert len(events) < len(kinds)
        edit = lambda m, a, e=events: m.update({"ledger.json": canonical({**ledger, "events": e})})  # noqa: E731
        assert not passes(resealed(bundles["hashes"], edit), tmp_path), kind


anything = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 2**60) | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=200, deadline=None, suppress_health_check=fixture_is_read_only)
@given(data=st.data(), name=st.sampled_from(JSON_MEMBERS), value=anything)
def test_any_json_in_any_place_is_refused_cleanly(
    bundles: dict[str, bytes], tmp_path: Path, data: st.DataObject, name: str, value: Any
) -> None:
    whole = json.loads(bundle_zip.unpack(bundles["paths"])[name])
    proven = (path for path in leaves(whole) if path[-1] not in STATED)
    places = [path[:cut] for path in proven for cut in range(1, len(path) + 1)]
    path = data.draw(st.sampled_from(places))
    inner = whole
    for key in path[:-1]:
        inner = inner[key]
    if json.dumps(inner[path[-1]]) == json.dumps(value):
        return
    inner[path[-1]] = value
    try:
        text = canonical(whole)
    except InvalidInput:
        text = json.dumps(whole).encode()
    if text == bundle_zip.unpack(bundles["paths"])[name]:  # 1 and 1.0 are one number
        return
    assert not passes(resealed(bundles["paths"], lambda m, a: m.update({name: text})), tmp_path)


@settings(max_examples=200, deadline=None, suppress_health_check=fixture_is_read_only)
@given(st.binary(max_size=300), st.booleans())
def test_any_bytes_are_refused_cleanly(tmp_path: Path, data: bytes, zipped: bool) -> None:
    assert not passes((b"PK\3\4" if zipped else b"") + data, tmp_path, trusted=False)


def other_zip(path: Path, members: dict[str, bytes], method: int, names: list[str] | None = None) -> bytes:
    with zipfile.ZipFile(path, "w", method) as archive:
        for name in names or sorted(members):
            archive.writestr(name, members[name])
    return path.read_bytes()


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_other_zips_of_the_same_members_are_refused(bundles: dict[str, bytes], tmp_path: Path) -> None:
    """Deflated (so that nothing can explode), in another order, with a name twice, out of the folder."""
    members = bundle_zip.unpack(bundles["hashes"])
    names = sorted(members)
    path = tmp_path / "other.zip"
    for data in (
        other_zip(path, members, zipfile.ZIP_DEFLATED),
        other_zip(path, members, zipfile.ZIP_STORED),
        other_zip(path, members, zipfile.ZIP_STORED, names[::-1]),
        other_zip(path, members, zipfile.ZIP_STORED, [*names, names[0]]),
        other_zip(path, {**members, "../facts.json": b"{}"}, zipfile.ZIP_STORED),
        other_zip(path, {**members, "facts.json": bytes(50_000_000)}, zipfile.ZIP_DEFLATED),
    ):
        assert not passes(data, tmp_path)
