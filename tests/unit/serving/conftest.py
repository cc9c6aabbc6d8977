"""A registry, and a server as the controller's tests drive it."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from lora_server_kit import FakeVllm, running

from efface.registry import Registry
from efface.serving.vllm import VllmServer


@pytest.fixture
def fake() -> FakeVllm:
    return FakeVllm()


@pytest.fixture
def server(fake: FakeVllm) -> Iterator[VllmServer]:
    with running(fake) as url, VllmServer(url) as one:
        yield one


@pytest.fixture
def reg(tmp_path: Path) -> Iterator[Registry]:
    with Registry.open(tmp_path / "registry", create=True) as one:
        yield one
