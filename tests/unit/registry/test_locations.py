"""Where a registry is: folders and URLs, what stands beside them, and that no URL is repeated."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from efface.registry import InvalidInput, Registry, open_request
from efface.registry.locations import Location, locate

PG = "postgresql://user@host:5432/db"


@pytest.fixture(autouse=True)
def no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("EFFACE_BLOBS", "EFFACE_ROOT"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        (".efface", Location(Path(".efface"), None, ".efface/blobs")),
        (Path("a/b"), Location(Path("a/b"), None, "a/b/blobs")),
        (Path("sqlite:/x"), Location(Path("sqlite:/x"), None, "sqlite:/x/blobs")),
        ("/var/lib/efface", Location(Path("/var/lib/efface"), None, "/var/lib/efface/blobs")),
        ("a folder with spaces", Location(Path("a folder with spaces"), None, "a folder with spaces/blobs")),
        ("sqlite:///r", Location(Path("r"), None, "r/blobs")),
        ("sqlite:////var/r", Location(Path("/var/r"), None, "/var/r/blobs")),
        ("sqlite:////var/r?blobs=s3://bucket/p", Location(Path("/var/r"), None, "s3://bucket/p")),
        ("sqlite:///r?blobs=/srv/b%20c", Location(Path("r"), None, "/srv/b c")),
        (PG, Location(Path(".efface"), PG, ".efface/blobs")),
        (f"{PG}?password=", Location(Path(".efface"), f"{PG}?password=", ".efface/blobs")),
        ("postgres://user@host/db", Location(Path(".efface"), "postgresql://user@host/db", ".efface/blobs")),
        (f"{PG}?root=/v", Location(Path("/v"), PG, "/v/blobs")),
        (f"{PG}?blobs=s3://b&root=/v", Location(Path("/v"), PG, "s3://b")),
        (
            f"{PG}?sslmode=require&blobs=s3://b&connect_timeout=3",
            Location(Path(".efface"), f"{PG}?sslmode=require&connect_timeout=3", "s3://b"),
        ),
        (
            "postgresql:///db?host=/run/pg",
            Location(Path(".efface"), "postgresql:///db?host=%2Frun%2Fpg", ".efface/blobs"),
        ),
    ],
)
def test_where_it_is(url: str | Path, expected: Location) -> None:
    assert locate(url) == expected


@pytest.mark.parametrize("url", ["sqlite:///r", PG, "r"])
def test_the_environment_stands_in_and_the_url_comes_first(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EFFACE_BLOBS", "s3://other")
    monkeypatch.setenv("EFFACE_ROOT", "/other")
    assert locate(url).blobs == "s3://other"
    assert locate(url).root == Path("/other" if url == PG else "r")
    if url != "r":
        assert locate(f"{url}?blobs=s3://mine").blobs == "s3://mine"
    assert locate(f"{PG}?root=/mine").root == Path("/mine")


@pytest.mark.parametrize(
    "url",
    ["mysql://u:secret@h/db", "sqlite://", "sqlite:///", "sqlite://r", "sqlite:///r?secret=1", "http://x/secret",
     "sqlite:///r?blobs=x&mode=rw", "s3://bucket/secret", "://secret"],
)  # fmt: skip
def test_what_is_nowhere(url: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        locate(url)
    assert "secret@" not in str(caught.value)
    assert "/secret" not in str(caught.value)
    assert caught.value.then


prefixes = st.sampled_from(["", "sqlite:///", "postgresql://", "postgres://u:p@", "postgresql://[", "x://"])
suffixes = st.text(max_size=20) | st.text("[]:@/?&=%#.a0 ", max_size=20)


@given(st.builds(str.__add__, prefixes, suffixes))
def test_any_text_is_a_place_or_refused(text: str) -> None:
    try:
        found = locate(text)
    except InvalidInput:
        assert "://" in text
        return
    assert found.server is None or found.server.startswith("postgresql://")


def test_a_url_opens_what_a_folder_opens(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/registry"
    with Registry.open(url, create=True) as reg:
        made = open_request(reg, basis="test", payload=b"rows", n_items=1, actor="ana")
    elsewhere = f"{url}?blobs={tmp_path}/blobs"
    for place in (tmp_path / "registry", str(tmp_path / "registry"), elsewhere):
        with Registry.open(place) as reg:
            assert reg.vault.has(made.id)
    with Registry.open(elsewhere) as reg:
        digest = reg.blobs.put(b"x")
        assert reg.blobs.local_path(digest).is_relative_to(tmp_path / "blobs")
