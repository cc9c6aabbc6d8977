"""Adapters to and from the Hugging Face Hub (or a server of its API at `HF_ENDPOINT`).

A download is asked for by commit, only the two files, and only after their sizes were seen; it is read no further
than that size, never unpacked, and kept when the digest and the whole of `peft_folder` agree.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Collection, Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import checks, exports, peft_folder, plain_files, release_file
from .errors import Conflict, InvalidInput, NotFound, RegistryError
from .hub_names import check_repo_id, check_revision
from .plain_files import Source

if TYPE_CHECKING:
    from huggingface_hub import HfApi

_COMMIT = re.compile(r"[0-9a-f]{40}")
_ALONG = {exports.CARD: 2**20, **release_file.LIMITS}
_EXPORT = "Export the adapter with efface: that writes its model card."
_TIMEOUT = 60.0
_THEN = "Check the repository on the Hub, HF_ENDPOINT and the network; nothing was kept here."


@dataclass(frozen=True, slots=True)
class Pushed:
    """Where an adapter now is: the commit, and its page."""

    repo_id: str
    commit: str
    url: str


@dataclass(frozen=True, slots=True)
class Pulled:
    """An adapter that was fetched: `folder` has exactly its two files, as of `commit`."""

    repo_id: str
    commit: str
    folder: Path


def push(
    folder: Path,
    repo_id: str,
    *,
    revision: str | None = None,
    private: bool = True,
    token: str | None = None,
    message: str,
) -> Pushed:
    """Commit the adapter in `folder` (made by `exports.export_folder`), with its README.md and what else
    `release_file.LIMITS` names, to a repository.

    The repository and the branch `revision` are made when there are none. `token` is by default the one that
    huggingface_hub finds (HF_TOKEN, `hf auth login`). Raises InvalidInput, NotFound, or Conflict; also when
    `private` and the repository that exists is public.
    """
    check_repo_id(repo_id)
    branch = None if revision is None else check_revision(revision)
    checks.text(message, "message", 200)
    files = _to_push(Path(folder))
    with _explained("push"):
        api = _api(token)
        api.create_repo(repo_id, private=private, exist_ok=True)
        if private and api.model_info(repo_id).private is not True:
            raise Conflict("a private repository", "a public one", "Pass private=False to publish there.")
        if branch is not None:
            api.create_branch(repo_id, branch=branch, exist_ok=True)
        commit = _commit(api, repo_id, branch, files, message)
        return Pushed(repo_id, commit, f"{api.endpoint}/{repo_id}/commit/{commit}")


def pull(repo_id: str, folder: Path, *, revision: str | None = None, token: str | None = None) -> Pulled:
    """Fetch the adapter of a repository into the new or empty `folder`, checked by `peft_folder`.

    Raises InvalidInput for anything but a plain LoRA, NotFound, or Conflict; `folder` is then as it was.
    """
    commit, files = _fetched(repo_id, revision, token, peft_folder.LIMITS, {})
    peft_folder.check(files)
    plain_files.write_folder(Path(folder), files)
    return Pulled(repo_id, commit, Path(folder))


def pull_release(
    repo_id: str, *, revision: str | None = None, token: str | None = None
) -> tuple[str, dict[str, bytes]]:
    """The commit, and the files of a pushed release by name: the adapter's two and those of `_ALONG` that are there.

    They are as the Hub has them, and nothing more is checked: `release_pull.check` does. Raises as `pull` does.
    """
    return _fetched(
        repo_id, revision, token, {**peft_folder.LIMITS, release_file.NAME: _ALONG[release_file.NAME]}, _ALONG
    )


def _fetched(
    repo_id: str,
    revision: str | None,
    token: str | None,
    required: Mapping[str, int],
    optional: Mapping[str, int],
) -> tuple[str, dict[str, bytes]]:
    check_repo_id(repo_id)
    wanted = None if revision is None else check_revision(revision)
    with _explained("pull"):
        api = _api(token)
        commit = _checked_commit(api.model_info(repo_id, revision=wanted, timeout=_TIMEOUT).sha)
        described = _described(api, repo_id, commit, required, optional)
        files = {name: _download(api, repo_id, commit, info) for name, info in described.items()}
    return commit, files


def _api(token: str | None) -> HfApi:
    from huggingface_hub import HfApi

    return HfApi(endpoint=os.environ.get("HF_ENDPOINT") or None, token=token, library_name="efface")


def _to_push(folder: Path) -> dict[str, bytes]:
    """What is pushed is what was checked: bytes, not paths that are read again later."""
    return {**peft_folder.read(folder), **along_with(folder, required=(exports.CARD,))}


def along_with(folder: Path, required: Collection[str] = ()) -> dict[str, bytes]:
    """What lies beside the two files of an adapter and is known: its card, and what a release brings along."""
    with plain_files.opened(folder, Source("an exported adapter", "Export it again.")) as opened:
        here = set(os.listdir(opened))  # noqa: PTH208 - of a descriptor
        return {
            name: plain_files.read_file(opened, Source(name, _EXPORT), limit)
            for name, limit in _ALONG.items()
            if name in here or name in required
        }


def _commit(api: HfApi, repo_id: str, branch: str | None, files: Mapping[str, bytes], message: str) -> str:
    from huggingface_hub import CommitOperationAdd

    operations = [CommitOperationAdd(path_in_repo=name, path_or_fileobj=data) for name, data in files.items()]
    made = api.create_commit(repo_id, operations, commit_message=message, revision=branch)
    return _checked_commit(made.oid)


def _checked_commit(value: object) -> str:
    if not isinstance(value, str) or not _COMMIT.fullmatch(value):
        raise InvalidInput("a commit of 40 hex digits from the Hub", "another answer", _THEN)
    return value


def _described(
    api: HfApi, repo_id: str, commit: str, required: Mapping[str, int], optional: Mapping[str, int]
) -> dict[str, Any]:
    """The Hub's word on the files: name, size and digest, within the limits."""
    limits = {**required, **optional}
    found: dict[str, Any] = {
        info.path: info for info in api.get_paths_info(repo_id, list(limits), revision=commit)
    }
    if missing := [name for name in required if name not in found]:
        then = "Push it there: `efface release push`, or a PEFT adapter in safetensors."
        raise NotFound(f"{missing[0]} in the repository", "none", then)
    if not set(found) <= set(limits):
        raise InvalidInput("only the files that were asked for", "others from the Hub", _THEN)
    for name, info in found.items():
        size = getattr(info, "size", None)
        if type(size) is not int or not 0 < size <= limits[name]:
            raise InvalidInput(f"{name} of 1 to {limits[name]} bytes", "another size", _THEN)
    return {name: found[name] for name in limits if name in found}


def _download(api: HfApi, repo_id: str, commit: str, described: Any) -> bytes:
    from huggingface_hub import hf_hub_url
    from huggingface_hub.utils import build_hf_headers, get_session, hf_raise_for_status

    url = hf_hub_url(repo_id, described.path, revision=commit, endpoint=api.endpoint)
    headers = {**build_hf_headers(token=api.token, library_name="efface"), "Accept-Encoding": "identity"}
    data = bytearray()
    with get_session().stream("GET", url, headers=headers, timeout=_TIMEOUT) as response:
        hf_raise_for_status(response)
        for chunk in response.iter_raw():
            data += chunk
            if len(data) > described.size:
                break
    return _checked(bytes(data), described)


def _checked(data: bytes, described: Any) -> bytes:
    """Sizes and digests as the Hub has them: SHA-256 of a large file, git's blob id of a small one."""
    if described.lfs is not None:
        expected, came = described.lfs.sha256, hashlib.sha256(data).hexdigest()
    else:
        expected, came = (
            described.blob_id,
            hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest(),
        )
    if len(data) != described.size or came != expected:
        raise InvalidInput(
            f"{described.path} of the size and digest that the Hub names", "other bytes", _THEN
        )
    return data


@contextmanager
def _explained(what: str) -> Generator[None]:
    """Turn what huggingface_hub and its HTTP client raise into our errors, without its text: it may quote headers."""
    try:
        yield
    except RegistryError:
        raise
    except Exception as error:
        raise _explanation(what, error) from error


def _explanation(what: str, error: Exception) -> RegistryError:
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status == 404:
        return NotFound(
            f"a repository and revision to {what} on the Hub",
            "an unknown one",
            "Check its name and your token.",
        )
    if status in (401, 403):
        return InvalidInput(
            f"a token that may {what} there", f"HTTP {status}", "Set HF_TOKEN or run `hf auth login`."
        )
    came = type(error).__name__ if status is None else f"HTTP {status}"
    return Conflict(f"the Hub to answer the {what}", came, _THEN)
