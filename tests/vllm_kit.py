"""A real vLLM on the CPU, as a process: started, killed, restarted. For the tests marked `serving`.

The interpreter that has vLLM is named by EFFACE_VLLM_PYTHON, or is that of `.venv-vllm`, which `make test-serving`
builds (about 0.9 GB, beside `.venv`).
"""

import os
import signal
import socket
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path

import httpx

ADMIN = "an admin token of the tests"
CHANNELS = "prod,swap,res"
MAX_LORAS, MAX_RANK = 4, 32


def vllm_python() -> Path | None:
    """The interpreter that has vLLM; None where there is none."""
    named = os.environ.get("EFFACE_VLLM_PYTHON")
    found = Path(named) if named else Path(__file__).parents[1] / ".venv-vllm" / "bin" / "python"
    return found if found.exists() else None


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


class Vllm:
    """`start` returns when it answers; `kill` is a SIGKILL to all of its processes."""

    def __init__(self, model: Path, log: Path, env: Mapping[str, str] | None = None, *extra: str) -> None:
        self.model, self.log, self.env, self.extra = model, log, dict(env or {}), extra
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> "Vllm":
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                self._command(), env=self._environment(), stdout=log, stderr=log, start_new_session=True
            )
        self._wait(time.monotonic() + 240)
        return self

    def alive(self) -> bool:
        try:
            return httpx.get(f"{self.url}/health", timeout=5, trust_env=False).status_code == 200
        except httpx.HTTPError:
            return False

    def kill(self) -> None:
        self._signal(signal.SIGKILL)

    def stop(self) -> None:
        self._signal(signal.SIGINT, wait=20)
        self._signal(signal.SIGKILL)

    def _signal(self, number: int, wait: float = 10) -> None:
        if self.process is None:
            return
        try:
            os.killpg(self.process.pid, number)
            self.process.wait(wait)
        except (ProcessLookupError, subprocess.TimeoutExpired):
            pass

    def _wait(self, end: float) -> None:
        while not self.alive():
            assert self.process is not None
            if self.process.poll() is not None or time.monotonic() > end:
                self.kill()
                raise RuntimeError("vLLM did not start:\n" + self.log.read_text(errors="replace")[-4000:])
            time.sleep(0.5)

    def _command(self) -> list[str]:
        flags = "--served-model-name base --host 127.0.0.1 --dtype float32 --enforce-eager --max-num-seqs 8"
        module = [
            "-m",
            "vllm.entrypoints.openai.api_server",
            "--model",
            str(self.model),
            "--port",
            str(self.port),
        ]
        return [str(vllm_python()), *module, *flags.split(), *self.extra]

    def _environment(self) -> dict[str, str]:
        kept = {
            name: value for name, value in os.environ.items() if not name.startswith(("EFFACE_", "VLLM_"))
        }
        quiet = {
            "HF_HUB_OFFLINE": "1",
            "TRANSFORMERS_OFFLINE": "1",
            "VLLM_NO_USAGE_STATS": "1",
            "DO_NOT_TRACK": "1",
        }
        ours = {
            "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "True",
            "VLLM_CPU_KVCACHE_SPACE": "1",
            "TORCHDYNAMO_DISABLE": "1",
        }
        return {**kept, **quiet, **ours, **self.env}


def with_lora(model: Path, log: Path, registry: Path) -> Vllm:
    """A server with efface in it: the plugin, the resolver on ``registry``, and the middleware."""
    env = {"EFFACE_CHANNELS": CHANNELS, "EFFACE_ADMIN_TOKEN": ADMIN, "EFFACE_REGISTRY": str(registry)}
    sizes = ["--max-loras", str(MAX_LORAS), "--max-lora-rank", str(MAX_RANK), "--max-model-len", "512"]
    gate = ["--middleware", "efface.serving.middleware.LoraOnly"]
    return Vllm(model, log, env, "--enable-lora", *sizes, *gate)
