"""Imports go one way: sde_lib <- samplers <- experiments, models <- experiments; no module with a name that says nothing."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ALLOWED = {
    "sde_lib": {"sde_lib"},
    "models": {"models"},
    "samplers": {"samplers", "sde_lib"},
    "configs": {"configs", "models", "sde_lib"},
    "experiments": {"experiments", "samplers", "sde_lib", "models", "configs"},
}
NETWORK_LIBRARIES = {"flax", "optax", "orbax"}


def imported(file: Path) -> set[str]:
    """Top-level names that a file imports, wherever in it."""
    names = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add(node.module.split(".")[0])
    return names


@pytest.mark.parametrize("package", ALLOWED)
def test_imports_go_one_way(package):
    files = list((ROOT / package).rglob("*.py"))
    assert files
    for file in files:
        names = imported(file)
        assert names & set(ALLOWED) <= ALLOWED[package], file
        if package in ("sde_lib", "samplers"):
            assert not names & NETWORK_LIBRARIES, file
        assert "tensorflow" not in names and file.stem not in ("utils", "util", "helpers", "common", "misc"), file


def test_all_packages_are_installed_with_setup():
    """Every folder of code is a package that setup.py finds."""
    for package in ALLOWED:
        for folder in {file.parent for file in (ROOT / package).rglob("*.py")}:
            assert (folder / "__init__.py").exists(), folder
