from __future__ import annotations

import json
import math
from itertools import pairwise

import matplotlib as mpl
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.image import imread

from esper import figure as module
from esper.figure import growth_figure
from esper.files import write_json_atomic
from esper.record import GrowthRecord, SlotState

DORMANT = SlotState("DORMANT", None, 0.0)


def seed(blueprint, *stretches):
    """States of one seed: (stage, alphas of its decisions)."""
    return [SlotState(stage, blueprint, alpha) for stage, alphas in stretches for alpha in alphas]


def lane(horizon, *parts):
    """One slot's states: runs of states and, between them, numbers of dormant decisions."""
    states = [DORMANT]
    for part in parts:
        states += [DORMANT] * part if isinstance(part, int) else part
    return (states + [DORMANT] * horizon)[: horizon + 1]


EMBARGO = [SlotState("EMBARGOED", None, 0.0)] * 2
KEPT_CONV = seed(
    "conv", ("TRAINING", [0] * 3), ("BLENDING", [0.25, 0.5, 0.75]), ("HOLDING", [1.0] * 3), ("FOSSILIZED", [1.0] * 20)
)
CUT_ATTENTION = seed("attention", ("TRAINING", [0] * 4), ("BLENDING", [0.35, 0.7]), ("BLENDING", [0.35]))
HALF_DEPTHWISE = seed(
    "depthwise", ("TRAINING", [0] * 2), ("BLENDING", [0.25, 0.5]), ("HOLDING", [0.5] * 3), ("BLENDING", [0.75, 1.0]),
    ("HOLDING", [1.0] * 5),
)  # fmt: skip
SHORT_SQUEEZE = seed("squeeze_excite", ("TRAINING", [0] * 2))

LANES = [
    lane(24, 1, KEPT_CONV),
    lane(24, 2, CUT_ATTENTION, EMBARGO, 1, HALF_DEPTHWISE),
    lane(24, SHORT_SQUEEZE, EMBARGO, 3, SHORT_SQUEEZE, EMBARGO, seed("gated_mlp", ("TRAINING", [0] * 11))),
    lane(24),
    lane(24, 17, seed("conv_large", ("TRAINING", [0] * 3), ("BLENDING", [0.3, 0.6, 0.9]), ("HOLDING", [1.0]))),
    lane(24, 21, seed("squeeze_excite", ("TRAINING", [0] * 3))),
    lane(24, seed("mlp", ("TRAINING", [0]), ("BLENDING", [1.0]), ("FOSSILIZED", [1.0] * 30))),
    lane(24, *[part for _ in range(5) for part in (SHORT_SQUEEZE, EMBARGO)]),
]


def make_record(num_slots=3, **changes):
    """A plausible growth of 24 decisions."""
    time = np.arange(25)
    wobble = 0.008 * np.sin(2.1 * time)
    alone = 0.1 + 0.38 * (1 - np.exp(-time / 5)) + wobble
    grown = alone + 0.38 / (1 + np.exp(-(time - 9) / 2.2)) - 0.005 + 0.006 * np.cos(3 * time)
    grown[:5] = alone[:5]
    prefix = ["block1", "block2", "block3", "layer3.1.mixer", "b5", "b6", "encoder.layers.7", "b8"]
    lanes = {prefix[i]: LANES[i] for i in range(num_slots)}
    added = [
        sum(1568 if s.blueprint in ("conv", "depthwise") else 420 for s in states if s.blueprint)
        for states in zip(*lanes.values(), strict=True)
    ]
    fields = {
        "task": "mnist1d",
        "policy": "Tamiyo",
        "scores": grown.tolist(),
        "host_alone_scores": alone.tolist(),
        "added_params": added,
        "slots": lanes,
        "host_params": 2138,
    }
    return GrowthRecord(**(fields | changes))


@pytest.mark.parametrize("slots", [1, 3, 8])
def test_draws_any_number_of_slots(tmp_path, slots):
    path = tmp_path / "deep" / "growth.png"
    growth_figure(make_record(slots), path)
    image = imread(path)
    assert image.shape[1] == 2000
    assert image[..., :3].std() > 0.05


def names_in_lanes(figure):
    """Extents (left, right), in pixels, of the names in each lane."""
    lanes = {}
    for text in figure.axes[1].texts:
        extent = text.get_window_extent()
        lanes.setdefault(int(text.get_position()[1]), []).append((extent.x0, extent.x1))
    return lanes


def marks(figure, shape):
    """(decision, lane) of the marks of one shape."""
    lines = [line for line in figure.axes[1].lines if line.get_marker() == shape]
    return sorted((x, int(y)) for line in lines for x, y in zip(*line.get_data(), strict=True))


def test_every_seed_is_named_and_no_name_covers_another():
    figure = module._draw(make_record(8))
    lanes = names_in_lanes(figure)
    assert {lane: len(names) for lane, names in lanes.items()} == {0: 1, 1: 2, 2: 3, 4: 1, 5: 1, 6: 1, 7: 5}
    box = figure.axes[1].get_window_extent()
    for names in lanes.values():
        ordered = sorted(names)
        assert ordered[0][0] >= box.x0
        assert ordered[-1][1] <= box.x1
        assert all(left[1] <= right[0] for left, right in pairwise(ordered))


stretches = st.lists(
    st.tuples(st.sampled_from(["squeeze_excite", "mlp", "depthwise"]), st.integers(1, 5), st.integers(0, 3)), max_size=6
)


@settings(max_examples=15, deadline=None)
@given(stretches)
def test_names_never_overlap_whatever_grew(parts):
    lives = [part for name, life, gap in parts for part in (seed(name, ("TRAINING", [0] * life)), EMBARGO, gap)]
    record = make_record(1, slots={"block": lane(24, *lives)})
    names = sorted(names_in_lanes(module._draw(record)).get(0, []))
    assert all(left[1] <= right[0] for left, right in pairwise(names))


def test_marks_stand_where_seeds_were_kept_and_cut():
    figure = module._draw(make_record(8))
    assert marks(figure, "D") == [(2, 6), (10, 0)]
    cut_in_eighth = [(2 + 4 * i, 7) for i in range(5)]
    assert marks(figure, "X") == sorted([(9, 1), (2, 2), (9, 2), (22, 2), *cut_in_eighth])


def test_a_seed_that_follows_at_once_is_another_seed():
    states = lane(
        10, seed("mlp", ("HOLDING", [1.0] * 2)), seed("mlp", ("TRAINING", [0] * 2)), seed("conv", ("HOLDING", [1.0]))
    )
    lives = list(module._lives(states))
    assert [(life.first, life.last, life.blueprint) for life in lives] == [(1, 2, "mlp"), (3, 4, "mlp"), (5, 5, "conv")]


def test_a_short_life_keeps_its_full_name_beside_it_and_a_crowded_one_is_shortened():
    figure = module._draw(make_record(8))
    crowded = [text.get_text() for text in figure.axes[1].texts if int(text.get_position()[1]) == 7]
    assert crowded[-1] == "squeeze_excite"
    assert all(name.startswith("squ") and name.endswith("…") for name in crowded[:-1])


@pytest.mark.parametrize(
    "changes",
    [
        {"host_alone_scores": ()},
        {"added_params": [0] * 25},
        {"scores": [math.nan] * 5 + [0.5] * 20},
        {"scores": [0.5] * 25, "host_alone_scores": [0.5] * 25},
        {"title": "Another title", "policy": "heuristic"},
        {"slots": {"encoder.layers.11.attention.output.dense": LANES[0]}},
    ],
    ids=["no host alone", "nothing added", "unknown scores", "equal scores", "title", "long slot name"],
)
def test_draws_every_kind_of_record(tmp_path, changes):
    growth_figure(make_record(**changes), tmp_path / "growth.png")
    assert (tmp_path / "growth.png").stat().st_size > 10_000


@pytest.mark.parametrize(
    "scores", [[0.5 + 0.001 * t for t in range(25)], [0.1 + 0.036 * t for t in range(25)], [1.0] * 25]
)
def test_the_score_axis_tells_the_truth(scores):
    axes = module._draw(make_record(scores=scores, host_alone_scores=scores)).axes[0]
    low, high = axes.get_ylim()
    assert high - low >= 0.05
    assert low >= -0.03
    assert high <= 1.03
    ticks = [(place, text.get_text()) for place, text in zip(axes.get_yticks(), axes.get_yticklabels(), strict=True)]
    assert [f"{100 * place:g} %" for place, _ in ticks] == [label for _, label in ticks]


def test_nothing_is_drawn_outside_the_picture():
    for record in (
        make_record(1),
        make_record(8, slots={f"encoder.layers.{i}.attention.output": LANES[i] for i in range(8)}),
    ):
        figure = module._draw(record)
        figure.canvas.draw()
        extent, box = figure.get_tightbbox(), figure.bbox_inches
        assert extent.x0 >= 0
        assert extent.y0 >= 0
        assert extent.x1 <= box.x1
        assert extent.y1 <= box.y1


def test_settings_of_the_user_are_left_alone_and_have_no_influence(tmp_path):
    growth_figure(make_record(), tmp_path / "plain.png")
    with mpl.rc_context({"font.size": 30, "axes.facecolor": "red", "lines.linewidth": 9}):
        before = dict(mpl.rcParams)
        growth_figure(make_record(), tmp_path / "styled.png")
        assert dict(mpl.rcParams) == before
    assert (tmp_path / "plain.png").read_bytes() == (tmp_path / "styled.png").read_bytes()


def test_a_failure_leaves_no_file(tmp_path, monkeypatch):
    path = tmp_path / "growth.png"
    path.write_bytes(b"the one before")
    monkeypatch.setattr(module.os, "replace", lambda *args: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        growth_figure(make_record(), path)
    assert [entry.name for entry in tmp_path.iterdir()] == ["growth.png"]
    assert path.read_bytes() == b"the one before"


def test_record_survives_json(tmp_path):
    record = make_record(8)
    write_json_atomic(tmp_path / "record.json", record.to_json())
    assert GrowthRecord.from_json(json.loads((tmp_path / "record.json").read_text())) == record


def test_unknown_scores_survive_json(tmp_path):
    record = make_record(scores=[math.nan] + [0.5] * 24)
    write_json_atomic(tmp_path / "record.json", record.to_json())
    back = GrowthRecord.from_json(json.loads((tmp_path / "record.json").read_text()))
    assert math.isnan(back.scores[0])
    assert back.scores[1] == 0.5


def test_plain_tuples_become_states():
    record = make_record(slots={"block": [("DORMANT", None, 0.0)] * 25})
    assert record.slots["block"][0] == DORMANT


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"scores": [0.5] * 24}, r"histories of one length, at least 2, got \{'scores': 24, 'added_params': 25"),
        ({"host_alone_scores": [0.5] * 3}, r"'host_alone_scores': 3"),
        ({"slots": {"block": [DORMANT] * 9}}, r"\"slot 'block'\": 9"),
        ({"slots": {}}, r"at least one slot, got none"),
        ({"slots": {"block": [("ASLEEP", None, 0.0)] * 25}}, r"unknown stages \['ASLEEP'\]; stages are DORMANT"),
    ],
)
def test_refuses_records_that_do_not_fit_together(changes, message):
    with pytest.raises(ValueError, match=message):
        make_record(**changes)
