"""What an inference server loads.

Today this package renders: `render` turns a set of adapters into one LoRA folder that vLLM, SGLang, TGI or
PEFT can load, checked as a server would not check it. Read `render.py`. Loading it into a running server is
up to the caller for now: the vLLM client, the resolver plugin and the gateway do not exist yet.
"""

from .render import VLLM_RANKS, Rendered, RenderError, render, slot_rank

__all__ = ["VLLM_RANKS", "RenderError", "Rendered", "render", "slot_rank"]
