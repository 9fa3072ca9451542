"""Bring your own data: ``.npz`` files, directories of IDX or CIFAR-10 binary files, torchvision-style data sets.

What ``x`` may be, and how it is read:

====================  ==========================================================================
``[N, C]``            vectors of C features
``[N, L, C]``         sequences of L positions; 8-bit integers (``uint8``) are grey images instead
``[N, C, H, W]``      images; colours may also come last, ``[N, H, W, C]`` with C of 1, 3 or 4
====================  ==========================================================================

``y`` holds one class a sample, ``[N]``: integers or strings; classes are numbered in sorted order.
"""

from __future__ import annotations

import gzip
import os
import zipfile
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch

from esper.tasks.prepare import draw_split, make_splits, split_in_three
from esper.tasks.task import Splits, check_finite

HELD_OUT = 0.2
"""Share of the samples that becomes validation data, and test data, where the source does not say."""

_NPZ_KEYS = "'x' and 'y', or 'x_train', 'y_train', 'x_test', 'y_test' (and, if you like, 'x_val', 'y_val')"
_COLOURS = (1, 3, 4)
_CIFAR_RECORD = 1 + 3 * 32 * 32
_IDX_TYPES = {8: ">u1", 9: ">i1", 11: ">i2", 12: ">i4", 13: ">f4", 14: ">f8"}


@runtime_checkable
class SampleDataset(Protocol):
    """A torchvision-style data set: ``dataset[i]`` is (input, class); an input is a tensor, array or image."""

    def __len__(self) -> int:
        """Number of samples."""
        ...

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        """Sample ``index``: (input, class)."""
        ...


@dataclass
class _Pair:
    """Inputs and classes as they came, with the name of their source for messages."""

    source: str
    x: np.ndarray
    y: np.ndarray


def load_data(source: str | os.PathLike[str] | SampleDataset, test: SampleDataset | None = None) -> Splits:
    """Read data into standardised splits.

    Args:
        source: One of

            - a ``.npz`` file with the arrays ``x`` and ``y``, or ``x_train``, ``y_train``, ``x_test``, ``y_test`` and,
              optionally, ``x_val``, ``y_val``;
            - a directory with the four IDX files of MNIST or a set like it (``train-images-idx3-ubyte``, …), ``.gz``
              too;
            - a directory with the binary files of CIFAR-10 (``data_batch_1.bin``, …, ``test_batch.bin``);
            - a torchvision-style data set.
        test: The test set that belongs to a torchvision-style training set.

    Without validation data a fifth of the training samples is held out, without test data a fifth of all, with the same
    share of every class and always the same samples. Inputs are standardised on the training split.

    Raises:
        FileNotFoundError: When there is nothing at the path.
        ValueError: When what is there is of another format, corrupt, holds NaN, one class only, or too little.
    """
    if isinstance(source, str | os.PathLike):
        if test is not None:
            raise ValueError("'test' belongs to a data set object; a file or directory holds its own test data")
        return _to_splits(*_read_path(Path(source)))
    if isinstance(source, SampleDataset):
        return _to_splits(_read_dataset(source), None, test if test is None else _read_dataset(test))
    raise ValueError(
        f"expected a path or a data set with __len__ and __getitem__, got {type(source).__name__}; for arrays in "
        "memory, use torch.utils.data.TensorDataset or save them by numpy.savez"
    )


# ---------------------------------------------------------------------- from pairs to splits


def _to_splits(train: _Pair, val: _Pair | None, test: _Pair | None) -> Splits:
    given = [pair for pair in (train, val, test) if pair is not None]
    for pair in given:
        _check_pair(pair)
    classes = _classes_of(train)
    for pair in given:
        pair.x, pair.y = _arrange(pair), _number(pair, classes)
    try:
        return _draw_missing_splits(train, val, test)
    except ValueError as error:
        raise ValueError(f"{train.source}: {error}") from error


def _draw_missing_splits(train: _Pair, val: _Pair | None, test: _Pair | None) -> Splits:
    if test is None:
        assert val is None, "validation data come with test data"
        return split_in_three(train.x, train.y, HELD_OUT, HELD_OUT)
    if val is None:
        kept, held_out = draw_split(train.y, HELD_OUT)
        val = _Pair(train.source, train.x[held_out], train.y[held_out])
        train = _Pair(train.source, train.x[kept], train.y[kept])
    return make_splits(train.x, train.y, val.x, val.y, test.x, test.y)


def _check_pair(pair: _Pair) -> None:
    for name, array in (("inputs", pair.x), ("targets", pair.y)):
        if array.dtype == object or array.dtype.kind in "cmMV":
            raise ValueError(f"{pair.source}: expected {name} of plain numbers, got an array of type {array.dtype}")
    if pair.x.dtype.kind in "US":
        raise ValueError(f"{pair.source}: expected inputs of plain numbers, got text; encode it as numbers first")
    if pair.y.ndim == 2 and pair.y.shape[1] == 1:
        pair.y = pair.y[:, 0]
    if pair.y.ndim != 1:
        raise ValueError(
            f"{pair.source}: expected one class a sample, [N], got targets of shape {list(pair.y.shape)}; turn one-hot "
            "rows into classes with y.argmax(1)"
        )
    if pair.x.ndim == 0 or len(pair.x) != len(pair.y) or len(pair.y) == 0:
        raise ValueError(
            f"{pair.source}: expected as many targets as inputs, at least one, got inputs of shape "
            f"{list(pair.x.shape)} and {len(pair.y)} targets"
        )
    if pair.y.dtype.kind == "f" and not (np.isfinite(pair.y) & (pair.y == np.round(pair.y))).all():
        wrong = pair.y[~(np.isfinite(pair.y) & (pair.y == np.round(pair.y)))]
        raise ValueError(
            f"{pair.source}: expected classes, got the target {wrong[0]}; Esper's tasks are classifications: cut "
            "the values into classes"
        )
    with np.errstate(over="ignore"):
        pair.x = pair.x if pair.x.dtype == np.uint8 else pair.x.astype(np.float32)
    check_finite(f"{pair.source}, inputs", torch.from_numpy(np.atleast_2d(pair.x)))


def _classes_of(train: _Pair) -> np.ndarray:
    classes = np.unique(train.y)
    if len(classes) < 2:
        raise ValueError(
            f"{train.source}: all {len(train.y)} training targets are of one class, {classes[0]!r}; a task needs "
            "two or more"
        )
    return classes


def _number(pair: _Pair, classes: np.ndarray) -> np.ndarray:
    unseen = np.setdiff1d(pair.y, classes)
    if len(unseen):
        raise ValueError(
            f"{pair.source}: {len(unseen)} class(es), such as {unseen[0]!r}, are not among the training targets; move "
            "samples of them into the training data, or leave them out"
        )
    return np.searchsorted(classes, pair.y)


def _arrange(pair: _Pair) -> np.ndarray:
    """Inputs as ``[N, C]``, ``[N, L, C]`` or ``[N, C, H, W]``."""
    x = pair.x
    if x.ndim == 3 and x.dtype == np.uint8:
        x = x[:, None]
    elif x.ndim == 4 and x.shape[-1] in _COLOURS and x.shape[1] not in _COLOURS:
        x = x.transpose(0, 3, 1, 2)
    if x.ndim not in (2, 3, 4) or 0 in x.shape:
        raise ValueError(
            f"{pair.source}: expected vectors [N, C], sequences [N, L, C] or images [N, C, H, W], got inputs of shape "
            f"{list(pair.x.shape)}; reshape them"
        )
    return np.ascontiguousarray(x)


# ---------------------------------------------------------------------- data set objects


def _read_dataset(dataset: SampleDataset) -> _Pair:
    source = type(dataset).__name__
    if len(dataset) == 0:
        raise ValueError(f"{source}: the data set is empty")
    inputs, targets = [], []
    for index in range(len(dataset)):
        sample = dataset[index]
        if not isinstance(sample, tuple | list) or len(sample) != 2:
            raise ValueError(f"{source}[{index}]: expected a pair (input, class), got {type(sample).__name__}")
        inputs.append(np.asarray(sample[0]))
        targets.append(np.asarray(sample[1]))
        if inputs[-1].shape != inputs[0].shape:
            raise ValueError(
                f"{source}[{index}]: expected inputs of one shape, {list(inputs[0].shape)}, got "
                f"{list(inputs[-1].shape)}; resize them in the data set's transform"
            )
    return _Pair(source, np.stack(inputs), np.stack(targets))


# ---------------------------------------------------------------------- files


def _read_path(path: Path) -> tuple[_Pair, _Pair | None, _Pair | None]:
    if not path.exists():
        raise FileNotFoundError(
            f"{path} does not exist; expected a .npz file, or a directory with IDX (MNIST) or CIFAR-10 binary files"
        )
    if path.is_dir():
        return _read_directory(path)
    if path.suffix == ".npz":
        return _read_npz(path)
    raise ValueError(
        f"{path}: expected a .npz file or a directory, got a file of another kind; save arrays by numpy.savez(path, "
        "x=x, y=y), and for IDX or CIFAR-10 binary files name the directory that holds them"
    )


def _read_npz(path: Path) -> tuple[_Pair, _Pair | None, _Pair | None]:
    try:
        with path.open("rb") as stream, zipfile.ZipFile(stream) as archive:
            names = [name for name in archive.namelist() if name.endswith(".npy")]
            arrays = {name.removesuffix(".npy"): _read_npy(archive, name) for name in names}
    except (zipfile.BadZipFile, zlib.error, EOFError, ValueError, OSError) as error:
        raise ValueError(
            f"{path}: not a readable .npz file of plain arrays ({error}); write it again by numpy.savez"
        ) from error

    def pair(suffix: str) -> _Pair | None:
        keys = f"x{suffix}", f"y{suffix}"
        if not any(key in arrays for key in keys):
            return None
        if not all(key in arrays for key in keys):
            raise ValueError(f"{path}: '{keys[0]}' and '{keys[1]}' belong together, got {sorted(arrays)}")
        return _Pair(f"{path} ({keys[0]}, {keys[1]})", arrays[keys[0]], arrays[keys[1]])

    whole, train, val, test = pair(""), pair("_train"), pair("_val"), pair("_test")
    if whole is not None and train is None and val is None and test is None:
        return whole, None, None
    if whole is None and train is not None and test is not None:
        return train, val, test
    raise ValueError(f"{path}: expected the arrays {_NPZ_KEYS}; got {sorted(arrays) or 'none'}")


def _read_npy(archive: zipfile.ZipFile, name: str) -> np.ndarray:
    with archive.open(name) as member:
        return np.lib.format.read_array(member, allow_pickle=False)


def _read_directory(path: Path) -> tuple[_Pair, None, _Pair]:
    names = sorted(entry.name for entry in path.iterdir() if entry.is_file())
    batches = [path / name for name in names if name.startswith("data_batch_") and name.endswith(".bin")]
    if batches:
        return _read_cifar(path, batches)
    if any("idx" in name for name in names):
        return _read_idx_directory(path, names)
    found = ", ".join(names[:5]) + (", …" if len(names) > 5 else "") if names else "no files"
    raise ValueError(
        f"{path}: expected IDX files (train-images-idx3-ubyte, train-labels-idx1-ubyte, t10k-images-idx3-ubyte, "
        f"t10k-labels-idx1-ubyte, plain or .gz) or CIFAR-10 binary files (data_batch_1.bin, …, test_batch.bin), found "
        f"{found}; name the directory that holds them"
    )


def _read_cifar(path: Path, batches: Sequence[Path]) -> tuple[_Pair, None, _Pair]:
    test = path / "test_batch.bin"
    if not test.exists():
        raise FileNotFoundError(f"{path}: found {len(batches)} training batches of CIFAR-10 but no test_batch.bin")
    parts = [_read_cifar_batch(batch) for batch in batches]
    train = _Pair(f"{path} (training)", np.concatenate([p.x for p in parts]), np.concatenate([p.y for p in parts]))
    return train, None, _read_cifar_batch(test)


def _read_cifar_batch(path: Path) -> _Pair:
    data = np.fromfile(path, dtype=np.uint8)
    if len(data) == 0 or len(data) % _CIFAR_RECORD:
        raise ValueError(
            f"{path}: expected records of {_CIFAR_RECORD} bytes (a class and 32×32×3 pixels), got {len(data)} "
            "bytes; the file is cut off or not a CIFAR-10 binary file"
        )
    records = data.reshape(-1, _CIFAR_RECORD)
    return _Pair(str(path), records[:, 1:].reshape(-1, 3, 32, 32), records[:, 0])


def _read_idx_directory(path: Path, names: Sequence[str]) -> tuple[_Pair, None, _Pair]:
    def read(prefixes: tuple[str, ...], content: str) -> np.ndarray:
        fitting = [name for name in names if name.startswith(prefixes) and content in name and "idx" in name]
        if not fitting:
            raise FileNotFoundError(
                f"{path}: found some IDX files but no {prefixes[0]}-{content}-idx…-ubyte (plain or .gz); all four "
                "are needed"
            )
        return _read_idx(path / fitting[0])

    train = _Pair(f"{path} (training)", read(("train",), "images"), read(("train",), "labels"))
    return train, None, _Pair(f"{path} (test)", read(("t10k", "test"), "images"), read(("t10k", "test"), "labels"))


def _read_idx(path: Path) -> np.ndarray:
    """One IDX file: two zero bytes, the type, the number of axes, the axes as big-endian 32-bit numbers, the values."""
    reader: Callable[[Path], bytes] = _read_gzip if path.suffix == ".gz" else Path.read_bytes
    data = reader(path)
    if len(data) < 4 or data[:2] != b"\0\0" or data[2] not in _IDX_TYPES:
        raise ValueError(f"{path}: not an IDX file, it begins with {data[:4].hex(' ') or 'nothing'}; download it again")
    kind, axes = np.dtype(_IDX_TYPES[data[2]]), data[3]
    header = 4 + 4 * axes
    shape = tuple(int(n) for n in np.frombuffer(data[4:header], dtype=">u4")) if len(data) >= header else ()
    expected = header + kind.itemsize * int(np.prod(shape, dtype=np.int64))
    if len(shape) != axes or len(data) != expected:
        raise ValueError(
            f"{path}: expected {expected} bytes for shape {list(shape)}, got {len(data)}; the file is cut off, "
            "download it again"
        )
    return np.frombuffer(data, kind, offset=header).reshape(shape).astype(kind.newbyteorder("="))


def _read_gzip(path: Path) -> bytes:
    try:
        return gzip.decompress(path.read_bytes())
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"{path}: not a readable gzip file ({error}); download it again") from error
