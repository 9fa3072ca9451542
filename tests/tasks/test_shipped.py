"""Texts and tables that ship with the package."""

from importlib import resources

import numpy as np
import pytest

from esper.tasks import shipped
from esper.tasks.shipped import SHIPPED, read_bytes, read_table, read_text

DATA = resources.files("esper.tasks") / "data"


@pytest.mark.parametrize("name", SHIPPED)
def test_a_file_is_what_its_checksum_says_and_has_a_source_and_a_licence(name):
    assert read_bytes(name)
    row = next(line for line in (DATA / "README.md").read_text(encoding="utf-8").splitlines() if f"`{name}`" in line)
    assert row.endswith(("| PSF |", "| CC BY 4.0 |", "| those of the fonts, see below |"))


def test_every_file_has_a_checksum():
    assert {path.name.removesuffix(".xz") for path in DATA.iterdir() if path.name.endswith(".xz")} == set(SHIPPED)


def test_other_content_is_refused(monkeypatch):
    monkeypatch.setitem(shipped.SHIPPED, "splice.csv", "0" * 64)
    with pytest.raises(
        ValueError, match=r"'splice.csv' has the checksum a75101.*expected 0000.*install esper-lite again"
    ):
        read_text("splice.csv")


def test_a_table_holds_equal_rows_once_in_their_order():
    x, y = read_table("letter.csv")
    lines = [",".join((*row, label)) for row, label in zip(x, y, strict=True)]
    assert len(np.unique(x, axis=0)) == len(x) < 20_000
    whole = read_text("letter.csv").splitlines()
    assert lines[:3] == whole[:3]
    assert set(lines) <= set(whole)
