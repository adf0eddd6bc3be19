"""The rooms, the lazy package, the docstrings' examples."""

import ast
import doctest
import importlib
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

import pipeline

ROOT = Path(pipeline.__file__).parent
ROOMS = [
    "errors",
    "wording",
    "parallel",
    "files",
    "options",
    "images",
    "metrics",
    "features",
    "heads",
    "trust",
    "bundles",
    "prediction",
    "training",
    "finetuning",
    "insight",
    "cli",
]
MODULES = sorted(module.name for module in pkgutil.walk_packages([str(ROOT)], "pipeline."))
SLOW_TO_IMPORT = {"tensorflow", "keras", "sklearn", "scipy", "skops", "h5py", "pyarrow", "PIL", "numpy"}


@pytest.mark.parametrize("path", sorted(ROOT.rglob("*.py")), ids=lambda path: str(path.relative_to(ROOT)))
def test_a_room_imports_only_from_rooms_to_its_left(path):
    room = path.relative_to(ROOT).parts[0].removesuffix(".py")
    if room == "__init__":
        return
    allowed = ROOMS[: ROOMS.index(room) + 1]
    for node in ast.walk(ast.parse(path.read_text())):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: say pipeline.x in full"
            names = [node.module]
        for name in names:
            if name == "pipeline" or name.startswith("pipeline."):
                assert name.split(".")[1] in allowed, f"{path}:{node.lineno}: {room} imports {name}"


def test_one_module_uses_h5py():
    users = [path.name for path in ROOT.rglob("*.py") if "import h5py" in path.read_text()]
    assert users == ["hdf5.py"]


def test_no_test_module_imports_from_another():
    """What they share stands in helpers.py and conftest.py; each runs alone."""
    for path in Path(__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) else []
            assert not [name for name in names if name.startswith("test_")], f"{path.name}:{node.lineno}"


def test_importing_the_package_imports_nothing_heavy():
    code = f"import sys, pipeline; bad = {SLOW_TO_IMPORT!r} & set(sys.modules); assert not bad, bad"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_every_public_name_is_there():
    imported = {
        alias.asname: node.module
        for node in ast.walk(ast.parse(Path(pipeline.__file__).read_text()))
        if isinstance(node, ast.ImportFrom) and node.module.startswith("pipeline")
        for alias in node.names
    }
    assert imported == {name: f"pipeline.{home}" for name, home in pipeline._HOMES.items()}, "for type checkers"
    assert set(pipeline.__all__) == set(pipeline._HOMES)
    for name in pipeline.__all__:
        assert getattr(pipeline, name).__doc__, name
        assert name in dir(pipeline)
    with pytest.raises(AttributeError, match="has no attribute 'extrakt'"):
        _ = pipeline.extrakt
    assert callable(pipeline.extract), "a module hides the function of the same name"


@pytest.mark.parametrize("name", MODULES)
def test_the_examples_in_docstrings(name, workplace):
    """They run in a folder with photos/, new.jpg, artifacts/photos.h5 and so on; trained networks are fake ones."""
    result = doctest.testmod(importlib.import_module(name), optionflags=doctest.ELLIPSIS)
    assert result.failed == 0


def test_no_function_takes_more_than_nine_arguments():
    for path in ROOT.rglob("*.py"):
        if path.parent.name == "cli":
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef):
                names = [argument.arg for argument in (*node.args.args, *node.args.kwonlyargs)]
                count = len(set(names) - {"self", "cls"})
                assert count <= 9, f"{path}:{node.lineno}: {node.name} takes {count}"
