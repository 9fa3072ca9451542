"""Pages in HTML that are one file, without scripts, with nothing loaded from elsewhere; views of notebooks, too.

A page is made of sections, each a string of HTML that the functions of this module give; what they are given is text,
and no part of it becomes HTML.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path

from esper.files import written_whole

# All rules stand inside .esper, so that they leave the rest of a notebook alone.
CSS = """
.esper { --text: #1F2933; --quiet: #52606D; --line: #E4E7EB; --back: #FFFFFF; --tint: #F2F4F7; --link: #0B5FA5;
  --mark: #E3F0FA; --good: #1F7A63; --bad: #B42318; --open: #8F5B00; --none: #52606D; color-scheme: light;
  font: 16px/1.5 system-ui, sans-serif; color: var(--text); background: var(--back); overflow-wrap: anywhere;
  box-sizing: border-box; margin: 0; padding: 1rem max(1rem, calc((100% - 84rem) / 2));
  p, dl, h3, figcaption { max-width: 66rem; }
  h1 { line-height: 1.2; } h2 { margin-top: 2.4rem; border-bottom: 1px solid var(--line); padding-bottom: .3rem; }
  table { border-collapse: collapse; font-size: .88rem; color: inherit; }
  th, td { padding: .3rem .7rem; text-align: left; vertical-align: top; border-bottom: 1px solid var(--line); }
  th { color: var(--quiet); font-weight: 600; vertical-align: bottom; } .number { text-align: right; }
  tr { background: none; } tr.marked { background: var(--mark); font-weight: 600; }
  .scroll { overflow-x: auto; margin: .8rem 0 1.4rem; } .scroll table { overflow-wrap: normal; }
  .scroll td:not(:last-child), .scroll td.number { white-space: nowrap; }
  .scroll td:last-child:not(.number) { min-width: 14rem; }
  .scroll img { min-width: 40rem; } img { max-width: 100%; background: white; border-radius: .3rem; }
  .charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(22rem, 100%), 1fr)); gap: 1rem; }
  figure { margin: 1rem 0 2rem; } figure .scroll { margin: 0 0 .5rem; }
  .charts figure { margin: 0; } .charts img { width: 100%; }
  dl { display: grid; grid-template-columns: fit-content(16rem) 1fr; gap: .3rem 1.2rem; } dd { margin: 0; }
  dt { color: var(--quiet); } pre { font-size: .82rem; white-space: pre-wrap; background: var(--tint);
    color: inherit; padding: .6rem .8rem; }
  .verdict { font-size: 1.15rem; border-left: .4rem solid var(--none); padding: .5rem 1rem; background: var(--tint); }
  .verdict.good { border-color: var(--good); } .verdict.bad { border-color: var(--bad); }
  .verdict.open { border-color: var(--open); }
  .badge { border-radius: .3rem; padding: .1rem .5rem; font-size: .85rem; font-weight: 600; color: white;
    background: var(--none); white-space: nowrap; }
  .badge.good { background: var(--good); } .badge.bad { background: var(--bad); }
  .badge.open { background: var(--open); }
  .muted, figcaption { color: var(--quiet); font-size: .9rem; font-weight: normal; }
  summary { cursor: pointer; color: var(--link); }
  @media (max-width: 40rem) { dl { grid-template-columns: 1fr; } dd { margin-bottom: .5rem; } }
}
@media (prefers-color-scheme: dark) { .esper { --text: #E4E7EB; --quiet: #A9B4C0; --line: #3A4552; --back: #14181D;
  --tint: #20262E; --link: #7CBBF0; --mark: #1D3A52; color-scheme: dark; } .esper .verdict { border-color: #A9B4C0; } }
"""


def page(title: str, *sections: str) -> str:
    """A whole page of sections."""
    head = f"<meta charset=utf-8><meta name=viewport content='width=device-width'><style>{CSS}</style>"
    body = f"<h1>{escape(title)}</h1>{''.join(sections)}"
    return (
        f"<!doctype html><html lang=en><head>{head}<title>{escape(title)}</title></head>"
        f"<body class=esper>{body}</body></html>\n"
    )


def view(*sections: str) -> str:
    """Sections as a part of another page, such as a notebook, whose looks they neither take on nor change."""
    return f"<style>{CSS}</style><div class=esper>{''.join(sections)}</div>"


def write(file: Path, html: str) -> None:
    """Write a page, whole or not at all."""
    with written_whole(file) as unfinished:
        unfinished.write_text(html, encoding="utf-8")


def note(text: str) -> str:
    """A paragraph of small print."""
    return f"<p class=muted>{escape(text)}</p>"


def verdict(text: str, kind: str = "") -> str:
    """What it all came to; ``kind`` is ``good``, ``bad``, ``open``, or nothing where nothing was found."""
    return f"<p class='verdict {kind}'>{escape(text)}</p>"


def badge(text: str, kind: str = "") -> str:
    """A word in colour, as :func:`verdict` has them."""
    return f"<span class='badge {kind}'>{escape(text)}</span>"


def facts(entries: Mapping[str, str]) -> str:
    """A list of label and text."""
    return "<dl>" + "".join(f"<dt>{escape(k)}</dt><dd>{escape(v)}</dd>" for k, v in entries.items()) + "</dl>"


def fold(label: str, html: str) -> str:
    """Sections to be opened where one wants to know."""
    return f"<details><summary>{escape(label)}</summary>{html}</details>"


def table(
    head: Sequence[str], rows: Iterable[Sequence[str]], numbers: Sequence[str] = (), marked: str | None = None
) -> str:
    """A table of texts; what is wider than the page can be pushed aside.

    Args:
        head: Headings.
        rows: Texts, as many in each row as there are headings.
        numbers: Headings of columns that stand at the right.
        marked: Rows that begin with this stand out.
    """
    kinds = [" class=number" if name in numbers else "" for name in head]
    line = lambda tag, texts: "".join(  # noqa: E731
        f"<{tag}{kind}>{escape(text)}</{tag}>" for kind, text in zip(kinds, texts, strict=True)
    )
    lines = "".join(f"<tr{' class=marked' if row[0] == marked else ''}>{line('td', row)}</tr>" for row in rows)
    return f"<div class=scroll><table><tr>{line('th', head)}</tr>{lines}</table></div>"


def picture(image: bytes, caption: str) -> str:
    """An SVG or a PNG in the page, as a picture in which nothing can run."""
    kind = "png" if image.startswith(b"\x89PNG") else "svg+xml"
    return f"<img alt='{escape(caption)}' src='data:image/{kind};base64,{base64.b64encode(image).decode()}'>"


def figure(image: bytes, caption: str) -> str:
    """A picture with its caption below; on a narrow page it stays legible and can be pushed aside."""
    shown = picture(image, caption)
    return f"<figure><div class=scroll>{shown}</div><figcaption>{escape(caption)}</figcaption></figure>"
