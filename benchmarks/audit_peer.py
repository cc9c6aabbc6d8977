"""open-unlearning's metric handlers for `benchmarks/audit.py`: its data, collators and functions, run whole."""

import contextlib
import io
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from peer_sides import import_peer

STEMS = {
    "probability": "probability",
    "exact_memorization": "exact_memorization",
    "extraction_strength": "extraction_strength",
}


def side(
    root: str, base: Any, forget: Path, holdout: Path, scratch: str, new_tokens: int, batch: int
) -> Callable[[], dict[str, float]]:
    """A function that measures everything once, as the peer's evaluator does: metric after metric."""
    import_peer(root)
    _stub(root)
    from data.collators import DataCollatorForSupervisedDataset  # pyright: ignore[reportMissingImports]
    from data.qa import QADataset  # pyright: ignore[reportMissingImports]
    from evals.metrics import METRICS_REGISTRY  # pyright: ignore[reportMissingImports]

    tokenizer = base.tokenizer
    template = tokenizer.apply_chat_template
    listed = types.SimpleNamespace(apply=lambda *a, **k: template(*a, **{"return_dict": False, **k}))

    def dataset(path: Path, generate: bool = False) -> list[Any]:
        source = {"path": "json", "data_files": str(path), "split": "train", "cache_dir": scratch}
        tokenizer.apply_chat_template = listed.apply
        try:
            found = QADataset(
                source, {"apply_chat_template": True}, tokenizer, predict_with_generate=generate
            )
            return [found[i] for i in range(len(found))]
        finally:
            tokenizer.apply_chat_template = template

    right = DataCollatorForSupervisedDataset(tokenizer, index="index")
    left = DataCollatorForSupervisedDataset(tokenizer, padding_side="left", index="index")
    rows, asked = dataset(forget), dataset(forget, generate=True)
    both = {"forget": rows, "holdout": dataset(holdout)}
    common = {"tokenizer": tokenizer, "batch_size": batch}
    generation = {
        "do_sample": False,
        "top_p": None,
        "temperature": None,
        "max_new_tokens": new_tokens,
        "use_cache": True,
    }

    def run(name: str, **more: Any) -> float:
        quiet = contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO())
        with quiet[0], quiet[1], _float_logits(base.model):
            return float(METRICS_REGISTRY[name]._metric_fn(base.model, **common, **more)["agg_value"])

    def measure() -> dict[str, float]:
        found = {ours: run(theirs, data=rows, collators=right) for ours, theirs in STEMS.items()}
        found["rouge_l"] = run(
            "rouge", data=asked, collators=left, generation_args=generation, rouge_type="rougeL_recall"
        )
        for name in ("mia_loss", "mia_zlib", "mia_min_k", "mia_min_k_plus_plus"):
            found[name] = run(name, data=both, collators=right, k=0.4)
        return found

    return measure


@contextlib.contextmanager
def _float_logits(model: Any) -> Iterator[None]:
    """Logits in float32, as every model of transformers 4.45 gave them, for which the peer is written."""

    def convert(_module: Any, _args: Any, output: Any) -> Any:
        output.logits = output.logits.float()
        return output

    hook = model.register_forward_hook(convert)
    try:
        yield
    finally:
        hook.remove()


def _stub(root: str) -> None:
    """Its `evals` without the module that asks for lm-eval and hydra, and what it asks of an absent omegaconf."""
    package = types.ModuleType("evals")
    package.__path__ = [str(Path(root) / "src/evals")]  # type: ignore[attr-defined]
    sys.modules["evals"] = package
    config: Any = sys.modules["omegaconf"]
    for name in ("OmegaConf", "ListConfig"):
        if not hasattr(config, name):
            setattr(
                config, name, type(name, (), {"to_container": staticmethod(lambda value, **_: dict(value))})
            )
