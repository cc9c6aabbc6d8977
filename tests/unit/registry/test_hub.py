"""Push and pull over real HTTP against a stub of the Hub's API; a hostile server leaves nothing behind."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from foreign_kit import CONFIG_NAME, WEIGHTS_NAME, Answer, HubStub, Repo, files, hub_at, packed, sha1_of
from registry_kit import contents

from efface.registry.card import CardFacts
from efface.registry.errors import Conflict, InvalidInput, NotFound
from efface.registry.exports import export_folder
from efface.registry.hub import pull, push
from efface.registry.hub_names import HubName, parse_hub

REPO = "acme/forgetting"

# huggingface_hub 2.4 hands the bytes of an LFS upload to its HTTP client as `data`; nothing that we call.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=<...>' to upload raw bytes:DeprecationWarning")


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[HubStub]:
    with hub_at(monkeypatch) as stub:
        yield stub


@pytest.fixture
def exported(tmp_path: Path) -> Path:
    return export_folder(packed(), tmp_path / "exported", CardFacts())


@pytest.fixture
def published(hub: HubStub) -> str:
    repo = hub.repos[REPO] = Repo(private=True)
    return repo.commit("main", {**files(), "pytorch_model.bin": b"\x80\x04.", "README.md": b"hello"})


def test_what_is_pushed_is_pulled(hub: HubStub, exported: Path, tmp_path: Path) -> None:
    pushed = push(exported, REPO, token="hf_test", message="The first stack")
    assert hub.repos[REPO].private
    assert hub.repos[REPO].branches == {"main": pushed.commit}
    assert pushed.url == f"{hub.url}/{REPO}/commit/{pushed.commit}"
    assert {"README.md", CONFIG_NAME, WEIGHTS_NAME} < set(hub.repos[REPO].commits[pushed.commit])
    pulled = pull(REPO, tmp_path / "pulled", token="hf_test")
    assert pulled.commit == pushed.commit
    assert {path.name: path.read_bytes() for path in pulled.folder.iterdir()} == files()


def test_pushing_the_same_again_changes_nothing_and_another_branch_is_made(
    hub: HubStub, exported: Path
) -> None:
    first = push(exported, REPO, message="one")
    branch = push(exported, REPO, revision="v2", message="two")
    assert set(hub.repos[REPO].branches) == {"main", "v2"}
    assert hub.repos[REPO].branches["main"] == first.commit
    assert hub.repos[REPO].branches["v2"] == branch.commit


def test_a_public_repository_is_not_pushed_to_unless_asked(hub: HubStub, exported: Path) -> None:
    hub.repos[REPO] = Repo(private=False)
    before = hub.repos[REPO].commit("main", {})
    with pytest.raises(Conflict, match="public"):
        push(exported, REPO, message="oops")
    assert hub.repos[REPO].branches == {"main": before}
    push(exported, REPO, private=False, message="on purpose")
    assert hub.repos[REPO].branches["main"] != before


def test_only_the_two_files_are_fetched_by_commit_and_the_token_stays_with_the_hub(
    hub: HubStub, published: str, tmp_path: Path
) -> None:
    pull(REPO, tmp_path / "pulled", revision="main", token="hf_secret")
    gets = [(path, auth) for method, path, auth in hub.calls if method == "GET"]
    resolved = [path for path, _ in gets if "/resolve/" in path]
    assert resolved == [f"/{REPO}/resolve/{published}/{name}" for name in (CONFIG_NAME, WEIGHTS_NAME)]
    stored = [auth for path, auth in gets if path.startswith("/storage/")]
    assert stored == [None]
    assert {auth for path, auth in gets if not path.startswith("/storage/")} == {"Bearer hf_secret"}


def _infos(change: Callable[[list[dict]], object]) -> Callable[[Answer], Answer]:
    def fault(answer: Answer) -> Answer:
        infos = json.loads(answer[2])
        changed = change(infos)
        return 200, answer[1], json.dumps(infos if changed is None else changed).encode()

    return fault


def _body(change: Callable[[bytes], bytes], **headers: str) -> Callable[[Answer], Answer]:
    return lambda answer: (200, {**answer[1], **headers}, change(answer[2]))


def _to(location: str) -> Callable[[Answer], Answer]:
    return lambda _: (302, {"Location": location}, b"")


NAN = files()[WEIGHTS_NAME][:-4] + b"\x00\x00\xc0\x7f"
HOSTILE: dict[str, tuple[str, Callable[[Answer], Answer]]] = {
    "a name that leaves the folder": ("paths-info", _infos(lambda i: i[0].update(path="../../x"))),
    "one more file": ("paths-info", _infos(lambda i: [*i, {**i[0], "path": "/etc/passwd"}])),
    "no weights": ("paths-info", _infos(lambda i: i[:1])),
    "a folder as weights": ("paths-info", _infos(lambda i: [i[0], {**i[1], "type": "directory"}])),
    "a file too large": ("paths-info", _infos(lambda i: i[1].update(size=2**40))),
    "a size in words": ("paths-info", _infos(lambda i: i[1].update(size="big"))),
    "a negative size": ("paths-info", _infos(lambda i: i[1].update(size=-1))),
    "no digests": ("paths-info", _infos(lambda i: i[0].pop("oid"))),
    "a digest that is none": ("paths-info", _infos(lambda i: i[1]["lfs"].update(oid=None))),
    "infos that are no list": ("paths-info", _infos(lambda i: {"error": "x"})),
    "infos that are numbers": ("paths-info", _infos(lambda i: [1, 2])),
    "infos that are no JSON": ("paths-info", _body(lambda _: b"<html>")),
    "a commit that is a path": ("revision", _body(lambda b: b.replace(b'"sha": "', b'"sha": "../'))),
    "no commit": ("revision", _body(lambda b: b'{"id": "acme/forgetting"}')),
    "a redirect to a file": ("resolve", _to("file:///etc/passwd")),
    "a redirect to nothing": ("resolve", _to("http://127.0.0.1:1/x")),
    "a redirect in circles": ("resolve", _to("/acme/forgetting/resolve/main/adapter_config.json")),
    "weights cut short": ("storage", _body(lambda b: b[:-9])),
    "a connection cut short": (
        "storage",
        lambda a: (200, {"Content-Length": str(len(a[2])), "Connection": "close"}, a[2][:-9]),
    ),
    "weights that go on": ("storage", _body(lambda b: b + bytes(2**20))),
    "other weights": ("storage", _body(lambda b: b[:-4] + b"\x00\x00\x00\x40")),
    "compressed weights": ("storage", _body(lambda b: b, **{"Content-Encoding": "gzip", "X": "y"})),
    "another config": (CONFIG_NAME, _body(lambda b: b.replace(b"q_proj", b"v_proj"))),
    "an error": ("storage", lambda _: (500, {}, b"oops")),
    "no longer there": ("storage", lambda _: (410, {}, b"")),
}
HARMLESS = {"compressed weights"}  # the header alone: the bytes are taken as they came


@pytest.mark.parametrize("fault", sorted(HOSTILE.keys() - HARMLESS))
def test_a_hostile_hub_leaves_nothing_behind(
    hub: HubStub, published: str, tmp_path: Path, fault: str
) -> None:
    part, change = HOSTILE[fault]
    hub.faults[part] = change
    before = contents(tmp_path)
    with pytest.raises((InvalidInput, NotFound, Conflict)) as caught:
        pull(REPO, tmp_path / "pulled", revision="main", token="hf_secret")
    assert contents(tmp_path) == before
    assert "hf_secret" not in str(caught.value)
    if part == "paths-info" and "digest" not in fault:
        assert not [path for _, path, _ in hub.calls if "/resolve/" in path]


@pytest.mark.parametrize("fault", sorted(HARMLESS))
def test_bytes_are_never_unpacked(hub: HubStub, published: str, tmp_path: Path, fault: str) -> None:
    part, change = HOSTILE[fault]
    hub.faults[part] = change
    pull(REPO, tmp_path / "pulled")


def test_what_is_pulled_is_checked_as_any_foreign_adapter(hub: HubStub, tmp_path: Path) -> None:
    hub.repos[REPO] = Repo(private=True)
    hub.repos[REPO].commit("main", {**files(), WEIGHTS_NAME: NAN})
    with pytest.raises(InvalidInput, match="finite"):
        pull(REPO, tmp_path / "pulled")
    assert contents(tmp_path) == {}


@pytest.mark.parametrize(
    ("status", "error"), [(401, InvalidInput), (403, InvalidInput), (404, NotFound), (418, Conflict)]
)
def test_refusals_of_the_hub_are_explained(
    hub: HubStub, exported: Path, tmp_path: Path, status: int, error: type[Exception]
) -> None:
    hub.faults["api/"] = lambda answer: (status, {}, b"hf_secret is wrong")
    with pytest.raises(error) as pulled:
        pull(REPO, tmp_path / "pulled", token="hf_secret")
    with pytest.raises(error) as pushed:
        push(exported, REPO, token="hf_secret", message="m")
    assert "hf_secret" not in f"{pulled.value}{pushed.value}"


def test_no_hub_at_all_is_a_clear_error(
    hub: HubStub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:1")
    with pytest.raises(Conflict, match="HF_ENDPOINT"):
        pull(REPO, tmp_path / "pulled")


def test_a_folder_in_use_is_left_alone(hub: HubStub, published: str, exported: Path) -> None:
    before = contents(exported)
    with pytest.raises(InvalidInput, match="empty"):
        pull(REPO, exported)
    assert contents(exported) == before


@pytest.mark.parametrize("fault", ["no card", "no adapter", "bad adapter", "linked card"])
def test_only_a_whole_export_is_pushed(hub: HubStub, exported: Path, fault: str) -> None:
    if fault in ("no card", "linked card"):
        (exported / "README.md").unlink()
    if fault == "linked card":
        (exported / "README.md").symlink_to("/etc/hostname")
    if fault == "no adapter":
        (exported / WEIGHTS_NAME).unlink()
    if fault == "bad adapter":
        (exported / WEIGHTS_NAME).write_bytes(NAN)
    with pytest.raises(InvalidInput):
        push(exported, REPO, message="m")
    assert hub.calls == []


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("hub://acme/x", HubName("acme/x", None)),
        ("hub://acme/x-1.5_b@main", HubName("acme/x-1.5_b", "main")),
        ("hub://a/b@refs/pr/1", HubName("a/b", "refs/pr/1")),
        ("hub://a/b@" + "0" * 40, HubName("a/b", "0" * 40)),
    ],
)
def test_names(text: str, name: HubName) -> None:
    assert parse_hub(text) == name


BAD_NAMES = r"""hub:// hub://a hub://a/b/c hub://../b hub://a/.. hub://a/b@ hub://a/b@../x hub://a/b@x..y
hub://a/b@/x hub://a/b@x/ hub://a/b@x.lock hub://a/b?x=1 hub://a/b#x hub://a/b@x?y hub://-a/b hub://a/b- hub://a--b/c
hub://a/b.git hub://a%2fb/c hub://a/b@x%2e hub://user:pw@host/b http://a/b a/b hub://a/b@x@y hub://a/b\c"""


@pytest.mark.parametrize(
    "text", [*BAD_NAMES.split(), "hub://a/b\n", "hub://a/b c", "hub://ä/b", "hub://a/b@\u0661"]
)
def test_other_names_are_refused(text: str) -> None:
    with pytest.raises(InvalidInput):
        parse_hub(text)


def test_the_stub_keeps_what_git_would() -> None:
    """The blob id of git's own documentation, so the stub's digests are those of a real Hub."""
    assert sha1_of(b"test content\n") == "d670460b4b4aece5915caf5c68d12f560a9fe3e4"
