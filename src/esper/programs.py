"""Exported programs as files that run where Esper is not installed."""

from __future__ import annotations

import gc
import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from torch.export import ExportedProgram

from esper.files import written_whole

MANIFEST = "manifest.json"
"""Under which name a manifest travels in an exported file."""


def write_program(
    make: Callable[[], ExportedProgram],
    path: Path,
    *,
    input_names: Sequence[str] | None = None,
    output_names: Sequence[str] | None = None,
    extra: dict[str, str] | None = None,
) -> Path:
    """Write what ``make`` gives to ``path``: ``.pt2`` by ``torch.export``, ``.onnx`` by ``torch.onnx``.

    Args:
        make: Exports; called once it is known that the file can be written.
        path: Replaced as a whole or not at all.
        input_names: Of the inputs in an ``.onnx`` file, in order; by default what PyTorch calls them.
        output_names: Of its outputs.
        extra: Texts that travel in the file by name: among the extra files of a ``.pt2``, among the custom metadata of
            an ``.onnx``.

    Raises:
        ValueError: For another suffix, or missing packages.
    """
    if path.suffix not in (".pt2", ".onnx"):
        raise ValueError(f"expected a file name that ends in .pt2 or .onnx, got '{path.name}'")
    check_packages(path.suffix)
    with written_whole(path) as unfinished, _without_warnings(), _nothing_collected():
        program = make()
        if path.suffix == ".pt2":
            with unfinished.open("wb") as file:
                torch.export.save(program, file, extra_files=extra or {})
        else:
            with _without_hints():
                exported = torch.onnx.export(
                    program, dynamo=True, verbose=False, input_names=input_names, output_names=output_names
                )
            assert exported is not None
            exported.model.metadata_props.update(extra or {})
            exported.save(unfinished, external_data=False)
    return path


def check_packages(suffix: str) -> None:
    """Raise ValueError when packages are missing that a file of this suffix needs."""
    if suffix != ".onnx":
        return
    try:
        import onnxscript  # noqa: F401, PLC0415 - an optional dependency
    except ImportError as error:
        raise ValueError("an .onnx file needs more packages: pip install 'esper-lite[onnx]'") from error


@contextmanager
def _nothing_collected() -> Iterator[None]:
    """What the garbage collector brings to its end while a program is traced would become a part of it."""
    gc.collect()
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collects:
            gc.enable()


@contextmanager
def _without_warnings() -> Iterator[None]:
    """PyTorch's exporters warn of what is their own, and which no user can change."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@contextmanager
def _without_hints() -> Iterator[None]:
    """Warnings are logged where torchvision is missing, which no export needs, and for what is left as it is."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx._internal.exporter._registration", "onnxscript")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
