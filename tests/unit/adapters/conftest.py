"""A tiny model that knows six facts, and the rows that ask for them: what every test of training starts from."""

from pathlib import Path

import pytest
from model_kit import FORGET, RETAIN, encoded, taught

from efface.adapters.encode import Encoded


@pytest.fixture(scope="session")
def known(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return taught(tiny_llama, tmp_path_factory.mktemp("known") / "taught")


@pytest.fixture(scope="session")
def forget(tiny_llama: Path) -> tuple[Encoded, ...]:
    return encoded(tiny_llama, FORGET)


@pytest.fixture(scope="session")
def retain(tiny_llama: Path) -> tuple[Encoded, ...]:
    return encoded(tiny_llama, RETAIN)
