"""Tables with named columns: CSV and Parquet, read by polars."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from esper.tasks.sources import Found, Pair, check_fits, read_bytes

if TYPE_CHECKING:
    import polars

MISSING = ["", "NA", "N/A", "NaN", "nan", "null", "NULL", "None", "?"]
"""What stands for a missing value in a CSV file."""

MOST_CATEGORIES = 100
"""A column of more different texts is not read, nor one of a third as many as rows: names, days, sentences."""

_PER_CATEGORY = 3
_RENAMED = re.compile(r"_duplicated_\d+$")  # so polars tells columns of one name apart
_SEPARATORS = ",;\t|"


def is_table(path: Path) -> bool:
    """Whether the name is that of a table."""
    return path.suffix == ".parquet" or path.name.removesuffix(".gz").endswith((".csv", ".tsv"))


def read_table(path: Path, target: str | None, limit: int) -> Found:
    """Rows ``[N, columns]`` of float64 and a column of targets.

    A number that is missing is NaN. A category is its place in the sorted list of the column's texts; one that is
    missing is −1. Rows without target, and columns that are neither numbers nor a few texts, are left out.

    Args:
        path: ``.csv``, ``.tsv`` (also ``.gz``) or ``.parquet``.
        target: Name of the column of targets; the last by default.
        limit: Bytes that the table may take.

    Raises:
        ValueError: If it cannot be read, the target is not in it, or nothing else is; without polars.
    """
    frame = _read_frame(path, limit)
    target = frame.columns[-1] if target is None else target
    if target not in frame.columns:
        raise ValueError(f"{path}: no column '{target}' (--target); there are {', '.join(frame.columns)}")
    places = frame[target].is_not_null().arg_true().to_numpy()
    known = frame[places]
    left_out = [f"{len(frame) - len(known):,} rows without '{target}'"] if len(known) < len(frame) else []
    columns, values = [], []
    for name in known.columns:
        if name == target:
            continue
        read = _read_column(known[name])
        if isinstance(read, str):
            left_out.append(f"column '{name}' ({read})")
        else:
            columns.append(read[0])
            values.append(read[1])
    if not columns or not len(known):
        raise ValueError(
            f"{path}: expected rows of numbers or categories beside the target '{target}', got {len(known)} rows and "
            f"the columns {', '.join(frame.columns)}; left out: {', '.join(left_out) or 'nothing'}"
        )
    pair = Pair(str(path), np.stack(values, 1), _targets(path, known[target]))
    return Found(
        pair,
        kind="table",
        meaning=f"target '{target}'",
        columns=columns,
        places=places,
        left_out=", ".join(left_out),
    )


def _read_column(column: polars.Series) -> tuple[dict[str, Any], np.ndarray] | str:
    """The column's description and its values; or why it is left out."""
    kind = column.dtype
    if kind.is_numeric() or str(kind) == "Boolean":
        values = column.cast(_polars().Float64).fill_null(float("nan")).to_numpy()
        return "nothing in it" if np.isnan(values).all() else ({"name": column.name, "kind": "number"}, values)
    if str(kind).split("(")[0] not in ("String", "Categorical", "Enum"):
        return f"of type {kind}"
    texts = column.cast(_polars().String)
    categories = sorted(texts.drop_nulls().unique().to_list())
    if not 0 < len(categories) <= min(MOST_CATEGORIES, max(2, len(texts) // _PER_CATEGORY)):
        return f"{len(categories):,} different texts"
    places = {text: place for place, text in enumerate(categories)}
    values = np.array([places.get(text, -1) for text in texts.to_list()], dtype=np.float64)
    return {"name": column.name, "kind": "category", "categories": categories}, values


def _targets(path: Path, column: polars.Series) -> np.ndarray:
    kind = str(column.dtype).split("(")[0]
    if column.dtype.is_numeric():
        return column.to_numpy() if kind != "Decimal" else column.cast(_polars().Float64).to_numpy()
    if kind not in ("String", "Categorical", "Enum", "Boolean"):
        raise ValueError(
            f"{path}: expected targets of numbers or texts, got '{column.name}' of type {column.dtype}; name another "
            "column (--target)"
        )
    return np.array(column.cast(_polars().String).to_list())


# ---------------------------------------------------------------------- files


def _read_frame(path: Path, limit: int) -> polars.DataFrame:
    pl = _polars()
    try:
        if path.suffix == ".parquet":
            scan = pl.scan_parquet(path)
            check_fits(str(path), 8 * int(scan.select(pl.len()).collect().item()) * len(scan.collect_schema()), limit)
            return scan.collect()
        content = read_bytes(path, limit + 1)
        check_fits(str(path), len(content), limit)
        separator = _separator(content)
        frame = pl.read_csv(io.BytesIO(content), separator=separator, null_values=MISSING, infer_schema_length=None)
    except (pl.exceptions.PolarsError, OSError) as error:
        first = str(error).splitlines()[0]
        raise ValueError(
            f"{path}: not a readable table ({first}); write it again; its first line names every column"
        ) from error
    names = [_RENAMED.sub("", name) for name in frame.columns]
    if 2 * sum(map(_is_number, names)) >= len(names) > 0 and not _are_counted(names):
        raise ValueError(
            f"{path}: expected the names of the columns in the first line, got {', '.join(names[:5])}, which look like "
            "data; put a line of names before them"
        )
    return frame


def _is_number(name: str) -> bool:
    try:
        float(name)
    except ValueError:
        return False
    return True


def _are_counted(names: Sequence[str]) -> bool:
    return any(list(names) == [str(first + place) for place in range(len(names))] for first in (0, 1))


def _separator(content: bytes) -> str:
    """What separates most columns in the first line; blanks where there is nothing else."""
    first = content.split(b"\n", 1)[0].decode(errors="replace")
    best = max(_SEPARATORS, key=first.count)
    return best if best in first else " "


def _polars() -> Any:
    try:
        import polars  # noqa: PLC0415 - an optional dependency
    except ImportError as error:
        raise ValueError("tables need one more package: pip install 'esper-lite[tables]'") from error
    return polars
