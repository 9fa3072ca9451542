"""Bring your own data: arrays, tables, images, texts, torchvision-style data sets.

What ``x`` may be, and how it is read, whatever its type of number:

====================  ==========================================================================================
``[N, C]``            vectors of C features
``[N, L, C]``         sequences of L positions; with as many rows as columns, five or more, grey images instead
``[N, C, H, W]``      images; colours may also come last, ``[N, H, W, C]`` with C of 1, 3 or 4
====================  ==========================================================================================

``y`` holds one target a sample, ``[N]``. Texts are classes, and so are whole numbers of which there are few (at most a
third as many as samples, and at most a thousand); classes are numbered in sorted order. Other numbers are values to
predict. :class:`DataOptions` says otherwise where this is wrong.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from esper.tasks.prepare import draw_split, draw_three
from esper.tasks.reading import Arrange, LookUp, ReadTable, Rescale, Rows, Standardise, ToFloat32
from esper.tasks.sources import Found, Kind, Pair, read_directory, read_npz, read_text
from esper.tasks.tables import is_table, read_table
from esper.tasks.task import Splits, check_finite

_COLOURS = (1, 3, 4)
_LEAST_SIDE = 5
_MOST_CLASSES = 1000
_PER_CLASS = 3
_RARE_BELOW = 20
_EXAMPLES = 2

PATHS = (
    "a .npz file, a table (.csv, .tsv, .parquet), a text (.txt), or a directory with IDX (MNIST) or CIFAR-10 binary "
    "files or a folder of images for each class"
)
"""What can be read, for messages."""


@dataclass(frozen=True)
class DataOptions:
    """How your own data are read, where the data themselves do not say or say it wrongly.

    Raises:
        ValueError: By :meth:`check`, for numbers out of range.
    """

    target: str | None = None
    """Of a table: the column to predict [default: the last]."""
    predict: Literal["auto", "classes", "values"] = "auto"
    """What the targets are. Texts, and whole numbers of which there are few, are classes."""
    kind: Literal["auto", "vectors", "sequences", "images"] = "auto"
    """What an array holds. Three axes are sequences [N, L, C], or grey images where the last two are equal."""
    layout: Literal["auto", "channels-first", "channels-last"] = "auto"
    """Where images of four axes have their colours."""
    standardise: bool = True
    """Whether each channel gets mean 0 and variance 1 over the training rows."""
    held_out: float = 0.2
    """Share of the rows that validates, and share that tests, where the source does not say which."""
    window: int = 64
    """Of a text: bytes in a sample."""
    image_side: int | None = None
    """Side in pixels to which images in folders are scaled; without it all must be of one size."""
    most_gigabytes: float = 4.0
    """What the data may take in memory, in GiB."""

    def check(self) -> None:
        """Raise ValueError for numbers out of range."""
        if not 0 < self.held_out < 0.5:
            raise ValueError(f"--held-out is a share between 0 and 0.5, got {self.held_out}")
        for name, value in (("--window", self.window), ("--image-side", self.image_side or 1)):
            if value < 1:
                raise ValueError(f"{name} must be 1 or more, got {value}")
        if not self.most_gigabytes > 0:
            raise ValueError(f"--most-gigabytes must be above 0, got {self.most_gigabytes}")

    @property
    def said(self) -> list[str]:
        """Names of the options that are other than by default."""
        return [name for name, usual in vars(DataOptions()).items() if getattr(self, name) != usual]

    @property
    def limit(self) -> int:
        """What the data may take in memory, in bytes."""
        return int(min(self.most_gigabytes, 2**20) * 2**30)


@runtime_checkable
class SampleDataset(Protocol):
    """A torchvision-style data set: ``dataset[i]`` is (input, target); an input is a tensor, array or image."""

    def __len__(self) -> int:
        """Number of samples."""
        ...

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        """Sample ``index``: (input, target)."""
        ...


def load_data(
    source: str | os.PathLike[str] | SampleDataset,
    test: SampleDataset | None = None,
    options: DataOptions | None = None,
) -> Splits:
    """Read data into standardised splits; their ``rows`` say how, and what was inferred.

    Args:
        source: One of

            - a ``.npz`` file with the arrays ``x`` and ``y``, or ``x_train``, ``y_train``, ``x_test``, ``y_test`` and,
              optionally, ``x_val``, ``y_val``;
            - a table with named columns, ``.csv``, ``.tsv`` (also ``.gz``) or ``.parquet``: numbers and categories,
              some of which may be missing (needs the packages of ``esper-lite[tables]``);
            - a text, ``.txt``: the next byte is predicted;
            - a directory with a folder of images for each class, or with ``train`` and ``test`` (and ``val``) that hold
              such folders;
            - a directory with the four IDX files of MNIST or a set like it (``train-images-idx3-ubyte``, …), ``.gz``
              too;
            - a directory with the binary files of CIFAR-10 (``data_batch_1.bin``, …, ``test_batch.bin``);
            - a torchvision-style data set.
        test: The test set that belongs to a torchvision-style training set.
        options: How the data are read, where they do not say it themselves.

    Without validation data a fifth of the training rows is held out, without test data a fifth of all, with the same
    share of every class where there are enough of it, and always the same rows. Inputs are standardised on the training
    split, and so are values to predict.

    Raises:
        FileNotFoundError: When there is nothing at the path.
        ValueError: When what is there is of another format, corrupt, too large, holds NaN (but for tables), one class
            only, or too little.
    """
    options = options or DataOptions()
    options.check()
    if isinstance(source, str | os.PathLike):
        if test is not None:
            raise ValueError("'test' belongs to a data set object; a file or directory holds its own test data")
        path = Path(source)
        _refuse_unused(path, options)
        if _is_text(path):
            return _text_splits(path, options)
        return _to_splits(_read_path(path, options), options)
    if isinstance(source, SampleDataset):
        kind: Kind | None = "images" if len(source) and isinstance(source[0][0], Image.Image) else None
        found = Found(_read_dataset(source), test=test if test is None else _read_dataset(test), kind=kind)
        return _to_splits(found, options)
    raise ValueError(
        f"expected a path or a data set with __len__ and __getitem__, got {type(source).__name__}; for arrays in "
        "memory, use torch.utils.data.TensorDataset or save them by numpy.savez"
    )


def _is_text(path: Path) -> bool:
    return path.suffix == ".txt" and path.is_file()


def _refuse_unused(path: Path, options: DataOptions) -> None:
    """An option that says nothing about such data would be ignored."""
    use = {
        "target": (is_table(path), "names a column of a table (.csv, .tsv, .parquet)"),
        "window": (_is_text(path), "is the length of a sample of a text (.txt)"),
        "image_side": (path.is_dir(), "is that of images in folders"),
    }
    if _is_text(path):
        use |= dict.fromkeys(("predict", "kind", "layout", "standardise"), (False, "is not for a text, which is bytes"))
    for name, (used, told) in use.items():
        if path.exists() and not used and name in options.said:
            raise ValueError(f"{path}: --{name.replace('_', '-')} {told}; leave it out")


def _read_path(path: Path, options: DataOptions) -> Found:
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist; expected {PATHS}")
    if path.is_dir():
        return read_directory(path, options.limit, options.image_side)
    if path.suffix == ".npz":
        return read_npz(path, options.limit)
    if is_table(path):
        return read_table(path, options.target, options.limit)
    raise ValueError(
        f"{path}: expected {PATHS}, got a file of another kind; save arrays by numpy.savez(path, x=x, y=y), and for "
        "IDX or CIFAR-10 binary files name the directory that holds them"
    )


def _read_dataset(dataset: SampleDataset) -> Pair:
    source = type(dataset).__name__
    if len(dataset) == 0:
        raise ValueError(f"{source}: the data set is empty")
    inputs, targets = [], []
    for index in range(len(dataset)):
        sample = dataset[index]
        if not isinstance(sample, tuple | list) or len(sample) != 2:
            raise ValueError(f"{source}[{index}]: expected a pair (input, target), got {type(sample).__name__}")
        inputs.append(np.asarray(sample[0]))
        targets.append(np.asarray(sample[1]))
        if inputs[-1].shape != inputs[0].shape:
            raise ValueError(
                f"{source}[{index}]: expected inputs of one shape, {list(inputs[0].shape)}, got "
                f"{list(inputs[-1].shape)}; resize them in the data set's transform"
            )
    return Pair(source, np.stack(inputs), np.stack(targets))


# ---------------------------------------------------------------------- from pairs to splits


def _to_splits(found: Found, options: DataOptions) -> Splits:
    for pair in found.pairs:
        _check_pair(pair, gaps=found.kind == "table")
    targets = _targets(found, options)
    try:
        places = _draw_missing_splits(found, targets.y, options.held_out)
    except ValueError as error:
        raise ValueError(f"{found.train.source}: {error}") from error
    drawn = {"train": found.train, "val": found.val or found.train, "test": found.test or found.train}
    numbered = dict(zip((id(pair) for pair in found.pairs), targets.y, strict=True))
    raw = {split: torch.from_numpy(pair.x[places.get(split, slice(None))]) for split, pair in drawn.items()}
    y = {split: numbered[id(pair)][places.get(split, slice(None))] for split, pair in drawn.items()}
    read, meaning, notes = _reader(found, raw["train"], options)
    x = {split: read(rows) for split, rows in raw.items()}
    answer: nn.Module = nn.Identity()
    if targets.classes is None:
        answer = Rescale(torch.from_numpy(y["train"]))
        y = {split: (values - float(answer.mean)) / float(answer.std) for split, values in y.items()}
    dtype = torch.int64 if targets.classes is not None else torch.float32
    ys = {split: torch.from_numpy(np.asarray(values)).to(dtype) for split, values in y.items()}
    notes |= {"answers": targets.note, "splits": _splits_note(found, ys, options)}
    if found.left_out:
        notes["left out"] = found.left_out
    rows = Rows(
        read=read,
        example=raw["train"][:_EXAMPLES].clone(),
        meaning=meaning,
        columns=found.columns,
        answer=answer,
        classes=targets.classes,
        notes=notes,
        drawn={s: found.places[p].tolist() if found.places is not None else p.tolist() for s, p in places.items()},
    )
    return Splits(x["train"], ys["train"], x["val"], ys["val"], x["test"], ys["test"], rows)


def _draw_missing_splits(found: Found, y: Sequence[np.ndarray], share: float) -> dict[str, np.ndarray]:
    """Split → places of its rows in the pair that it is drawn from; nothing for a split that was given."""
    if found.test is None:
        assert found.val is None, "validation data come with test data"
        return dict(zip(("train", "val", "test"), draw_three(y[0], share, share), strict=True))
    if found.val is None:
        return dict(zip(("train", "val"), draw_split(y[0], share), strict=True))
    return {}


def _splits_note(found: Found, y: dict[str, Tensor], options: DataOptions) -> str:
    train, val, test = (len(values) for values in y.values())
    how = (
        "as given" if found.val is not None else "validation drawn from training" if found.test is not None else "drawn"
    )
    option = "" if found.val is not None else f" (--held-out {options.held_out:g})"
    return f"{train:,} rows to train, {val:,} to validate, {test:,} to test, {how}{option}"


def _check_pair(pair: Pair, gaps: bool) -> None:
    for name, array in (("inputs", pair.x), ("targets", pair.y)):
        if array.dtype == object or array.dtype.kind in "cmMV":
            raise ValueError(f"{pair.source}: expected {name} of plain numbers, got an array of type {array.dtype}")
    if pair.x.dtype.kind in "US":
        raise ValueError(f"{pair.source}: expected inputs of plain numbers, got text; encode it as numbers first")
    if pair.y.ndim == 2 and pair.y.shape[1] == 1:
        pair.y = pair.y[:, 0]
    if pair.y.ndim != 1:
        raise ValueError(
            f"{pair.source}: expected one target a sample, [N], got targets of shape {list(pair.y.shape)}; turn "
            "one-hot rows into classes with y.argmax(1)"
        )
    if pair.x.ndim == 0 or len(pair.x) != len(pair.y) or len(pair.y) == 0:
        raise ValueError(
            f"{pair.source}: expected as many targets as inputs, at least one, got inputs of shape "
            f"{list(pair.x.shape)} and {len(pair.y)} targets"
        )
    if pair.y.dtype.kind == "f" and not np.isfinite(pair.y).all():
        wrong = pair.y[~np.isfinite(pair.y)][0]
        raise ValueError(f"{pair.source}: expected classes or finite values, got the target {wrong}; drop those rows")
    pair.x = _plain(pair.x)
    with np.errstate(over="ignore"):
        checked = np.nan_to_num(pair.x, posinf=np.inf, neginf=-np.inf) if gaps else pair.x
        if checked.dtype.kind == "f":
            check_finite(f"{pair.source}, inputs", torch.from_numpy(np.atleast_2d(checked.astype(np.float32))))


def _plain(x: np.ndarray) -> np.ndarray:
    """The same numbers in a type that PyTorch and ONNX compute with."""
    wider = {"u2": np.int32, "u4": np.int64, "u8": np.float64, "f16": np.float64}
    kind = x.dtype.str[1:]
    return np.ascontiguousarray(x, wider.get(kind, x.dtype.newbyteorder("=")))


# ---------------------------------------------------------------------- targets


@dataclass(frozen=True)
class _Targets:
    y: list[np.ndarray]
    """Of each pair: numbers of classes, or values."""
    classes: list[Any] | None
    note: str


def _targets(found: Found, options: DataOptions) -> _Targets:
    train = found.train.y
    classes = np.unique(train)
    few = len(classes) <= min(_MOST_CLASSES, max(2, len(train) // _PER_CLASS))
    whole = train.dtype.kind in "USbiu" or bool((train == np.round(train)).all())
    if options.predict == "values" or (options.predict == "auto" and train.dtype.kind in "iuf" and not (whole and few)):
        return _values(found)
    if not whole:
        wrong = train[train != np.round(train)][0]
        raise ValueError(
            f"{found.train.source}: expected classes, got the target {wrong}; leave out --predict classes, or cut the "
            "values into classes"
        )
    if len(classes) < 2:
        raise ValueError(
            f"{found.train.source}: all {len(train)} training targets are of one class, {classes[0]!r}; a task needs "
            "two or more"
        )
    names = classes.tolist() if classes.dtype.kind != "f" else classes.astype(np.int64).tolist()
    shown = ", ".join(map(str, names)) if len(names) <= 6 else f"{names[0]}, {names[1]}, …, {names[-1]}"
    option = " (--predict values takes them as numbers)" if classes.dtype.kind in "iuf" else ""
    return _Targets([_number(pair, classes) for pair in found.pairs], names, f"{len(names)} classes, {shown}{option}")


def _values(found: Found) -> _Targets:
    for pair in found.pairs:
        if pair.y.dtype.kind not in "biuf":
            raise ValueError(
                f"{pair.source}: expected values, got the target {pair.y[0]!r}; leave out --predict values, or name "
                "another column (--target)"
            )
    y = [pair.y.astype(np.float64) for pair in found.pairs]
    if len(np.unique(y[0])) < 2:
        raise ValueError(f"{found.train.source}: all {len(y[0])} training targets are {y[0][0]:g}; nothing to predict")
    note = f"values from {y[0].min():g} to {y[0].max():g} (--predict classes takes whole numbers as classes)"
    return _Targets(y, None, note)


def _number(pair: Pair, classes: np.ndarray) -> np.ndarray:
    unseen = np.setdiff1d(pair.y, classes)
    if len(unseen):
        raise ValueError(
            f"{pair.source}: {len(unseen)} class(es), such as {unseen[0]!r}, are not among the training targets; move "
            "samples of them into the training data, or leave them out"
        )
    return np.searchsorted(classes, pair.y)


# ---------------------------------------------------------------------- rows


def _reader(found: Found, train: Tensor, options: DataOptions) -> tuple[nn.Module, str, dict[str, str]]:
    """What reads rows of this form, what a row is in words, and what was inferred."""
    if found.kind == "table":
        first, meaning, note = _table_reader(found, train)
    else:
        first, meaning, note = _array_reader(found, options)
    shapes = {tuple(pair.x.shape[1:]) for pair in found.pairs}
    if len(shapes) > 1:
        raise ValueError(f"{found.train.source}: expected rows of one shape in all splits, got {sorted(shapes)}")
    if options.standardise:
        scaled = "each channel with mean 0 and variance 1 over the training rows (--no-standardise)"
        return nn.Sequential(first, Standardise(first(train))), meaning, {"rows": note, "normalisation": scaled}
    return nn.Sequential(first, ToFloat32()), meaning, {"rows": note, "normalisation": "none (--standardise)"}


def _table_reader(found: Found, train: Tensor) -> tuple[nn.Module, str, str]:
    columns = found.columns or []
    numbers = [place for place, column in enumerate(columns) if column["kind"] == "number"]
    categories = {p: len(c["categories"]) for p, c in enumerate(columns) if c["kind"] == "category"}
    names = ", ".join(f"{column['name']} ({column['kind']})" for column in columns)
    meaning = (
        "a number for each column: of a category its place in the list of categories, −1 for one that is missing or "
        "not in the list; NaN for a number that is missing"
    )
    return (
        ReadTable(numbers, categories, train),
        meaning,
        f"{len(columns)} columns, {names}; {found.meaning} (--target)",
    )


def _array_reader(found: Found, options: DataOptions) -> tuple[nn.Module, str, str]:
    x = found.train.x
    kind, why = _kind_of(found, options)
    form = " × ".join(map(str, x.shape[1:]))
    layout, says = "as they are", f"{kind}, {form} of {x.dtype}{why}"
    if kind == "vectors" and x.ndim > 2:
        layout = "flat"
    elif kind == "images" and x.ndim == 3:
        layout = "grey"
    elif kind == "images":
        last = x.shape[-1] in _COLOURS and x.shape[1] not in _COLOURS
        if (last and options.layout == "auto") or options.layout == "channels-last":
            layout = "channels last"
        where, other = ("last", "channels-first") if layout == "channels last" else ("first", "channels-last")
        says += f", colours {where} (--layout {other} otherwise)"
    axes = {"vectors": "[N, C]", "sequences": "[N, L, C]", "images": "[N, C, H, W]"}[kind]
    axes = {"flat": "flattened to [N, C]", "grey": "[N, H, W]", "channels last": "[N, H, W, C]"}.get(layout, axes)
    extra = f", {found.meaning}" if found.meaning else ""
    return Arrange(layout, _computed_in(x)), f"{kind} {axes}{extra}", says + extra


def _kind_of(found: Found, options: DataOptions) -> tuple[str, str]:
    """What the rows are, and why where that was inferred."""
    x = found.train.x
    fitting = {2: ("vectors",), 3: ("sequences", "images", "vectors"), 4: ("images", "vectors")}.get(x.ndim, ())
    if not fitting or 0 in x.shape:
        raise ValueError(
            f"{found.train.source}: expected vectors [N, C], sequences [N, L, C] or images [N, C, H, W], got inputs of "
            f"shape {list(x.shape)}; reshape them"
        )
    if options.kind != "auto":
        if options.kind not in fitting:
            raise ValueError(
                f"{found.train.source}: --kind {options.kind} does not fit inputs of shape {list(x.shape)}, which can "
                f"be {' or '.join(fitting)}"
            )
        return options.kind, ""
    if found.kind is not None or x.ndim != 3:
        return found.kind or fitting[0], ""
    if x.shape[1] == x.shape[2] >= _LEAST_SIDE:
        return "images", " (as many rows as columns: grey images; --kind sequences otherwise)"
    return "sequences", " (--kind images otherwise)"


def _computed_in(x: np.ndarray) -> torch.dtype:
    """In which type normalisation computes: float32 holds what has 16 bits, and itself."""
    return torch.float32 if x.dtype.itemsize <= 2 or x.dtype == np.float32 else torch.float64


# ---------------------------------------------------------------------- texts


def _text_splits(path: Path, options: DataOptions) -> Splits:
    """Windows of a text and, as targets, the bytes that follow each; the splits are consecutive stretches."""
    data = np.frombuffer(read_text(path, options.limit), np.uint8)
    count, length = (len(data) - 1) // options.window, options.window
    held = round(options.held_out * count)
    if held < 1 or count < 3:
        raise ValueError(
            f"{path}: expected a text of at least {5 * length + 1:,} bytes, five samples of {length}, got "
            f"{len(data):,}; give more, or a smaller --window"
        )
    rows, following = data[: count * length].reshape(count, length), data[1 : count * length + 1].reshape(count, length)
    train = count - 2 * held
    tokens, classes = _vocabulary(following[:train])
    read = LookUp(torch.from_numpy(tokens))
    stretches = [slice(0, train), slice(train, train + held), slice(train + held, count)]
    pairs = [(read(torch.from_numpy(rows[s].copy())), torch.from_numpy(tokens[following[s]])) for s in stretches]
    notes = {
        "rows": f"a text in stretches of {length} bytes of UTF-8 (--window)",
        "answers": f"the byte that follows each: {len(classes)} classes; those rare in training are one",
        "splits": f"{train:,} rows to train, {held:,} to validate, {held:,} to test, consecutive "
        f"(--held-out {options.held_out:g})",
    }
    described = Rows(
        read=read,
        example=torch.from_numpy(rows[:_EXAMPLES].copy()),
        meaning="bytes of a text in UTF-8; an answer at a position sees that byte and those before it",
        classes=classes,
        notes=notes,
        drawn={n: list(range(count))[s] for n, s in zip(("train", "val", "test"), stretches, strict=True)},
    )
    (train_x, train_y), (val_x, val_y), (test_x, test_y) = pairs
    return Splits(train_x, train_y, val_x, val_y, test_x, test_y, described)


def _vocabulary(training: np.ndarray) -> tuple[np.ndarray, list[Any]]:
    """Byte → token ``[256]``, and token → byte; token 0 stands for all bytes that are rare in training."""
    counts = np.bincount(training.ravel(), minlength=256)
    common = np.flatnonzero(counts >= _RARE_BELOW)
    if counts[common].sum() == counts.sum() and len(common):  # something must be an example of what is rare
        common = np.delete(common, counts[common].argmin())
    tokens = np.zeros(256, np.int64)
    tokens[common] = np.arange(1, len(common) + 1)
    return tokens, ["rare", *common.tolist()]
