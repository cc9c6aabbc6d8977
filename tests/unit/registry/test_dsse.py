"""DSSE envelopes against the specification's vectors, tampering and hostile input."""

import base64
import json

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from efface.registry import GateFailed, InvalidInput, RegistryError, dsse, signing

INTOTO = "application/vnd.in-toto+json"
STATEMENT = b'{"_type":"https://in-toto.io/Statement/v1"}'
ENCODED = "eyJfdHlwZSI6Imh0dHBzOi8vaW4tdG90by5pby9TdGF0ZW1lbnQvdjEifQ=="
# The two keys of DSSE's testvectors/vectors.json are those of RFC 8032 §7.1, TEST 1 and TEST 2.
A = Ed25519PrivateKey.from_private_bytes(
    bytes.fromhex("9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60")
)
B = Ed25519PrivateKey.from_private_bytes(
    bytes.fromhex("4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb")
)
PEMS = {"A": signing.public_pem(A), "B": signing.public_pem(B)}
BY_A = "2WAfaHm5jluo0w+0rk8uVkluELJYWjSmU9x7EUzx+AyteDGJ4/nqyJXfmAUVFIAoQafWm7AxBZNw5M9ixNHiCA=="
BY_B = "c1+67/aT0yqEpwx8PsVY3MLHsj9D0CZ014/Fv/QlG59P+9CobUZ7xECJ/V3USG0Ob9CiE5LjReEZUzNF2l7eBw=="
UTF8 = "application/vnd.exämple+json"

# (payload, payloadType, [(keyid, sig)], trusted, threshold, supported type, accepted) of vectors.json.
VECTORS = {
    "single-signature": (ENCODED, INTOTO, [("A", BY_A)], "A", 1, INTOTO, True),
    "url-safe-base64": (
        "-_-_Pj8=",
        INTOTO,
        [
            (
                "A",
                "P-_KHICeR7tI6S_YyejJTRtrXhcQyQ2LYPaL8h90KjC9qN8HU_svOQ6TuDOT1HIrsGW886DbWNWcCmX5twLrAw==",
            )
        ],
        "A",
        1,
        INTOTO,
        True,
    ),
    "payload-type-swapped": (
        ENCODED,
        "application/vnd.example.other+json",
        [("A", BY_A)],
        "A",
        1,
        "application/vnd.example.other+json",
        False,
    ),
    "non-ascii-payload-type": (
        ENCODED,
        UTF8,
        [
            (
                "A",
                "xmSk/ug66ysT7ayhkCIjhAq42zgZXSsEWuzUaNL7w2eGAdF/NU6/fRXPtmfN+5DNSAs5/i2lUnHjbbjPsu0tAw==",
            )
        ],
        "A",
        1,
        UTF8,
        True,
    ),
    "empty-payload": (
        "",
        INTOTO,
        [
            (
                "A",
                "gSggCAaTLTYyRH6FIDBem6meyIynsYy8RTHVzwx9tnTb7Bg/1jMWnuVgI/gffqmbsC2VX5/jHfkkDqsj7CDbDg==",
            )
        ],
        "A",
        1,
        INTOTO,
        True,
    ),
    "empty-payload-type": (
        ENCODED,
        "",
        [
            (
                "A",
                "iC3q/+3Rm0+lpAJRueDmDh15PnwCfxKmS0NAfKsbv+zgulXQC/WM9trc+j1XEqlwDIg/vf/uNfebeD6sxInrDg==",
            )
        ],
        "A",
        1,
        INTOTO,
        False,
    ),
    "threshold-two-distinct-keys": (ENCODED, INTOTO, [("A", BY_A), ("B", BY_B)], "AB", 2, INTOTO, True),
    "threshold-two-one-key-twice": (ENCODED, INTOTO, [("A", BY_A)] * 2, "AB", 2, INTOTO, False),
    "threshold-two-without-keyids": (
        ENCODED,
        INTOTO,
        [(None, BY_A), (None, BY_B)],
        "AB",
        2,
        INTOTO,
        True,
    ),
}


def written(payload=ENCODED, kind=INTOTO, signatures=(("A", BY_A),)) -> bytes:
    listed = [{"sig": sig} if name is None else {"keyid": name, "sig": sig} for name, sig in signatures]
    return json.dumps({"payload": payload, "payloadType": kind, "signatures": listed}).encode()


def test_the_specifications_pae() -> None:
    assert (
        dsse.pae("http://example.com/HelloWorld", b"hello world")
        == b"DSSEv1 29 http://example.com/HelloWorld 11 hello world"
    )
    assert dsse.pae(UTF8, b"").startswith(b"DSSEv1 29 application/vnd.ex\xc3\xa4mple+json 0 ")
    assert dsse.pae(INTOTO, b"").endswith(b" 0 ")


@pytest.mark.parametrize("name", VECTORS)
def test_published_vectors(name: str) -> None:
    payload, kind, signatures, trusted, threshold, supported, accepted = VECTORS[name]
    keys = {key: PEMS[key] for key in trusted}

    def read() -> dsse.Verified:
        envelope = dsse.parse(written(payload, kind, signatures))
        return dsse.verify(envelope, keys, payload_type=supported, threshold=threshold)

    if not accepted:
        with pytest.raises((GateFailed, InvalidInput)):
            read()
        return
    signers = tuple(sorted(trusted)) if threshold == 2 else ("A",)
    assert read() == dsse.Verified(base64.urlsafe_b64decode(payload.translate(TO_URL)), signers)


TO_URL = str.maketrans("+/", "-_")


def test_our_signatures_are_the_published_ones() -> None:
    envelope = dsse.sign(INTOTO, STATEMENT, [A, B])
    assert [base64.b64encode(signature.sig).decode() for signature in envelope.signatures] == [BY_A, BY_B]
    assert [signature.key_id for signature in envelope.signatures] == [
        signing.key_id(PEMS["A"]),
        signing.key_id(PEMS["B"]),
    ]
    assert dsse.parse(envelope.to_json()) == envelope


def test_a_good_signature_of_another_type_is_refused() -> None:
    with pytest.raises(GateFailed):
        dsse.verify(dsse.parse(written()), PEMS, payload_type="application/vnd.example.other+json")


def test_a_key_id_is_only_a_hint() -> None:
    for hint in (None, "", "unknown", "A"):
        envelope = dsse.parse(written(signatures=[(hint, BY_A)]))
        assert dsse.verify(envelope, PEMS, payload_type=INTOTO).key_ids == ("A",)


def test_one_key_under_two_names_counts_once() -> None:
    envelope = dsse.parse(written(signatures=[("A", BY_A), ("again", BY_A)]))
    keys = {"A": PEMS["A"], "again": PEMS["A"]}
    assert len(dsse.verify(envelope, keys, payload_type=INTOTO).key_ids) == 1
    with pytest.raises(GateFailed):
        dsse.verify(envelope, keys, payload_type=INTOTO, threshold=2)


def test_signatures_by_others_do_not_count_and_do_not_harm() -> None:
    envelope = dsse.parse(written(signatures=[("B", BY_B), ("A", BY_A), ("A", BY_B), ("C", "AAAA")]))
    assert dsse.verify(envelope, {"A": PEMS["A"]}, payload_type=INTOTO).key_ids == ("A",)
    with pytest.raises(GateFailed):
        dsse.verify(envelope, {}, payload_type=INTOTO)


@pytest.mark.parametrize("threshold", [0, -1])
def test_no_signature_is_never_enough(threshold: int) -> None:
    with pytest.raises(InvalidInput):
        dsse.verify(dsse.parse(written()), {}, payload_type=INTOTO, threshold=threshold)


@given(st.binary(max_size=200), st.sampled_from([[A], [B], [A, B]]))
def test_what_is_signed_reads_back(payload: bytes, keys: list[Ed25519PrivateKey]) -> None:
    read = dsse.parse(dsse.sign(INTOTO, payload, keys).to_json())
    verified = dsse.verify(read, PEMS, payload_type=INTOTO, threshold=len(keys))
    assert verified.payload == payload


@pytest.mark.parametrize("field", ["payload", "payloadType", "sig"])
def test_any_changed_character_is_found(field: str) -> None:
    """Every character of what is signed and of the signature, in every position."""
    good = json.loads(written())
    holder = good["signatures"][0] if field == "sig" else good
    text = holder[field]
    for at in range(len(text)):
        holder[field] = text[:at] + ("A" if text[at] != "A" else "B") + text[at + 1 :]
        with pytest.raises((GateFailed, InvalidInput)):
            dsse.verify(
                dsse.parse(json.dumps(good).encode()), PEMS, payload_type=holder.get("payloadType", INTOTO)
            )


def test_fields_may_be_left_out_or_added() -> None:
    value = json.loads(written(signatures=[(None, VECTORS["empty-payload"][2][0][1])]))
    del value["payload"]
    value["later"] = value["signatures"][0]["cert"] = "ignored"
    assert dsse.verify(dsse.parse(json.dumps(value).encode()), PEMS, payload_type=INTOTO).payload == b""


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"[]",
        b"null",
        b"[" * 100_000,
        b"{}",
        b'{"payload":"","payload":""}',
        written(signatures=[]),
        written(signatures=[("A", BY_A)] * 17),
        written(kind=""),
        written(kind="x" * 257),
        written(kind="\ud800"),
        written(kind=7),
        written(payload=None),
        written(payload=ENCODED[:-1]),  # no padding
        written(payload=ENCODED[:-3] + "R=="),  # other padding bits: not what these bytes are written as
        written(payload=ENCODED + "\n"),
        written(payload=" " + ENCODED),
        written(payload="+-AA"),  # both alphabets
        written(payload="é==="),
        written(signatures=[("A", 1)]),
        written(signatures=[(1, BY_A)]),
        written(signatures=[("x" * 513, BY_A)]),
        b'{"payload":"","payloadType":"t","signatures":{}}',
        b'{"payload":"","payloadType":"t","signatures":["x"]}',
        b'{"payload":"","payloadType":"t","signatures":null}',
        written() + b"x",
        b"\xff" + written(),
    ],
)
def test_hostile_envelopes_are_refused(data: bytes) -> None:
    with pytest.raises(InvalidInput):
        dsse.parse(data)


def test_sizes_are_limited() -> None:
    assert dsse.parse(written(), limit=len(written()))
    with pytest.raises(InvalidInput):
        dsse.parse(written(), limit=len(written()) - 1)
    with pytest.raises(InvalidInput):
        dsse.parse(b" " * (dsse.LARGEST_ENVELOPE + 1))
    with pytest.raises(InvalidInput):
        dsse.sign(INTOTO, b"", [A] * 17)
    with pytest.raises(InvalidInput):
        dsse.sign(INTOTO, b"", [])


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)


@given(
    st.binary(max_size=80)
    | st.dictionaries(st.sampled_from(["payload", "payloadType", "signatures"]), json_values).map(
        lambda value: json.dumps(value).encode()
    )
    | st.lists(st.dictionaries(st.sampled_from(["keyid", "sig"]), json_values), max_size=3).map(
        lambda found: json.dumps({"payloadType": "t", "signatures": found}).encode()
    )
)
def test_parse_raises_nothing_else(data: bytes) -> None:
    try:
        envelope = dsse.parse(data)
    except RegistryError:
        return
    with pytest.raises(GateFailed):
        dsse.verify(envelope, PEMS, payload_type=envelope.payload_type)
