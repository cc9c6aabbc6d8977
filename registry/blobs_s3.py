"""What only S3 has: uploads in parts that can be left unfinished, and versions that survive a delete.

`fs` is an `s3fs.S3FileSystem`, a path `bucket/key`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from .blob_store import Leftover

PART = 16 * 2**20
"""Bytes per part; S3 takes 10,000 parts, so an object may have 156 GiB. Two parts and more go as multipart."""


def delete_all_versions(fs: Any, path: str) -> None:
    """Delete an object. Where the bucket keeps versions, delete those too: "deleted" must mean no bytes."""
    bucket, key = _split(path)
    answer = fs.call_s3("delete_object", Bucket=bucket, Key=key)
    if answer.get("VersionId"):
        for version in _versions(fs, bucket, key):
            fs.call_s3("delete_object", Bucket=bucket, Key=key, VersionId=version)


def uploads(fs: Any, root: str) -> list[Leftover]:
    """The unfinished uploads below `root`, named `<key below root>?uploadId=<id>`."""
    bucket, prefix = _split(root)
    prefix = f"{prefix}/" if prefix else ""
    pages = _pages(fs, "list_multipart_uploads", ("KeyMarker", "UploadIdMarker"), bucket, f"{prefix}sha256/")
    found = (upload for page in pages for upload in page.get("Uploads", ()))
    leftovers = (
        Leftover(f"{u['Key'].removeprefix(prefix)}?uploadId={u['UploadId']}", 0, u.get("Initiated"))
        for u in found
    )
    return sorted(leftovers, key=lambda leftover: leftover.name)


def abort(fs: Any, path: str, upload: str) -> None:
    """Abort an upload; one that S3 no longer knows is aborted."""
    bucket, key = _split(path)
    try:
        fs.call_s3("abort_multipart_upload", Bucket=bucket, Key=key, UploadId=upload)
    except FileNotFoundError:
        return


def _versions(fs: Any, bucket: str, key: str) -> list[str]:
    pages = _pages(fs, "list_object_versions", ("KeyMarker", "VersionIdMarker"), bucket, key)
    return [
        entry["VersionId"]
        for page in pages
        for kind in ("Versions", "DeleteMarkers")
        for entry in page.get(kind, ())
        if entry["Key"] == key
    ]


def _pages(fs: Any, call: str, markers: tuple[str, str], bucket: str, prefix: str) -> Iterator[Any]:
    """The pages of a listing; each one says where the next begins."""
    begin: dict[str, str] = {}
    while True:
        page = fs.call_s3(call, Bucket=bucket, Prefix=prefix, **begin)
        yield page
        if not page.get("IsTruncated"):
            return
        begin = {marker: page[f"Next{marker}"] for marker in markers if page.get(f"Next{marker}")}


def _split(path: str) -> tuple[str, str]:
    bucket, _, key = path.partition("/")
    return bucket, key
