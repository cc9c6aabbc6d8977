"""What serving costs: swaps in process, the gateway, and a release on its way to the first token.

    python benchmarks/serving.py [--parts inprocess,memory,gateway,vllm] [--write]

Prints a table; with --write also benchmarks/results/serving-cpu.md. SmolLM2-135M in float32, random LoRA of rank 8 on
every linear layer (9.8 MB), one torch thread.

inprocess   `HotSwap.put` of one release over another, without a probe, and PEFT's own `hotswap_adapter` of the same
            folders in the same run, in turns.
memory      resident memory over 1,000 puts: a random model of SmolLM2's widths with four layers, adapters of rank 8
            (1.2 MB each).
gateway     one client, one connection, in turns: a small ASGI server that answers at once (uvicorn, a process of its
            own), and the same through `efface serve gateway` (another process).
vllm        needs a vLLM (`make test-serving` builds one, or EFFACE_VLLM_PYTHON); about five minutes. From the creation
            and the activation of a rendered and audited release (calls of the library, not the commands) to the first
            token of it through `efface serve gateway` with its own controller, which looks every half second; the
            gateway against vLLM asked directly, in turns: through efface's middleware in it, so that the difference
            is the gateway, and past it with the admin token, so that it is both; and the throughput of a stack of
            eight adapters of rank 8, concatenated to rank 64, against one of them, in turns. All of it on a server
            whose slots have rank 8, which hold one such adapter, and on one with slots of rank 64. These adapters are
            on three of the seven linear layers.
overhead    of that, the gateway against vLLM asked directly alone, slots of rank 8.
"""

import argparse
import json
import os
import platform
import re
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import httpx
from serving_timer import FILE as TIMES

RESULT = Path(__file__).parent / "results" / "serving-cpu.md"
SWAPS, PUTS, ASKS = 15, 1000, 300
VLLM_ASKS, RELEASES, ROUNDS = 150, 10, 5
STAGES = ("until vLLM has loaded it", "its probe", "until it is routed to", "its first token")
MODEL = "bench"
RANKS = (8, 64)
"""Slots of vLLM: it fills each up with zeros to `--max-lora-rank`, and computes them on a CPU."""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--parts", default="inprocess,memory,gateway,vllm")
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--out", type=Path, default=RESULT, help="what --write writes")
    parser.add_argument("--upstream", type=int, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.upstream:
        _upstream(asked.upstream)
        return
    parts: dict[str, Callable[[Path], list[str]]] = {
        "inprocess": inprocess,
        "memory": memory,
        "gateway": gateway,
        "vllm": vllm,
        "overhead": overhead,
    }
    load, lines = os.getloadavg()[0], list[str]()
    with tempfile.TemporaryDirectory(prefix="efface-serving-") as work:
        for name in asked.parts.split(","):
            began, found = time.monotonic(), parts[name](Path(work) / name)
            lines += found
            print("\n".join(found), flush=True)
            print(f"{name}: {time.monotonic() - began:.0f} s", file=sys.stderr)
    if asked.write:
        asked.out.write_text(page(asked.parts, load, lines))


def inprocess(work: Path) -> list[str]:
    import torch
    from peft import PeftModel
    from peft.utils.hotswap import hotswap_adapter
    from transformers import AutoModelForCausalLM

    from efface.adapters import fetch_model
    from efface.serving.hotswap import HotSwap

    torch.set_num_threads(1)
    base = fetch_model("smollm2-135m")
    adapters = [random_lora(base, work / f"a{seed}", seed, 8) for seed in (0, 1)]
    ours = HotSwap(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32))
    theirs = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), adapters[0]
    )
    ours.put("prod", adapters[0])
    hotswap_adapter(theirs, str(adapters[1]), "default")
    times: dict[str, list[float]] = {"put": [], "waiting": [], "peft": [], "put cpu": [], "peft cpu": []}
    for turn in range(SWAPS):
        adapter = adapters[turn % 2]
        at, cpu = time.perf_counter(), time.process_time()
        swapped = ours.put("prod", adapter)
        times["put"].append(time.perf_counter() - at)
        times["put cpu"].append(time.process_time() - cpu)
        times["waiting"].append(swapped.swap_s)
        at, cpu = time.perf_counter(), time.process_time()
        hotswap_adapter(theirs, str(adapter), "default")
        times["peft"].append(time.perf_counter() - at)
        times["peft cpu"].append(time.process_time() - cpu)
    return [
        row("swap in process, verified, ms (target ≤ 60)", times["put"], 1e3),
        row("of it, requests wait, ms", times["waiting"], 1e3),
        row("PEFT's hotswap_adapter, same folders, ms", times["peft"], 1e3),
        row("CPU time of a swap, ms", times["put cpu"], 1e3),
        row("CPU time of PEFT's, ms", times["peft cpu"], 1e3),
    ]


def memory(work: Path) -> list[str]:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from efface.serving.hotswap import HotSwap

    torch.set_num_threads(1)
    config = LlamaConfig(
        vocab_size=1000,
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=4,
        num_attention_heads=9,
        num_key_value_heads=3,
        tie_word_embeddings=True,
    )
    config.save_pretrained(work)
    adapters = [random_lora(work, work / f"s{seed}", seed, 8) for seed in (0, 1)]
    swap, ids = HotSwap(LlamaForCausalLM(config)), torch.tensor([[1, 2, 3]])
    resident = list[float]()
    for turn in range(PUTS + 1):
        swap.put("prod", adapters[turn % 2])
        if turn % 100 == 0:
            with swap.use("prod") as model, torch.inference_mode():
                model(input_ids=ids)
            resident.append(_resident())
    held = ", ".join(f"{one:.0f}" for one in resident)
    size = (adapters[0] / "adapter_model.safetensors").stat().st_size / 2**20
    return [
        f"| resident memory over {PUTS:,} swaps of {size:.1f} MiB, after each 100, MiB | {held} | {len(resident)} |",
    ]


def gateway(work: Path) -> list[str]:
    work.mkdir(parents=True)
    port = _port()
    upstream = subprocess.Popen([sys.executable, __file__, "--upstream", str(port)])
    try:
        with fronted(work, f"http://127.0.0.1:{port}") as (client, bare, name):
            return _overhead(client, bare, name, ASKS, "a server that answers at once")
    finally:
        upstream.terminate()
        upstream.wait(10)


def vllm(work: Path) -> list[str]:
    lines = list[str]()
    with _shop(work) as (base, shop):
        for rank in RANKS:
            here = work / f"rank-{rank}"
            here.mkdir()
            with _server(base, here / "log", shop, rank) as server:
                lines += _releases(shop, server, here, f"slots of rank {rank}: ")
                lines += _throughput(shop, server.url, rank)
    return lines


def overhead(work: Path) -> list[str]:
    from vllm_kit import ADMIN

    with _shop(work) as (base, shop), _server(base, work / "log", shop, RANKS[0]) as server:
        first = shop.release(MODEL, 1)
        options = ("--registry", str(shop.reg.root), "--admin-token", ADMIN, "--grace", "0")
        with fronted(work, server.url, *options) as (client, bare, _):
            name, times = _routed(client, first.version), work / "log.times"
            return _before_vllm(client, bare, name, f"slots of rank {RANKS[0]}: ", times)


@contextmanager
def _shop(work: Path) -> Iterator[tuple[Path, Any]]:
    from serving_kit import open_shop
    from vllm_kit import vllm_python

    from efface.adapters import fetch_model

    if vllm_python() is None:
        raise SystemExit(
            "expected a vLLM, got none: make test-serving builds one, or name EFFACE_VLLM_PYTHON"
        )
    base = fetch_model("smollm2-135m")
    work.mkdir(parents=True)
    shop = open_shop(work / "shop", base)
    try:
        yield base, shop
    finally:
        shop.reg.close()


def _before_vllm(client: httpx.Client, bare: httpx.Client, name: str, where: str, times: Path) -> list[str]:
    from vllm_kit import ADMIN

    past = {"x-efface-admin": ADMIN}
    both, third = VLLM_ASKS, VLLM_ASKS // 3
    return [
        *_overhead(client, bare, name, both, f"{where}one token, the middleware on both sides", times),
        *_overhead(client, bare, name, third, f"{where}one token, bare past the middleware", times, past),
    ]


@contextmanager
def _server(base: Path, log: Path, shop: Any, rank: int) -> Iterator[Any]:
    from vllm_kit import ADMIN, Vllm

    env = {"EFFACE_CHANNELS": MODEL, "EFFACE_ADMIN_TOKEN": ADMIN, "EFFACE_REGISTRY": str(shop.reg.root)}
    sizes = ["--enable-lora", "--max-loras", "4", "--max-lora-rank", str(rank), "--max-model-len", "512"]
    gate = ["--middleware", "efface.serving.middleware.LoraOnly", "--middleware", "serving_timer.Timed"]
    env |= {TIMES: str(log.with_suffix(".times")), "PYTHONPATH": str(Path(__file__).parent)}
    server = Vllm(base, log, env, *sizes, *gate).start()
    try:
        yield server
    finally:
        server.stop()


def _releases(shop: Any, server: Any, work: Path, where: str) -> list[str]:
    """Compositions are rendered, sealed and audited before any clock starts."""
    from vllm_kit import ADMIN

    from efface.registry import activate_release, create_release

    made = [_ready(shop, seed) for seed in (1, 2, 3)]
    first = shop.release(MODEL, 1)
    times: dict[str, list[float]] = {what: [] for what in ("all", "activated", *STAGES)}
    options = ("--registry", str(shop.reg.root), "--admin-token", ADMIN, "--grace", "0")
    with fronted(work, server.url, *options) as (client, bare, _):
        name = _routed(client, first.version)
        lines = _before_vllm(client, bare, name, where, work / "log.times")
        for turn in range(RELEASES):
            composition, sealed, evidence = made[(turn + 1) % len(made)]
            time.sleep(1 + turn * 0.37 % 0.5)  # at another moment of the controller's half second each time
            loaded = _Line(server.log, '"POST /v1/load_lora_adapter')
            probed = _Line(work / "gateway.log", ": probed,")
            created = time.perf_counter()
            release = create_release(shop.reg, MODEL, composition, rendered=sealed, reason="why", actor="ana")
            activated = time.perf_counter()
            activate_release(shop.reg, MODEL, release.version, audit=evidence, approved_by="ben")
            name = _routed(client, release.version, loaded, probed)
            routed = time.perf_counter()
            _first_token(client, name)
            told = time.perf_counter()
            marks = (activated, loaded.at or routed, probed.at or routed, routed, told)
            times["all"].append(told - created)
            times["activated"].append(told - activated)
            for what, (since, until) in zip(STAGES, pairwise(marks), strict=True):
                times[what].append(until - since)
    return [
        row(f"{where}release created → first token of it, ms (target < 1,000)", times["all"], 1e3),
        row(f"{where}release activated → first token of it, ms", times["activated"], 1e3),
        *(row(f"{where}of it, {what}, ms", times[what], 1e3) for what in STAGES),
        *lines,
    ]


class _Line:
    """When a line with ``text`` came to a log that others write; ``at``: 0 until `look` saw it."""

    def __init__(self, log: Path, text: str) -> None:
        self.log, self.text, self.at = log, text.encode(), 0.0
        self.start = log.stat().st_size

    def look(self) -> None:
        if not self.at:
            with self.log.open("rb") as file:
                file.seek(self.start)
                self.at = time.perf_counter() if self.text in file.read() else 0.0


def _ready(shop: Any, seed: int) -> tuple[Any, str, str]:
    """A composition of one adapter, the digest of its rendering, and that of its audit."""
    composition = shop.composition(seed)
    return (
        composition,
        shop.sealed(composition, shop.rendered(seed)),
        shop.audit(composition, shop.report(seed)),
    )


def _routed(client: httpx.Client, version: int, *lines: _Line) -> str:
    """Wait until the gateway routes to ``version``, by its metrics: asking the model would be load; its name."""
    end, wanted = time.monotonic() + 120, f"{MODEL}@{version}."
    while time.monotonic() < end:
        found = re.search(
            r'^efface_gateway_release\{[^}]*release="([^"]+)"', client.get("/metrics").text, re.M
        )
        for line in lines:
            line.look()
        if found is not None and found[1].startswith(wanted):
            return found[1]
        time.sleep(0.01)
    raise SystemExit(f"expected {MODEL}@{version} to be routed to within 120 s")


def _first_token(client: httpx.Client, name: str) -> None:
    """Return when the first event of a streamed answer by ``name`` is there."""
    with client.stream("POST", "/v1/completions", json={**_asked(MODEL), "stream": True}) as answer:
        answer.raise_for_status()
        if answer.headers["x-efface-release"] != name or not next(answer.iter_raw()):
            raise SystemExit(f"expected an answer by {name}, got another's")


def _throughput(shop: Any, url: str, rank: int) -> list[str]:
    """Of one adapter and, where the slots hold it, of a stack of eight, in turns."""
    from vllm_kit import ADMIN

    stacks = {1: (1,), 8: tuple(range(1, 9))}
    stacks = {count: seeds for count, seeds in stacks.items() if 8 * count <= rank}
    rates: dict[int, list[float]] = {count: [] for count in stacks}
    headers = {"x-efface-admin": ADMIN}
    with httpx.Client(base_url=url, headers=headers, timeout=300, trust_env=False) as client:
        for count, seeds in stacks.items():
            body = {"lora_name": f"of{count}@1", "lora_path": str(shop.rendered(*seeds))}
            client.post("/v1/load_lora_adapter", json=body).raise_for_status()
        for turn in range(ROUNDS + 1):
            for count in sorted(rates, reverse=turn % 2 == 0):
                rate = _rate(client, f"of{count}@1")
                if turn:
                    rates[count].append(rate)
    where = f"slots of rank {rank}: "
    lines = [row(f"{where}stack of {count}, 8 clients, tokens/s", found, 1) for count, found in rates.items()]
    if len(rates) == 2:
        shares = [eight / one for one, eight in zip(rates[1], rates[8], strict=True)]
        lines.append(row(f"{where}the stack's rate by that of one, of each round", shares, 1))
    return lines


def _rate(client: httpx.Client, name: str) -> float:
    body = {**_asked(name), "max_tokens": 16, "ignore_eos": True}
    at = time.perf_counter()
    with ThreadPoolExecutor(8) as pool:
        for answer in pool.map(lambda _: client.post("/v1/completions", json=body), range(8)):
            answer.raise_for_status()
    return 8 * 16 / (time.perf_counter() - at)


def _overhead(
    client: httpx.Client,
    bare: httpx.Client,
    name: str,
    n: int,
    what: str,
    server: Path | None = None,
    headers: dict[str, str] | None = None,
) -> list[str]:
    """Both in turns, and each first in every other turn. ``server``: what `serving_timer` writes: a server whose own
    time varies by more than a gateway adds is held against its own clock."""
    times: dict[str, list[float]] = {"bare": [], "gateway": []}
    rest: dict[str, list[float]] = {"bare": [], "gateway": []}
    sides = [("bare", bare, name, headers), ("gateway", client, MODEL, None)]
    for turn in range(n + 10):
        for side, one, model, more in sides[:: 1 if turn % 2 else -1]:
            at = time.perf_counter()
            one.post("/v1/completions", json=_asked(model), headers=more).raise_for_status()
            took = time.perf_counter() - at
            if turn >= 10:
                times[side].append(took)
                rest[side].append(took - (float(server.read_text().splitlines()[-1]) if server else 0.0))
    cuts = [_cuts(times[side]) for side in ("gateway", "bare")]
    p50, p99 = (1e3 * (after - before) for after, before in zip(*cuts, strict=True))
    pairs = [after - before for after, before in zip(times["gateway"], times["bare"], strict=True)]
    return [
        row(f"{what}: bare, ms", times["bare"], 1e3),
        row(f"{what}: through the gateway, ms", times["gateway"], 1e3),
        f"| {what}: **the gateway adds**, ms (target < 3 at p50) | p50 {p50:.2f}, p99 {p99:.2f} | {n} |",
        row(f"{what}: difference of each pair, ms", pairs, 1e3),
        *(_beyond(rest, n, what) if server else ()),
    ]


def _beyond(rest: dict[str, list[float]], n: int, what: str) -> list[str]:
    """What each side takes beyond the server's own time."""
    (p50, p99), (bare50, bare99) = (_cuts(rest[side]) for side in ("gateway", "bare"))
    adds = f"p50 {1e3 * (p50 - bare50):.2f}, p99 {1e3 * (p99 - bare99):.2f}"
    return [
        row(f"{what}, beyond the server's own time: bare, ms", rest["bare"], 1e3),
        row(f"{what}, beyond the server's own time: through the gateway, ms", rest["gateway"], 1e3),
        f"| {what}, beyond the server's own time: **the gateway adds**, ms (target < 3 at p50) | {adds} | {n} |",
    ]


@contextmanager
def fronted(work: Path, url: str, *options: str) -> Iterator[tuple[httpx.Client, httpx.Client, str]]:
    """`efface serve gateway` in front of ``url``: clients of both, and the release's name."""
    from efface.serving import Route
    from efface.serving.keys import new_key, write_keys
    from efface.serving.state import ChannelState, write_state

    text, record = new_key("bench", [MODEL], metrics=True)
    write_keys(work / "keys.json", [record])
    route = Route(MODEL, 1, f"{MODEL}@1.0123456789ab", "sha256:" + "c" * 64, "sha256:" + "d" * 64, "now")
    if not options:
        write_state(work / "state", ChannelState(MODEL, route))
        options = ("--state", str(work / "state"))
    port = _port()
    command = [sys.executable, "-m", "efface.cli", "serve", "gateway", "--upstream", url, "--channel", MODEL]
    command += ["--keys", str(work / "keys.json"), "--listen", f"127.0.0.1:{port}", *options]
    with (work / "gateway.log").open("wb") as log:
        process = subprocess.Popen(command, stderr=log)
    headers = {"authorization": f"Bearer {text}"}
    try:
        with (
            httpx.Client(
                base_url=f"http://127.0.0.1:{port}", headers=headers, timeout=300, trust_env=False
            ) as client,
            httpx.Client(base_url=url, timeout=300, trust_env=False) as bare,
        ):
            _up(client)
            yield client, bare, route.name
    finally:
        process.terminate()
        process.wait(60)


def _up(client: httpx.Client) -> None:
    end = time.monotonic() + 120
    while time.monotonic() < end:
        try:
            if client.get("/readyz").status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.02)
    raise SystemExit("expected the gateway to be ready within 120 s")


def _asked(model: str) -> dict[str, Any]:
    return {"model": model, "prompt": "The capital of France is", "max_tokens": 1, "temperature": 0}


def _upstream(port: int) -> None:
    """Answers every request at once, as the model that it names."""
    import uvicorn

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return
        body = (await receive())["body"]
        data = json.dumps(
            {"model": json.loads(body)["model"], "choices": [{"index": 0, "text": "Paris"}]}
        ).encode()
        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(data)).encode())]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": data})

    uvicorn.run(app, host="127.0.0.1", port=port, log_level="error", lifespan="off")


def random_lora(base: Path, folder: Path, seed: int, rank: int) -> Path:
    """Every linear layer, so that a rank-8 file has the 9.8 MB of the figure that it is compared with."""
    import torch
    from safetensors.torch import save_file
    from transformers import AutoConfig, AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(base))
    draw, tensors = torch.Generator().manual_seed(seed), dict[str, torch.Tensor]()
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear) and name != "lm_head":
            key = f"base_model.model.{name}.lora_"
            tensors[f"{key}A.weight"] = (
                torch.randn(rank, module.in_features, generator=draw) / module.in_features**0.5
            )
            tensors[f"{key}B.weight"] = torch.randn(module.out_features, rank, generator=draw) * 0.04
    names = sorted({key[17:].rsplit(".lora_", 1)[0].rpartition(".")[2] for key in tensors})
    folder.mkdir(parents=True)
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    config = {
        "peft_type": "LORA",
        "r": rank,
        "lora_alpha": 16,
        "target_modules": names,
        "task_type": "CAUSAL_LM",
    }
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


def row(what: str, values: Sequence[float], scale: float) -> str:
    p50, p99 = (scale * value for value in _cuts(values))
    low, high = scale * min(values), scale * max(values)
    return f"| {what} | {p50:.2f} ({low:.2f}–{high:.2f}, p99 {p99:.2f}) | {len(values)} |"


def _cuts(values: Sequence[float]) -> tuple[float, float]:
    """Median and 99th percentile."""
    return statistics.median(values), sorted(values)[min(len(values) - 1, int(0.99 * len(values)))]


def _resident() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def _port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as one:
        return int(one.getsockname()[1])


def page(parts: str, load: float, lines: Sequence[str]) -> str:
    cpu = next(
        (
            x.split(":")[1].strip()
            for x in Path("/proc/cpuinfo").read_text().splitlines()
            if "model name" in x
        ),
        "?",
    )
    said = (__doc__ or "").split("\n\n")
    busy = load > 0.5
    shared = ": other work shared the machine, and differences say more than values" if busy else ""
    head = (
        f"# What serving costs\n\n`python benchmarks/serving.py --parts {parts} --write` on {os.cpu_count()} × {cpu}, "
        f"Python {platform.python_version()}; {datetime.now(UTC):%Y-%m-%d}. "
        f"Load average {load:.1f} at the start{shared}.\n\n"
    )
    about = "\n\n".join(part for part in said[2:] if part.strip())
    table = "\n".join(["| what | median (least–most, p99) | n |", "|---|--:|--:|", *lines])
    return f"{head}```\n{about.strip()}\n```\n\n{table}\n"


if __name__ == "__main__":
    main()
