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
vllm        needs a vLLM (`make test-serving` builds one, or EFFACE_VLLM_PYTHON): from the activation of a rendered
            release to the first token of it through the gateway, the gateway against the bare vLLM, and the throughput
            of a stack of eight adapters against one.
"""

import argparse
import json
import os
import platform
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
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import httpx

RESULT = Path(__file__).parent / "results" / "serving-cpu.md"
SWAPS, PUTS, ASKS, RELEASES = 15, 1000, 300, 5
MODEL = "bench"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--parts", default="inprocess,memory,gateway,vllm")
    parser.add_argument("--write", action="store_true")
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
    }
    load, lines = os.getloadavg()[0], list[str]()
    with tempfile.TemporaryDirectory(prefix="efface-serving-") as work:
        for name in asked.parts.split(","):
            lines += parts[name](Path(work) / name)
            print("\n".join(lines[-12:]), flush=True)
    if asked.write:
        RESULT.write_text(page(asked.parts, load, lines))


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
    from serving_kit import open_shop
    from vllm_kit import ADMIN, Vllm, vllm_python

    from efface.adapters import fetch_model

    if vllm_python() is None:
        raise SystemExit(
            "expected a vLLM, got none: make test-serving builds one, or name EFFACE_VLLM_PYTHON"
        )
    base = fetch_model("smollm2-135m")
    work.mkdir(parents=True)
    shop = open_shop(work / "shop", base)
    env = {"EFFACE_CHANNELS": MODEL, "EFFACE_ADMIN_TOKEN": ADMIN, "EFFACE_REGISTRY": str(shop.reg.root)}
    sizes = ["--enable-lora", "--max-loras", "16", "--max-lora-rank", "64", "--max-model-len", "512"]
    server = Vllm(
        base, work / "log", env, *sizes, "--middleware", "efface.serving.middleware.LoraOnly"
    ).start()
    try:
        return [*_releases(shop, server, work), *_stack(shop, server.url, ADMIN)]
    finally:
        server.stop()
        shop.reg.close()


def _releases(shop: Any, server: Any, work: Path) -> list[str]:
    """Every adapter is rendered, sealed and audited before the clock starts: it runs from the activation."""
    from vllm_kit import ADMIN

    from efface.registry import activate_release, create_release

    shop.release(MODEL, 1)
    options = ("--registry", str(shop.reg.root), "--admin-token", ADMIN, "--grace", "0")
    with fronted(work, server.url, *options) as (client, bare, _):
        name = _answering(client, 1)
        lines = _overhead(client, bare, name, 40, "vLLM, one token", {"x-efface-admin": ADMIN})
        first: list[float] = []
        for turn in range(RELEASES):
            composition = shop.composition(turn + 2)
            sealed = shop.sealed(composition, shop.rendered(turn + 2))
            evidence = shop.audit(composition, shop.report(turn + 2))
            at = time.perf_counter()
            made = create_release(shop.reg, MODEL, composition, rendered=sealed, reason="why", actor="ana")
            activate_release(shop.reg, MODEL, made.version, audit=evidence, approved_by="ben")
            _answering(client, made.version)
            first.append(time.perf_counter() - at)
    return [row("release create and activate → first token of it, s (target < 1)", first, 1), *lines]


def _answering(client: httpx.Client, version: int) -> str:
    """Ask until ``version`` answers; its name."""
    end = time.monotonic() + 120
    while time.monotonic() < end:
        answer = client.post("/v1/completions", json=_asked(MODEL))
        name = answer.headers.get("x-efface-release", "")
        if answer.status_code == 200 and name.startswith(f"{MODEL}@{version}."):
            return name
        time.sleep(0.005)
    raise SystemExit(f"expected {MODEL}@{version} to answer within 120 s")


def _stack(shop: Any, url: str, admin: str) -> list[str]:
    headers = {"x-efface-admin": admin}
    with httpx.Client(base_url=url, headers=headers, timeout=300, trust_env=False) as client:
        for name, seeds in (("one@1", (1,)), ("eight@1", tuple(range(1, 9)))):
            body = {"lora_name": name, "lora_path": str(shop.rendered(*seeds))}
            client.post("/v1/load_lora_adapter", json=body).raise_for_status()
        rates: dict[str, list[float]] = {"one@1": [], "eight@1": []}
        for turn in range(4):
            for name, rate in rates.items():
                found = _rate(client, name)
                if turn:
                    rate.append(found)
    return [
        row("one adapter (r8), 8 clients, tokens/s", rates["one@1"], 1),
        row("a stack of eight (r64), 8 clients, tokens/s", rates["eight@1"], 1),
    ]


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
    headers: dict[str, str] | None = None,
) -> list[str]:
    direct, through = list[float](), list[float]()
    for turn in range(n + 10):
        for one, model, times in ((bare, name, direct), (client, MODEL, through)):
            at = time.perf_counter()
            one.post(
                "/v1/completions", json=_asked(model), headers=headers if one is bare else None
            ).raise_for_status()
            if turn >= 10:
                times.append(time.perf_counter() - at)
    more = [after - before for before, after in zip(_cuts(direct), _cuts(through), strict=True)]
    return [
        row(f"{what}: bare, ms", direct, 1e3),
        row(f"{what}: through the gateway, ms", through, 1e3),
        f"| {what}: **the gateway adds**, ms (target < 3) | p50 {1e3 * more[0]:.2f}, p99 {1e3 * more[1]:.2f} | {n} |",
    ]


@contextmanager
def fronted(work: Path, url: str, *options: str) -> Iterator[tuple[httpx.Client, httpx.Client, str]]:
    """`efface serve gateway` in front of ``url``: clients of both, and the release's name."""
    from efface.serving import Route
    from efface.serving.keys import new_key, write_keys
    from efface.serving.state import ChannelState, write_state

    text, record = new_key("bench", [MODEL])
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
    head = (
        f"# What serving costs\n\n`python benchmarks/serving.py --parts {parts} --write` on {os.cpu_count()} × {cpu}, "
        f"Python {platform.python_version()}; {datetime.now(UTC):%Y-%m-%d}. Load average {load:.1f} at the start: "
        "other work shared the machine, so that these are upper bounds, and differences say more than values.\n\n"
    )
    about = "\n\n".join(part for part in said[2:] if part.strip())
    table = "\n".join(["| what | median (least–most, p99) | n |", "|---|--:|--:|", *lines])
    return f"{head}```\n{about.strip()}\n```\n\n{table}\n"


if __name__ == "__main__":
    main()
