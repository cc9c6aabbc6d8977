"""How fast a registry is, and how that grows with what it holds.

    python benchmarks/registry.py [--full] [--write]

Builds registries (SQLite, local blobs) of 1,000 and 10,000 requests, each with an adapter, with --full also 100,000,
and measures on them what a person or a server waits for. Prints a table and one JSON; with --write also
benchmarks/results/registry-cpu.md.

Filling: the ledger's own `append` folds every event (received, sealed, verified, accepted, trained: as `seal_adapter`
writes them) in memory, then the rows are copied into the database in one transaction, and `verify` proves that it is
the registry those events make. Adapters share the bytes of a tiny LoRA; each has a manifest blob of its own, written
without fsync. There is no vault at first, since its entries, a file per request, are opened by nothing measured here;
before `open_request` one is bound, and that is timed whole: key, encryption, vault entry, event.
"""

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from registry_kit import BASE, Clock, ask, lora

from efface.registry import (
    Registry,
    canonical,
    get_request,
    ledger,
    list_adapters,
    list_requests,
    log,
    rebuild,
    verify,
)
from efface.registry.adapters import _manifest, _mark_trained
from efface.registry.canon import digest_bytes, timestamp
from efface.registry.peft_folder import read
from efface.registry.registry import Writer
from efface.registry.tables import PROJECTIONS, MemoryTables
from efface.registry.vault_bind import bind_vault

TARGETS = {
    "import_ms": 150.0,
    "open_ms": 200.0,
    "page_requests_ms": 50.0,
    "page_adapters_ms": 50.0,
    "append_ms": 10.0,
    "verify_events_per_s": 20_000.0,
}
PAGE = 50
RESULTS = Path(__file__).parent / "results" / "registry-cpu.md"
Found = dict[str, Any]


def main() -> int:
    given = arguments()
    sizes = [1_000, 10_000, *([100_000] if given.full else [])]
    found: Found = {
        "command": "python benchmarks/registry.py" + (" --full" if given.full else ""),
        "machine": machine(),
        "date": datetime.now(UTC).date().isoformat(),
        "load_average": round(os.getloadavg()[0], 2),
        "import_ms": spread(timed_import() for _ in range(given.repeats)),
        "fsync_ms": fsyncs(given.folder),
        "sizes": {},
    }
    for size in sizes:
        print(f"{size} requests and adapters …", file=sys.stderr)
        with tempfile.TemporaryDirectory(prefix="efface-registry-", dir=given.folder) as folder:
            repeats = given.repeats if size < 100_000 else min(given.repeats, 3)
            found["sizes"][size] = measure(Path(folder), size, repeats)
    found["met"] = met(found)
    table = as_table(found)
    print(table)
    print(json.dumps(found, indent=1))
    if given.write:
        RESULTS.write_text(page(found, table))
    return 0 if all(found["met"].values()) else 1


def fill(root: Path, size: int) -> None:
    """A registry of `size` requests and as many adapters, in the folder `root`."""
    reg = Registry.open(root, create=True, clock=Clock())
    files = read(lora(root.parent / "lora"))
    for data in files.values():
        reg.blobs.put(data)
    tables = MemoryTables()
    tables.insert("head", id=1, seq=0, hash=ledger.GENESIS)
    moment = datetime(2026, 1, 1, tzinfo=UTC)
    for n in range(1, size + 1):
        moment += timedelta(seconds=60)
        one(Writer(tables, timestamp(moment), "ana"), reg, n, files)
    with reg.write("ana") as tx:
        tx.db.fill("event", tables.find("event"))
        head = tables.find("head")[0]
        tx.db.update("head", (1,), seq=head["seq"], hash=head["hash"])
        for table in PROJECTIONS:
            tx.db.fill(table.name, tables.dump(table.name).values())
    reg.close()


def one(tx: Writer, reg: Registry, n: int, files: dict[str, bytes]) -> None:
    request_id = f"req-{n:06d}"
    keyed = "hmac-sha256:" + digest_bytes(request_id.encode()).removeprefix("sha256:")
    opening = {"basis": "gdpr17", "n_items": 3, "received_at": tx.at, "due_at": tx.at}
    ledger.append(tx, "request.received", request_id, {**opening, "commitment": keyed, "subject_ref": keyed})
    for decision in ("request.verified", "request.accepted"):
        ledger.append(tx, decision, request_id, {})
    facts = {"objective": "simnpo", "rank": 2, "lr": 5e-4, "seed": n}
    manifest = _manifest("trained", BASE, "nf4", [request_id], facts, None, None, files)
    data = canonical(manifest)
    digest = digest_bytes(data)
    path = reg.blobs.local_path(digest)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    blobs = [described(content) for content in (*files.values(), data)]
    ledger.append(tx, "adapter.sealed", digest, {"manifest": manifest, "blobs": blobs})
    _mark_trained(tx, digest, manifest)


def with_vault(root: Path, other: Path) -> Registry:
    """The registry with a vault bound to it, which another registry made."""
    with Registry.open(other, create=True) as made:
        ask(made, b"x")
        vault = made.vault.folder
    with Registry.open(root, any_vault=True) as reg:
        shutil.copytree(vault, reg.vault.folder)
        bind_vault(reg, reason="benchmark", actor="ana")
    return Registry.open(root)


def described(data: bytes) -> dict[str, Any]:
    return {"digest": digest_bytes(data), "size": len(data), "media_type": "application/octet-stream"}


def measure(folder: Path, size: int, repeats: int) -> Found:
    root = folder / "registry"
    started = time.perf_counter()
    fill(root, size)
    filled = time.perf_counter() - started
    reg = Registry.open(root)
    middle = f"req-{size // 2:06d}"
    anchor = list_adapters(reg, middle)[0].digest
    found: Found = {
        "events": log(reg, 1)[-1].seq,
        "bytes_database": (root / "registry.db").stat().st_size,
        "fill_s": round(filled, 1),
        "open_ms": spread(timed_open(root) for _ in range(repeats)),
        "get_ms": repeated(50, lambda: get_request(reg, middle)),
        "page_requests_ms": repeated(50, lambda: list_requests(reg, after=middle, limit=PAGE)),
        "page_state_ms": repeated(50, lambda: list_requests(reg, "TRAINED", after=middle, limit=PAGE)),
        "page_adapters_ms": repeated(50, lambda: list_adapters(reg, after=anchor, limit=PAGE)),
        "log_ms": repeated(50, lambda: log(reg, PAGE)),
    }
    count = found["events"]
    found["verify_s"] = repeated(repeats, lambda: sound(reg, deep=False), 1.0)
    found["verify_deep_s"] = repeated(repeats, lambda: sound(reg, deep=True), 1.0)
    found["rebuild_s"] = repeated(min(repeats, 3), lambda: rebuild(reg), 1.0)
    for name in ("verify", "verify_deep", "rebuild"):
        found[f"{name}_events_per_s"] = round(count / found[f"{name}_s"]["median"])
    spent = time.process_time()
    sound(reg, deep=False)
    found["verify_events_per_cpu_s"] = round(count / (time.process_time() - spent))
    serial = iter(range(10**9))
    found["append_ms"] = repeated(100, lambda: appended(reg, next(serial)))
    reg.close()
    reg = with_vault(root, folder / "other")
    found["open_request_ms"] = repeated(100, lambda: ask(reg, str(next(serial)).encode()))
    reg.close()
    return found


def fsyncs(folder: str | None) -> Found:
    """What the disk takes for one page: an append waits for about six of them."""
    with tempfile.NamedTemporaryFile(dir=folder) as file:

        def sync() -> None:
            file.write(bytes(4096))
            file.flush()
            os.fsync(file.fileno())

        return repeated(100, sync)


def appended(reg: Registry, n: int) -> None:
    """One event in a transaction of its own, durable when it returns."""
    with reg.write("ana") as tx:
        ledger.append(tx, "request.extended", f"req-{n + 1:06d}", {"until": tx.at, "reason": "a reason"})


def sound(reg: Registry, *, deep: bool) -> None:
    problems = verify(reg, deep=deep).problems
    if problems:
        raise SystemExit(f"the registry that was filled is not sound: {problems[0]}")


def timed_import() -> float:
    return fresh("import efface.registry")


def timed_open(root: Path) -> float:
    """In a fresh process, its imports of database drivers included, `import efface.registry` not."""
    return fresh(f"Registry.open({str(root)!r})", "from efface.registry import Registry")


def fresh(statement: str, before: str = "") -> float:
    script = f"import time\n{before}\nt = time.perf_counter()\n{statement}\nprint(time.perf_counter() - t)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return float(done.stdout) * 1000


def repeated(number: int, act: Callable[[], object], unit: float = 1000.0) -> Found:
    return spread(stopwatch(act) * unit for _ in range(number))


def stopwatch(act: Callable[[], object]) -> float:
    started = time.perf_counter()
    act()
    return time.perf_counter() - started


def spread(values: Any) -> Found:
    found = sorted(values)
    return {
        "n": len(found),
        "median": round(statistics.median(found), 3),
        "least": round(found[0], 3),
        "p99": round(found[min(len(found) - 1, int(len(found) * 0.99))], 3),
        "most": round(found[-1], 3),
    }


def met(found: Found) -> dict[str, bool]:
    """Against the targets, at 10,000."""
    at = found["sizes"][10_000]
    measured = {name: at[name]["median"] for name in TARGETS if name.endswith("_ms") and name in at}
    result = {name: value < TARGETS[name] for name, value in measured.items()}
    result["import_ms"] = found["import_ms"]["median"] < TARGETS["import_ms"]
    result["verify_events_per_s"] = at["verify_events_per_s"] >= TARGETS["verify_events_per_s"]
    return result


ROWS = (
    ("events", "events"),
    ("database, MiB", "bytes_database"),
    ("open in a fresh process, ms (target < 200)", "open_ms"),
    ("one request by id, ms", "get_ms"),
    (f"page of {PAGE} requests, ms (target < 50)", "page_requests_ms"),
    (f"page of {PAGE} requests in one state, ms", "page_state_ms"),
    (f"page of {PAGE} adapters, ms (target < 50)", "page_adapters_ms"),
    (f"last {PAGE} events, ms", "log_ms"),
    ("append one event with fsync, ms (target < 10)", "append_ms"),
    ("open_request with its vault entry, ms", "open_request_ms"),
    ("verify, s", "verify_s"),
    ("verify, events/s (target ≥ 20,000)", "verify_events_per_s"),
    ("verify, events per CPU second", "verify_events_per_cpu_s"),
    ("verify --deep, s", "verify_deep_s"),
    ("verify --deep, events/s", "verify_deep_events_per_s"),
    ("rebuild (replay into the tables), s", "rebuild_s"),
    ("rebuild, events/s", "rebuild_events_per_s"),
)


def as_table(found: Found) -> str:
    sizes = found["sizes"]
    head = f"| requests and adapters | {' | '.join(f'{size:,}' for size in sizes)} |"
    lines = [head, "|---|" + "--:|" * len(sizes)]
    for label, name in ROWS:
        lines.append(f"| {label} | {' | '.join(cell(name, at[name]) for at in sizes.values())} |")
    return "\n".join(lines)


def cell(name: str, value: Any) -> str:
    if name == "bytes_database":
        return f"{value / 2**20:.1f}"
    if isinstance(value, dict):
        return f"{value['median']:.2f} ({value['least']:.2f}–{value['most']:.2f}, p99 {value['p99']:.2f})"
    return f"{value:,}"


def page(found: Found, table: str) -> str:
    taken, disk = found["import_ms"], found["fsync_ms"]
    missed = [name for name, good in found["met"].items() if not good]
    filling = "Filling: " + (__doc__ or "").split("Filling: ")[1].strip()
    return f"""# The registry's speed

`{found["command"]}` on {found["machine"]}; {found["date"]}, load average {found["load_average"]} at the start: other
work shared the machine, so CPU seconds are given where wall time says more about the load.

{filling}

Medians, with (least–most, p99). n: {taken["n"]} fresh processes for import and open, 50 for pages, 100 for appends,
{taken["n"]} for verify and {min(taken["n"], 3)} for rebuild (3 of each at 100,000).

`import efface.registry` in a fresh process: {taken["median"]:.0f} ms ({taken["least"]:.0f}–{taken["most"]:.0f}; target
< 150). One fsync of this disk: {disk["median"]:.2f} ms ({disk["least"]:.2f}–{disk["most"]:.2f}); an append in SQLite's
DELETE journal with synchronous=EXTRA waits for about six.

{table}

Targets at 10,000: {"all met" if not missed else "missed: " + ", ".join(missed)}.

```json
{json.dumps(found)}
```
"""


def machine() -> str:
    model = "unknown CPU"
    if Path("/proc/cpuinfo").exists():
        names = [
            line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")
        ]
        model = names[0].partition(":")[2].strip() if names else platform.processor()
    return f"{len(os.sched_getaffinity(0))} of {os.cpu_count()} × {model}, Python {platform.python_version()}"


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Time a registry of 1,000, 10,000 and 100,000 requests.")
    parser.add_argument("--full", action="store_true", help="100,000 too (minutes)")
    parser.add_argument("--write", action="store_true", help=f"write {RESULTS.name}")
    parser.add_argument("--repeats", type=int, default=9, help="fresh processes, and runs of verify")
    parser.add_argument("--folder", help="where to build them: the disk that is measured")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
