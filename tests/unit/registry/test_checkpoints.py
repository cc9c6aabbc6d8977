"""Checkpoints as DSSE envelopes and as notes that transparency-log tooling reads."""

import dataclasses
import json

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from efface.registry import GateFailed, InvalidInput, canonical, checkpoints, dsse, merkle, notes, signing
from efface.registry.checkpoints import Checkpoint, TreeHead, parse_note_text

AT = "2026-03-01T12:00:00.000000Z"
LEAVES = [bytes.fromhex(text) for text in ("", "00", "10")]
# RFC 6962's test tree of three leaves; see test_merkle.
CHECKPOINT = Checkpoint("example.com/efface", 3, merkle.text_of(merkle.root(LEAVES)), AT)
TEXT = "example.com/efface\n3\nrra8/idLcKFPsGel5VeCZNsPqbUa9eC6FZFY8yngbnc=\n"

# A checkpoint of the Go checksum database, quoted in c2sp.org/tlog-checkpoint under another name, and the
# database's public verifier key.
SUM_GOLANG = "sum.golang.org+033de0ae+Ac4zctda0e5eza+HJyk9SxEdh+s3Ux18htTTAD8OuAn8"
SUM_GOLANG_NOTE = """go.sum database tree
20852163
CsUYapGGPo4dkMgIAUqom/Xajj7h2fB2MPA3j2jxq2I=

— sum.golang.org Az3grlgtzPICa5OS8npVmf1Myq/5IZniMp+ZJurmRDeOoRDe4URYN7u5/Zhcyv2q1gGzGku9nTo+zyWE+xeMcTOAYQ8=
"""


def private(seed: int = 7) -> Ed25519PrivateKey:
    return Ed25519PrivateKey.from_private_bytes(bytes([seed]) * 32)


def pem(seed: int = 7) -> str:
    return signing.public_pem(private(seed))


KEYS = {signing.key_id(pem(seed)): pem(seed) for seed in (7, 8)}


def test_a_checkpoint_is_signed_and_read_back() -> None:
    envelope = checkpoints.sign(CHECKPOINT, [private(7), private(8)])
    assert envelope.payload == canonical(CHECKPOINT.record())
    assert checkpoints.verify(dsse.parse(envelope.to_json()), KEYS, threshold=2) == CHECKPOINT


def test_another_signer_or_type_is_refused() -> None:
    envelope = checkpoints.sign(CHECKPOINT, [private(9)])
    with pytest.raises(GateFailed):
        checkpoints.verify(envelope, KEYS)
    other = dsse.sign("application/json", envelope.payload, [private(7)])
    with pytest.raises(GateFailed):
        checkpoints.verify(other, KEYS)


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"[]",
        b"{}",
        json.dumps(CHECKPOINT.record()).encode(),  # not canonical
        canonical({**CHECKPOINT.record(), "more": 1}),
        canonical({**CHECKPOINT.record(), "v": 2}),
        canonical({**CHECKPOINT.record(), "origin": 7}),
        canonical({**CHECKPOINT.record(), "tree_size": "3"}),
        canonical({**CHECKPOINT.record(), "tree_size": -1}),
        canonical({**CHECKPOINT.record(), "tree_size": True}),
        canonical({**CHECKPOINT.record(), "root": None}),
        canonical({**CHECKPOINT.record(), "at": "today"}),
    ],
)
def test_what_is_signed_must_be_a_checkpoint(payload: bytes) -> None:
    envelope = dsse.sign(checkpoints.PAYLOAD_TYPE, payload, [private(7)])
    with pytest.raises(InvalidInput):
        checkpoints.verify(envelope, KEYS)


@pytest.mark.parametrize(
    "change",
    [
        {"origin": ""},
        {"origin": "a b"},
        {"origin": "a\nb"},
        {"origin": "a+b"},
        {"tree_size": -1},
        {"tree_size": 2**53},
        {"root": "0" * 64},
        {"at": "2026-03-01T12:00:00Z"},
        {"tree_size": 0},  # with the root of three leaves
    ],
)
def test_only_a_checkpoint_can_be_made(change) -> None:
    with pytest.raises(InvalidInput):
        dataclasses.replace(CHECKPOINT, **change)


def test_the_note_is_the_published_format() -> None:
    note = checkpoints.sign_note(CHECKPOINT, private())
    assert note.startswith(TEXT + "\n— example.com/efface ")
    vkey = notes.parse_verifier_key(notes.verifier_key(CHECKPOINT.origin, pem()))
    assert checkpoints.verify_note(note, [vkey], CHECKPOINT.origin) == CHECKPOINT.head


def test_a_real_checkpoint_of_the_go_checksum_database() -> None:
    head = checkpoints.verify_note(
        SUM_GOLANG_NOTE, [notes.parse_verifier_key(SUM_GOLANG)], "go.sum database tree"
    )
    assert head.tree_size == 20852163
    assert head.text() + "\n" == SUM_GOLANG_NOTE.partition("—")[0]


def test_a_note_of_another_log_or_key_is_refused() -> None:
    note = checkpoints.sign_note(CHECKPOINT, private())
    with pytest.raises(GateFailed):
        checkpoints.verify_note(note, [(CHECKPOINT.origin, pem())], "example.com/other")
    with pytest.raises(GateFailed):
        checkpoints.verify_note(note, [(CHECKPOINT.origin, pem(8))], CHECKPOINT.origin)


def test_any_changed_byte_of_a_note_is_found() -> None:
    data = checkpoints.sign_note(CHECKPOINT, private()).encode()
    for at in range(len(data)):
        wrong = data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]
        with pytest.raises((InvalidInput, GateFailed)):
            checkpoints.verify_note(wrong, [(CHECKPOINT.origin, pem())], CHECKPOINT.origin)


def test_any_changed_byte_of_an_envelope_is_found_or_hurts_nothing() -> None:
    """Key ids, and nothing else, may change without harm: nobody signed them."""
    data = checkpoints.sign(CHECKPOINT, [private()]).to_json()
    for at in range(len(data)):
        wrong = data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]
        try:
            assert checkpoints.verify(dsse.parse(wrong), KEYS) == CHECKPOINT
        except (InvalidInput, GateFailed):
            continue
        start = data.index(b'"keyid":')
        assert start <= at < data.index(b'"sig":')


def test_extension_lines_are_signed_and_left_out() -> None:
    note = notes.sign(TEXT + "extension\n", CHECKPOINT.origin, private())
    assert checkpoints.verify_note(note, [(CHECKPOINT.origin, pem())], CHECKPOINT.origin) == CHECKPOINT.head


def test_the_empty_log() -> None:
    empty = Checkpoint("log", 0, merkle.text_of(merkle.EMPTY_ROOT), AT)
    assert parse_note_text(empty.head.text()) == TreeHead("log", 0, empty.root)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "log\n",
        "log\n3\n",
        TEXT[:-1],
        TEXT.replace("\n3\n", "\n03\n"),
        TEXT.replace("\n3\n", "\n+3\n"),
        TEXT.replace("\n3\n", "\n٣\n"),
        TEXT.replace("\n3\n", "\n-3\n"),
        TEXT.replace("\n3\n", "\n3 \n"),
        TEXT.replace("\n3\n", f"\n{10**17}\n"),
        TEXT.replace("bnc=", "bnd="),
        TEXT.replace("rra8", ""),
        TEXT.replace("rra8", "rr_8"),
        TEXT.replace("example.com/efface", ""),
        TEXT + "\n",
        TEXT + "\nmore\n",
    ],
)
def test_what_is_no_tree_head_is_refused(text: str) -> None:
    with pytest.raises(InvalidInput):
        parse_note_text(text)
