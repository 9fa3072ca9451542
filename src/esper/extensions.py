"""Modules of the user's own that register what is theirs: imported by ``--import``, and by every worker process.

A blueprint, task (data and host), host, objective or policy is registered where it is defined; the command line knows
it once its module has been imported. The directory in which the command is called is looked in, too, as with
``python -m``.
"""

from __future__ import annotations

import difflib
import importlib
import os
import sys
import traceback
from collections.abc import Sequence
from operator import attrgetter
from typing import Any, TypeVar

_VARIABLE = "ESPER_IMPORTED"
"""Environment variable by which worker processes know the modules."""


_T = TypeVar("_T")


class Registry(dict[str, _T]):
    """What can be asked for by name, in one of the ways in which Esper is extended.

    Args:
        kinds: What it holds, in the plural: ``tasks``.
        kind: The same in the singular; by default without the last letter.
    """

    def __init__(self, kinds: str, kind: str | None = None) -> None:
        super().__init__()
        self.kinds = kinds
        self.kind = kind or kinds[:-1]

    def register(self, name: str, thing: _T) -> None:
        """Make a class or function available under a name.

        One that was defined under the same name in the same module takes the place of the former, as when a cell of a
        notebook runs again.

        Raises:
            ValueError: If the name is taken by another.
        """
        if name in self and _definition(self[name]) != _definition(thing):
            module, qualified = _definition(self[name])
            raise ValueError(
                f"the name '{name}' is taken among {self.kinds}, by {qualified} of {module}; choose another name"
            )
        self[name] = thing

    def unknown(self, name: str, otherwise: str) -> ValueError:
        """The error for a name that is not here, with those that come nearest; ``otherwise``: what one could give."""
        near = difflib.get_close_matches(name, self, cutoff=0.5)
        hint = f"did you mean {' or '.join(map(repr, near))}? " if near else ""
        known = f"{self.kinds}: {', '.join(self)}; or" if self else f"no {self.kind} is registered;"
        return ValueError(f"unknown {self.kind} '{name}'; {hint}{known} {otherwise}")


def _definition(thing: object) -> tuple[str, str]:
    """Where a class or function was defined, and under which name."""
    named = thing if hasattr(thing, "__qualname__") else type(thing)
    return str(getattr(named, "__module__", "")), str(getattr(named, "__qualname__", ""))


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
    try:
        return attrgetter(name)(found)
    except AttributeError as error:
        where = getattr(found, "__file__", "built in")
        raise ValueError(f"'{reference}': the module {module} ({where}) has no '{name}'") from error


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
