"""Ten thousand inputs that nobody thought of, to everything that reads what users give it.

Whatever comes is taken, or refused by a ``ValueError`` or ``OSError`` that says why; nothing else may leave. A failure
names its input by a number, with which it can be had again.
"""

from __future__ import annotations

import contextlib
import gzip
import importlib
import io
import json
import random
import string
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import numpy as np
import pytest
import torch

from esper import cli
from esper.actions import HEADS, Decision
from esper.commands.grow import GrowCommand
from esper.evaluation.study import StudyConfig
from esper.files import Format, from_plain
from esper.heads import HeadTable
from esper.lifecycle import IllegalMoveError
from esper.simic.training.config import TrainConfig
from esper.tamiyo.networks import FactoredRecurrentActorCritic
from esper.tamiyo.networks.config import NetworkConfig
from esper.tamiyo.networks.masked_categorical import MaskedCategorical
from esper.tamiyo.policy.lstm_bundle import POLICY, LSTMPolicyBundle
from esper.tasks import load_data
from esper.training import TamiyoConfig
from network.hosts import grow, host_case

COUNTS = [
    pytest.param(range(40), id="few"),
    pytest.param(range(10_000), id="many", marks=[pytest.mark.slow, pytest.mark.timeout(7200)]),
]
REFUSALS = (ValueError, OSError)


def survives(numbers: range, attempt: Callable[[random.Random], Any], refusals: Any = REFUSALS) -> int:
    """Make the attempt with every number's own chance; how many were taken."""
    taken = 0
    for number in numbers:
        try:
            attempt(random.Random(number))
            taken += 1
        except Exception as error:
            if not isinstance(error, refusals) or not str(error):
                raise AssertionError(f"input {number}: {type(error).__name__}: {error}") from error
    return taken


# ------------------------------------------------------------------------------------------- readers


def spoil(data: bytes, chance: random.Random) -> bytes:
    """Bytes flipped, cut out, doubled or put in."""
    spoiled = bytearray(data)
    for _ in range(chance.choice([0, 1, 1, 2, 8])):
        place, length = chance.randrange(len(spoiled) + 1), chance.choice([1, 1, 4, 64])
        piece = chance.choice([b"", spoiled[place : place + length] * 2, chance.randbytes(length)])
        spoiled[place : place + length] = piece
    return bytes(spoiled[: chance.choice([None, None, None, chance.randrange(len(spoiled) + 1)])])


def arrays(chance: random.Random) -> bytes:
    """An ``.npz`` of some arrays."""
    rng = np.random.default_rng(chance.randrange(2**32))
    count = chance.choice([0, 1, 8, 40, 60])
    shape = chance.choice([(), (3,), (3,), (5, 5), (4, 2), (1, 6, 6), (6, 6, 3), (2, 2, 2, 2)])
    kinds = ["f2", "f4", "f4", "f8", "u1", "i8", "b1", "c8", "U3", "M8[s]"]
    with np.errstate(all="ignore"):
        x = (rng.normal(size=(count, *shape)) * chance.choice([1, 1, 255, 1e30])).astype(chance.choice(kinds[:7]))
    y = rng.integers(0, chance.choice([1, 2, 3, 50]), count + chance.choice([0, 0, 0, 1])).astype(chance.choice(kinds))
    if chance.random() < 0.2 and x.dtype.kind == "f" and x.size:
        x.flat[chance.randrange(x.size)] = chance.choice([np.nan, np.inf])
    names = [("x", "y"), ("x", "y"), ("x", "label"), ("x_train", "y_train")]
    np.savez(packed := io.BytesIO(), **dict(zip(chance.choice(names), (x, y), strict=True)))
    return packed.getvalue()


def table(chance: random.Random) -> bytes:
    """Comma-separated values."""
    cells = ["1", "2.5", "-3e9", "", "NaN", "inf", "a", "b", '"x,y"', "2026-01-01", "é", " ", "1e999", "True"]
    columns, separator = chance.randrange(1, 5), chance.choice([",", ",", ";", "\t"])
    likely = [chance.choices(cells, k=chance.choice([1, 2, 4])) for _ in range(columns)]
    rows = [[chance.choice(some) for some in likely] for _ in range(chance.choice([0, 1, 12, 50]))]
    header = [[f"c{chance.randrange(4)}" for _ in range(columns)]]
    return "\n".join(separator.join(row) for row in header + rows).encode()


def text(chance: random.Random) -> bytes:
    words = "".join(chance.choices(string.printable + "éλ\0", k=chance.choice([0, 10, 200, 3000])))
    return words.encode(chance.choice(["utf-8", "utf-16"]))


def images(chance: random.Random) -> dict[str, bytes]:
    """The four IDX files of a set like MNIST, packed or not."""
    files = {}
    for part, count in (("train", chance.choice([0, 6, 40])), ("t10k", chance.choice([1, 12]))):
        head = bytes([0, 0, 8, 3]) + b"".join(n.to_bytes(4, "big") for n in (count, 6, 6))
        files[f"{part}-images-idx3-ubyte"] = head + chance.randbytes(36 * count)
        labels = bytes(chance.randrange(3) for _ in range(count))
        files[f"{part}-labels-idx1-ubyte"] = bytes([0, 0, 8, 1]) + count.to_bytes(4, "big") + labels
    if chance.random() < 0.5:
        return {f"{name}.gz": gzip.compress(content, 1) for name, content in files.items()}
    return files


@pytest.mark.parametrize("numbers", COUNTS)
@pytest.mark.parametrize("kind", ["npz", "csv", "txt", "idx"])
def test_readers_take_finite_numbers_or_refuse(kind, numbers, tmp_path):
    if kind == "csv":
        pytest.importorskip("polars")
    make = {"npz": arrays, "csv": table, "txt": text}

    def read(chance):
        if kind == "idx":
            for name in tmp_path.iterdir():
                name.unlink()
            for name, content in images(chance).items():
                (tmp_path / name).write_bytes(spoil(content, chance) if chance.random() < 0.4 else content)
            path = tmp_path
        else:
            path = tmp_path / f"data.{kind}"
            content = make[kind](chance)
            path.write_bytes(spoil(content, chance) if chance.random() < 0.5 else content)
        splits = load_data(path)
        assert all(sizes > 0 for sizes in splits.sizes)
        for tensor in (splits.train_x, splits.val_x, splits.test_x, splits.train_y):
            assert torch.isfinite(tensor).all()

    assert survives(numbers, read) > 0


# ------------------------------------------------------------------------------------------- configs


def anything(chance: random.Random, depth: int = 0) -> Any:
    """Plain data."""
    leaves = [None, True, 0, 1, -1, 2**70, 0.5, -0.0, 1e308, float("nan"), float("inf"), "", "digits", "[", "a" * 300]
    if depth < 3 and chance.random() < 0.3:
        inner = [anything(chance, depth + 1) for _ in range(chance.randrange(4))]
        return inner if chance.random() < 0.5 else {str(leaf): leaf for leaf in inner}
    return chance.choice(leaves)


def plain(config: Any) -> Any:
    """A config as JSON has it."""
    return json.loads(json.dumps(asdict(config), default=str))


def disturbed(tree: Any, chance: random.Random) -> Any:
    """Plain data with something else in one place."""
    if not isinstance(tree, dict | list) or not tree or chance.random() < 0.2:
        return anything(chance)
    tree = tree.copy()
    key = chance.choice(list(tree)) if isinstance(tree, dict) else chance.randrange(len(tree))
    if isinstance(tree, dict) and chance.random() < 0.1:
        tree[chance.choice(["", "zz", "rent"])] = tree.pop(key)
    else:
        tree[key] = disturbed(tree[key], chance)
    return tree


@pytest.mark.parametrize("numbers", COUNTS)
@pytest.mark.parametrize(
    "config", [TamiyoConfig(), TrainConfig(), StudyConfig(), GrowCommand()], ids=lambda c: type(c).__name__
)
def test_configs_are_what_they_say_or_refused(config, numbers):
    whole = plain(config)

    def read(chance):
        assert isinstance(from_plain(type(config), disturbed(whole, chance), "config.json"), type(config))

    assert survives(numbers, read) > 0


# ------------------------------------------------------------------------------------------- checkpoints


@pytest.fixture(scope="module")
def policy(tmp_path_factory):
    heads = HeadTable.from_json([{"name": "move", "num_choices": 3, "choices": ["left", "stay", "right"]}])
    config = NetworkConfig(heads=heads, state_dim=4, hidden_dim=8, head_dim=8)
    bundle = LSTMPolicyBundle(FactoredRecurrentActorCritic(config))
    path = bundle.save(tmp_path_factory.mktemp("policy"))
    return POLICY.read(path)


@pytest.mark.parametrize("numbers", COUNTS)
def test_a_spoiled_file_is_refused(numbers, tmp_path):
    notes, path = Format("notes", 1, "notes"), tmp_path / "notes.safetensors"
    notes.write(path, {"by": "me", "sizes": [1, 2]}, {"x": torch.arange(6.0), "y": torch.ones(2, dtype=torch.int64)})
    whole = path.read_bytes()

    def read(chance):
        path.write_bytes(spoiled := spoil(whole, chance))
        description, tensors = notes.read(path)
        assert spoiled == whole
        assert description["by"] == "me"
        assert len(tensors) == 2

    assert survives(numbers, read) > 0


@pytest.mark.parametrize("numbers", COUNTS)
def test_a_policy_whose_description_says_something_else_is_refused_or_finite(numbers, policy, tmp_path):
    """Written with a checksum that fits, as whoever means harm would."""
    description, tensors = policy

    def read(chance):
        other = disturbed(description, chance)
        POLICY.write(tmp_path / "policy.safetensors", other if isinstance(other, dict) else {"network": other}, tensors)
        LSTMPolicyBundle.load(tmp_path)

    survives(numbers, read)


# ------------------------------------------------------------------------------------------- masks and lives


@pytest.mark.parametrize("numbers", COUNTS)
def test_a_masked_choice_is_never_drawn_and_an_empty_mask_is_refused(numbers):
    def draw(chance):
        rows, choices = chance.randrange(1, 5), chance.randrange(1, 9)
        generator = torch.Generator().manual_seed(chance.randrange(2**32))
        scale = chance.choice([0.0, 1.0, 30.0, 1e4, float("nan")])
        kind = chance.choice([torch.float32, torch.float16, torch.bfloat16, torch.float64])
        logits = (torch.randn(rows, choices, generator=generator) * scale).to(kind)
        mask = torch.rand(rows, choices, generator=generator) < chance.choice([0.2, 0.6, 1.0])
        floor = chance.choice([0.0, 0.0, 0.01, 0.5 / choices, 1.0])
        distribution = MaskedCategorical(logits, mask, floor, head="op")
        assert (distribution.probs[~mask] == 0).all()
        assert mask.gather(1, distribution.sample()[:, None]).all()
        assert mask.gather(1, distribution.mode()[:, None]).all()
        assert torch.isfinite(distribution.entropy()).all()
        assert torch.allclose(distribution.probs.sum(-1), torch.ones(()).to(distribution.probs), atol=1e-4)

    assert survives(numbers, draw) > 0


@pytest.mark.parametrize("numbers", COUNTS)
def test_a_network_takes_what_its_masks_allow_and_refuses_everything_else(numbers):
    torch.manual_seed(0)
    case = host_case("vector")
    network = grow(case, budget=900)

    def decide(chance):
        choices = {head.name: chance.randrange(-1, head.num_choices or 3) if chance.random() < 0.05 else
                   chance.randrange(2 if head.name == "slot" else head.num_choices) for head in HEADS}  # fmt: skip
        masks = network.masks()
        allowed = True
        for head in HEADS:
            if allowed and HEADS.is_used(head.name, choices):
                mask = HEADS.allowed(head.name, masks[head.name], choices)
                allowed = 0 <= choices[head.name] < len(mask) and bool(mask[choices[head.name]])
        try:
            network.step(Decision.from_mapping(choices))
        except (ValueError, IllegalMoveError):
            assert not allowed or min(choices.values()) < 0, f"{choices} was offered and refused"
            network.step(Decision())
            raise
        assert allowed, f"{choices} was forbidden and taken"
        assert network.added_params <= 900
        for slot in network.slots:
            assert 0 <= slot.alpha <= 1

    assert survives(numbers, decide, (ValueError, IllegalMoveError)) > 0
    assert torch.isfinite(case.model(case.x)).all()


# ------------------------------------------------------------------------------------------- command lines


@pytest.mark.parametrize("numbers", COUNTS)
def test_a_command_line_runs_or_ends_with_exit_code_2(numbers, monkeypatch, tmp_path):
    for home, _ in cli.COMMANDS.values():
        module, name = home.split(":")
        monkeypatch.setattr(getattr(importlib.import_module(module), name), "run", lambda self, console: None)
    monkeypatch.chdir(tmp_path)
    options = [
        "--task",
        "--rent",
        "--seeds",
        "--updates",
        "--out",
        "--quiet",
        "--policy",
        "--env",
        "--resume",
        "--help",
    ]
    options += ["--variants.rent", "--budget", "--num-envs", "--learning-rate", "--epochs", "--", "-", "--no-quiet"]
    values = ["digits", "0", "-1", "1e-3", "nan", "None", "", "a b", "é", "--x", "9" * 40, "runs/x", "0.1 0.2", "\n"]
    codes = set()

    def call(chance):
        words = [chance.choice([*cli.COMMANDS, *cli.COMMANDS, "trian", "--help", ""])]
        words += [chance.choice(options + values) for _ in range(chance.randrange(6))]
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()) as said:
            try:
                codes.add(code := cli.main(words))
            except SystemExit as stop:
                codes.add(code := stop.code)
        assert code in (0, 2), words
        assert "Traceback" not in said.getvalue(), words
        assert code == 0 or said.getvalue() or words[0] == "", words

    survives(numbers, call, ())
    assert codes == {0, 2}
