"""What runs beside a server or inside it starts without the machine learning stack."""

import subprocess
import sys

import pytest

LIGHT = (
    "controller",
    "feeds",
    "folders",
    "gateway",
    "inside",
    "keys",
    "lines",
    "listen",
    "middleware",
    "plan",
    "probe",
    "relay",
    "routes",
    "rules",
    "source",
    "state",
    "vllm",
)


@pytest.mark.parametrize("names", [LIGHT, ("vllm_plugin",)])
def test_serving_opens_without_the_machine_learning_stack(names: tuple[str, ...]) -> None:
    heavy = {"torch", "transformers", "peft", "bitsandbytes", "accelerate", "numpy"}
    modules = ", ".join(f"efface.serving.{name}" for name in names)
    probe = f"import sys, {modules}; print(*{{name.partition('.')[0] for name in sys.modules}})"
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True)
    assert heavy & set(done.stdout.split()) == set()
