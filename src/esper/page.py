"""Pages in HTML that are one file: no scripts, nothing loaded from elsewhere."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping, Sequence
from html import escape

CSS = """
:root { color-scheme: light; }
body { font: 16px/1.5 system-ui, sans-serif; color: #1F2933; background: white; max-width: 70rem; margin: 2rem auto;
  padding: 0 1rem; overflow-wrap: anywhere; }
h1 { line-height: 1.2; } h2 { margin-top: 2.4rem; border-bottom: 1px solid #E4E7EB; padding-bottom: .3rem; }
table { border-collapse: collapse; font-size: .88rem; }
th, td { padding: .3rem .7rem; text-align: left; vertical-align: top; border-bottom: 1px solid #E4E7EB; }
th { color: #52606D; font-weight: 600; } td.number, th.number { text-align: right; }
.scroll { overflow-x: auto; margin: .8rem 0 1.4rem; } .scroll img { min-width: 40rem; width: 100%; }
.scroll table { overflow-wrap: normal; } .scroll td:not(:last-child) { white-space: nowrap; }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(22rem, 100%), 1fr)); gap: 1rem; }
.charts figure { margin: 0; } .charts img { width: 100%; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .3rem 1.2rem; } dd { margin: 0; }
dt { color: #52606D; }
@media (max-width: 40rem) { dl { grid-template-columns: 1fr; } dd { margin-bottom: .5rem; } }
.verdict { font-size: 1.15rem; border-left: .4rem solid #6B7785; padding: .5rem 1rem; background: #F6F7F9; }
.good { border-color: #1F7A63; } .bad { border-color: #B42318; } .open { border-color: #B7791F; }
.muted { color: #6B7785; font-size: .9rem; } summary { cursor: pointer; color: #0B5FA5; }
pre { font-size: .82rem; white-space: pre-wrap; background: #F6F7F9; padding: .6rem .8rem; }
"""


def page(title: str, *sections: str) -> str:
    """A whole page of sections that are HTML already."""
    head = f"<meta charset=utf-8><meta name=viewport content='width=device-width'><style>{CSS}</style>"
    body = f"<h1>{escape(title)}</h1>{''.join(sections)}"
    return f"<!doctype html><html lang=en><head>{head}<title>{escape(title)}</title></head><body>{body}</body></html>\n"


def facts(entries: Mapping[str, str]) -> str:
    """A list of label and text."""
    return "<dl>" + "".join(f"<dt>{escape(k)}</dt><dd>{escape(v)}</dd>" for k, v in entries.items()) + "</dl>"


def table(head: Sequence[str], rows: Iterable[Sequence[str]], numbers: Sequence[str] = ()) -> str:
    """A table of texts; columns in ``numbers`` stand at the right. What is wider than the page can be pushed aside."""
    kinds = [" class=number" if name in numbers else "" for name in head]
    line = lambda tag, texts: "".join(  # noqa: E731
        f"<{tag}{kind}>{escape(text)}</{tag}>" for kind, text in zip(kinds, texts, strict=True)
    )
    lines = "".join(f"<tr>{line('td', row)}</tr>" for row in rows)
    return f"<div class=scroll><table><tr>{line('th', head)}</tr>{lines}</table></div>"


def picture(svg: bytes, caption: str) -> str:
    """An SVG in the page, as a picture in which nothing can run."""
    data = base64.b64encode(svg).decode()
    return f"<img alt='{escape(caption)}' src='data:image/svg+xml;base64,{data}'>"
