"""What the README, the docs and the examples show is run, as it stands there."""

import re
import runpy
from pathlib import Path

import pytest

from esper.tasks import TASKS

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))


def python_blocks(page):
    return re.findall(r"^```python\n(.*?)^```", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize("page", [p for p in PAGES if python_blocks(p)], ids=lambda p: p.name)
def test_the_code_of_a_page_runs_from_top_to_bottom(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tasks = dict(TASKS)
    namespace: dict[str, object] = {"__name__": "__main__"}
    try:
        for block in python_blocks(page):
            exec(compile(block, str(page), "exec"), namespace)
    finally:
        # A page's own task leaves with the page, and so does its run: in a measured batch it keeps the process from
        # compiling.
        TASKS.clear()
        TASKS.update(tasks)
        namespace.clear()


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_to_files_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text(encoding="utf-8")):
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
