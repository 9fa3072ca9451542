"""What holds for the project as a whole: its rooms, its packaging, its words."""

from __future__ import annotations

import ast
import graphlib
import importlib
import inspect
import json
import os
import pkgutil
import re
import runpy
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import torch
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version
from safetensors.torch import save_file

import esper

ROOT = Path(__file__).resolve().parent.parent
SOURCES = sorted((ROOT / "src" / "esper").rglob("*.py"))

# Imports run one way: a room may import from rooms of its own rank (itself only) and of lower ranks.
RANKS = {
    "heads": 0,
    "lifecycle": 0,
    "actions": 0,
    "observation": 0,
    "files": 0,
    "allocator": 0,
    "extensions": 0,
    "tracking": 0,
    "auditions": 0,
    "cluster": 0,
    "modes": 0,
    "workers": 1,
    "programs": 1,
    "tasks": 1,
    "network": 1,
    "tamiyo": 1,
    "figure": 1,
    "page": 1,
    "record": 0,
    "simic": 2,
    "env": 2,
    "growth": 2,
    "evaluation": 3,
    "report": 4,
    "integrations": 3,
    "training": 4,
    "commands": 5,
    "cli": 6,
    "__main__": 7,
}
TABLES = {"heads", "lifecycle", "actions", "auditions", "observation", "record"}
NEVER = {("simic", "network"), ("simic", "env"), ("network", "tamiyo"), ("network", "simic"), ("env", "simic")}


def room_of(path):
    return path.relative_to(ROOT / "src" / "esper").with_suffix("").parts[0]


def imported_rooms(path):
    """The rooms of Esper that a file imports, at run time."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("esper."):
            yield node.module.split(".")[1]
        elif isinstance(node, ast.ImportFrom) and node.module == "esper":
            yield from (alias.name for alias in node.names if alias.name in RANKS)
        elif isinstance(node, ast.Import):
            yield from (alias.name.split(".")[1] for alias in node.names if alias.name.startswith("esper."))


@pytest.mark.parametrize(
    "path", [p for p in SOURCES if room_of(p) != "__init__"], ids=lambda p: str(p.relative_to(ROOT))
)
def test_imports_run_one_way(path):
    room = room_of(path)
    assert room in RANKS, f"{room} is a new room: give it a rank here"
    for other in imported_rooms(path):
        if other == room or {room, other} <= TABLES:
            continue
        assert RANKS[other] < RANKS[room], f"{room} must not import {other}"
        assert (room, other) not in NEVER, f"{room} must not import {other}"


def test_no_module_imports_itself_round_a_corner():
    modules = {}
    for path in SOURCES:
        parts = path.relative_to(ROOT / "src").with_suffix("").parts
        modules[".".join(part for part in parts if part != "__init__")] = ast.parse(path.read_text(encoding="utf-8"))
    imports = {
        name: {
            inner if (inner := f"{node.module}.{alias.name}") in modules else node.module
            for node in tree.body
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("esper")
            for alias in node.names
        }
        for name, tree in modules.items()
    }
    assert len(list(graphlib.TopologicalSorter(imports).static_order())) == len(modules)  # raises CycleError


def test_every_public_thing_is_documented():
    undocumented = []
    for info in pkgutil.walk_packages(esper.__path__, "esper."):
        module = importlib.import_module(info.name)
        for name, thing in vars(module).items():
            if name.startswith("_") or getattr(thing, "__module__", None) != info.name or not callable(thing):
                continue
            parts = [(name, thing)]
            if inspect.isclass(thing):
                parts += [
                    (f"{name}.{part}", getattr(thing, part))
                    for part, value in vars(thing).items()
                    if not part.startswith("_") and inspect.isfunction(value)
                ]
            undocumented += [f"{info.name}.{path}" for path, part in parts if not inspect.getdoc(part)]
    assert undocumented == []


# ---------------------------------------------------------------------- packaging


@pytest.fixture(scope="module")
def pyproject():
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def pins():
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    return [Requirement(line) for line in lines if line and not line.startswith("#")]


def requirements(pyproject):
    project = pyproject["project"]
    lists = [project["dependencies"], *project["optional-dependencies"].values()]
    return [Requirement(line) for entries in lists for line in entries]


def test_pins_are_exact_and_for_every_machine(pins):
    assert len({canonicalize_name(pin.name) for pin in pins}) == len(pins)
    for pin in pins:
        (specifier,) = pin.specifier
        assert specifier.operator == "==", pin
        assert Version(specifier.version).local is None, f"{pin}: a local version exists on few machines"
        assert pin.url is None, pin


def test_every_requirement_admits_its_pin(pyproject, pins):
    pinned = {canonicalize_name(pin.name): next(iter(pin.specifier)).version for pin in pins}
    for requirement in requirements(pyproject):
        name = canonicalize_name(requirement.name)
        assert requirement.specifier.contains(pinned[name]), f"{requirement} does not admit {pinned[name]}"


def test_the_lock_has_every_requirement_in_its_pinned_version_and_with_hashes(pyproject, pins):
    entries = re.split(r"\n(?=\S)", (ROOT / "requirements.lock").read_text(encoding="utf-8").strip())
    locked = {Requirement(entry.split("\\")[0].strip()): entry for entry in entries}
    assert all("--hash=sha256:" in entry for entry in locked.values())
    versions = {canonicalize_name(locked_one.name): str(locked_one.specifier) for locked_one in locked}
    for pin in pins:
        assert versions.get(canonicalize_name(pin.name), str(pin.specifier)) == str(pin.specifier), "run `make lock`"
    extras = (ROOT / "Makefile").read_text(encoding="utf-8").split("EXTRAS := ")[1].splitlines()[0].split(",")
    project = pyproject["project"]
    for line in [*project["dependencies"], *(line for e in extras for line in project["optional-dependencies"][e])]:
        assert canonicalize_name(Requirement(line).name) in versions, "run `make lock`"


def test_the_page_of_licences_has_every_pin(pins):
    page = (ROOT / "docs" / "licences.md").read_text(encoding="utf-8")
    for pin in pins:
        row = f"| {pin.name} | {str(pin.specifier).removeprefix('==')} |"
        assert row in page, "run: python docs/licences.py > docs/licences.md"


def test_ranges_are_open_at_the_top(pyproject):
    for requirement in requirements(pyproject):
        assert {specifier.operator for specifier in requirement.specifier} == {">="}, requirement


def test_everything_imported_is_required(pyproject):
    """A third-party import outside ``integrations`` needs no extra."""
    modules = {"sklearn": "scikit-learn", "PIL": "pillow"}
    required = {canonicalize_name(Requirement(line).name) for line in pyproject["project"]["dependencies"]}
    for path in SOURCES:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node in tree.body:
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) and node.module else []
            for name in {name.split(".")[0] for name in names} - set(sys.stdlib_module_names) - {"esper"}:
                package = canonicalize_name(modules.get(name, name))
                optional = room_of(path) == "integrations"
                assert package in required or optional, f"{path.relative_to(ROOT)} imports {name}"


@pytest.mark.parametrize(
    ("code", "heavy"),
    [
        ("import esper", ("torch", "scipy", "tyro", "rich")),
        ("import esper; esper.Growth", ("matplotlib", "sklearn", "tensorboard", "lightning", "transformers", "onnx")),
    ],
)
def test_importing_esper_is_light(code, heavy):
    """What a user of the growth of one network does not need is not imported, and nothing before it is asked for."""
    code = f"{code}; import sys; print([name for name in {heavy} if name in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_the_front_offers_what_it_names():
    assert {*esper._HOMES, "__version__"} == set(esper.__all__)
    assert set(esper.__all__) <= set(dir(esper))
    for name in esper.__all__:
        assert getattr(esper, name) is not None
    with pytest.raises(AttributeError, match="it offers Auditions, Blueprint, Decision, Growth"):
        esper.Grwth  # noqa: B018


# ---------------------------------------------------------------------- set-up


@pytest.fixture
def bare_project(tmp_path):
    """The Makefile in an empty folder, with commands that only say what they would do."""
    tools = tmp_path / "tools"
    tools.mkdir()
    fake = tools / "python3.11"
    fake.write_text(
        '#!/bin/bash\nset -e\necho "$@" >> "$LOG"\n'
        'if [ "$2" = venv ]; then mkdir -p "$3/bin"; cp "$0" "$3/bin/python"; cp "$0" "$3/bin/esper"; fi\n'
    )
    fake.chmod(0o755)
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        (tmp_path / name).write_text((ROOT / name).read_text(encoding="utf-8"))
    return tmp_path


def make(folder, *targets):
    """What `make` ran for the targets, one line a command."""
    log = folder / "log"
    log.write_text("")
    environment = {
        "PATH": f"{folder / 'tools'}:/usr/bin:/bin",
        "LOG": str(log),
        "PYTHON": str(folder / "tools/python3.11"),
    }
    subprocess.run(["make", "-C", str(folder), *targets], env=environment, check=True, capture_output=True)
    return log.read_text().splitlines()


def test_make_sets_up_once(bare_project):
    first = make(bare_project, "train")
    assert first[0] == "-m venv .venv"
    assert all("--constraint constraints.txt" in line for line in first[1:3])
    assert "torch" in first[1], "the pinned torch first: another package must not bring its own"
    assert "--editable" in first[2]
    (trains,) = first[3:]
    assert trains.startswith("train --policy tamiyo ")
    assert make(bare_project, "train") == [trains]


def test_make_sets_up_another_python_beside_the_first(bare_project):
    (bare_project / "tools" / "python3.12").write_text(
        '#!/bin/bash\nif [ "$1" = -c ]; then echo 3.12; else exec "$(dirname "$0")/python3.11" "$@"; fi\n'
    )
    (bare_project / "tools" / "python3.12").chmod(0o755)
    assert make(bare_project, "train", "PYTHON=tools/python3.12")[0] == "-m venv .venv-3.12"
    assert not (bare_project / ".venv").exists()


@pytest.mark.parametrize("name", ["pyproject.toml", "constraints.txt"])
def test_make_sets_up_again_when_requirements_change(bare_project, name):
    make(bare_project, "train")
    newer = (bare_project / ".venv" / ".installed").stat().st_mtime + 10
    os.utime(bare_project / name, (newer, newer))
    assert len(make(bare_project, "train")) == 4


def test_ci_runs_the_tests_the_linters_and_the_docs():
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    assert "set -euo pipefail" in script
    assert [line for line in script.splitlines() if line.startswith("make ")] == ["make test", "make lint", "make docs"]
    assert (ROOT / ".ci" / "run").stat().st_mode & 0o111


def test_the_workflow_makes_the_same_targets():
    workflow = (ROOT / ".github" / "workflows" / "ci.yml").read_text(encoding="utf-8")
    assert "target: [test, lint, docs]" in workflow
    assert "run: make ${{ matrix.target }}" in workflow


def test_a_digest_of_a_run_counts_every_bit_but_no_names_and_no_clocks(tmp_path):
    program = runpy.run_path(str(ROOT / "benchmarks" / "same_bits.py"))

    def digest(name, weight, metrics):
        save_file({name: torch.tensor([weight])}, tmp_path / "policy.safetensors")
        (tmp_path / "metrics.jsonl").write_text(json.dumps(metrics))
        files = ("policy.safetensors", "metrics.jsonl")
        return [program["digest"](list(program["contents"](tmp_path / file))) for file in files]

    weights, metrics = digest("told", 1.0, {"return": 1.0, "seconds": 2.0})
    assert digest("conditioning", 1.0, {"return": 1.0, "seconds": 3.0}) == [weights, metrics]
    assert weights != digest("told", 1.0 + 2**-23, {})[0]
    assert metrics != digest("told", 1.0, {"return": 1.0 + 2**-52, "seconds": 2.0})[1]
