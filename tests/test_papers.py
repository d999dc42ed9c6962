"""The papers: every command in them is parsed by its own script, every example runs, every link leads somewhere.

Commands are taken from fenced blocks and from code in backticks of README.md, docs/ (of the log what stands now), the
built-in weights and benchmarks/. Each is parsed as its script would parse it, up to where data would be read.
"""

import argparse
import ast
import functools
import importlib
import importlib.util
import os
import re
import runpy
import shlex
import sys
from pathlib import Path

import nibabel as nib
import pytest

from meshnet.__main__ import VERBS
from meshnet.completion import SHELLS
from meshnet.config import Config
from meshnet.recipe import load_search, parse

ROOT = Path(__file__).resolve().parent.parent
FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
BEGINS = ("python ", "accelerate ", "torchrun ", "make ", "pip ", "meshnet ", "srun ", "sbatch ")
RECIPE = "recipes/meshnet26.yaml"  # in the place of a recipe that only a run of the reader's would write
# Flags of other programs: the optimizer guide's script, mri_convert, SLURM, Accelerate.
FOREIGN = {"--epochs", "--amp", "--config", "--dataset-config", "--conform", "--ipc", "--shm-size",
           "--kill-on-bad-exit", "--signal=B:USR1@120"}
GUIDE = {"--override optimizer.lr=0.0003 --epochs 50"}  # as the guide writes it


def papers() -> dict[str, str]:
    """The text of every paper by its path; of a page of the log only what stands now."""
    found = {}
    for path in (ROOT / "README.md", *sorted(ROOT.glob("docs/**/*.md")), *sorted(ROOT.glob("weights/*/README.md")),
                 ROOT / "benchmarks" / "README.md"):
        text, name = path.read_text(encoding="utf-8"), str(path.relative_to(ROOT))
        if path.parent.name == "log" and path.name != "README.md":
            text = re.search(r"^## Stands now\n(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL)[1]
        if name != "docs/checks.md":  # written from the code, and compared with it by a test of its own
            found[name] = text
    return found


def spans(text: str) -> list[str]:
    """What stands in single backticks outside fenced blocks."""
    return [span.replace("\n", " ") for span in re.findall(r"`([^`]+)`", FENCE.sub("", text))]


def commands(text: str) -> list[str]:
    """The command lines of a paper: from its blocks and its code in backticks, lines that go on joined."""
    lines = [line.strip() for kind, block in FENCE.findall(text) if kind in ("", "bash", "sh")
             for line in block.replace("\\\n", " ").splitlines()]
    return [line for line in lines + spans(text) if (line.startswith(BEGINS) and line != "accelerate launch")
            or re.match(r"[A-Z_]+=\S+ ", line)]


COMMANDS = sorted({(paper, line) for paper, text in papers().items() for line in commands(text)})


class Parsed(BaseException):
    """Raised in the place of what a script would do after it has parsed its flags."""


def test_papers_hold_commands():
    assert len(COMMANDS) > 60
    wanted = {"README.md", "docs/search.md", "benchmarks/README.md", "docs/log/kernels.md"}
    assert wanted <= {paper for paper, _ in COMMANDS}


@pytest.mark.parametrize("paper, line", COMMANDS, ids=[f"{paper}: {line[:70]}" for paper, line in COMMANDS])
def test_command(paper, line, monkeypatch):
    monkeypatch.chdir(ROOT)
    check(shlex.split(line, comments=True), monkeypatch)


@pytest.mark.parametrize("line", [
    "python infer.py scan.nii.gz --treshold 0.5", "python train.py --recipe recipes/nothing.yaml --data d --run_dir r",
    "python train.py --data d --run_dir r --optimizer.lrr 1", "python train.py --data d --run_dir r --optimizer.lr -1",
    "python crossval.py --out o --data d --recipes recipes/meshnet5.yaml --training.epochs 2", "make coffee",
    "python search.py --data d --study s --rungs 9 --min_epochs 1 --max_epochs 2", "python -m meshnet.baselines",
    "python benchmarks/speed/inference.py --chanels 5", "python share.py fetch user/name", "python nothing.py",
    "python prepare.py --format bids --suffix T2w --out o", "accelerate launch --config_file no.yaml train.py --data d",
    "python -m meshnet.data.synthetic --count 3", "torchrun --processes 2 infer.py scan.nii.gz",
])
def test_a_wrong_command_is_found(line, monkeypatch):
    monkeypatch.chdir(ROOT)
    with pytest.raises((Exception, SystemExit)):
        check(shlex.split(line), monkeypatch)


def check(words: list[str], monkeypatch) -> None:
    """Raise unless ``words`` is a command that parses."""
    words = [word for word in words if "…" not in word and "..." not in word]
    while re.match(r"[A-Z_]+=", words[0]):
        words = words[1:]
    program, words = words[0], words[1:]
    if program == "srun" and words[0] == "-n":
        check(words[2:], monkeypatch)
    elif program in ("srun", "sbatch"):
        inner = {"srun": ["bash", "-c"], "sbatch": ["--wrap"]}[program]
        assert words[-1 - len(inner):-1] == inner
        check(shlex.split(words[-1]), monkeypatch)
    elif program in ("accelerate", "torchrun"):
        script = next(place for place, word in enumerate(words) if word.endswith(".py"))
        check_launcher(program, words[:script + 1])
        check_script(words[script], words[script + 1:], monkeypatch)
    elif program == "make":
        targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
        assert set(words) <= set(targets), f"the Makefile has no {words}"
    elif program == "pip":
        assert words == ["install", "."] or (words[:2] == ["install", "-r"] and (ROOT / words[2]).is_file())
    elif program == "meshnet" and words[0] == "completion":
        assert words[1] in SHELLS
    elif program == "meshnet":
        check_script(VERBS[words[0]][0], words[1:], monkeypatch)
    elif words[:2] == ["-m", "meshnet"]:
        check_script(VERBS[words[2]][0], words[3:], monkeypatch)
    elif words[:2] == ["-m", "meshnet.runs.quietly"]:
        check(words[2:], monkeypatch)
    elif words[0] == "-m":
        check_module(words[1], words[2:], monkeypatch)
    else:
        check_script(words[0], words[1:], monkeypatch)


def check_launcher(program: str, words: list[str]) -> None:
    """Parse the launcher's own flags with its own parser."""
    words = [re.sub(r"^\$\w+$", "0", word) for word in words]
    if program == "torchrun":
        from torch.distributed.run import get_args_parser

        get_args_parser().parse_args(words)
        return
    from accelerate.commands.launch import launch_command_parser

    assert words[0] == "launch"
    found = launch_command_parser().parse_args(words[1:])
    assert found.config_file is None or Path(found.config_file).is_file(), found.config_file


def check_script(script: str, words: list[str], monkeypatch) -> None:
    """Parse the words after a script's name as that script does."""
    if script in ("train.py", "search.py"):
        check_training(script, words)
        return
    with monkeypatch.context() as patch:
        patch.setattr(sys, "path", [str((ROOT / script).parent), *sys.path])  # as Python has it for a script
        module = runpy.run_path(str(ROOT / script), run_name="papers")
    if script.startswith("benchmarks/"):
        call_parser(module["main"], script, words, monkeypatch)
        return
    known = known_flags()
    assert not [word for word in words if word.startswith("--") and "." not in word and word not in known]
    parser = module["make_parser"]()
    if script == "crossval.py":
        arguments, rest = parser.parse_known_args(words)
        for recipe in arguments.recipes:
            parse(script, "", lambda parser: None, ["--recipe", existing(recipe), *rest])
        assert arguments.recipes or not rest
        return
    arguments = parser.parse_args(words)
    if script == "prepare.py":
        module["check_flags"](arguments)


def check_training(script: str, words: list[str]) -> None:
    """Parse flags and recipes of train.py or search.py, and what else they check before they read data."""
    if words == ["--help"]:
        return
    module = runpy.run_path(str(ROOT / script), run_name="papers")
    words = [existing(word) if word.endswith((".yaml", ".json")) else word for word in words]
    arguments, config = parse(script, "", module["add_flags"], words)
    if script == "search.py" and arguments.status:
        return
    module["check_flags"](arguments, *([config] if script == "train.py" else []))
    if script == "search.py":
        space = module["parse_space"](load_search(arguments.recipe) or load_search([module["PAPER_SPACE"]]), "search")
        rungs = module["choose_rungs"](arguments, space)
        module["Points"](config, space, rungs[-1:]).check(print)


def existing(recipe: str) -> str:
    """The recipe, or one that is there where a run of the reader's would write it."""
    return recipe if recipe.startswith("recipes/") or Path(recipe).exists() else RECIPE


def check_module(name: str, words: list[str], monkeypatch) -> None:
    """Parse the words after ``python -m NAME``, where that is a module of this project."""
    spec = importlib.util.find_spec(name)
    assert spec is not None, f"no module {name}"
    if name.startswith("meshnet"):
        name += ".__main__" * (spec.submodule_search_locations is not None)
        call_parser(importlib.import_module(name).main, name, words, monkeypatch)


def call_parser(main, name: str, words: list[str], monkeypatch) -> None:
    """Call ``main`` as for ``words``, and leave it once they are parsed."""
    original = argparse.ArgumentParser.parse_args

    def parse_args(self, *given):
        original(self, *given)
        raise Parsed

    with monkeypatch.context() as patch:
        patch.setattr(argparse.ArgumentParser, "parse_args", parse_args)
        patch.setattr(sys, "argv", [name, *words])
        with pytest.raises(Parsed):
            main()


@functools.cache
def known_flags() -> set[str]:
    """Every flag of the root's scripts, without those of the configuration."""
    known = {"--recipe", "--override", "--help"}
    for script in ("prepare.py", "infer.py", "crossval.py", "share.py", "train.py", "search.py"):
        module = runpy.run_path(str(ROOT / script), run_name="papers")
        if "add_flags" in module:
            parsers = [argparse.ArgumentParser()]
            module["add_flags"](parsers[0])
        else:
            parsers = [module["make_parser"]()]
        for parser in parsers:
            known.update(parser._option_string_actions)
            for action in parser._actions:
                parsers += getattr(action, "_name_parser_map", {}).values()
    return known


@pytest.mark.parametrize("paper", sorted(papers()))
def test_flags_in_the_text(paper):
    """Flags in backticks that are no whole command: each is one of some script, with a value that it takes."""
    for span in spans(papers()[paper]):
        if re.match(r"--(override|[a-z]+\.\w+) ", span) and span not in GUIDE:
            parse("train.py", "", lambda parser: None, [word for word in shlex.split(span) if word != "…"])
        elif field := re.fullmatch(r"--([a-z]+)\.(\w+)", span):
            assert hasattr(getattr(Config(), field[1]), field[2]), span
        elif span.startswith("--") or re.match(r"\w+\.py --", span):
            flags = {word for word in span.split() if word.startswith("--") and "." not in word}
            assert flags <= known_flags() | FOREIGN | benchmark_flags(), span


def benchmark_flags() -> set[str]:
    """Every flag that some benchmark adds."""
    return {flag for path in ROOT.glob("benchmarks/*/*.py")
            for flag in re.findall(r'add_argument\("(--\w+)"', path.read_text(encoding="utf-8"))}


# ---------------------------------------------------------------------- examples, links, lengths

@pytest.fixture(scope="module")
def examples_folder(tmp_path_factory) -> Path:
    """A folder with a small synthetic scan, ``scan.nii.gz``, and in the place of the built-in networks a tiny one."""
    from meshnet.data.synthetic.case import make_case
    from meshnet.networks.card import read_card
    from meshnet.networks.folder import BUILT_IN, DEFAULT_NAME
    from meshnet.networks.meshnet import MeshNet

    folder = tmp_path_factory.mktemp("examples")
    nib.save(make_case(1001, 4.0, "demo", (40, 48, 44))[0], folder / "scan.nii.gz")
    single = "meshnet16-synthetic"  # the default is a cascade
    card = read_card(BUILT_IN / single)
    tiny = MeshNet(2, len(card.channels), len(card.classes), dilations=(1, 2), norm="instance")
    for name in (single, DEFAULT_NAME):
        tiny.save_pretrained(folder / "weights" / name,
                             card.changed(voxel_mm=8.0, shape=None, crop=None, arguments=tiny.arguments))
    return folder


def examples() -> list[tuple[str, str]]:
    """The Python blocks of README.md and docs/python.md, by the heading that they stand below."""
    found: list[tuple[str, str]] = []
    for paper in ("README.md", "docs/python.md"):
        text = (ROOT / paper).read_text(encoding="utf-8")
        for match in FENCE.finditer(text):
            if match[1] == "python":
                heading = re.findall(r"^#+ (.*)", text[:match.start()], re.MULTILINE)[-1]
                found.append((f"{paper}, {heading}, {len(found)}", match[2]))
    return found


@pytest.mark.parametrize("where, code", examples(), ids=[where for where, _ in examples()])
def test_example_runs(where, code, examples_folder, monkeypatch, capsys):
    monkeypatch.chdir(examples_folder)
    monkeypatch.setattr("meshnet.networks.folder.BUILT_IN", examples_folder / "weights")
    exec(compile(code, where, "exec"), {})  # an example of our own paper


@pytest.mark.parametrize("paper", sorted(papers()))
def test_links_lead_somewhere(paper):
    whole = (ROOT / paper).read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)]+)\)", FENCE.sub("", whole)):
        if re.match(r"\w+:", target):
            continue
        name, _, anchor = target.partition("#")
        path = Path(os.path.normpath((ROOT / paper).parent / name)) if name else ROOT / paper
        assert path.exists(), f"{paper}: {target}"
        if anchor:
            headings = re.findall(r"^#+ (.*)", path.read_text(encoding="utf-8").lower(), re.MULTILINE)
            assert anchor in {re.sub(r"[^\w\- ]", "", each).replace(" ", "-") for each in headings}, target


def test_every_page_is_in_an_index():
    for index in (ROOT / "docs" / "README.md", ROOT / "docs" / "log" / "README.md"):
        text = index.read_text(encoding="utf-8")
        assert not [path.name for path in index.parent.glob("*.md") if path != index and f"({path.name})" not in text]


def test_the_house_lists_every_file():
    """docs/house.md has each file of a room below that room's heading, and no other; and each file of the ground."""
    text = (ROOT / "docs" / "house.md").read_text(encoding="utf-8")
    listed = {}
    for part in re.split(r"^##+ ", text, flags=re.MULTILINE):
        cells = re.findall(r"^\| ([^|]+) \|", part, re.MULTILINE)
        listed[part.partition("\n")[0]] = {name for cell in cells for name in re.findall(r"`([\w/]+\.py)`", cell)}
    files = [path for path in (ROOT / "meshnet").rglob("*.py") if path.name != "__init__.py"]
    for room in {path.relative_to(ROOT / "meshnet").parts[0] for path in files if path.parent.name != "meshnet"}:
        folder = ROOT / "meshnet" / room
        there = {str(path.relative_to(folder)) for path in files if folder in path.parents}
        assert listed[room] == there, room
    assert listed["The ground"] == {path.name for path in files if path.parent.name == "meshnet"}
    assert listed["The scripts"] == {path.name for path in ROOT.glob("*.py")}


def test_readme_is_short_and_says_what_this_is_not():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 150
    assert "not for diagnosis" in "\n".join(text.splitlines()[:15])


def test_the_log_has_one_form():
    for path in (ROOT / "docs" / "log").glob("*.md"):
        if path.name != "README.md":
            first, *others = re.findall(r"^## (.*)", path.read_text(encoding="utf-8"), re.MULTILINE)
            dates = [re.match(r"(\d{4}-\d\d-\d\d): .", heading) for heading in others]
            assert first == "Stands now" and all(dates), path
            assert [date[1] for date in dates] == sorted((date[1] for date in dates), reverse=True), path


@pytest.mark.parametrize("path", sorted(ROOT.glob("benchmarks/*/*.py")), ids=lambda path: path.name)
def test_benchmarks_use_names_that_exist(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module.startswith("meshnet"):
            module = importlib.import_module(node.module)
            for name in (alias.name for alias in node.names):
                assert hasattr(module, name) or importlib.util.find_spec(f"{node.module}.{name}"), name


@pytest.mark.parametrize("path", sorted(ROOT.glob("benchmarks/*/*.py")), ids=lambda path: path.name)
def test_benchmarks_find_the_checkout_before_they_import_it(path):
    """Started by hand they know their own folder alone: the checkout's root comes first into ``sys.path``."""
    text = path.read_text(encoding="utf-8")
    if "__main__" in text:
        ours = re.search(r"^from (meshnet|benchmarks)\b", text, re.MULTILINE)
        assert ours is None or "sys.path.insert(0, str(Path(__file__).resolve().parents[2]))" in text[:ours.start()]
