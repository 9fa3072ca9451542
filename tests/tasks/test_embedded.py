"""Every task: its data, its host, and what growing can win on it."""

from __future__ import annotations

import hashlib
import pickle
import random

import numpy as np
import pytest
import torch

from esper.tasks import TASKS, get_task, signals
from esper.tasks.shipped import read_text

SIZES = {
    "digits": (1197, 300, 300),
    "digits_shuffled": (1197, 300, 300),
    "digits_rows": (1197, 300, 300),
    "mnist1d": (3200, 800, 1000),
    "mnist1d_shuffled": (3200, 800, 1000),
    "breast_cancer": (341, 114, 114),
    "wine": (106, 36, 36),
    "spirals": (1500, 500, 500),
    "charlm": (4000, 500, 500),
    "codelm": (4000, 500, 500),
    "glyphs": (12400, 1240, 2480),
    "glyph_transformer": (12400, 1240, 2480),
    "glyph_stream": (12400, 1240, 2480),
    "letter": (12668, 2000, 4000),
    "satellite": (4435, 1000, 1000),
    "pen_digits": (7992, 1000, 2000),
    "splice": (2005, 400, 600),
    "library_lm": (12000, 600, 600),
}

HOST_PARAMETERS = {
    "digits": 386,
    "digits_shuffled": 386,
    "digits_rows": 522,
    "mnist1d": 2138,
    "mnist1d_shuffled": 2138,
    "breast_cancer": 482,
    "wine": 131,
    "spirals": 276,
    "glyphs": 80_942,
    "glyph_transformer": 92_222,
    "glyph_stream": 80_942,
    "letter": 28_250,
    "satellite": 22_014,
    "pen_digits": 30_370,
    "splice": 29_891,
    "library_lm": 97_296,
}

TEXTS = {
    "charlm": "66827393127a63222e50730b8a70427f0dd8bbc328adc54e7d6765dea73630bc",
    "codelm": "25f1ecd5ca19756c23cc45f152c3ddd7c3006ad37901fc322d2047adcc63bdca",
    "library_lm": "6128e1b58c140260c373db48273fa5e615e1e0ef73199401a4b6207b41632f97",
}
"""SHA-256 of the tokens that the published scores were measured on."""


def train_alone(task, steps, seed=0):
    """Validation score of the host alone after ``steps`` batches."""
    torch.manual_seed(seed)
    host, splits = task.build_host(), task.splits()
    optimizer = torch.optim.Adam(host.parameters(), lr=task.learning_rate)
    for _ in range(steps):
        batch = torch.randint(len(splits.train_x), (task.batch_size,))
        loss = task.loss(host(splits.train_x[batch]), splits.train_y[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        return float(task.score(host.eval()(splits.val_x), splits.val_y))


def rows(x):
    return {row.numpy().tobytes() for row in x}


def test_the_sizes_table_names_every_task():
    assert set(SIZES) == set(TASKS)


@pytest.mark.parametrize("name", TASKS)
class TestEveryTask:
    def test_has_documented_sizes(self, name):
        task = get_task(name)
        assert task.splits().sizes == SIZES[name]
        documented = (type(task).__doc__ or "") + (type(task).__mro__[1].__doc__ or "")
        for size in SIZES[name]:
            assert f"{size:,}" in documented

    def test_has_the_same_splits_every_time(self, name):
        first, second = get_task(name).load(), get_task(name).load()
        assert torch.equal(first.train_x, second.train_x)
        assert torch.equal(first.test_y, second.test_y)

    def test_shares_no_sample_between_splits(self, name):
        splits = get_task(name).splits()
        if name not in TEXTS:  # texts repeat themselves
            assert not rows(splits.train_x) & rows(splits.val_x)
            assert not rows(splits.train_x) & rows(splits.test_x)
            assert not rows(splits.val_x) & rows(splits.test_x)

    def test_is_standardised_on_training_statistics(self, name):
        splits = get_task(name).splits()
        if not splits.train_x.is_floating_point():
            assert splits.train_x.dtype == torch.int64
            return
        axes = (0, 2, 3) if splits.train_x.ndim == 4 else tuple(range(splits.train_x.ndim - 1))
        channels = splits.train_x.double()
        assert channels.mean(axes).abs().max() < 1e-5
        assert (channels.std(axes, correction=0) - 1).abs().max() < 1e-5
        assert splits.val_x.double().mean(axes).abs().max() > 1e-4  # validation statistics were not used

    def test_host_names_its_slots_and_answers(self, name):
        task = get_task(name)
        host, splits = task.build_host(), task.splits()
        for slot in task.slots:
            host.get_submodule(slot)
        output = host(splits.val_x[:5])
        assert output.shape == (*splits.val_y[:5].shape, splits.num_classes)
        assert torch.isfinite(task.loss(output, splits.val_y[:5]))
        assert 0 <= float(task.score(output, splits.val_y[:5])) <= 1
        if name in HOST_PARAMETERS:
            assert sum(p.numel() for p in host.parameters()) == HOST_PARAMETERS[name]

    def test_host_scales_in_width_and_depth(self, name):
        task = get_task(name)

        def size(**variant):
            host = task.build_host(**variant)
            assert host(task.splits().val_x[:2]).isfinite().all()
            return sum(p.numel() for p in host.parameters())

        assert size() < size(width=2.0) < size(width=2.0, depth=2)

    def test_host_depends_only_on_the_random_state(self, name):
        task = get_task(name)
        weights = []
        for _ in range(2):
            torch.manual_seed(7)
            weights.append(torch.cat([p.flatten() for p in task.build_host().parameters()]))
        assert torch.equal(*weights)

    def test_travels_to_another_process(self, name):
        task = get_task(name)
        task.splits()
        there = pickle.loads(pickle.dumps(task))
        assert torch.equal(there.splits().train_x, task.splits().train_x)

    def test_host_learns_more_than_chance(self, name):
        task = get_task(name)
        steps = 280 if name in ("glyph_transformer", "glyph_stream") else 96  # deep ones start slowly
        assert train_alone(task, steps) > task.chance_score + 0.02


def test_making_mnist1d_leaves_the_global_random_state_alone():
    random.seed(3)
    np.random.seed(3)  # noqa: NPY002
    expected = random.random(), np.random.rand()  # noqa: NPY002
    random.seed(3)
    np.random.seed(3)  # noqa: NPY002
    signals._dataset.cache_clear()
    get_task("mnist1d").splits()
    assert (random.random(), np.random.rand()) == expected  # noqa: NPY002


def test_shuffled_mnist1d_is_mnist1d_with_its_positions_moved():
    plain, shuffled = get_task("mnist1d").splits(), get_task("mnist1d_shuffled").splits()
    assert torch.equal(plain.train_y, shuffled.train_y)
    assert not torch.equal(plain.train_x, shuffled.train_x)
    assert torch.allclose(plain.test_x.sort(1).values, shuffled.test_x.sort(1).values, atol=1e-6)


def test_mnist1d_splits_keep_the_share_of_every_class():
    splits = get_task("mnist1d").splits()
    for y in (splits.train_y, splits.val_y):
        shares = y.bincount() / len(y)
        assert (shares - 0.1).abs().max() < 0.01


def test_shuffled_digits_are_digits_with_their_pixels_moved():
    plain, shuffled = get_task("digits").splits(), get_task("digits_shuffled").splits()
    assert torch.equal(plain.train_y, shuffled.train_y)
    assert not torch.equal(plain.train_x, shuffled.train_x)
    assert torch.allclose(plain.test_x.flatten(1).sort(1).values, shuffled.test_x.flatten(1).sort(1).values, atol=1e-6)


def test_digits_rows_are_digits_read_from_the_top():
    images, rows_of = get_task("digits").splits(), get_task("digits_rows").splits()
    assert torch.equal(images.train_y, rows_of.train_y)
    pixels = images.train_x[:, 0]
    standardised = (pixels - pixels.mean((0, 1))) / pixels.std((0, 1), correction=0)
    assert torch.allclose(rows_of.train_x, standardised, rtol=1e-4, atol=1e-4)


def test_a_host_may_have_more_blocks_than_three():
    task = get_task("digits_rows")
    assert task.slots == ("block1", "block2", "block3", "block4", "block5")
    host, called = task.build_host(), []
    for slot in task.slots:
        host.get_submodule(slot).register_forward_hook(lambda *_, slot=slot: called.append(slot))
    host(task.splits().val_x[:1])
    assert tuple(called) == task.slots


@pytest.mark.parametrize("name", TEXTS)
def test_tokens_of_a_text_are_the_same_in_every_version_of_python(name):
    splits = get_task(name).splits()
    parts = [splits.train_x, splits.train_y, splits.val_x, splits.val_y, splits.test_x, splits.test_y]
    assert hashlib.sha256(b"".join(part.numpy().tobytes() for part in parts)).hexdigest() == TEXTS[name]


@pytest.mark.parametrize("name", TEXTS)
def test_targets_of_a_text_are_the_characters_that_follow(name):
    splits = get_task(name).splits()
    assert torch.equal(splits.train_x[:, 1:], splits.train_y[:, :-1])
    assert torch.equal(splits.train_y[:-1, -1], splits.train_x[1:, 0])


def test_codelm_reads_code_line_by_line_without_indentation():
    text = read_text("inspect.py.txt")
    assert "\ndef getsource(object):\n" in text
    assert "\n " not in text
    assert "\n\n" not in text


@pytest.mark.parametrize("name", ["charlm", "codelm"])
def test_host_of_a_text_sees_only_the_token_at_its_place(name):
    task = get_task(name)
    host, x = task.build_host(), task.splits().val_x[:1].clone()
    before = host(x)
    x[0, 10] = (x[0, 10] + 1) % task.splits().num_classes
    changed = (host(x) != before).any(2)[0]
    assert changed.nonzero().flatten().tolist() == [10]


@pytest.mark.parametrize(("name", "at"), [("mnist1d", 10), ("digits_rows", 5)])
def test_host_of_a_sequence_sees_no_neighbours_before_its_head(name, at):
    task = get_task(name)
    host, x = task.build_host(), task.splits().val_x[:1].clone()
    seen = []
    host.get_submodule(task.slots[-1]).register_forward_hook(lambda module, args, output: seen.append(output))
    host(x)
    x[0, at] += 1.0
    host(x)
    assert (seen[0] != seen[1]).any(2)[0].nonzero().flatten().tolist() == [at]


@pytest.mark.parametrize(
    ("name", "low", "high"),
    [("mnist1d", 0.44, 0.53), ("digits", 0.45, 0.65), ("digits_rows", 0.62, 0.8), ("spirals", 0.45, 0.8)],
)
def test_host_alone_leaves_headroom(name, low, high):
    """Growing is worth tens of points on these tasks; a host that did without would leave nothing to grow."""
    task = get_task(name)
    scores = [train_alone(task, task.horizon * task.steps_per_decision, seed) for seed in range(2)]
    assert low < np.mean(scores) < high
