"""Files that are either whole or not there, and that are read with care.

Whatever Esper writes by itself goes through here: a file is synced to disk before it takes its place. What holds
tensors is a safetensors file with a description as JSON in its header, of a named format, with version and checksum
(:class:`Format`). Reading runs no code; what does not fit is refused in a sentence that names file and field.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import os
import socket
import types
import typing
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, Union

import numpy as np
import torch
import typeguard
from filelock import FileLock, Timeout
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

T = TypeVar("T")

_UNSEALED = "0" * 64
"""Stands for the checksum while it is computed."""

_LOCK = ".lock"
_OWNER = ".owner"

_HELD: set[Path] = set()
"""Directories that this process holds."""


# ------------------------------------------------------------------------------------------- writing


@contextmanager
def written_whole(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A place to write a file to, beside ``path`` and with its suffix; after the block it is moved to ``path``.

    A reader, or a crash of the process or the machine, never sees half a file: if the block raises, what was at
    ``path`` is still there, and the new one is on disk before it takes its place. The directory is made where it is
    missing.

    Raises:
        OSError: When it cannot be written (no space, no permission, a directory that is gone).

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "note.txt"
        >>> with written_whole(path) as unfinished:
        ...     _ = unfinished.write_text("whole")
        ...     assert not path.exists()
        >>> path.read_text(), len(list(path.parent.iterdir()))
        ('whole', 1)
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{os.getpid()}.{path.name}")
    try:
        yield unfinished
        sync(unfinished)
        os.replace(unfinished, path)
        sync(path.parent)
    finally:
        unfinished.unlink(missing_ok=True)


def sync(path: Path) -> None:
    """Wait until a file, or the list of names in a directory, is on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def locked(directory: str | os.PathLike[str]) -> Iterator[None]:
    """Hold a directory against other processes; it is let go at the end of the block, or of the process.

    The directory is made where it is missing. The lock is on the file ``.lock`` in it, which may stay, and is let go
    when its process ends, however that ended; ``.owner`` says who holds it. Who holds a directory may hold it again.

    Raises:
        ValueError: When another process holds it; the message names the process.
        OSError: When the directory cannot be written.
    """
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    place = directory.resolve()
    if place in _HELD:
        yield
        return
    owner = directory / _OWNER
    lock = FileLock(directory / _LOCK, timeout=0)
    try:
        lock.acquire()
    except Timeout as error:
        holder = owner.read_text(encoding="utf-8").strip() if owner.is_file() else "another process"
        raise ValueError(
            f"'{directory}' is being written by {holder}; wait for its end, or choose another directory"
        ) from error
    try:
        owner.write_text(f"process {os.getpid()} on {socket.gethostname()}\n", encoding="utf-8")
        _HELD.add(place)
        yield
    finally:
        _HELD.discard(place)
        owner.unlink(missing_ok=True)
        lock.release()


def is_unused(directory: Path) -> bool:
    """Whether a directory is missing, or holds nothing but a lock."""
    return not directory.exists() or all(entry.name in (_LOCK, _OWNER) for entry in directory.iterdir())


def write_json_atomic(path: str | os.PathLike[str], data: Any) -> None:
    """Write ``data`` as indented JSON, whole or not at all.

    JSON has no NaN and no infinity: they are written as ``null``. NumPy scalars and arrays, paths and tuples are
    written as numbers, lists and strings.

    Raises:
        TypeError: For data that has no form in JSON.
        OSError: When it cannot be written.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "result.json"
        >>> write_json_atomic(path, {"score": np.float32(0.5), "loss": math.nan})
        >>> read_json(path)
        {'score': 0.5, 'loss': None}
    """
    text = json.dumps(_plain(data), indent=2, allow_nan=False) + "\n"
    with written_whole(path) as unfinished:
        unfinished.write_text(text, encoding="utf-8")


def _plain(value: Any) -> Any:
    if isinstance(value, np.ndarray | np.generic):
        value = value.tolist()
    if isinstance(value, dict):
        return {str(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


# ------------------------------------------------------------------------------------------- reading


def read_json(path: str | os.PathLike[str]) -> Any:
    """What a JSON file says.

    Raises:
        OSError: When it cannot be read.
        ValueError: When it is not JSON; the message names the file.
    """
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"'{path}' is damaged, or not JSON: {error}") from error


def from_plain(kind: type[T], data: Any, source: str | os.PathLike[str], field: str = "") -> T:
    """A dataclass from plain JSON data; a field that is not there keeps its default.

    Lists become tuples and strings become paths where the type of the field says so; a type that is no dataclass and
    has ``from_json`` is made by it.

    Args:
        kind: The dataclass.
        data: Field → value.
        source: Where ``data`` was read, for the message.
        field: The field that ``data`` is the value of, for the message.

    Raises:
        ValueError: For what does not fit; the message names ``source`` and the field.

    Example:
        >>> @dataclass
        ... class Size:
        ...     width: int
        ...     height: int = 1
        >>> from_plain(Size, {"width": 2}, "size.json")
        Size(width=2, height=1)
        >>> from_plain(Size, {"width": "2"}, "size.json")
        Traceback (most recent call last):
        ValueError: 'size.json': field 'width': expected int, got '2'
    """
    if not isinstance(data, dict):
        raise ValueError(f"'{source}': {_named(field)}expected the fields of a {kind.__name__}, got {_short(data)}")
    hints = typing.get_type_hints(kind)
    known = {f.name: f for f in dataclasses.fields(kind) if f.init}  # type: ignore[arg-type]
    inside = f"{field}." if field else ""
    for name in data:
        if name not in known:
            raise ValueError(
                f"'{source}': field '{inside}{name}' is unknown to this version of Esper; expected some of "
                f"{', '.join(known)}"
            )
    for name, entry in known.items():
        has_default = entry.default is not dataclasses.MISSING or entry.default_factory is not dataclasses.MISSING
        if name not in data and not has_default:
            raise ValueError(f"'{source}': field '{inside}{name}' is missing")
    values = {name: _converted(value, hints[name], source, f"{inside}{name}") for name, value in data.items()}
    try:
        return kind(**values)
    except (TypeError, ValueError) as error:
        raise ValueError(f"'{source}': {_named(field)}{error}") from error


def _converted(value: Any, hint: Any, source: str | os.PathLike[str], field: str) -> Any:
    """``value`` as the type that ``hint`` names."""
    if dataclasses.is_dataclass(hint):
        return from_plain(typing.cast(type, hint), value, source, field)
    if hasattr(hint, "from_json"):
        try:
            return hint.from_json(value)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ValueError(f"'{source}': field '{field}': {error!s}") from error
    value = _shaped(value, hint, source, field)
    try:
        return typeguard.check_type(value, hint, collection_check_strategy=typeguard.CollectionCheckStrategy.ALL_ITEMS)
    except typeguard.TypeCheckError as error:
        expected = getattr(hint, "__name__", None) if isinstance(hint, type) else None
        raise ValueError(
            f"'{source}': field '{field}': expected {expected or str(hint).replace('typing.', '')}, got {_short(value)}"
        ) from error


def _shaped(value: Any, hint: Any, source: str | os.PathLike[str], field: str) -> Any:
    """Plain data in the containers that ``hint`` names."""
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if hint is Path and isinstance(value, str):
        return Path(value)
    if origin in (Union, types.UnionType):
        options = [option for option in inner if option is not type(None)]
        return value if value is None or len(options) > 1 else _converted(value, options[0], source, field)
    if origin is tuple and isinstance(value, list):
        kinds = inner[:1] * len(value) if inner[-1] is Ellipsis else inner
        if len(kinds) == len(value):
            return tuple(_converted(v, k, source, field) for v, k in zip(value, kinds, strict=True))
    if origin is list and isinstance(value, list):
        return [_converted(v, inner[0], source, field) for v in value]
    if isinstance(origin, type) and issubclass(origin, Mapping) and isinstance(value, dict):
        return {key: _converted(v, inner[1], source, f"{field}.{key}") for key, v in value.items()}
    return value


def _named(field: str) -> str:
    return f"field '{field}': " if field else ""


def _short(value: Any) -> str:
    shown = repr(value)
    return shown if len(shown) <= 60 else shown[:57] + "..."


# ------------------------------------------------------------------------------------------- tensors and a description


@dataclass(frozen=True)
class Format:
    """A kind of file that holds tensors and their description.

    The file is a safetensors file, its description JSON in the header, with the version of the format and a SHA-256 of
    the whole file: a bit that has changed since it was written is seen. (Damage is; whoever means harm can compute a
    new one. What is read is therefore never trusted further than its bytes: no code is run.)

    Args:
        name: Key of the description in the header.
        version: Of the format; another one is refused.
        holds: What is in it, for messages: "a saved policy".

    Example:
        >>> import tempfile
        >>> notes, path = Format("notes", 1, "some notes"), Path(tempfile.mkdtemp()) / "notes.safetensors"
        >>> notes.write(path, {"by": "me"}, {"x": torch.ones(2)})
        >>> notes.read(path)
        ({'by': 'me'}, {'x': tensor([1., 1.])})
    """

    name: str
    version: int
    holds: str

    def write(
        self, path: str | os.PathLike[str], description: Mapping[str, Any], tensors: Mapping[str, Tensor]
    ) -> None:
        """Write a file, whole or not at all.

        Args:
            path: Where to; the directory is made where it is missing.
            description: Plain JSON data; NaN and infinities are kept.
            tensors: On any device.

        Raises:
            TypeError: For a description that has no form in JSON.
            OSError: When it cannot be written.
        """
        text = json.dumps({"sha256": _UNSEALED, "format": self.version, **description})
        plain = {k: v.detach().cpu().clone(memory_format=torch.contiguous_format) for k, v in tensors.items()}
        with written_whole(path) as unfinished:
            unfinished.touch()
            mode = unfinished.stat().st_mode  # as the umask says; safetensors writes for the owner alone
            try:
                save_file(plain, unfinished, metadata={self.name: text})
            except SafetensorError as error:
                raise OSError(f"'{path}' cannot be written: {error}") from error
            unfinished.chmod(mode)
            place, _, checksum = self._checksums(unfinished)
            with unfinished.open("r+b") as file:
                file.seek(place)
                file.write(checksum.encode())

    def read(self, path: str | os.PathLike[str]) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Description and tensors of a file, on the CPU.

        Raises:
            ValueError: For a file that is missing, truncated, of another kind or version, or not as it was written.
            OSError: When it cannot be read.
        """
        path = Path(path)
        if not path.is_file():
            raise ValueError(f"expected {self.holds} at '{path}', found none")
        try:
            with safe_open(path, framework="pt") as file:
                description = self._described((file.metadata() or {}).get(self.name), path)
                place, stored, computed = self._checksums(path)
                if not place or stored != computed:
                    raise ValueError(
                        f"'{path}' is damaged, or was edited after it was written: its checksum does not fit; take a "
                        "copy of it that is whole"
                    )
                # Copies, which lie where PyTorch puts tensors: some processors round sums over others otherwise.
                tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
        except (SafetensorError, UnicodeDecodeError) as error:
            raise ValueError(f"'{path}' is truncated or not a safetensors file: {error}") from error
        return {name: value for name, value in description.items() if name not in ("sha256", "format")}, tensors

    def _described(self, header: str | None, path: Path) -> dict[str, Any]:
        if header is None:
            raise ValueError(f"'{path}' is not {self.holds}: its header has no '{self.name}'")
        try:
            description = json.loads(header)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"the description in '{path}' is not JSON: {error}") from error
        version = description.get("format") if isinstance(description, dict) else None
        if version != self.version:
            raise ValueError(
                f"'{path}' is not {self.holds} of this version: field 'format': expected {self.version}, got "
                f"{_short(version)}; read it with the Esper that wrote it"
            )
        return description

    def _checksums(self, path: Path) -> tuple[int, str, str]:
        """Where in a file its checksum stands (0: nowhere), what it says, and what it should say."""
        with path.open("rb") as file:
            length = file.read(8)
            header = file.read(int.from_bytes(length, "little"))
            before = f'{{"__metadata__":{{"{self.name}":"{{\\"sha256\\": \\"'.encode()
            if not header.startswith(before):
                return 0, "", ""
            first, last = len(before), len(before) + len(_UNSEALED)
            digest = hashlib.sha256(length + before + _UNSEALED.encode() + header[last:])
            while block := file.read(2**20):
                digest.update(block)
        return len(length) + first, header[first:last].decode(), digest.hexdigest()
