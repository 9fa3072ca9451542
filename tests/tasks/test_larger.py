"""The larger tasks: hosts as they are in practice, splits that stay, data that change during a run."""

import hashlib

import numpy as np
import pytest
import torch
from matplotlib import get_data_path
from matplotlib.font_manager import FontProperties
from matplotlib.path import Path
from matplotlib.textpath import TextPath

from esper.commands.grow_run import draw_order
from esper.env.engine.run import EpisodeData
from esper.env.episode import Episode
from esper.tamiyo.policy.registry import trained_on
from esper.tasks import TASKS, get_task
from esper.tasks.glyphs import CHARACTERS, DRAWING_SIDE, FAMILIES, drawings

TARGETS = {
    "glyphs": "d09444b8cf47260ed671c02ffa02b3d8f439706359f6ccaf056770446f3dd69e",
    "glyph_transformer": "d09444b8cf47260ed671c02ffa02b3d8f439706359f6ccaf056770446f3dd69e",
    "glyph_stream": "d09444b8cf47260ed671c02ffa02b3d8f439706359f6ccaf056770446f3dd69e",
    "letter": "45d264abbc760f22023bc9f3ec67804d8dd6580f25f52181a64973bcdee84636",
    "satellite": "4649769c854e05b113b4f69ea70457563fb9169105fd627c37ff16087da82140",
    "pen_digits": "2b4cbc5b9740fade3da7ceb18e9abe1c83c98e372757439a0ea6c9d4311a93ba",
    "splice": "43c3e852df579e52cef68b6dbade70ba856f4e643782bdc43071465a7c631bbd",
    "library_lm": "2346dd31d6ee5a9dc5aad95e7bf14e985754ccea44449412ce5b64db7e325e60",
}
"""SHA-256 of the targets of all splits, one after the other: what fixes which sample is where."""


@pytest.mark.parametrize("name", TARGETS)
class TestEveryLargerTask:
    def test_has_the_splits_that_were_measured_on(self, name):
        splits = get_task(name).splits()
        parts = [splits.train_y, splits.val_y, splits.test_y]
        assert hashlib.sha256(b"".join(part.numpy().tobytes() for part in parts)).hexdigest() == TARGETS[name]

    def test_has_every_class_in_every_split(self, name):
        splits = get_task(name).splits()
        if splits.train_y.ndim == 1:  # a rare character need not stand in every stretch of a text
            for y in (splits.train_y, splits.val_y, splits.test_y):
                assert len(y.unique()) == splits.num_classes

    def test_has_a_host_of_20_000_to_200_000_parameters_and_three_to_five_slots(self, name):
        task = get_task(name)
        assert 20_000 <= sum(p.numel() for p in task.build_host().parameters()) <= 200_000
        assert 3 <= len(task.slots) <= 5
        assert 12 <= task.horizon <= 30


def test_the_tasks_that_are_held_out_were_never_trained_on():
    held_out = {name for name, task in TASKS.items() if task.held_out}
    assert len(held_out) >= 2
    assert not held_out & set(trained_on("tamiyo"))


def test_the_language_model_sees_nothing_of_what_follows():
    task = get_task("library_lm")
    host, x = task.build_host().eval(), task.splits().val_x[:1].clone()
    before = host(x)
    x[0, 30] = (x[0, 30] + 1) % task.splits().num_classes
    changed = (host(x) - before).abs().amax(2)[0] > 1e-6
    assert changed.nonzero().flatten().tolist() == list(range(30, 64))


# ------------------------------------------------------------------------------------------------ glyphs


def draw(character, font):
    """A character as the shipped drawings have it: 44 pixels to the em, centred across, the baseline 18 pixels up."""
    face = FontProperties(fname=f"{get_data_path()}/fonts/ttf/{font}.ttf")
    path = TextPath((0, 0), character, size=44, prop=face)
    box, at = path.get_extents(), np.arange(DRAWING_SIDE) + 0.5
    across, up = np.meshgrid(at - DRAWING_SIDE / 2 + (box.x0 + box.x1) / 2, DRAWING_SIDE - at - 18)
    points = np.stack([across.ravel(), up.ravel()], 1)
    inside = np.zeros(len(points), bool)
    for outline in path.to_polygons():
        inside ^= Path(outline).contains_points(points)
    return inside.reshape(DRAWING_SIDE, DRAWING_SIDE)


def test_the_drawings_are_those_of_matplotlibs_fonts():
    """Up to a pixel here and there, so that another version of the library may be installed."""
    fonts = [font for family in FAMILIES.values() for font in family]
    assert drawings().shape == (len(fonts), 62, 64, 64)
    for character, font in [("A", "DejaVuSans"), ("g", "cmtt10"), ("8", "DejaVuSerif-Italic"), ("Q", "cmti10")]:
        shipped = drawings()[fonts.index(font), CHARACTERS.index(character)]
        assert np.mean(shipped != draw(character, font)) < 0.01, (character, font)


# ------------------------------------------------------------------------------------------------ a stream


def sample_order(task, **conditions):
    """The training samples of each batch of an episode, and how many batches there are."""
    episode = Episode(seed=0, horizon=task.horizon, rent=0.0, **conditions)
    data = EpisodeData(task, episode)
    count = episode.horizon * episode.steps_per_decision(task)
    return [data.samples[data.next_indices()] for _ in range(count)]


def test_a_stream_shows_one_family_after_the_other():
    drawn = sample_order(get_task("glyph_stream"))
    quarter = len(drawn) // 4
    for phase in range(4):
        seen = torch.cat(drawn[phase * quarter : (phase + 1) * quarter])
        assert set((seen // 3100).tolist()) == {phase}
        assert len(seen.unique()) == 3100
        first_pass = torch.cat(drawn[phase * quarter : phase * quarter + 3100 // 64])
        assert len(first_pass.unique()) == len(first_pass), "a pass repeats nothing"


def test_a_stream_of_few_samples_fills_its_batches():
    drawn = sample_order(get_task("glyph_stream"), train_samples=100)
    assert {len(batch) for batch in drawn} == {64}


def test_other_tasks_show_all_of_their_data_all_the_time():
    drawn = sample_order(get_task("glyphs"))
    assert len(torch.cat(drawn[: 12400 // 64]).unique()) == 12400 // 64 * 64
    assert set((drawn[0] // 3100).tolist()) == {0, 1, 2, 3}


def test_a_stream_is_one_for_esper_grow_too():
    task = get_task("glyph_stream")
    order = draw_order(task, task.splits(), 0.5)
    assert sorted(order.tolist()) == list(range(2 * 3100, 3 * 3100)), "the third of four families, serif"
