"""Signed notes against the published ones, and malformed ones."""

import base64

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from efface.registry import GateFailed, InvalidInput, RegistryError, notes, signing

# golang.org/x/mod/sumdb/note, note_test.go: signer and verifier key, text and signature. The signer key ends
# in base64 of the algorithm (1) and the 32 bytes of the secret.
NEUMANN = "PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW"
NEUMANN_SECRET = base64.b64decode("AYEKFALVFGyNhPJEMzD1QIDr+Y7hfZx09iUvxdXHKDFz")[1:]
TEXT = "If you think cryptography is the answer to your problem,\nthen you don't know what your problem is.\n"
LINE = "— PeterNeumann x08go/ZJkuBS9UG/SffcvIAQxVBtiFupLLr8pAcElZInNIuGUgYN1FFYC2pZSNXgKvqfqdngotpRZb6KE6RyyBwJnAM=\n"
NOTE = f"{TEXT}\n{LINE}"
# c2sp.org/signed-note, "Verifier keys", Example.
EXAMPLE = "example.com/foo+530d903a+AekyeRrm56hApGFkyQR4ZCbV54Id2LKaANYcrnKv3U2k"
EXAMPLE_NOTE = (
    "This is an example message.\n\n— example.com/foo Uw2QOkn8srV1yJGh2VYRlL1Tnagv1YEq6TfXppzi2ONncAlTgK7Ztg1E"
    "RYNZXsYjOBH3mFXmRKuwHjG1Yu72IneyaQM=\n"
)


def private(seed: int = 7) -> Ed25519PrivateKey:
    return Ed25519PrivateKey.from_private_bytes(bytes([seed]) * 32)


def known(name: str = "log", seed: int = 7) -> tuple[str, str]:
    return name, signing.public_pem(private(seed))


@pytest.mark.parametrize(
    ("vkey", "note", "text"),
    [(NEUMANN, NOTE, TEXT), (EXAMPLE, EXAMPLE_NOTE, "This is an example message.\n")],
)
def test_published_notes(vkey: str, note: str, text: str) -> None:
    assert notes.verifier_key(*notes.parse_verifier_key(vkey)) == vkey
    assert notes.verify(note, [notes.parse_verifier_key(vkey)]) == text
    assert notes.verify(note.encode(), [notes.parse_verifier_key(vkey)]) == text


def test_our_note_is_the_published_one() -> None:
    secret = Ed25519PrivateKey.from_private_bytes(NEUMANN_SECRET)
    assert notes.sign(TEXT, "PeterNeumann", secret) == NOTE


def test_any_changed_byte_is_found() -> None:
    data = NOTE.encode()
    for at in range(len(data)):
        with pytest.raises((InvalidInput, GateFailed)):
            notes.verify(
                data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :], [notes.parse_verifier_key(NEUMANN)]
            )


def test_unknown_signatures_are_passed_over_and_wrong_ones_are_not() -> None:
    text = "text\n\nwith an empty line\n"
    mine = notes.sign(text, "log", private())
    other = notes.sign(text, "witness", private(8)).removeprefix(text + "\n")
    assert notes.verify(mine + other, [known()]) == text
    assert notes.verify(mine + other, [known(), known("witness", 8)]) == text
    assert notes.verify(mine + other, [known("witness", 8)]) == text
    assert notes.verify(mine, [known("log", 8), known()]) == text  # two keys of one name
    for keys in ([], [known("log", 8)], [known("other")]):
        with pytest.raises(GateFailed):
            notes.verify(mine, keys)
    wrong = notes.sign("other\n", "witness", private(8)).removeprefix("other\n\n")
    with pytest.raises(GateFailed):
        notes.verify(mine + wrong, [known(), known("witness", 8)])


@pytest.mark.parametrize(
    "note",
    [
        "",
        "\n",
        "\n\n",
        TEXT,
        TEXT + "\n",
        TEXT + LINE,  # no empty line
        NOTE[:-1],
        NOTE + "\n",
        NOTE + "more\n",
        NOTE + "more",
        NOTE.replace("— ", "- "),
        NOTE.replace("— ", "—"),
        NOTE.replace("PeterNeumann x", "PeterNeumann  x"),
        NOTE.replace("PeterNeumann x", "Peter+Neumann x"),
        NOTE.replace("PeterNeumann x", "Peter\u00a0Neumann x"),
        NOTE.replace("nAM=", "nAN="),  # other padding bits
        NOTE.replace("nAM=", "nAM"),
        f"{TEXT}\n— PeterNeumann x08goA==\n"[:-6] + "o=\n",
        TEXT.replace("you", "y\tu") + "\n" + LINE,
        NOTE.replace("\n", "\r\n"),
        NOTE + LINE * 100,
        b"\xff" + NOTE.encode(),
        "\ud800" + NOTE,
        "x" * (notes.LARGEST_NOTE + 1),
    ],
)
def test_what_is_no_note_is_refused(note: str | bytes) -> None:
    with pytest.raises(InvalidInput):
        notes.verify(note, [notes.parse_verifier_key(NEUMANN)])


def test_sixteen_signatures_are_read() -> None:
    more = "".join(notes.sign(TEXT, f"w{n}", private(n + 1)).removeprefix(TEXT + "\n") for n in range(15))
    assert notes.verify(NOTE + more, [notes.parse_verifier_key(NEUMANN)]) == TEXT


@pytest.mark.parametrize("name", ["", "a b", "a+b", "a\nb", "a\u2003b", "\x01", "x" * 256])
def test_names_of_keys(name: str) -> None:
    with pytest.raises(InvalidInput):
        notes.sign(TEXT, name, private())


@pytest.mark.parametrize("text", ["", "no newline", "a\rb\n", "tab\t\n", "\0\n"])
def test_texts_that_cannot_be_signed(text: str) -> None:
    with pytest.raises(InvalidInput):
        notes.sign(text, "log", private())


@pytest.mark.parametrize("at", range(len(NEUMANN) + 1))
def test_mangled_verifier_keys_are_refused(at: int) -> None:
    for wrong in (NEUMANN[:at], NEUMANN[at:], NEUMANN[:at] + "~" + NEUMANN[at + 1 :]):
        if wrong != NEUMANN:
            with pytest.raises(InvalidInput):
                notes.parse_verifier_key(wrong)


@given(st.text(max_size=80) | st.binary(max_size=80) | st.text("— \nAa=+", max_size=60))
def test_verify_raises_nothing_else(note: str | bytes) -> None:
    with pytest.raises(RegistryError):
        notes.verify(note, [known()])
