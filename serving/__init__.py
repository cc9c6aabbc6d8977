"""What an inference server loads, and which of it answers.

- `routes`: which adapter answers for a channel; the one thing that the gateway asks. Read it first.
- `server`: what is asked of a server (`vllm` for vLLM).
- `render`: a composition → one LoRA folder, checked as a server would not check it. Needs torch and is therefore not
  imported here: `from efface.serving.render import render`.
- `hotswap`: releases on a transformers model in this process; needs torch too.
- `gateway`: the only way in for users, in front of a server.
"""

from .errors import NoRoute, ProbeFailed, ServerError, ServingError
from .routes import Route, Routes, RoutesView
from .server import LoraServer, Prompt

__all__ = [
    "LoraServer",
    "NoRoute",
    "ProbeFailed",
    "Prompt",
    "Route",
    "Routes",
    "RoutesView",
    "ServerError",
    "ServingError",
]
