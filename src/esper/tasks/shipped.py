"""Texts, tables and drawings that ship with the package, each pinned by the checksum of its content."""

from __future__ import annotations

import hashlib
import lzma
from importlib import resources

import numpy as np

SHIPPED: dict[str, str] = {
    "help.txt": "212d1173a735a468e81f9b93a9f4b6b55c0a0180738e15672031a409b2d65f57",
    "inspect.py.txt": "c47e2243617d472c9a2dc9372ce2b683bc14a065fc7c78a406092be79c109a15",
    "library.py.txt": "5c2744d6ed3c630b2c8949678377b4e50bac031f4f52869a8f40a9c7de9c1de8",
    "glyphs.bits": "5da12ae7b91e37de609b9e56fb4dcb8d73797b2500e099e61586efc40bbb806e",
    "letter.csv": "8ff8ec650859678e78cf6c4c4cf5063a5fdf39b5b938bc0c1406116d1e23f4fa",
    "penbased.csv": "9ac9d8f2eb12f8717e9f580e27d5f790bd5405273af276a8a231912c255c276b",
    "satimage.csv": "3639b8f78ce8c57e3639105fe1fc2f777fd0b812b165f008454659c3c62d7ad4",
    "splice.csv": "a75101ad5f94c47a3ce84a8340c7594fb0e5e46b61e34ebeee9e88d21b430389",
}
"""SHA-256 of each file's content, before compression. ``data/README.md`` has their sources and licences."""


def read_bytes(name: str) -> bytes:
    """The content of a shipped file.

    Raises:
        ValueError: When it is not the content that the published scores were measured on.
    """
    content = lzma.decompress((resources.files("esper.tasks") / "data" / f"{name}.xz").read_bytes())
    found = hashlib.sha256(content).hexdigest()
    if found != SHIPPED[name]:
        raise ValueError(
            f"the shipped file '{name}' has the checksum {found}, expected {SHIPPED[name]}; it was changed after "
            "installation: install esper-lite again"
        )
    return content


def read_text(name: str) -> str:
    """The content of a shipped text file."""
    return read_bytes(name).decode("utf-8")


def read_table(name: str) -> tuple[np.ndarray, np.ndarray]:
    """Rows of a shipped table as strings ``[N, C]``, and the last column, their classes ``[N]``; equal rows once."""
    rows = np.array([line.split(",") for line in read_text(name).splitlines()])
    _, first = np.unique(rows[:, :-1], axis=0, return_index=True)
    rows = rows[np.sort(first)]
    return rows[:, :-1], rows[:, -1]
