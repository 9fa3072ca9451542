from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

from esper import files
from esper.files import write_json_atomic


def test_writes_what_json_reads_back(tmp_path):
    data = {"scores": [0.5, 1], "nested": {"none": None, "yes": True}, "text": "α → β"}
    write_json_atomic(tmp_path / "new" / "data.json", data)
    assert json.loads((tmp_path / "new" / "data.json").read_text(encoding="utf-8")) == data


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
