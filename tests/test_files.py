"""Files are whole or not there; what is read was written so, or is refused by file and field, and runs nothing."""

from __future__ import annotations

import json
import math
import os
import pickle
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from esper import files
from esper.files import Format, from_plain, is_unused, locked, read_json, write_json_atomic, written_whole


def test_writes_what_json_reads_back(tmp_path):
    data = {"scores": [0.5, 1], "nested": {"none": None, "yes": True}, "text": "α → β"}
    write_json_atomic(tmp_path / "new" / "data.json", data)
    assert json.loads((tmp_path / "new" / "data.json").read_text(encoding="utf-8")) == data


def test_tensors_that_were_read_lie_in_memory_as_others_do(tmp_path):
    """On some processors a product rounds by where its factors lie, and a resumed run would differ."""
    notes = Format("notes", 1, "some notes")
    notes.write(tmp_path / "notes", {}, {f"t{i}": torch.ones(2 * i + 1) for i in range(4)})
    _, tensors = notes.read(tmp_path / "notes")
    assert [tensor.data_ptr() % 64 for tensor in tensors.values()] == [torch.ones(1).data_ptr() % 64] * 4


def test_numbers_of_numpy_paths_and_tuples_are_written_plainly(tmp_path):
    data = {
        "array": np.arange(3),
        "scalar": np.float32(0.5),
        "path": Path("a") / "b",
        "tuple": (1, 2),
        3: np.bool_(True),
    }
    write_json_atomic(tmp_path / "data.json", data)
    expected = {"array": [0, 1, 2], "scalar": 0.5, "path": "a/b", "tuple": [1, 2], "3": True}
    assert json.loads((tmp_path / "data.json").read_text()) == expected


def test_what_json_cannot_say_is_null(tmp_path):
    write_json_atomic(tmp_path / "data.json", {"a": [math.nan, np.float32("inf")], "b": np.array([-np.inf])})
    text = (tmp_path / "data.json").read_text()
    assert json.loads(text, parse_constant=pytest.fail) == {"a": [None, None], "b": [None]}


def test_a_failure_keeps_the_file_that_was_there(tmp_path, monkeypatch):
    path = tmp_path / "data.json"
    write_json_atomic(path, [1])
    with pytest.raises(TypeError, match="not JSON serializable"):
        write_json_atomic(path, [2, object()])
    monkeypatch.setattr(files.os, "replace", lambda *args: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        write_json_atomic(path, [3])
    assert json.loads(path.read_text()) == [1]
    assert [entry.name for entry in tmp_path.iterdir()] == ["data.json"]


def test_what_takes_its_place_is_on_disk_first_and_its_name_afterwards(tmp_path, monkeypatch):
    happened = []
    replace, fsync = os.replace, os.fsync
    monkeypatch.setattr(files.os, "replace", lambda *args: (happened.append("replace"), replace(*args)))
    monkeypatch.setattr(
        files.os, "fsync", lambda fd: (happened.append(os.path.basename(os.readlink(f"/proc/self/fd/{fd}"))), fsync(fd))
    )
    write_json_atomic(tmp_path / "data.json", 1)
    assert happened == [f".{os.getpid()}.data.json", "replace", tmp_path.name]


@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002])
def test_modes_follow_the_umask(tmp_path, umask):
    before = os.umask(umask)
    try:
        write_json_atomic(tmp_path / "data.json", 1)
        NOTES.write(tmp_path / "notes.safetensors", {}, {"x": torch.ones(1)})
    finally:
        os.umask(before)
    for path in tmp_path.iterdir():
        assert path.stat().st_mode & 0o777 == 0o666 & ~umask


# Locks


def test_a_directory_is_held_against_other_processes_only(tmp_path):
    attempt = [sys.executable, "-c", f"from esper.files import locked\nwith locked({str(tmp_path)!r}): print('held')"]
    with locked(tmp_path), locked(tmp_path / "." / ".." / tmp_path.name):
        refused = subprocess.run(attempt, capture_output=True, text=True, check=False)
    assert f"'{tmp_path}' is being written by process {os.getpid()} on" in refused.stderr
    assert subprocess.run(attempt, capture_output=True, text=True, check=True).stdout == "held\n"


def test_a_directory_with_nothing_but_a_lock_is_unused(tmp_path):
    assert is_unused(tmp_path / "missing")
    with locked(tmp_path):
        assert is_unused(tmp_path)
    (tmp_path / "file").touch()
    assert not is_unused(tmp_path)


# Fields


@dataclass
class Engine:
    power: float
    kind: Literal["petrol", "electric"] = "electric"


@dataclass
class Car:
    name: str
    engine: Engine
    seats: int = 4
    trips: list[tuple[str, int]] = field(default_factory=list)
    manual: Path | None = None


def test_a_dataclass_comes_back_from_plain_data():
    data = {"name": "a", "engine": {"power": 3}, "trips": [["home", 2]], "manual": "a/b"}
    assert from_plain(Car, data, "car.json") == Car("a", Engine(3), trips=[("home", 2)], manual=Path("a/b"))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"name": None}, "field 'name': expected str, got None"),
        ({"engine": 5}, "field 'engine': expected the fields of a Engine, got 5"),
        ({"engine": {}}, "field 'engine.power' is missing"),
        ({"engine": {"power": "much"}}, "field 'engine.power': expected float, got 'much'"),
        ({"engine": {"power": 1, "kind": "steam"}}, "field 'engine.kind'"),
        ({"wheels": 4}, "field 'wheels' is unknown to this version of Esper; expected some of name, engine"),
        ({"trips": [["home", "far"]]}, "field 'trips': expected int, got 'far'"),
        ({"trips": [["home"]]}, "field 'trips': expected tuple"),
        ({"manual": 7}, "field 'manual': expected .*, got 7"),
        ({"seats": [0] * 10_000}, "field 'seats': expected int, got .*\\.\\.\\.$"),
    ],
)
def test_what_does_not_fit_is_refused_by_file_and_field(change, says):
    data = {"name": "a", "engine": {"power": 3.0}}
    with pytest.raises(ValueError, match=f"'car.json': {says}"):
        from_plain(Car, data | change, "car.json")


@pytest.mark.parametrize("text", ["{", "[" * 100_000, "\xff"])
def test_what_is_not_json_is_refused_by_name(tmp_path, text):
    (tmp_path / "data.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(ValueError, match=r"data.json' is damaged, or not JSON"):
        read_json(tmp_path / "data.json")


# Tensors and a description

NOTES = Format("notes", 2, "some notes")
TENSORS = {"x": torch.arange(6.0).reshape(2, 3), "flags": torch.tensor([True, False])}


@pytest.fixture
def whole(tmp_path: Path) -> bytes:
    NOTES.write(tmp_path / "whole", {"by": "me", "loss": math.nan}, TENSORS)
    return (tmp_path / "whole").read_bytes()


def test_tensors_and_description_come_back(whole, tmp_path):
    description, tensors = NOTES.read(tmp_path / "whole")
    assert description["by"] == "me"
    assert math.isnan(description["loss"])
    assert all(torch.equal(tensors[name], tensor) for name, tensor in TENSORS.items())
    NOTES.write(tmp_path / "again", {"by": "me", "loss": math.nan}, TENSORS)
    assert (tmp_path / "again").read_bytes() == whole


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(place=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_a_flipped_bit_is_refused(whole, tmp_path, place, bit):
    changed = bytearray(whole)
    changed[int(place * len(whole))] ^= 1 << bit
    (tmp_path / "changed").write_bytes(changed)
    with pytest.raises(ValueError, match="changed'"):
        NOTES.read(tmp_path / "changed")


def test_an_edited_description_is_refused(whole, tmp_path):
    (tmp_path / "edited").write_bytes(whole.replace(b'\\"me\\"', b'\\"he\\"'))
    with pytest.raises(ValueError, match="edited' is damaged, or was edited after it was written"):
        NOTES.read(tmp_path / "edited")
    (tmp_path / "empty").write_bytes(whole.replace(b"sha256", b"sha255"))
    with pytest.raises(ValueError, match="empty' is damaged, or was edited after it was written"):
        NOTES.read(tmp_path / "empty")


class Bomb:
    def __reduce__(self):
        return os.mkdir, ("exploded",)


@pytest.mark.parametrize("kind", ["pickle", "torch", "deep", "other", "version", "foreign", "empty", "directory"])
def test_a_hostile_file_is_refused_and_runs_nothing(tmp_path, monkeypatch, kind):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "hostile"
    if kind == "pickle":
        path.write_bytes(pickle.dumps(Bomb()))
    elif kind == "torch":
        torch.save(Bomb(), path)
    elif kind == "deep":
        save_file(TENSORS, path, metadata={"notes": "[" * 100_000})
    elif kind == "other":
        Format("recipes", 2, "recipes").write(path, {}, TENSORS)
    elif kind == "version":
        Format("notes", 3, "newer notes").write(path, {}, TENSORS)
    elif kind == "foreign":
        save_file(TENSORS, path)
    elif kind == "empty":
        path.touch()
    else:
        path.mkdir()
    with pytest.raises(ValueError, match="hostile'"):
        NOTES.read(path)
    assert not (tmp_path / "exploded").exists()


def test_a_header_that_claims_more_than_the_file_holds_is_refused(whole, tmp_path):
    for length in (2**63, 2**40, len(whole) + 1):
        (tmp_path / "long").write_bytes(length.to_bytes(8, "little") + whole[8:])
        with pytest.raises(ValueError, match="truncated or not a safetensors file"):
            NOTES.read(tmp_path / "long")


def test_a_failed_write_keeps_the_file_that_was_there_and_is_an_oserror(whole, tmp_path, monkeypatch):
    def full(tensors, path, metadata):
        raise files.SafetensorError("No space left on device")

    monkeypatch.setattr(files, "save_file", full)
    with pytest.raises(OSError, match="whole' cannot be written: No space left"):
        NOTES.write(tmp_path / "whole", {}, TENSORS)
    assert (tmp_path / "whole").read_bytes() == whole
    assert len(list(tmp_path.iterdir())) == 1


def test_the_directory_may_vanish_while_a_file_is_written(tmp_path):
    (tmp_path / "in").mkdir()
    with pytest.raises(FileNotFoundError), written_whole(tmp_path / "in" / "x") as unfinished:  # noqa: PT012
        (tmp_path / "in").rmdir()
        unfinished.write_text("x")
