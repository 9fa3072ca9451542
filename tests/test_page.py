"""One kit makes every page and every view of a notebook: text stays text, and a view changes nothing around it."""

from __future__ import annotations

import re

import pytest

from esper.page import CSS, badge, facts, figure, fold, note, page, table, verdict, view, write

EVIL = "<script>alert('1')</script>"
PNG = b"\x89PNG\r\n"


def test_what_is_text_stays_text():
    parts = [
        facts({EVIL: EVIL}),
        table([EVIL, "b"], [[EVIL, EVIL]]),
        figure(b"<svg/>", EVIL),
        fold(EVIL, ""),
        *(made(EVIL) for made in (badge, note, verdict)),
    ]
    for html in (*parts, page(EVIL, *parts)):
        assert "<script" not in html
        assert "alert(&#x27;1&#x27;)" in html


def test_a_view_styles_nothing_outside_of_itself():
    rules = re.sub(r"\{(?:[^{}]|\{(?:[^{}]|\{[^{}]*\})*\})*\}", "{}", CSS.replace("\n", " "))
    assert [rule.strip() for rule in rules.split("{}")] == [".esper", "@media (prefers-color-scheme: dark)", ""]
    assert view(note("a")).startswith("<style>")
    assert "<body" not in view(note("a"))
    assert re.search(r"dark\) \{ (\.esper[^{]*\{[^}]*\} )+\}", CSS.replace("\n", " "))


def test_pictures_are_told_apart():
    assert "data:image/png;" in figure(PNG, "")
    assert "data:image/svg+xml;" in figure(b"<?xml", "")


def test_one_row_stands_out_and_every_row_has_every_column():
    html = table(["a", "b"], [["x", "1"], ["y", "2"]], numbers=["b"], marked="y")
    assert html.count("<tr class=marked>") == 1
    assert "<tr class=marked><td>y</td><td class=number>2</td></tr>" in html
    with pytest.raises(ValueError, match="zip"):
        table(["a", "b"], [["x"]])


def test_a_page_is_written_in_unicode(tmp_path):
    write(tmp_path / "page.html", page("−½"))
    assert (tmp_path / "page.html").read_text(encoding="utf-8").count("−½") == 2
