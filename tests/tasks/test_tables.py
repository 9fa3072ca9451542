"""Tables: numbers, categories and gaps; what is left out; what is refused."""

from __future__ import annotations

import gzip
import sys

import numpy as np
import pytest
import torch

from esper.tasks import DataOptions, load_data

polars = pytest.importorskip("polars")


def write(path, lines, separator=","):
    path.write_text("\n".join(separator.join(map(str, line)) for line in lines) + "\n")
    return path


@pytest.fixture
def people():
    """A line of names, then 40 people: height and home with gaps, a name of one's own, and a class."""
    lines = [["height", "home", "name", "member"]]
    for i in range(40):
        height, home = "" if i % 8 == 3 else 150 + i, ["town", "land", "?"][i % 3]
        lines.append([height, home, f"person {i} of many", ["yes", "no"][i % 2]])
    return lines


def test_the_last_column_is_the_target_and_another_can_be_named(tmp_path, people):
    path = write(tmp_path / "d.csv", people)
    assert load_data(path).rows.classes == ["no", "yes"]
    splits = load_data(path, options=DataOptions(target="home"))
    assert splits.rows.classes == ["land", "town"]
    assert sum(splits.sizes) == 27
    assert "13 rows without 'home'" in splits.rows.notes["left out"]
    assert all(people[1 + place][1] != "?" for places in splits.rows.drawn.values() for place in places)


def test_numbers_categories_and_gaps_become_features(tmp_path, people):
    splits = load_data(write(tmp_path / "d.csv", people), options=DataOptions(standardise=False))
    kinds = [(column["name"], column["kind"]) for column in splits.rows.columns]
    assert kinds == [("height", "number"), ("home", "category")]
    height, gap, land, town = splits.train_x.T[:4]
    for place, row in zip(splits.rows.drawn["train"], range(len(height)), strict=True):
        _, home, _, _ = people[1 + place]
        assert gap[row] == (people[1 + place][0] == "")
        assert (land[row], town[row]) == (home == "land", home == "town")
    known = [people[1 + p][0] for p in splits.rows.drawn["train"] if people[1 + p][0] != ""]
    assert height[gap == 1].tolist() == pytest.approx([np.mean(known)] * int(gap.sum()))


def test_a_category_that_was_never_seen_is_none_of_the_others(tmp_path, people):
    splits = load_data(write(tmp_path / "d.csv", people), options=DataOptions(standardise=False))
    features = splits.rows.read(torch.tensor([[170.0, -1.0]], dtype=torch.float64))
    assert features[0, 0] == 170
    assert not features[0, 1:].any()


def test_texts_of_which_there_are_many_are_left_out(tmp_path, people):
    rows = load_data(write(tmp_path / "d.csv", people)).rows
    assert [column["name"] for column in rows.columns] == ["height", "home"]
    assert "column 'name' (40 different texts)" in rows.notes["left out"]


def test_refuses_one_whose_first_line_repeats_itself(tmp_path):
    lines = [[0, 0, 5, 0, "a"], *([i, 1, 2, 3, "ab"[i % 2]] for i in range(20))]
    with pytest.raises(ValueError, match=r"expected the names of the columns in the first line, got 0, 0, 5, 0, a"):
        load_data(write(tmp_path / "d.csv", lines))


@pytest.mark.parametrize(("separator", "suffix"), [(";", "csv"), ("\t", "tsv"), ("|", "csv")])
def test_other_separators_are_seen(tmp_path, people, separator, suffix):
    splits = load_data(write(tmp_path / f"d.{suffix}", people, separator))
    assert len(splits.rows.columns) == 2


def test_blanks_separate_where_nothing_else_does(tmp_path):
    path = write(tmp_path / "d.csv", [["a", "b", "y"], *([i, i % 3, "uv"[i % 2]] for i in range(20))], " ")
    assert [column["name"] for column in load_data(path).rows.columns] == ["a", "b"]


def test_csv_parquet_and_gz_hold_the_same(tmp_path, people):
    path = write(tmp_path / "d.csv", people)
    (tmp_path / "d.csv.gz").write_bytes(gzip.compress(path.read_bytes()))
    polars.read_csv(path, null_values=["", "?"]).write_parquet(tmp_path / "d.parquet")
    expected = load_data(path)
    for other in ("d.csv.gz", "d.parquet"):
        assert torch.equal(load_data(tmp_path / other).train_x, expected.train_x)


def test_dates_are_left_out_and_booleans_are_numbers(tmp_path):
    frame = polars.DataFrame({"flag": [True, False] * 10, "x": np.arange(20) % 7, "y": ["a", "b"] * 10})
    frame = frame.with_columns(day=polars.date(2020, 1, 1)).select("day", "flag", "x", "y")
    frame.write_parquet(tmp_path / "d.parquet")
    rows = load_data(tmp_path / "d.parquet").rows
    assert [(c["name"], c["kind"]) for c in rows.columns] == [("flag", "number"), ("x", "number")]
    assert "column 'day' (of type Date)" in rows.notes["left out"]


def test_refuses_a_target_that_is_not_there(tmp_path, people):
    with pytest.raises(ValueError, match=r"no column 'age' \(--target\); there are height, home, name, member"):
        load_data(write(tmp_path / "d.csv", people), options=DataOptions(target="age"))


def test_refuses_a_table_without_names(tmp_path):
    with pytest.raises(
        ValueError, match=r"expected the names of the columns in the first line, got 5\.1, 3\.5, setosa"
    ):
        load_data(write(tmp_path / "d.csv", [[5.1, 3.5, "setosa"], [4.9, 3.0, "setosa"]]))


def test_columns_may_be_counted(tmp_path):
    lines = [[0, 1, 2], *([i, i * i % 7, "ab"[i % 2]] for i in range(20))]
    assert load_data(write(tmp_path / "d.csv", lines)).rows.classes == ["a", "b"]


def test_refuses_a_table_of_a_target_alone(tmp_path):
    with pytest.raises(ValueError, match=r"expected rows of numbers or categories beside the target 'y', got 20 rows"):
        load_data(write(tmp_path / "d.csv", [["y"], *(["ab"[i % 2]] for i in range(20))]))


@pytest.mark.parametrize("name", ["d.csv", "d.parquet", "d.csv.gz"])
@pytest.mark.parametrize("content", [b"", b"PAR1 and then nothing", b"a,b\n1,2,3,4\n1\n"])
def test_refuses_what_is_no_table(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=r"d\.\w+.*: (not a readable|expected)"):
        load_data(tmp_path / name)


def test_says_which_package_is_missing(tmp_path, people, monkeypatch):
    monkeypatch.setitem(sys.modules, "polars", None)
    with pytest.raises(ValueError, match=r"tables need one more package: pip install 'esper-lite\[tables\]'"):
        load_data(write(tmp_path / "d.csv", people))
