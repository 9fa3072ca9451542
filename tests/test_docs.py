"""What the README, the docs and the examples show is run, as it stands there; what is derived is up to date."""

import ast
import importlib
import importlib.util
import re
import runpy
from pathlib import Path

import pytest

import esper
from esper.actions import own_blueprints
from esper.env.reward import OBJECTIVES
from esper.network.blueprints import unregister_blueprint
from esper.tasks import TASKS

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))


def python_blocks(page):
    """Code that is shown as code, and cells that the site runs, too."""
    fences = r"^```(?:python|{code-cell} python)\n(.*?)^```"
    return re.findall(fences, page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize("page", [p for p in PAGES if python_blocks(p)], ids=lambda p: p.name)
def test_the_code_of_a_page_runs_from_top_to_bottom(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tasks, objectives = dict(TASKS), set(OBJECTIVES)
    namespace: dict[str, object] = {"__name__": "__main__"}
    try:
        for block in python_blocks(page):
            exec(compile(block, str(page), "exec"), namespace)
    finally:
        # A page's own task, blueprints and objectives leave with the page, and so does its run: in a measured batch it
        # keeps the process from compiling.
        for name in own_blueprints():
            unregister_blueprint(name)
        for name in OBJECTIVES.keys() - objectives:
            del OBJECTIVES[name]
        TASKS.clear()
        TASKS.update(tasks)
        namespace.clear()


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_to_files_lead_somewhere(page):
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", text):
        if "://" not in target:
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


@pytest.mark.filterwarnings("ignore")  # Lightning and transformers warn of their own deprecations
@pytest.mark.parametrize("example", EXAMPLES, ids=lambda p: p.name)
def test_an_example_runs(example, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    runpy.run_path(str(example), run_name="__main__")


def test_the_page_on_the_mathematics_shows_what_its_experiment_prints():
    page = (ROOT / "docs" / "mathematics.md").read_text(encoding="utf-8")
    shown = re.search(r"```text\n(.*?)```", page, re.DOTALL).group(1).strip().splitlines()
    rows = runpy.run_path(str(ROOT / "examples" / "op_baseline.py"))["main"]()
    assert [line[:18].strip() for line in shown] == list(rows)
    for line, gradient in zip(shown, rows.values(), strict=True):
        assert [float(number) for number in line[18:].split()] == pytest.approx(gradient, abs=1e-4)


def test_the_page_of_the_observation_is_that_of_its_table():
    page = runpy.run_path(str(ROOT / "docs" / "observation.py"))["page"]()
    assert (ROOT / "docs" / "observation.md").read_text(encoding="utf-8") == page, (
        "run: python docs/observation.py > docs/observation.md"
    )


def test_the_map_of_the_rooms_is_that_of_the_source():
    program = runpy.run_path(str(ROOT / "docs" / "architecture.py"))
    for name, made in (("architecture.md", program["page"]()), ("architecture.svg", program["picture"]())):
        assert (ROOT / "docs" / name).read_text(encoding="utf-8") == made, "run: python docs/architecture.py"


def test_an_arrow_is_left_out_only_if_it_follows_from_others():
    program = runpy.run_path(str(ROOT / "docs" / "architecture.py"))
    assert program["reduced"]({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == {"a": {"b"}, "b": {"c"}, "c": set()}


# ---------------------------------------------------------------------- imports

MODULES = {"esper.actions", "esper.heads", "esper.lifecycle", "esper.training"}
EXTRAS = {"esper.integrations.lightning", "esper.integrations.transformers"}


def is_front(path):
    """``esper``, a package directly below it, a module that is public itself, or one that needs an extra."""
    spec = importlib.util.find_spec(path)
    is_room = spec is not None and spec.submodule_search_locations is not None and path.count(".") < 2
    return is_room or path in MODULES | EXTRAS


def shown_imports():
    """(where, module, name) of everything that pages and examples import from Esper."""
    code = [(page, block) for page in PAGES for block in python_blocks(page)]
    code += [(path, path.read_text(encoding="utf-8")) for path in EXAMPLES]
    for path, text in code:
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.ImportFrom):
                yield from ((path.name, node.module, alias.name) for alias in node.names)
            elif isinstance(node, ast.Import):
                yield from ((path.name, alias.name, None) for alias in node.names)


@pytest.mark.parametrize(
    ("where", "module", "name"), [row for row in shown_imports() if row[1].split(".")[0] == "esper"]
)
def test_what_is_shown_is_imported_from_a_front(where, module, name):
    assert is_front(module), f"{where}: {module} is no front; import from esper, or from a package directly below it"
    offered = getattr(importlib.import_module(module), "__all__", [name])
    assert name is None or name in offered or is_front(f"{module}.{name}"), f"{where}: {module} does not offer {name}"


# ---------------------------------------------------------------------- words


@pytest.mark.parametrize("path", [*PAGES, *EXAMPLES], ids=lambda p: p.name)
def test_pages_use_the_words_of_the_glossary(path):
    if path.name == "glossary.md":
        return
    found = re.findall(
        r"\b(?:teach\w*|taught|loud\w*|decid\w+ for good)\b", path.read_text(encoding="utf-8"), re.IGNORECASE
    )
    assert found == [], "docs/glossary.md has better words"


def test_the_table_of_everyday_changes_names_files_and_what_is_in_them():
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| [^|]+ \| `([^`]+)` \| `([^`]+)` \|$", text, re.MULTILINE)
    assert len(rows) == 10
    for file, symbol in rows:
        assert symbol in (ROOT / file).read_text(encoding="utf-8"), f"{file} has no {symbol}"


def test_the_citation_and_the_changelog_are_of_this_version():
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    version, date = re.search(r"^## \[(\d[^]]*)\] - (\S+)$", changelog, re.MULTILINE).groups()
    assert version == esper.__version__
    assert f"version: {version}\ndate-released: {date}\n" in citation


def test_the_page_of_the_tasks_is_that_of_their_registry():
    page = runpy.run_path(str(ROOT / "docs" / "tasks.py"))["page"]()
    assert (ROOT / "docs" / "tasks.md").read_text(encoding="utf-8") == page, "run: python docs/tasks.py > docs/tasks.md"
