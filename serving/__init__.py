"""What an inference server loads, and which of it answers.

Reading order: `routes` (which adapter answers for a channel; all that a gateway asks), `plan` (what a controller does
next, as a pure function), `controller` (which does it), `probe` (what an adapter must answer before it is routed to),
`folders` (what is checked before a server sees it), `server` and `vllm` (what is asked of one); `gateway`: the only way
in for users, in front of a server.

Inside the server: `vllm_plugin` and `middleware`, which go by `inside` and `rules`. With torch, and therefore not
imported here: `render` makes a composition one LoRA folder, `hotswap` puts releases on a transformers model in this
process (``from efface.serving.render import render``).
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
