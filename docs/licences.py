"""Print the page of licences: what Esper is installed with, as the packages themselves declare it.

python docs/licences.py > docs/licences.md
"""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, metadata
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parent.parent

HEAD = """# Licences of what Esper is installed with

Every package that `make install` installs (`constraints.txt`: Esper's own dependencies, its extras, what these need)
with the licence that it declares. Made by `python docs/licences.py`; nothing of these packages is copied into Esper.
What Esper itself ships under another licence than its own is in `LICENSE` and beside the data.

| package | version | licence |
|---|---|---|
"""


def licence(name: str) -> str:
    """What a package declares, in one line."""
    described = metadata(name)
    if expression := described.get("License-Expression"):
        return expression
    classifiers = [line for line in described.get_all("Classifier") or [] if line.startswith("License ::")]
    classified = [line.split("::")[-1].strip() for line in classifiers]
    said = (described.get("License") or "").strip().splitlines()[:1]
    return ", ".join(classified) or "".join(said) or "not declared; see the package"


def page() -> str:
    """The page."""
    rows = []
    for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines():
        if line and not line.startswith("#"):
            pin = Requirement(line)
            try:
                rows.append(f"| {pin.name} | {str(pin.specifier).removeprefix('==')} | {licence(pin.name)} |")
            except PackageNotFoundError as error:
                raise SystemExit(f"{pin.name} is not installed here; run `make install` first") from error
    return HEAD + "\n".join(rows) + "\n"


if __name__ == "__main__":
    print(page(), end="")
