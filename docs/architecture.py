"""Write the page and the picture of the rooms, from the imports and the docstrings of the source.

python docs/architecture.py
"""

import ast
import re
import textwrap
from collections.abc import Iterator
from itertools import accumulate, pairwise
from pathlib import Path
from statistics import mean

ROOT = Path(__file__).resolve().parent.parent
SOURCE = ROOT / "src" / "esper"
FRONT = "__init__"

Edges = dict[str, set[str]]

PAGE = """# Architecture

<!-- Made by docs/architecture.py from imports and docstrings; do not edit by hand. -->

The rooms of `src/esper` and who imports whom. Imports run one way, down the picture; a test holds it. An arrow that
follows from others is left out: what stands at the end of a way of arrows may be imported.

![The rooms of Esper, and an arrow from each to those that it imports](architecture.svg)

`esper` itself, the front, offers what most users need out of these rooms, and imports each name when it is asked for.
A room's front is its `__init__.py`: what users import stands there, and the files behind it may move.

Two names are Esper's own and stay: **Tamiyo** decides, **Simic** trains. Everything else has a plain name; the
[glossary](glossary.md) has them all.

## How a decision comes about

In *your* training loop, `Growth.step` (`growth/growth.py`) evaluates the network, measures what each undecided seed
contributes (`network/attribution.py`), puts together what is seen (`observation/`), asks the policy
(`tamiyo/policy/`), and applies its decision to the network (`network/growing_network.py`).

In the *environment*, `GrowthVectorEnv` (`env/growth_env.py`) does the same for many hosts at once; an engine
(`env/engine/`) trains them, all hosts of one structure in one autograd graph. The trainer (`simic/training/`)
collects rollouts, computes advantages (`simic/advantages.py`) and makes PPO's update (`simic/ppo.py`) on the network
of `tamiyo/networks/`, knowing nothing of growth: any Gymnasium environment will do.

{rooms}
"""


def page() -> str:
    """The page, as Markdown: every file under its room, from the lowest to the highest."""
    sections = [section(room) for layer in layers(edges()) for room in layer]
    return PAGE.format(rooms="\n\n".join(sections))


def section(room: str) -> str:
    """One room: a plain module is a line, a package a list of files."""
    if (SOURCE / f"{room}.py").is_file():
        return f"## `{room}.py`\n\n{purpose(SOURCE / f'{room}.py')}"
    files = sorted((SOURCE / room).rglob("*.py"), key=lambda path: (len(path.relative_to(SOURCE).parts), path))
    lines = [f"| `{path.relative_to(SOURCE / room)}` | {purpose(path)} |" for path in files if path != files[0]]
    table = "\n".join(["| file | holds |", "|---|---|", *lines])
    return f"## `{room}/`\n\n{purpose(files[0])}\n\n{table}"


def purpose(path: Path) -> str:
    """The first paragraph of a module's docstring, as Markdown."""
    text = (ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "").split("\n\n")[0]
    text = re.sub(r":\w+:`~?([^`]+)`", r"`\1`", text).replace("``", "`")
    return " ".join(text.split()).replace("|", r"\|")


# ---------------------------------------------------------------------- imports


def edges() -> Edges:
    """Room → the other rooms that its files import, at run time or by name."""
    found: Edges = {room: set() for room in ranks()}
    for path in SOURCE.rglob("*.py"):
        room = path.relative_to(SOURCE).with_suffix("").parts[0]
        if room != FRONT:
            found[room] |= {other for other in imported(path) if other in found} - {room}
    return found


def imported(path: Path) -> set[str]:
    """Rooms that one file imports; ``"esper.room.module:Name"`` is an import that is put off."""
    rooms = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module == "esper":
            rooms |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            rooms |= set(re.findall(r"^esper\.(\w+)", node.module or ""))
        elif isinstance(node, ast.Import):
            rooms |= {room for alias in node.names for room in re.findall(r"^esper\.(\w+)", alias.name)}
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            rooms |= set(re.findall(r"^esper\.(\w+)[\w.]*:\w+$", node.value))
    return rooms


def ranks() -> dict[str, int]:
    """The rank of every room that exists; the table stands where the rule is tested."""
    tree = ast.parse((ROOT / "tests" / "test_project.py").read_text(encoding="utf-8"))
    (table,) = [n.value for n in tree.body if isinstance(n, ast.Assign) and ast.unparse(n.targets[0]) == "RANKS"]
    exists = {path.stem for path in SOURCE.iterdir() if path.suffix == ".py" or (path / "__init__.py").is_file()}
    return {room: rank for room, rank in ast.literal_eval(table).items() if room in exists}


def layers(edges: Edges) -> list[list[str]]:
    """Rooms from the lowest layer to the highest: by rank, and within a rank above those that they import."""
    rank = ranks()

    def depth(room: str) -> int:
        return max((depth(other) + 1 for other in edges[room] if rank[other] == rank[room]), default=0)

    keys = {room: (rank[room], depth(room)) for room in edges}
    return [[room for room in edges if keys[room] == key] for key in sorted(set(keys.values()))]


def reduced(edges: Edges) -> Edges:
    """Without the arrows that follow from others."""

    def reach(room: str) -> set[str]:
        return set().union(*({other} | reach(other) for other in edges[room]))

    return {room: {o for o in to if not any(o in reach(via) for via in to)} for room, to in edges.items()}


# ---------------------------------------------------------------------- the picture

WIDTH, BOX, HEIGHT, GAP, ROW = 960, 168, 66, 20, 116
COLOURS = ("#eef1f5", "#fcebc4", "#d6eee7", "#e3f0fa", "#d5e6f5")

Way = tuple[str, ...]
"""An arrow: the room it begins at, a gap between boxes for every layer that it passes, the room it ends at."""


def picture() -> str:
    """The picture, as SVG: the highest layer at the top."""
    rows = layers(edges())[::-1]
    ways = list(ways_through(rows, reduced(edges())))
    rows = arranged(rows, ways)
    places = {name: xy for i, row in enumerate(rows) for name, xy in placed(row, 20 + ROW * i)}
    height = 20 + ROW * (len(rows) - 1) + HEIGHT + 20
    lines = [arrow([places[name] for name in way]) for way in ways]
    boxes = [box(name, *places[name]) for name in places if is_room(name)]
    return "\n".join([HEAD.format(width=WIDTH, height=height), *lines, *boxes, "</svg>"]) + "\n"


def ways_through(rows: list[list[str]], arrows: Edges) -> Iterator[Way]:
    """Every arrow with the gaps that it passes through, which are put into the rows."""
    layer = {room: i for i, row in enumerate(rows) for room in row}
    for room, others in arrows.items():
        for other in sorted(others):
            passed = range(layer[room] + 1, layer[other])
            gaps = [f"{room} to {other} in {i}" for i in passed]
            for i, gap in zip(passed, gaps, strict=True):
                rows[i].append(gap)
            yield (room, *gaps, other)


def is_room(name: str) -> bool:
    """Whether it is not a gap."""
    return " " not in name


HEAD = """<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" \
font-family="DejaVu Sans, Helvetica, Arial, sans-serif" text-anchor="middle">
  <!-- Made by docs/architecture.py; do not edit by hand. -->
  <title>The rooms of Esper</title>
  <rect width="{width}" height="{height}" rx="8" fill="#ffffff"/>
  <defs>
    <marker id="head" viewBox="0 0 10 10" refX="9" refY="5" markerWidth="7" markerHeight="7" orient="auto">
      <path d="M0 0 L10 5 L0 10 z" fill="#64748b"/>
    </marker>
  </defs>"""


def arranged(rows: list[list[str]], ways: list[Way]) -> list[list[str]]:
    """Rows in which everything stands near the middle of what it has arrows from and to."""
    pairs = [pair for way in ways for pair in pairwise(way)]
    near = {name: [a if b == name else b for a, b in pairs if name in (a, b)] for row in rows for name in row}
    rows = [sorted(row) for row in rows]
    for _ in range(12):
        for order in (rows, rows[::-1]):
            middles = {name: x for row in rows for name, (x, _) in placed(row, 0)}
            for row in order:
                row.sort(key=lambda name: (mean(middles[other] for other in near[name]) if near[name] else 0, name))
                middles |= {name: x for name, (x, _) in placed(row, 0)}
    return rows


def placed(row: list[str], y: int) -> list[tuple[str, tuple[float, float]]]:
    """Everything in a row with the upper middle of its place."""
    widths = [BOX if is_room(name) else 0 for name in row]
    left = (WIDTH - sum(widths) - GAP * (len(row) - 1)) / 2
    starts = accumulate((width + GAP for width in widths), initial=left)
    return [(name, (x + width / 2, y)) for name, x, width in zip(row, starts, widths, strict=False)]


def arrow(places: list[tuple[float, float]]) -> str:
    """From the bottom of one box through gaps to the top of another."""
    parts = []
    for (x1, top), (x2, y2) in pairwise(places):
        y1 = top + HEIGHT
        bend = (y2 - y1) / 2
        parts.append(
            f"{'L' if parts else 'M'}{x1:g} {y1:g} C{x1:g} {y1 + bend:g} {x2:g} {y2 - bend:g} {x2:g} {y2 - 1:g}"
        )
    return f'  <path d="{" ".join(parts)}" fill="none" stroke="#64748b" stroke-width="1.4" marker-end="url(#head)"/>'


def box(room: str, x: float, y: float) -> str:
    """A room: its name and what it is."""
    path = SOURCE / f"{room}.py" if (SOURCE / f"{room}.py").is_file() else SOURCE / room / "__init__.py"
    first, *rest = re.split(r"[:.;] |[.:]$", purpose(path).replace("`", ""))
    words = first if " " in first else f"{first}: {rest[0]}"
    texts = [f'<text x="{x:g}" y="{y + 21:g}" font-size="14" font-weight="bold" fill="#1e293b">{room}</text>']
    for line, text in enumerate(textwrap.wrap(words, 27)[:3]):
        texts.append(f'<text x="{x:g}" y="{y + 37 + 12 * line:g}" font-size="10.5" fill="#334155">{text}</text>')
    colour = COLOURS[min(ranks()[room], len(COLOURS) - 1)]
    shape = f'<rect x="{x - BOX / 2:g}" y="{y:g}" width="{BOX}" height="{HEIGHT}" rx="10" fill="{colour}"/>'
    return "  <g>" + shape + "".join(texts) + "</g>"


if __name__ == "__main__":
    (ROOT / "docs" / "architecture.md").write_text(page(), encoding="utf-8")
    (ROOT / "docs" / "architecture.svg").write_text(picture(), encoding="utf-8")
