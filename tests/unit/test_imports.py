"""Every module imports; every package says what it exports; the registry needs no torch."""

import importlib
import inspect
import pkgutil
import subprocess
import sys

import pytest

PACKAGES = ("adapters", "audits", "cli", "recipes", "registry", "serving")


def modules() -> list[str]:
    names = [f"efface.{package}" for package in PACKAGES]
    for name in tuple(names):
        package = importlib.import_module(name)
        names += [found.name for found in pkgutil.walk_packages(package.__path__, f"{name}.")]
    return sorted(names)


@pytest.mark.parametrize("name", modules())
def test_module_imports_and_says_what_it_is(name: str) -> None:
    module = importlib.import_module(name)
    assert module.__doc__, f"{name} has no docstring"
    assert module.__doc__.strip() != "TBD."


@pytest.mark.parametrize("package", PACKAGES)
def test_exported_names_are_listed_once_and_there(package: str) -> None:
    module = importlib.import_module(f"efface.{package}")
    exported = module.__all__  # ruff (RUF022) keeps it sorted
    assert len(exported) == len(set(exported)) > 0
    assert [name for name in exported if not hasattr(module, name)] == []


@pytest.mark.parametrize("package", PACKAGES)
def test_exported_classes_and_functions_are_documented(package: str) -> None:
    module = importlib.import_module(f"efface.{package}")
    found = {name: getattr(module, name) for name in module.__all__}
    ours = {name for name, value in found.items() if inspect.isclass(value) or inspect.isfunction(value)}
    assert [name for name in sorted(ours) if not found[name].__doc__] == []


def test_registry_opens_without_the_machine_learning_stack() -> None:
    heavy = {"torch", "transformers", "peft", "bitsandbytes", "accelerate", "numpy"}
    probe = "import sys, efface.registry; print(*{name.partition('.')[0] for name in sys.modules})"
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True)
    assert heavy & set(done.stdout.split()) == set()
