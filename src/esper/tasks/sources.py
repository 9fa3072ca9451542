"""Reading one's own data from files: arrays, images and texts (tables are in ``tables``).

Sizes are checked before memory is taken: no file takes more than its reader was allowed. No file can run code: nothing
is unpickled, and images are decoded by Pillow's own readers.
"""

from __future__ import annotations

import math
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from gzip import GzipFile
from pathlib import Path
from tokenize import TokenError
from typing import Any, Literal

import numpy as np
from PIL import Image

Kind = Literal["vectors", "sequences", "images", "text", "table"]

_NPZ_KEYS = "'x' and 'y', or 'x_train', 'y_train', 'x_test', 'y_test' (and, if you like, 'x_val', 'y_val')"
_CIFAR_RECORD = 1 + 3 * 32 * 32
_IDX_TYPES = {8: ">u1", 9: ">i1", 11: ">i2", 12: ">i4", 13: ">f4", 14: ">f8"}
_IMAGE_FORMATS = {"PNG", "JPEG", "BMP", "GIF", "TIFF", "WEBP", "PPM"}
_IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm", ".pgm", ".pnm"}
_SPLITS = {"train": ("train", "training"), "val": ("val", "valid", "validation"), "test": ("test",)}


@dataclass
class Pair:
    """Rows and their targets as they came, with the name of their source for messages."""

    source: str
    x: np.ndarray
    y: np.ndarray


@dataclass
class Found:
    """What a source held."""

    train: Pair
    val: Pair | None = None
    test: Pair | None = None
    kind: Kind | None = None
    """What the rows are, where the source itself says."""
    meaning: str = ""
    """What the rows are beyond kind and shape, in words."""
    columns: list[dict[str, Any]] | None = None
    """Of a table: name, kind and categories of each column."""
    places: np.ndarray | None = None
    """Of a table: the places of the rows in the file, where some are left out."""
    left_out: str = ""
    """What was not read, and why."""

    @property
    def pairs(self) -> list[Pair]:
        """Those that there are."""
        return [pair for pair in (self.train, self.val, self.test) if pair is not None]


def check_fits(what: str, size: int, limit: int) -> None:
    """Raise ValueError when ``size`` bytes are more than ``limit``."""
    if size > limit:
        raise ValueError(
            f"{what}: expected at most {limit / 2**30:g} GiB of data, got {size / 2**30:,.2f} GiB as the file has it; "
            "give fewer rows, or allow more (--most-gigabytes)"
        )


# ---------------------------------------------------------------------- arrays


def read_npz(path: Path, limit: int) -> Found:
    """``x`` and ``y``, or those of training, test and, optionally, validation."""
    try:
        with path.open("rb") as stream, zipfile.ZipFile(stream) as archive:
            names = [name for name in archive.namelist() if name.endswith(".npy")]
            check_fits(str(path), sum(archive.getinfo(name).file_size for name in names), limit)
            arrays = {name.removesuffix(".npy"): _read_npy(archive, name) for name in names}
    except (zipfile.BadZipFile, zlib.error, EOFError, _NotPlainError, OSError, NotImplementedError) as error:
        raise ValueError(
            f"{path}: not a readable .npz file of plain arrays ({error}); write it again by numpy.savez"
        ) from error

    def pair(suffix: str) -> Pair | None:
        keys = f"x{suffix}", f"y{suffix}"
        if not any(key in arrays for key in keys):
            return None
        if not all(key in arrays for key in keys):
            raise ValueError(f"{path}: '{keys[0]}' and '{keys[1]}' belong together, got {sorted(arrays)}")
        return Pair(f"{path} ({keys[0]}, {keys[1]})", arrays[keys[0]], arrays[keys[1]])

    whole, train, val, test = pair(""), pair("_train"), pair("_val"), pair("_test")
    if whole is not None and train is None and val is None and test is None:
        return Found(whole)
    if whole is None and train is not None and test is not None:
        return Found(train, val, test)
    raise ValueError(f"{path}: expected the arrays {_NPZ_KEYS}; got {sorted(arrays) or 'none'}")


class _NotPlainError(ValueError):
    pass


def _read_npy(archive: zipfile.ZipFile, name: str) -> np.ndarray:
    """One array, once its header and the size of the member agree: NumPy allocates what the header claims."""
    size = archive.getinfo(name).file_size
    readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    try:
        with archive.open(name) as member:
            version = np.lib.format.read_magic(member)
            if version not in readers:
                raise _NotPlainError(f"{name} is of version {version}")
            shape, _, dtype = readers[version](member)
            if dtype.hasobject:
                raise _NotPlainError(f"{name} holds pickled objects")
            if member.tell() + math.prod(shape) * dtype.itemsize != size:
                raise _NotPlainError(f"{name} claims the shape {list(shape)} and has {size} bytes")
        with archive.open(name) as member:
            return np.lib.format.read_array(member, allow_pickle=False)
    except (ValueError, TokenError) as error:  # NumPy reads a header that it cannot parse as Python 2's
        raise _NotPlainError(str(error)) from error


# ---------------------------------------------------------------------- directories


def read_directory(path: Path, limit: int, image_side: int | None) -> Found:
    """IDX files, CIFAR-10 binary files, or images in a folder for each class."""
    names = sorted(entry.name for entry in path.iterdir() if entry.is_file())
    batches = [path / name for name in names if name.startswith("data_batch_") and name.endswith(".bin")]
    if batches:
        return _read_cifar(path, batches, limit)
    if any("idx" in name for name in names):
        return _read_idx_directory(path, names, limit)
    if any(entry.is_dir() and not entry.name.startswith(".") for entry in path.iterdir()):
        return _read_folders(path, limit, image_side)
    found = ", ".join(names[:5]) + (", …" if len(names) > 5 else "") if names else "no files"
    raise ValueError(
        f"{path}: expected IDX files (train-images-idx3-ubyte, train-labels-idx1-ubyte, t10k-images-idx3-ubyte, "
        f"t10k-labels-idx1-ubyte, plain or .gz), CIFAR-10 binary files (data_batch_1.bin, …, test_batch.bin) or a "
        f"folder of images for each class, found {found}; name the directory that holds them"
    )


def _read_cifar(path: Path, batches: Sequence[Path], limit: int) -> Found:
    test = path / "test_batch.bin"
    if not test.exists():
        raise FileNotFoundError(f"{path}: found {len(batches)} training batches of CIFAR-10 but no test_batch.bin")
    check_fits(str(path), sum(file.stat().st_size for file in (*batches, test)), limit)
    parts = [_read_cifar_batch(batch) for batch in batches]
    train = Pair(f"{path} (training)", np.concatenate([p.x for p in parts]), np.concatenate([p.y for p in parts]))
    return Found(train, test=_read_cifar_batch(test), kind="images")


def _read_cifar_batch(path: Path) -> Pair:
    data = np.fromfile(path, dtype=np.uint8)
    if len(data) == 0 or len(data) % _CIFAR_RECORD:
        raise ValueError(
            f"{path}: expected records of {_CIFAR_RECORD} bytes (a class and 32×32×3 pixels), got {len(data)} "
            "bytes; the file is cut off or not a CIFAR-10 binary file"
        )
    records = data.reshape(-1, _CIFAR_RECORD)
    return Pair(str(path), records[:, 1:].reshape(-1, 3, 32, 32), records[:, 0])


def _read_idx_directory(path: Path, names: Sequence[str], limit: int) -> Found:
    def read(prefixes: tuple[str, ...], content: str) -> np.ndarray:
        fitting = [name for name in names if name.startswith(prefixes) and content in name and "idx" in name]
        if not fitting:
            raise FileNotFoundError(
                f"{path}: found some IDX files but no {prefixes[0]}-{content}-idx…-ubyte (plain or .gz); all four "
                "are needed"
            )
        return _read_idx(path / fitting[0], limit)

    train = Pair(f"{path} (training)", read(("train",), "images"), read(("train",), "labels"))
    test = Pair(f"{path} (test)", read(("t10k", "test"), "images"), read(("t10k", "test"), "labels"))
    return Found(train, test=test, kind="images")


def _read_idx(path: Path, limit: int) -> np.ndarray:
    """One IDX file: two zero bytes, the type, the number of axes, the axes as big-endian 32-bit numbers, the values."""
    start = read_bytes(path, 4 + 4 * 255)
    if len(start) < 4 or start[:2] != b"\0\0" or start[2] not in _IDX_TYPES:
        raise ValueError(
            f"{path}: not an IDX file, it begins with {start[:4].hex(' ') or 'nothing'}; download it again"
        )
    kind, axes = np.dtype(_IDX_TYPES[start[2]]), start[3]
    header = 4 + 4 * axes
    shape = tuple(int(n) for n in np.frombuffer(start[4:header], dtype=">u4")) if len(start) >= header else ()
    expected = header + kind.itemsize * math.prod(shape)
    check_fits(str(path), expected, limit)
    data = read_bytes(path, expected + 1)
    if len(shape) != axes or len(data) != expected:
        got = f"got {len(data)}" if len(data) <= expected else "got more"
        raise ValueError(
            f"{path}: expected {expected} bytes for shape {list(shape)}, {got}; the file is cut off or damaged, "
            "download it again"
        )
    return np.frombuffer(data, kind, offset=header).reshape(shape).astype(kind.newbyteorder("="))


def read_bytes(path: Path, most: int) -> bytes:
    """The first bytes of a file, of its content where it is a ``.gz``: ``most`` of them or all that there are."""
    with path.open("rb") as file:
        if path.suffix != ".gz":
            return file.read(most)
        try:
            with GzipFile(fileobj=file) as content:
                return content.read(most)
        except (OSError, EOFError, zlib.error) as error:
            raise ValueError(f"{path}: not a readable gzip file ({error}); download it again") from error


# ---------------------------------------------------------------------- images in folders


def _read_folders(path: Path, limit: int, side: int | None) -> Found:
    """``path/class/image``, or ``path/train/class/image`` and ``path/test/class/image`` (and ``val``)."""
    folders = {entry.name: entry for entry in sorted(path.iterdir()) if entry.is_dir() and entry.name[0] != "."}
    splits = {s: folders[n] for s, names in _SPLITS.items() for n in names if n in folders}
    if "train" in splits and "test" in splits:
        parts = {split: _images_of(folder) for split, folder in splits.items()}
    else:
        parts = {"train": _images_of(path)}
    files = [file for part in parts.values() for file, _ in part]
    form = _form_of(path, files, side)
    check_fits(str(path), len(files) * form.size, limit)
    pairs = {split: _load_images(path, part, form) for split, part in parts.items()}
    scaled = "" if side is None else f", scaled to {side} × {side} pixels by Pillow (Image.resize)"
    meaning = f"{'grey' if form.mode == 'L' else 'RGB'}{scaled}"
    return Found(pairs["train"], pairs.get("val"), pairs.get("test"), kind="images", meaning=meaning)


@dataclass(frozen=True)
class _Form:
    mode: str
    width: int
    height: int
    scaled: bool

    @property
    def size(self) -> int:
        return self.width * self.height * len(self.mode)


def _images_of(path: Path) -> list[tuple[Path, str]]:
    """(file, class) of all images below the folders of ``path``."""
    found = []
    for folder in sorted(entry for entry in path.iterdir() if entry.is_dir() and entry.name[0] != "."):
        for file in sorted(folder.iterdir()):
            if file.suffix.lower() in _IMAGE_SUFFIXES:
                found.append((file, folder.name))
    if not found:
        raise ValueError(
            f"{path}: expected a folder of images for each class ({', '.join(sorted(_IMAGE_SUFFIXES))}), found none; "
            "name the directory that holds those folders"
        )
    return found


def _form_of(path: Path, files: Sequence[Path], side: int | None) -> _Form:
    """The one form of all images, from their headers alone."""
    sizes: dict[tuple[int, int], Path] = {}
    modes = set()
    for file in files:
        with _opened(file) as image:
            sizes.setdefault(image.size, file)
            modes.add(image.mode)
    mode = "L" if modes <= {"1", "L"} else "RGB"
    if side is not None:
        return _Form(mode, side, side, scaled=True)
    if len(sizes) > 1:
        (first, a), (second, b) = list(sizes.items())[:2]
        raise ValueError(
            f"{path}: expected images of one size, got {first[0]} × {first[1]} ({a.name}) and {second[0]} × "
            f"{second[1]} ({b.name}) among {len(sizes)} sizes; scale them with --image-side 32"
        )
    ((width, height),) = sizes
    return _Form(mode, width, height, scaled=False)


def _load_images(path: Path, part: Sequence[tuple[Path, str]], form: _Form) -> Pair:
    images = []
    for file, _ in part:
        with _opened(file) as image:
            try:
                image = image.convert(form.mode)
            except OSError as error:
                raise ValueError(f"{file}: not a readable image ({error}); write it again, or take it out") from error
            images.append(np.asarray(image.resize((form.width, form.height)) if form.scaled else image))
    return Pair(str(path), np.stack(images), np.array([name for _, name in part]))


def _opened(file: Path) -> Image.Image:
    try:
        return Image.open(file, formats=tuple(_IMAGE_FORMATS))
    except (OSError, Image.DecompressionBombError) as error:
        raise ValueError(f"{file}: not a readable image ({error}); write it again, or take it out") from error


# ---------------------------------------------------------------------- texts


def read_text(path: Path, limit: int) -> bytes:
    """A text as bytes; it must be UTF-8."""
    check_fits(str(path), path.stat().st_size, limit)
    data = path.read_bytes()
    try:
        data.decode()
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: expected a text in UTF-8, got {error}; convert it, as by iconv -t utf-8") from error
    return data
