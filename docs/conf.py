"""How the site is built: ``make docs``. Nothing is downloaded, and every warning is an error."""

import importlib
import inspect
import pydoc
import sys
from types import ModuleType
from typing import Any

from docutils.nodes import Element, TextElement
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.ext.napoleon import Config, GoogleDocstring
from sphinx.pycode import ModuleAnalyzer

import esper

project = "Esper"
author = "The Esper authors"
release = version = esper.__version__

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.autosummary"]
templates_path = ["_templates"]
toc_object_entries_show_parents = "hide"

autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
maximum_signature_line_length = 90

# Pages are Markdown; those that open with `file_format: mystnb` are notebooks, and are run.
myst_heading_anchors = 4
nb_execution_mode = "force"
nb_execution_in_temp = True
nb_execution_raise_on_error = True
nb_execution_timeout = 300
nb_merge_streams = True

html_theme = "furo"
html_title = "Esper"
html_static_path = ["_static"]
html_css_files = ["esper.css"]
html_show_copyright = False
html_show_sphinx = False
html_copy_source = False

# ---------------------------------------------------------------------- the reference: what the fronts offer

FRONTS = {
    name: importlib.import_module(name)
    for name in (
        "esper",
        "esper.growth",
        "esper.network",
        "esper.observation",
        "esper.actions",
        "esper.lifecycle",
        "esper.heads",
        "esper.tasks",
        "esper.tamiyo",
        "esper.simic",
        "esper.env",
        "esper.evaluation",
        "esper.training",
        "esper.integrations.lightning",
        "esper.integrations.transformers",
    )
}


def offered(front: ModuleType) -> list[str]:
    """Names that a package offers: those of its ``__all__``; a plain module offers what it defines."""
    own = [name for name, thing in vars(front).items() if getattr(thing, "__module__", None) == front.__name__]
    return list(getattr(front, "__all__", [name for name in own if not name.startswith("_")]))


def described_in(name: str, thing: object) -> str:
    """The front whose page describes a thing; ``esper`` itself only offers again what others do."""
    for front, module in FRONTS.items():
        if front != "esper" and name in offered(module) and getattr(module, name) is thing:
            return front
    return "esper"


def documentation(name: str, thing: object) -> str:
    """The docstring of a class or function; of a constant, the string that follows it where it is defined."""
    if inspect.isclass(thing) or inspect.isfunction(thing):
        return inspect.getdoc(thing) or ""
    for module in [module for path, module in sys.modules.items() if path.partition(".")[0] == "esper"]:
        if getattr(module, name, None) is thing:
            lines = ModuleAnalyzer.for_module(module.__name__).find_attr_docs().get(("", name), [])
            if lines:
                return "\n".join(lines).strip()
    return ""


def entry(front: str, name: str) -> dict[str, str]:
    """What the template says of one name that a front offers."""
    thing = getattr(FRONTS[front], name)
    kind = "class" if inspect.isclass(thing) else "function" if inspect.isfunction(thing) else "data"
    text = documentation(name, thing)
    summary = text.split("\n\n")[0].replace("\n", " ")
    return {"name": name, "kind": kind, "summary": summary, "text": text, "front": described_in(name, thing)}


ENTRIES = {front: [entry(front, name) for name in offered(module)] for front, module in FRONTS.items()}
PLAIN_MODULES = [front for front, module in FRONTS.items() if not hasattr(module, "__all__")]
autosummary_context = {"entries": ENTRIES, "plain_modules": PLAIN_MODULES}


def where_defined(thing: object) -> str:
    """The full name that annotations give a class or a function."""
    return f"{getattr(thing, '__module__', '')}.{getattr(thing, '__qualname__', '')}"


PUBLIC = {
    where_defined(getattr(FRONTS[front], row["name"])): f"{row['front']}.{row['name']}"
    for front, rows in ENTRIES.items()
    for row in rows
    if row["kind"] != "data"
}
"""Where a thing is defined → where it is described."""


def resolve(app: Sphinx, env: BuildEnvironment, node: pending_xref, text: TextElement) -> Element | None:
    """A reference that Sphinx found no target for: a link to where the thing is described, or plain text.

    What is Esper's must exist; ``None`` makes Sphinx complain. Other libraries' names are not looked up.
    """
    target = node.get("reftarget", "")
    for defined, described in PUBLIC.items():
        if target == defined or target.startswith(f"{defined}."):
            described += target.removeprefix(defined)
            return env.domains["py"].resolve_xref(env, node["refdoc"], app.builder, "obj", described, node, text)
    known = node.get("refdomain") == "py" and (not target.startswith("esper.") or pydoc.locate(target) is not None)
    return text if known else None


def read_docstring(app: Sphinx, what: str, name: str, thing: object, options: Any, lines: list[str]) -> None:
    """Sections of a Google-style docstring become fields. That of an attribute or constant is one text."""
    if what not in ("attribute", "data", "property"):
        lines[:] = GoogleDocstring(lines, Config(), app, what, name, thing, options).lines()


def setup(app: Sphinx) -> None:
    """Called by Sphinx."""
    app.connect("missing-reference", resolve)
    app.connect("autodoc-process-docstring", read_docstring)
