"""One's own data in, a model out that is served where Esper is not: the accuracy is the one that was printed.

The code that serves is that of the page ``docs/serving.md``.
"""

from __future__ import annotations

import csv
import json
import re
import subprocess
import sys
from html import escape
from pathlib import Path

import matplotlib
import numpy as np
import pytest
import sklearn
from PIL import Image
from sklearn.datasets import load_diabetes, load_digits, load_wine

from esper.cli import main
from esper.commands.grow import MANIFEST, RESULT
from esper.growth import GrowthResult
from esper.report.pages import growth_page

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "serving.md").read_text(encoding="utf-8")
SERVE = """
import sys
sys.modules["esper"] = None  # importing it fails from here on
exec(open(sys.argv[1]).read())
import csv, numpy as np
model, manifest = load(sys.argv[2])
if sys.argv[3].endswith(".csv"):
    with open(sys.argv[3], newline="") as file:
        rows = rows_of(list(csv.DictReader(file)), manifest)
else:
    rows = np.load(sys.argv[3])
assert rows.dtype == manifest["input"]["dtype"], (rows.dtype, manifest["input"]["dtype"])
assert list(rows.shape[1:]) == manifest["input"]["shape"][1:]
answers = answer(model, rows)
assert answers.dtype == manifest["output"]["dtype"]
assert list(answers.shape[1:]) == manifest["output"]["shape"][1:]
one = answer(model, rows[:1])
assert np.allclose(one, answers[:1], atol=1e-3 * abs(answers).max()), "a row alone is answered as among others"
np.save(sys.argv[4], classes_of(answers, manifest) if "classes" in manifest["output"] else answers)
"""


def grow(tmp_path, capsys, data, *options):
    """Grow on ``data``; what was printed, and the run's directory."""
    out = tmp_path / "run"
    quick = ["--epochs", "3", "--budget", "2000", "--quiet", "--out", str(out)]
    assert main(["grow", "--data", str(data), *quick, *options]) == 0
    printed = capsys.readouterr().out
    check_told(printed, out)
    return printed, out


def check_told(printed, run):
    """What was printed is what the JSON and the page say, and what matters most is named."""
    found = json.loads((run / RESULT).read_text())
    result = GrowthResult.from_json(found["growth"])
    page, shown = growth_page(run / RESULT), " ".join(printed.split())
    for label, text in {**result.facts(), **found["test"]}.items():
        assert f"{label}: {text}" in shown
        assert escape(text) in page
    assert result.finished
    assert all(seed.outcome in ("kept", "pruned") for seed in result.seeds)
    assert result.added_params == sum(seed.params for seed in result.seeds)
    if result.kept:
        assert f"What matters most is {result.kept[0].blueprint} in {result.kept[0].slot}" in shown
    else:
        assert "Nothing has been kept: the model is the host alone" in shown


def serve(tmp_path, run, rows):
    """Answers to ``rows`` (an array, or a CSV file) from the exported file, in a process without Esper."""
    (file,) = run.glob("grown.*")
    torch_code, onnx_code, *others = re.findall(r"^```python\n(.*?)^```", PAGE, re.S | re.M)
    code = tmp_path / "page.py"
    code.write_text("\n".join([torch_code if file.suffix == ".pt2" else onnx_code, *others]))
    if not isinstance(rows, Path):
        np.save(tmp_path / "rows.npy", rows)
        rows = tmp_path / "rows.npy"
    answers = tmp_path / "answers.npy"
    command = [sys.executable, "-I", "-c", SERVE, *map(str, (code, file, rows, answers))]
    subprocess.run(command, check=True, env={"OMP_NUM_THREADS": "1"})
    return np.load(answers)


def drawn(run, split):
    return json.loads((run / "growth.json").read_text())["rows"][split]


def accuracy(printed):
    """The test accuracy that was printed, in percent."""
    return float(re.search(r"Test accuracy: ([\d.]+)%", printed)[1])


@pytest.mark.parametrize("export", ["pt2", pytest.param("onnx", marks=pytest.mark.slow)])
def test_colour_images_whose_colours_come_last(tmp_path, capsys, export):
    folder = Path(sklearn.__file__).parent / "datasets" / "images"
    tiles, names = [], []
    for name in ("china", "flower"):
        image = np.asarray(Image.open(folder / f"{name}.jpg").resize((160, 112)))
        tiles += [image[i : i + 16, j : j + 16] for i in range(0, 112, 16) for j in range(0, 160, 16)]
        names += [name] * 70
    x, y = np.stack(tiles), np.array(names)
    assert (x.dtype, x.shape) == (np.uint8, (140, 16, 16, 3))
    np.savez(tmp_path / "tiles.npz", x=x, y=y)
    printed, run = grow(tmp_path, capsys, tmp_path / "tiles.npz", "--export", export)
    assert "colours last" in printed
    rows = drawn(run, "test")
    assert 100 * (serve(tmp_path, run, x[rows]) == y[rows]).mean() == pytest.approx(accuracy(printed), abs=0.06)


@pytest.mark.slow
def test_digits_of_any_type_of_number_grow_alike(tmp_path, capsys):
    digits = load_digits()
    results = []
    for dtype in (np.uint8, np.float64):
        x = digits.images.astype(dtype)
        path = tmp_path / np.dtype(dtype).name
        path.mkdir()
        np.savez(path / "digits.npz", x=x, y=digits.target)
        printed, run = grow(path, capsys, path / "digits.npz")
        rows = drawn(run, "test")
        served = serve(path, run, x[rows])
        assert 100 * (served == digits.target[rows]).mean() == pytest.approx(accuracy(printed), abs=0.06)
        results.append((accuracy(printed), served.tolist()))
    assert results[0] == results[1]


def test_fifty_series_are_ordinary(tmp_path, capsys):
    rng = np.random.default_rng(0)
    t, kind = np.linspace(0, 6, 40), np.arange(50) % 2
    x = np.stack([np.sin(t * (1 + k) + rng.random())[:, None] + 0.1 * rng.normal(size=(40, 1)) for k in kind])
    np.savez(tmp_path / "series.npz", x=x, y=np.array(["slow", "fast"])[kind])
    printed, run = grow(tmp_path, capsys, tmp_path / "series.npz")
    assert "30 rows to train, 10 to validate, 10 to test" in printed
    assert "95 % interval" in printed
    rows = drawn(run, "test")
    served = serve(tmp_path, run, x[rows])
    assert set(served) <= {"slow", "fast"}
    assert 100 * (served == np.array(["slow", "fast"])[kind][rows]).mean() == pytest.approx(accuracy(printed), abs=0.06)


@pytest.mark.parametrize("export", [pytest.param("pt2", marks=pytest.mark.slow), "onnx"])
def test_a_table_with_categories_and_gaps(tmp_path, capsys, export):
    pytest.importorskip("polars")
    wine, rng = load_wine(as_frame=False), np.random.default_rng(0)
    names = [*wine.feature_names, "cellar", "origin"]
    lines = []
    for row, label in zip(wine.data, wine.target, strict=True):
        numbers = ["" if rng.random() < 0.1 else str(value) for value in row]
        lines.append([*numbers, rng.choice(["east", "west", ""]), ["Barolo", "Grignolino", "Barbera"][label]])
    (tmp_path / "unlabelled.csv").write_text("")  # beside it, and not read

    def write(path, chosen):
        with path.open("w", newline="") as file:
            csv.writer(file).writerows([names, *chosen])
        return path

    printed, run = grow(tmp_path, capsys, write(tmp_path / "wine.csv", lines), "--export", export, "--epochs", "8")
    assert "cellar (category); target 'origin'" in printed
    test = [lines[place] for place in drawn(run, "test")]
    served = serve(tmp_path, run, write(tmp_path / "test.csv", test))
    assert 100 * np.mean([s == row[-1] for s, row in zip(served, test, strict=True)]) == pytest.approx(
        accuracy(printed), abs=0.06
    )
    columns = json.loads((run / MANIFEST).read_text())["input"]["columns"]
    assert columns[-1] == {"name": "cellar", "kind": "category", "categories": ["east", "west"]}


def test_values_come_in_their_own_unit(tmp_path, capsys):
    polars = pytest.importorskip("polars")
    data = load_diabetes(scaled=False)
    frame = polars.DataFrame(data.data, schema=data.feature_names).with_columns(progress=data.target)
    frame.write_parquet(tmp_path / "diabetes.parquet")
    options = ("--policy", "heuristic", "--epochs", "14", "--rent", "0", "--learning-rate", "0.02", "--control")
    printed, run = grow(tmp_path, capsys, tmp_path / "diabetes.parquet", *options)
    assert "values from 25 to 346" in printed
    assert re.search(
        r"Verdict: (Worth it|Not worth it|Cannot tell): R² -?0.\d+ against R² -?0.\d+ of the host", printed
    )
    assert "What matters most is" in " ".join(printed.split())
    rows = drawn(run, "test")
    errors = serve(tmp_path, run, data.data[rows]) - data.target[rows]
    said = float(re.search(r"root mean square error ([\d.]+)", printed)[1])
    assert np.sqrt((errors**2).mean()) == pytest.approx(said, rel=1e-3)
    assert said < data.target.std()


def test_images_in_a_folder_for_each_class(tmp_path, capsys):
    digits = load_digits()
    for split, chosen in (("train", range(400)), ("test", range(400, 500))):
        for i in chosen:
            file = tmp_path / "digits" / split / f"digit {digits.target[i]}" / f"{i}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray((digits.images[i] * 15).astype(np.uint8)).save(file)
    printed, run = grow(tmp_path, capsys, tmp_path / "digits")
    assert "validation drawn from training" in printed
    rows = (digits.images[400:500] * 15).astype(np.uint8)
    names = np.array([f"digit {label}" for label in digits.target[400:500]])
    assert 100 * (serve(tmp_path, run, rows) == names).mean() == pytest.approx(accuracy(printed), abs=0.06)


def test_a_text_is_continued(tmp_path, capsys):
    licence = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "LICENSE_DEJAVU"
    text = licence.read_bytes()
    (tmp_path / "licence.txt").write_bytes(text)
    printed, run = grow(tmp_path, capsys, tmp_path / "licence.txt", "--window", "16")
    samples = (len(text) - 1) // 16
    rows = np.frombuffer(text, np.uint8)[: samples * 16].reshape(samples, 16)
    following = np.frombuffer(text, np.uint8)[1 : samples * 16 + 1].reshape(samples, 16)
    chosen = drawn(run, "test")
    served = serve(tmp_path, run, rows[chosen])
    classes = json.loads((run / MANIFEST).read_text())["output"]["classes"]
    expected = np.where(np.isin(following[chosen], classes[1:]), following[chosen].astype(str), "rare")
    assert 100 * (served == expected).mean() == pytest.approx(accuracy(printed), abs=0.06)


def test_an_embedded_task_is_served_on_its_own_rows(tmp_path, capsys):
    out = tmp_path / "run"
    assert (
        main(["grow", "--task", "wine", "--epochs", "10", "--learning-rate", "0.02", "--quiet", "--out", str(out)]) == 0
    )
    assert accuracy(capsys.readouterr().out) > 80
    wine = load_wine()
    served = serve(tmp_path, out, wine.data.astype(np.float32))
    assert (served == wine.target).mean() > 0.8  # trained on standardised columns, and served on raw ones


@pytest.mark.slow
def test_a_table_of_values_with_categories_separated_by_semicolons(tmp_path, capsys):
    pytest.importorskip("polars")
    data = load_diabetes(scaled=False)
    sex = np.where(data.data[:, 1] == 1, "female", "male")
    names = [name for name in data.feature_names if name != "sex"]
    numbers = np.delete(data.data, 1, axis=1)

    def write(path, chosen):
        with path.open("w", newline="") as file:
            writer = csv.writer(file, delimiter=";")
            writer.writerow([*names, "sex", "progress"])
            writer.writerows([*numbers[i], sex[i], data.target[i]] for i in chosen)
        return path

    printed, run = grow(tmp_path, capsys, write(tmp_path / "all.csv", range(442)), "--epochs", "8", "--control")
    assert "sex (category); target 'progress'" in printed
    test = drawn(run, "test")
    rows = tmp_path / "test.csv"
    with rows.open("w", newline="") as file:
        csv.writer(file).writerows([[*names, "sex"], *([*numbers[i], sex[i]] for i in test)])
    said = float(re.search(r"root mean square error ([\d.]+)", printed)[1])
    errors = serve(tmp_path, run, rows) - data.target[test]
    assert np.sqrt((errors**2).mean()) == pytest.approx(said, rel=1e-3)


@pytest.mark.slow
def test_what_a_learned_policy_decided_is_explained_by_its_probabilities(tmp_path, capsys):
    digits = load_digits()
    np.savez(tmp_path / "digits.npz", x=digits.images[:600].astype(np.uint8), y=digits.target[:600])
    printed, run = grow(tmp_path, capsys, tmp_path / "digits.npz", "--policy", "tamiyo", "--epochs", "12")
    rows = drawn(run, "test")
    served = serve(tmp_path, run, digits.images[rows].astype(np.uint8))
    assert 100 * (served == digits.target[rows]).mean() == pytest.approx(accuracy(printed), abs=0.06)
    page = growth_page(run / RESULT)
    result = GrowthResult.from_json(json.loads((run / RESULT).read_text())["growth"])
    assert all(sum(step.why.probabilities["op"].values()) == pytest.approx(1, abs=1e-4) for step in result.steps[:-1])
    assert result.steps[0].reason in page
    assert "Q (what each op leads to, as the policy expects): WAIT" in page


@pytest.mark.slow
def test_a_growth_that_was_not_worth_it_is_said_not_to_be(tmp_path, capsys):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2000, 6)).astype(np.float32)
    np.savez(tmp_path / "easy.npz", x=x, y=(x[:, 0] > 0).astype(int))  # the host alone learns it
    options = ("--policy", "fixed", "--control", "--rent", "0.1", "--epochs", "8")
    printed, run = grow(tmp_path, capsys, tmp_path / "easy.npz", *options)
    assert "Verdict: Not worth it: " in printed
    rows = drawn(run, "test")
    served = serve(tmp_path, run, x[rows])
    assert 100 * (served == (x[rows, 0] > 0)).mean() == pytest.approx(accuracy(printed), abs=0.06)
