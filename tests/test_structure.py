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
    "option_groups",
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
SOURCES = [path for path in sorted(ROOT.rglob("*.py")) if path != ROOT / "__init__.py"]
LIMIT = 7
SLOW_TO_IMPORT = {"tensorflow", "keras", "sklearn", "scipy", "skops", "h5py", "pyarrow", "PIL", "numpy"}


def module_of(path):
    """Return the dotted name of a file of the package."""
    return ".".join(["pipeline", *path.relative_to(ROOT).with_suffix("").parts]).removesuffix(".__init__")


def room_of(module):
    return module.split(".")[1]


def imports_of(path):
    """Give line and module of each import of the package, also inside functions and under TYPE_CHECKING."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: say pipeline.x in full"
            inside = [f"{node.module}.{alias.name}" for alias in node.names]
            found = [name if name in MODULES else node.module for name in inside]
        else:
            continue
        for name in found:
            assert name != "pipeline", f"{path}:{node.lineno}: import from the module that defines the name"
            if name.startswith("pipeline."):
                yield node.lineno, name


def circles(imports):
    """Return a list of modules for each group that import each other, in a circle of any length."""

    def reached(start):
        seen, todo = set(), [start]
        while todo:
            for name in imports.get(todo.pop(), ()):
                if name not in seen:
                    seen.add(name)
                    todo.append(name)
        return seen

    reach = {module: reached(module) for module in imports}
    groups = {
        tuple(sorted({other for other in reach[module] if module in reach.get(other, ())}))
        for module in imports
        if module in reach[module]
    }
    return sorted(map(list, groups))


def test_every_module_is_in_a_room():
    assert {room_of(module) for module in MODULES} == set(ROOMS)


def test_a_room_imports_only_from_rooms_to_its_left():
    wrong = [
        f"{path.relative_to(ROOT)}:{line}: {room_of(module_of(path))} imports {name}"
        for path in SOURCES
        for line, name in imports_of(path)
        if ROOMS.index(room_of(name)) > ROOMS.index(room_of(module_of(path)))
    ]
    assert not wrong, "\n".join(wrong)


def test_no_imports_go_in_a_circle():
    found = circles({module_of(path): {name for _, name in imports_of(path)} for path in SOURCES})
    assert not found, "\n".join(" <-> ".join(group) for group in found)


def test_circles_are_found():
    assert circles({"a": {"b"}, "b": {"c"}, "c": set(), "d": {"a"}}) == []
    assert circles({"a": {"b"}, "b": {"c", "d"}, "c": {"a"}, "d": {"d"}, "e": {"a"}}) == [["a", "b", "c"], ["d"]]


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


def parsed():
    """Give the path and the syntax tree of every module of the package."""
    return {path: ast.parse(path.read_text()) for path in sorted(ROOT.rglob("*.py"))}


def name_of(node):
    """Return the last part of a name such as typing.TypedDict, "" for what is no name."""
    return node.attr if isinstance(node, ast.Attribute) else getattr(node, "id", "")


def typed_dicts(trees):
    """Return the keys of every TypedDict, those of its bases among them, by its name."""
    classes = {node.name: node for tree in trees for node in ast.walk(tree) if isinstance(node, ast.ClassDef)}

    def keys(name):
        node = classes.get(name)
        if node is None:
            return set()
        own = {line.target.id for line in node.body if isinstance(line, ast.AnnAssign)}
        return own.union(*(keys(name_of(base)) for base in node.bases))

    def is_typed(name):
        bases = [name_of(base) for base in classes[name].bases] if name in classes else []
        return "TypedDict" in bases or any(map(is_typed, bases))

    return {name: keys(name) for name in classes if is_typed(name)}


def argument_names(function, options):
    """Return the names that a caller may give, those of ``**options: Unpack[...]`` among them."""
    arguments = function.args
    names = {each.arg for each in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs)}
    if isinstance(arguments.kwarg and arguments.kwarg.annotation, ast.Subscript):
        unpacked = arguments.kwarg.annotation
        if name_of(unpacked.value) == "Unpack":
            names |= options[name_of(unpacked.slice)]
    return names - {"self", "cls"}


def is_command(function):
    """Say whether this is a click command, whose parameters are options that a user types."""
    calls = [each.func if isinstance(each, ast.Call) else each for each in function.decorator_list]
    return any(name_of(each) in ("command", "group") for each in calls)


def estimator_constructors(trees):
    """Return the constructors of scikit-learn estimators, which must name every hyperparameter as an argument."""
    classes = [node for tree in trees for node in ast.walk(tree) if isinstance(node, ast.ClassDef)]
    estimators = [node for node in classes if "BaseEstimator" in map(name_of, node.bases)]
    return {id(line) for node in estimators for line in node.body if getattr(line, "name", "") == "__init__"}


def test_no_function_takes_more_than_seven_arguments():
    """Click commands and constructors of estimators apart. Options that come as a TypedDict count one by one."""
    trees = parsed()
    options, apart = typed_dicts(trees.values()), estimator_constructors(trees.values())
    too_many = []
    for path, tree in trees.items():
        for node in ast.walk(tree):
            if (
                isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
                and not is_command(node)
                and id(node) not in apart
            ):
                count = len(argument_names(node, options))
                if count > LIMIT:
                    too_many.append(f"{path.relative_to(ROOT)}:{node.lineno}: {node.name} takes {count}")
    assert not too_many, "\n".join(too_many)


def test_unpacked_options_count_one_by_one():
    code = """
class Few(TypedDict):
    a: int
    b: str
class More(Few, total=False):
    c: int
def f(self, x, /, y, *, z, **options: Unpack[More]): ...
@click.command()
def g(a): ...
"""
    tree = ast.parse(code)
    options = typed_dicts([tree])
    assert options == {"Few": {"a", "b"}, "More": {"a", "b", "c"}}
    f, g = (node for node in tree.body if isinstance(node, ast.FunctionDef))
    assert argument_names(f, options) == {"x", "y", "z", "a", "b", "c"}
    assert (is_command(f), is_command(g)) == (False, True)
