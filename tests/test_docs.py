"""The documentation is run and checked: commands, Python blocks, links, options, tables."""

import importlib
import json
import re
import shlex
import shutil
from functools import cache
from pathlib import Path
from typing import NamedTuple

import click
import pytest
from click.testing import CliRunner
from commands_page import commands_page
from helpers import FakeBlocks, paint

import pipeline
from pipeline import BACKBONES, HEADS, cli
from pipeline.finetuning import tuning as finetuning

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
GENERATED = ROOT / "docs" / "commands.md"
PAGES = {path.name: path for path in [README, *sorted((ROOT / "docs").glob("*.md"))]}
WRITTEN = {name: path.read_text("utf-8") for name, path in PAGES.items() if path != GENERATED}
COMMANDS = {name.replace("-", "_"): command for name, command in cli.main.commands.items()}
COMMON = ("--json", "--quiet", "--debug")  # options of every command, explained once
TOOLS = ("demo", "benchmark", "benchmark_map", "torture", "commands_page")  # scripts that are no commands of twostage
IMAGES = 72  # of each class; a promise of accuracy takes 90 for training


class Block(NamedTuple):
    """A block of code, and what the comment above it says: why it is not run, or the name that others find it by."""

    kind: str
    body: str
    command: str
    not_run: str

    @property
    def runs(self) -> bool:
        return not self.command and not self.not_run


@cache
def blocks(name: str) -> list[Block]:
    """Return the blocks of code of a page."""
    pattern = r"(?:^<!-- (?:command: (\w+)|not run: ([^>]+)) -->\n)?^```(\w+)\n(.*?)^```$"
    found = re.findall(pattern, PAGES[name].read_text("utf-8"), re.DOTALL | re.MULTILINE)
    return [Block(kind, body, command, reason) for command, reason, kind, body in found]


@cache
def prose(name: str) -> str:
    """Return a page without its blocks of code."""
    return re.sub(r"^```\w+\n.*?^```$", "", PAGES[name].read_text("utf-8"), flags=re.DOTALL | re.MULTILINE)


def python_of(name: str) -> list[str]:
    return [block.body for block in blocks(name) if block.kind == "python" and block.runs]


def lines_of(name: str) -> list[str]:
    return [line for block in blocks(name) if block.kind == "sh" and block.runs for line in block.body.splitlines()]


def rows(text: str) -> list[list[str]]:
    """Return the cells of the rows of all tables in a text."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split(" |")] for line in lines if not line.startswith("| ---")]


def section(name: str, title: str) -> str:
    """Return what stands under a heading of a page, as far as the next one of its level."""
    found = re.search(rf"^(#+) {re.escape(title)}$\n(.*?)(?=^\1 |\Z)", prose(name), re.DOTALL | re.MULTILINE)
    assert found, f"{name} has no heading {title!r}"
    return found[2]


def home(script: str) -> tuple[str, str]:
    """Return the page and the section that document a command: the heading is the name of its script."""
    found = [name for name in WRITTEN if re.search(rf"^## {script}\.py$", prose(name), re.MULTILINE)]
    assert len(found) == 1, f"{script}.py is documented under a heading of its own on {found}"
    return found[0], section(found[0], f"{script}.py")


def explanations(text: str) -> dict[str, list[str]]:
    """Return the row of each option that a table explains, by its name."""
    found: dict[str, list[str]] = {}
    for first, *rest in rows(text):
        if len(" ".join(rest).split()) >= 4:
            found |= {option: [first, *rest] for option in re.findall(r"`(--[a-z][a-z-]*)", first)}
    return found


def options_of(command: click.Command) -> list[click.Option]:
    return [option for option in command.params if isinstance(option, click.Option)]


def names_of(command: click.Command) -> list[str]:
    return [name for option in options_of(command) for name in (*option.opts, *option.secondary_opts)]


def anchors(name: str) -> set[str]:
    """Return the anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", prose(name), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.fixture
def docs_folder(photos, tmp_path, monkeypatch, fake_engine):
    """A folder in which the names of the documentation exist; ImageNet weights are small random ones."""
    from pipeline.features import recipe as recipes

    several = ["path,label"]
    for number, name in enumerate(("cat", "dog")):
        for i in range(1, IMAGES + 1):
            paint(tmp_path / "photos" / name / f"{i}.jpg", (9 + i, 90 * number, i))
            several.append(f"{name}/{i}.jpg,{name if i % 3 else 'cat;dog'}")
    for name in ("ant", "bee", "cow"):
        shutil.rmtree(tmp_path / "photos" / name)
    shutil.copy(tmp_path / "photos" / "cat" / "1.jpg", tmp_path / "photos" / "cat" / "copy.jpg")
    (tmp_path / "photos" / "several.csv").write_text("\n".join(several))
    paint(tmp_path / "new.jpg", (1, 2, 3))
    paint(tmp_path / "new_photos" / "a.png", (80, 2, 3))
    (tmp_path / "inception_v3_notop.h5").write_bytes(b"weights")
    (tmp_path / "any.h5").write_bytes(b"imagenet")
    monkeypatch.setattr(recipes, "imagenet_file", lambda *_: tmp_path / "any.h5")
    monkeypatch.setattr(finetuning, "LastBlocks", FakeBlocks)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(line: str, code: int = 0) -> str:
    """Run a line of a page, check its exit code, and return its standard output."""
    words = shlex.split(line)
    if words[0] == "twostage":
        name, *words = words[1:]
    else:
        python, script, *words = words
        assert (python, Path(script).parent, (ROOT / script).is_file()) == ("python", Path("scripts"), True), line
        name = Path(script).stem.replace("_", "-")
    if "dense" in words:
        words += ["--param", "epochs=2"]
    result = CliRunner().invoke(cli.main, [name, *words])
    assert result.exit_code == code, f"{line}\n{result.output}"
    return result.stdout


def run_the_readme() -> None:
    """Make the files that later pages start from."""
    for line in lines_of("README.md")[:2]:
        run(line.split(" --report")[0])


def test_the_readme_is_short_and_has_the_blocks_that_others_read():
    assert len(WRITTEN["README.md"].splitlines()) <= 170
    assert [block.command for block in blocks("README.md") if block.command] == ["demo", "test"]
    scripts = [Path(shlex.split(line)[1]).stem for line in lines_of("README.md")]
    assert scripts == ["extract", "train_head", "predict"]
    for name in PAGES:
        assert name == "README.md" or f"(docs/{name})" in WRITTEN["README.md"], name
    for script in COMMANDS:
        page, _ = home(script)
        assert f"| [`{script}.py`](docs/{page}#{script}py) |" in WRITTEN["README.md"], script


@pytest.mark.parametrize("name", [name for name in PAGES if name != "README.md"])
def test_a_page_begins_with_its_reader(name):
    title, first, *_ = PAGES[name].read_text("utf-8").split("\n\n")
    assert title.startswith("# ")
    assert re.fullmatch(r"For (?:(?!\.\s).)+ who .+\.", first, re.DOTALL), first


@pytest.mark.parametrize("name", WRITTEN)
def test_blocks_run_or_say_why_not(name):
    for block in blocks(name):
        assert block.kind in ("sh", "python", "text", "csv"), f"{name}: nothing is known of blocks of {block.kind}"
    assert len(blocks(name)) == PAGES[name].read_text("utf-8").count("```") / 2, f"{name}: a block is not read"
    for line in lines_of(name):
        assert line.startswith(("python scripts/", "twostage ")), f"{name}: not run, without a reason: {line}"


@pytest.mark.parametrize("name", [name for name in WRITTEN if lines_of(name)])
def test_commands_run(name, docs_folder):
    if name != "README.md":
        run_the_readme()
    for line in lines_of(name):
        run(line)


@pytest.mark.parametrize("name", [name for name in WRITTEN if python_of(name)])
def test_python_blocks_run(name, docs_folder, capsys):
    if name not in ("README.md", "python.md"):
        run_the_readme()
    variables: dict[str, object] = {}
    for body in python_of(name):
        exec(compile(body, name, "exec"), variables)
        assert capsys.readouterr().out


@pytest.mark.parametrize("name", PAGES)
def test_links_lead_somewhere(name):
    links = re.findall(r"\]\(([^)\s]+)\)", prose(name))
    assert links or PAGES[name] == GENERATED
    for link in links:
        if re.match(r"https://", link):
            continue
        file, _, anchor = link.partition("#")
        target = (PAGES[name].parent / file).resolve() if file else PAGES[name]
        assert target.is_file(), f"{name}: {link}"
        if anchor:
            assert anchor in anchors(target.name), f"{name}: {link}; there are {sorted(anchors(target.name))}"


def test_pictures_are_small():
    pictures = re.findall(r"!\[[^\]]+\]\((\S+)\)", WRITTEN["README.md"])
    assert pictures == ["docs/report.png"]
    assert (ROOT / pictures[0]).stat().st_size < 150_000


def test_no_option_is_made_up():
    tools = [importlib.import_module(name) for name in TOOLS]
    loose = [value for tool in tools for value in vars(tool).values() if isinstance(value, click.Command)]
    known = {name for command in (*COMMANDS.values(), *loose) for name in names_of(command)}
    known |= {"--help", "--version"}
    for name in WRITTEN:
        text = "\n".join([prose(name), *(block.body for block in blocks(name) if block.runs)])
        assert not set(re.findall(r"(?<![\w<-])--[a-z][a-z-]*", text)) - known, name


@pytest.mark.parametrize("script", COMMANDS)
def test_options_are_explained_where_their_command_is(script):
    page, text = home(script)
    explained, command = explanations(text), COMMANDS[script]
    for option in options_of(command):
        for name in (*option.opts, *option.secondary_opts):
            if name in COMMON:
                assert name in explanations(section("operating.md", "Options of every command"))
                continue
            assert name in explained, f"{page}: {script}.py {name} has no row that explains it"
            if isinstance(option.default, (str, int, float)) and not option.is_flag:
                shown = " ".join(explained[name])
                assert re.search(rf"(?<![\w.]){re.escape(str(option.default))}(?![\w.])", shown), f"{page}: {shown}"
    made_up = set(explained) - set(names_of(command)) - {"--calibration"}  # which has a table of its values
    assert not made_up, f"{page}: {script}.py has no {made_up}"


def test_tables_are_complete():
    heads = {re.sub("`", "", cells[0]): cells for cells in rows(section("training.md", "Heads"))}
    assert not {*HEADS, "auto"} - set(heads)
    for name, head in HEADS.items():
        assert not head.search or f"`{next(iter(head.search))}`" in heads[name][2]
    codes = {cells[0]: cells for cells in rows(section("operating.md", "Exit codes"))}
    raised = {kind.exit_code for kind in (pipeline.PipelineError, *pipeline.PipelineError.__subclasses__())}
    for code in {0, 1, 2, 3, 4, 5, 130} | raised:
        assert len(codes[str(code)][1]) > 3
    names = {cells[0].strip("`"): cells for cells in rows(section("python.md", "All public names"))}
    assert set(names) - {"name"} == set(pipeline.__all__)
    assert all(len(cells[1].split()) >= 3 for cells in names.values() if cells[0] != "name")
    assert f"{len(BACKBONES)} Keras Applications" in WRITTEN["README.md"]


def test_every_public_name_is_used_in_an_example():
    lines = "\n".join(python_of("python.md")).splitlines()
    code = "\n".join(line for line in lines if not line.startswith(("from ", "import ")))
    for name in pipeline.__all__:
        assert re.search(rf"\b{name}\b", code), name


def test_scripts_are_mentioned():
    scripts = [path.name for path in (ROOT / "scripts").glob("*.py")]
    assert {*COMMANDS, *TOOLS} == {name.removesuffix(".py") for name in scripts}
    for name in scripts:
        assert any(name in text for text in WRITTEN.values()), name


def test_json_has_the_keys_of_the_table(docs_folder):
    run_the_readme()
    table = rows(section("operating.md", "Options of every command"))
    keys = {cells[0].strip("`"): set(re.findall(r"`(\w+)`", cells[1])) for cells in table if ".py`" in cells[0]}
    assert {f"{name}.py" for name in COMMANDS} == set(keys)
    for line in [
        "extract.py photos --out artifacts/photos.h5",
        "train_head.py artifacts/photos.h5 --out artifacts/photos.bundle",
        "predict.py artifacts/photos.bundle new_photos --out artifacts/predictions.csv",
        "compare.py artifacts/photos.h5",
        "report.py artifacts/photos.bundle --out artifacts/report.html --map pca --heat-maps 0",
        "audit.py artifacts/photos.h5 --no-images",
        "similar.py artifacts/photos.h5 new.jpg",
        "export_vectors.py artifacts/photos.h5 --out artifacts/photos.parquet",
        "runs.py",
        "verify.py artifacts/photos.h5",
    ]:
        printed = json.loads(run(f"python scripts/{line} --json --quiet"))
        assert set(printed) == keys[line.split()[0]], line


def test_an_upgrade_does_what_the_page_says(docs_folder, monkeypatch):
    from pipeline.features.recipe import VERSIONS

    run_the_readme()
    train, predict = (
        "python scripts/train_head.py artifacts/photos.h5 --out",
        "python scripts/predict.py artifacts/photos.bundle",
    )
    monkeypatch.setitem(VERSIONS, "encoding", VERSIONS["encoding"] + 1)
    run(f"{train} artifacts/again.bundle")
    run("python scripts/report.py artifacts/again.bundle --out artifacts/again.html --map pca")
    run("python scripts/audit.py artifacts/photos.h5")
    run(f"{predict} artifacts/photos.h5")
    run(f"{predict} new.jpg", code=1)
    run(lines_of("README.md")[0], code=2)
    run(lines_of("README.md")[0] + " --overwrite")
    (docs_folder / "any.h5").write_bytes(b"other weights")
    run(lines_of("README.md")[0], code=2)


def test_the_page_of_commands_is_what_help_prints():
    assert GENERATED.read_text("utf-8") == commands_page(), "run: python scripts/commands_page.py"


def test_nothing_of_this_machine_is_in_the_repository():
    patterns = ["[!.]*.*", ".ci/*", "docs/*.md", "pipeline/**/*.py", "scripts/**/*.py", "tests/*.py"]
    for path in (path for pattern in patterns for path in ROOT.glob(pattern)):
        if path.is_file():
            assert not re.search(r"(?<![\w.])/(work|farm)/", path.read_text("utf-8")), path


def test_the_table_of_rooms_names_every_module():
    table = {line[0]: line[1] for line in rows(section("developing.md", "Rooms")) if line[0] != "room"}
    for room in (path for path in (ROOT / "pipeline").iterdir() if (path / "__init__.py").is_file()):
        modules = {path.stem for path in room.glob("*.py")} - {"__init__", "options"}
        named = set(re.findall(r"`(\w+)`", table[f"`{room.name}/`"]))
        assert modules == named, f"{room.name}: {sorted(modules ^ named)}"
