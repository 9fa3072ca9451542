"""Modules of the user's own that register what is theirs: imported by ``--import``, and by every worker process.

A blueprint, task (data and host), objective or policy is registered where it is defined; the command line knows it
once its module has been imported. The directory in which the command is called is looked in, too, as with
``python -m``.
"""

from __future__ import annotations

import importlib
import os
import sys
import traceback
from collections.abc import Sequence
from typing import Any

_VARIABLE = "ESPER_IMPORTED"
"""Environment variable by which worker processes know the modules."""


def import_modules(modules: Sequence[str]) -> None:
    """Import ``modules``, here and in every worker process that is started from now on.

    Raises:
        ValueError: For a module that is not there or that fails; the message says which, and at which line.
    """
    for module in modules:
        _import(module)
    if modules:
        known = dict.fromkeys([*known_modules(), *modules])
        os.environ[_VARIABLE] = ",".join(known)


def look_here() -> None:
    """Let modules be found in the directory in which the command is called, as with ``python -m``."""
    if "" not in sys.path:
        sys.path.append("")


def look_up(reference: str) -> Any:
    """What ``module:name`` names.

    Raises:
        ValueError: For a module that is not there or that fails, or one without such a name.
    """
    module, _, name = reference.partition(":")
    found = _import(module)
    if not hasattr(found, name):
        raise ValueError(f"'{reference}': the module {module} ({found.__file__}) has no '{name}'")
    return getattr(found, name)


def known_modules() -> list[str]:
    """The modules that have been imported so, here or by the parent of this process."""
    return [name for name in os.environ.get(_VARIABLE, "").split(",") if name]


def _import(module: str) -> Any:
    look_here()
    if not module:
        raise ValueError("--import takes the name of a module, as in `import`, got none")
    if module.endswith(".py"):
        raise ValueError(f"expected the name of a module, as in `import`, got the file '{module}'; say {module[:-3]!r}")
    try:
        return importlib.import_module(module)
    except Exception as error:
        last = traceback.extract_tb(error.__traceback__)[-1]
        where = "" if last.filename.startswith("<frozen") else f" ({last.filename}, line {last.lineno})"
        raise ValueError(f"importing '{module}' failed{where}: {type(error).__name__}: {error}") from error
