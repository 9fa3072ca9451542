from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import nn

from esper.tasks import TASKS, Splits, Task, auto_host, get_task, register_task


def make_splits(**changes):
    x = torch.arange(24.0).reshape(8, 3)
    y = torch.tensor([0, 1] * 4)
    parts = {"train_x": x, "train_y": y, "val_x": x, "val_y": y, "test_x": x, "test_y": y}
    return Splits(**(parts | changes))


@pytest.fixture
def registry():
    """The registry, put back as it was after the test."""
    before = dict(TASKS)
    yield TASKS
    TASKS.clear()
    TASKS.update(before)


class Tiny(Task):
    name = "tiny"
    description = "a table of eight rows"
    slots = ("0",)
    batch_size = 4

    def load(self):
        return make_splits()

    def build_host(self, width=1.0, depth=1):
        return nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))


class TestSplits:
    def test_knows_its_sizes_and_classes(self):
        splits = make_splits()
        assert splits.sizes == (8, 8, 8)
        assert splits.num_classes == 2

    def test_moves_to_a_device(self):
        assert make_splits().to("cpu").train_x.device.type == "cpu"

    @pytest.mark.parametrize("value", [float("nan"), float("inf")])
    @pytest.mark.parametrize("split", ["train", "val", "test"])
    def test_refuses_values_that_are_not_finite(self, split, value):
        x = torch.zeros(8, 3)
        x[5, 1] = x[6, 0] = value
        with pytest.raises(ValueError, match=rf"{split} inputs.* NaN or infinity in 2 of 8 samples .*sample 5.*drop"):
            make_splits(**{f"{split}_x": x})

    def test_refuses_one_class(self):
        with pytest.raises(ValueError, match=r"hold 1 class \(1\); a task needs two or more"):
            make_splits(train_y=torch.ones(8, dtype=torch.int64))

    def test_refuses_a_class_that_training_lacks(self):
        with pytest.raises(ValueError, match=r"the val targets hold 1 class.*such as 7"):
            make_splits(val_y=torch.tensor([0, 1, 7, 0, 1, 0, 1, 0]))

    def test_refuses_negative_classes(self):
        with pytest.raises(ValueError, match=r"got -1; number the classes from 0"):
            make_splits(train_y=torch.tensor([0, -1] * 4))

    @pytest.mark.parametrize("y", [torch.zeros(3, dtype=torch.int64), torch.zeros(0, dtype=torch.int64)])
    def test_refuses_another_number_of_targets(self, y):
        with pytest.raises(ValueError, match=r"test data: expected as many targets as inputs.*got 8 inputs and"):
            make_splits(test_y=y)

    def test_refuses_another_shape(self):
        with pytest.raises(ValueError, match=r"val inputs have the shape \[4\], training inputs \[3\]"):
            make_splits(val_x=torch.zeros(8, 4))

    @pytest.mark.parametrize(("x", "y"), [(torch.float64, torch.int64), (torch.float32, torch.int32)])
    def test_refuses_other_types(self, x, y):
        with pytest.raises(ValueError, match=r"train data: expected float32 inputs .*convert them"):
            make_splits(train_x=torch.zeros(8, 3, dtype=x), train_y=torch.ones(8, dtype=y))


class TestTask:
    def test_loads_once(self):
        calls = []

        class Counted(Tiny):
            def load(self):
                calls.append(1)
                return make_splits()

        task = Counted()
        assert task.splits() is task.splits()
        assert len(calls) == 1

    def test_refuses_fewer_samples_than_a_batch(self):
        class Greedy(Tiny):
            batch_size = 9

        with pytest.raises(
            ValueError, match=r"'tiny' has 8 training samples, fewer than one batch of 9; give more data"
        ):
            Greedy().splits()

    def test_loss_and_score_are_those_of_a_classifier(self):
        logits, target = torch.tensor([[2.0, 0.0], [0.0, 1.0], [3.0, 0.0]]), torch.tensor([0, 1, 1])
        assert Tiny().loss(logits, target).item() == pytest.approx(nn.CrossEntropyLoss()(logits, target).item())
        assert Tiny().score(logits, target).item() == pytest.approx(2 / 3)

    def test_loss_and_score_take_one_target_a_token(self):
        logits, target = torch.randn(4, 7, 5), torch.randint(0, 5, (4, 7))
        expected = nn.CrossEntropyLoss()(logits.reshape(28, 5), target.reshape(28))
        assert Tiny().loss(logits, target).item() == pytest.approx(expected.item())
        assert Tiny().score(logits, target).item() == pytest.approx(
            (logits.argmax(2) == target).sum().item() / 28, abs=1e-6
        )

    def test_chance_is_the_share_of_the_most_frequent_class(self):
        class Skewed(Tiny):
            def load(self):
                return make_splits(train_y=torch.tensor([1, 1, 1, 1, 1, 1, 0, 0]))

        assert Skewed().chance_score == 0.75


class TestRegistry:
    def test_one_class_is_enough(self, registry):
        register_task(Tiny)
        assert isinstance(get_task("tiny"), Tiny)

    def test_a_name_is_taken_once(self, registry):
        register_task(Tiny)

        class Other(Tiny):
            pass

        with pytest.raises(ValueError, match=r"'tiny' is taken among tasks, by Tiny of .*test_task; choose another"):
            register_task(Other)
        assert TASKS["tiny"] is Tiny

    def test_a_definition_that_runs_again_takes_its_own_place(self, registry):
        first, second = (type("Tiny", (Tiny,), {"__qualname__": "Tiny"}) for _ in range(2))
        register_task(first)
        register_task(second)
        assert TASKS["tiny"] is second

    def test_a_task_must_say_what_it_is(self, registry):
        class Nameless(Tiny):
            name = ""
            slots = ()

        with pytest.raises(ValueError, match=r"Nameless must set name, slots"):
            register_task(Nameless)

    def test_an_unknown_name_brings_the_nearest_ones(self):
        with pytest.raises(
            ValueError, match=r"unknown task 'minst1d'; did you mean 'mnist1d'.*tasks: .*digits, .*charlm"
        ):
            get_task("minst1d")

    def test_a_path_to_nothing_is_a_missing_file(self):
        with pytest.raises(FileNotFoundError, match=r"nowhere\.npz does not exist; expected a \.npz file"):
            get_task("data/nowhere.npz")


@pytest.mark.parametrize(
    ("shape", "kind"),
    [((5,), "vector"), ((12, 3), "sequence"), ((13, 1), "sequence"), ((1, 8, 8), "image"), ((3, 33, 20), "image")],
)
def test_auto_host_fits_the_form_of_the_data(shape, kind):
    x, y = torch.randn(16, *shape), torch.tensor([0, 1, 2, 3] * 4)
    task = auto_host(Splits(x, y, x, y, x, y), name="mine", batch_size=8)
    host = task.build_host()
    outputs = []
    for slot in task.slots:
        host.get_submodule(slot).register_forward_hook(lambda module, args, output: outputs.append(output))
    assert host(x).shape == (16, 4)
    assert [output.ndim for output in outputs] == [{"vector": 2, "sequence": 3, "image": 4}[kind]] * 3
    assert task.name == "mine"


def test_auto_host_refuses_tokens():
    x, y = torch.ones(8, 5, dtype=torch.int64), torch.tensor([0, 1] * 4)
    with pytest.raises(ValueError, match=r"got torch.int64 inputs of shape \[8, 5\]; write a Task"):
        auto_host(Splits(x, y, x, y, x, y), batch_size=4)


def test_auto_host_refuses_fewer_samples_than_a_batch():
    with pytest.raises(ValueError, match=r"fewer than one batch of 64"):
        auto_host(make_splits(), batch_size=64)


@pytest.mark.parametrize(("samples", "expected"), [(2, 2), (8, 4), (30, 4), (80, 10), (512, 64), (100_000, 64)])
def test_the_batch_of_auto_host_follows_the_number_of_samples(samples, expected):
    x, y = torch.randn(samples, 3), torch.arange(samples) % 2
    assert auto_host(Splits(x, y, x, y, x, y)).batch_size == expected


def test_values_are_scored_by_the_error_that_is_gone():
    x, y = torch.randn(16, 3), torch.arange(16.0)
    task = auto_host(Splits(x, y, x, y, x, y))
    assert task.build_host()(x).shape == (16, 1)
    assert task.score(y[:, None], y) == 1
    assert task.score(torch.full((16, 1), 7.5), y) == task.chance_score == 0
    assert task.score(-y[:, None], y) < 0
    assert task.loss(y[:, None] + 2, y) == 4


def test_splits_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        make_splits().train_x = torch.zeros(1)
