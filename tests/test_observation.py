"""The observation schema and its encoder."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from esper.lifecycle import Stage
from esper.observation import (
    RUN_FIELDS,
    RUN_SIZE,
    SLOT_FIELDS,
    SLOT_SIZE,
    UNKNOWN,
    ObservationView,
    RunReading,
    SlotReading,
    encode,
    feature_bounds,
    feature_names,
)

wild = st.floats(0, 1e12) | st.just(math.inf) | st.just(math.nan)
maybe = lambda strategy: st.none() | strategy  # noqa: E731

slot_readings = st.builds(
    SlotReading,
    kind=st.sampled_from(["vector", "sequence", "image"]),
    channels=st.integers(1, 10_000),
    positions=st.integers(1, 10**7),
    depth=st.floats(0, 1),
    stage=st.sampled_from(Stage),
    blueprint=st.integers(-1, 12),
    style=maybe(st.integers(0, 2)),
    alpha=st.floats(0, 1),
    alpha_target=maybe(st.floats(0, 1)),
    ramp_progress=maybe(st.floats(0, 1)),
    pruning=st.booleans(),
    decisions_in_stage=st.integers(0, 1000),
    decisions_since_germination=maybe(st.integers(0, 1000)),
    embargo_left=st.integers(0, 2),
    seed_params=st.integers(0, 99),
    contribution=maybe(st.floats(-1, 1)),
    contribution_before=maybe(st.floats(-1, 1)),
    contribution_age=maybe(st.integers(0, 1000)),
    seed_gradient_rms=maybe(wild),
    host_gradient_rms=maybe(wild),
    slot_gradient_rms=maybe(wild),
    activation_rms=maybe(wild),
    seed_output_rms=maybe(wild),
    affordable_share=maybe(st.floats(0, 1)),
    germinations=st.integers(0, 50),
    prunes=st.integers(0, 50),
)
histories = st.integers(0, 8).flatmap(
    lambda n: st.tuples(*(st.lists(values, min_size=n, max_size=n) for values in (st.floats(0, 1), wild, wild)))
)


@st.composite
def run_readings(draw):
    scores, train_losses, val_losses = draw(histories)
    return RunReading(
        decision=draw(st.integers(0, 500)),
        horizon=draw(maybe(st.integers(1, 500))),
        scores=scores,
        train_losses=train_losses,
        val_losses=val_losses,
        host_params=draw(st.integers(1, 10**9)),
        added_params=draw(st.integers(100, 10**9)),
        rent=draw(st.floats(0, 10)),
        budget=draw(maybe(st.integers(0, 10**9))),
        learning_rate=draw(maybe(st.floats(0, 100))),
        train_samples=draw(maybe(st.integers(1, 10**9))),
        chance_score=draw(maybe(st.floats(0, 1))),
        rolled_back=draw(st.booleans()),
        slots=draw(st.lists(slot_readings, max_size=4)),
    )


def test_sizes_are_those_of_the_design():
    assert (RUN_SIZE, SLOT_SIZE) == (24, 34)
    assert len(feature_names(3)) == len(set(feature_names(3))) == 126


def test_every_field_is_documented_and_ranged():
    for field in RUN_FIELDS + SLOT_FIELDS:
        assert field.meaning
        assert -1 <= field.low < field.high <= 1


@given(run_readings())
def test_every_number_is_finite_and_known_or_marked_unknown(run):
    features, blueprints = encode(run)
    low, high = feature_bounds(len(run.slots))
    assert features.dtype == np.float32
    assert features.shape == low.shape
    assert np.isfinite(features).all()
    assert (features <= high).all()
    known_low = np.array([f.low for f in RUN_FIELDS + SLOT_FIELDS * len(run.slots)])
    assert ((features == UNKNOWN) | (features >= known_low)).all()
    assert blueprints.tolist() == [s.blueprint for s in run.slots]


@given(run_readings(), st.randoms())
def test_permuting_the_slots_permutes_the_observation(run, random):
    order = list(range(len(run.slots)))
    random.shuffle(order)
    features, blueprints = encode(run)
    run.slots = [run.slots[i] for i in order]
    permuted, permuted_blueprints = encode(run)
    assert np.array_equal(permuted[:RUN_SIZE], features[:RUN_SIZE])
    blocks = features[RUN_SIZE:].reshape(-1, SLOT_SIZE)
    assert np.array_equal(permuted[RUN_SIZE:].reshape(-1, SLOT_SIZE), blocks[order])
    assert np.array_equal(permuted_blueprints, blueprints[order])


def test_what_is_not_known_is_not_zero():
    nothing_yet = {"decision": 0, "horizon": None, "scores": [], "train_losses": [], "val_losses": []}
    slot = SlotReading(kind="image", channels=8, positions=64, depth=0.0)
    view = ObservationView(*encode(RunReading(**nothing_yet, host_params=100, added_params=0, rent=0.02, slots=[slot])))
    for name in ("progress", "score", "train_loss", "budget", "score_trend"):
        assert view[name] is None
    for name in ("contribution", "alpha_target", "ramp_progress", "age"):
        assert view.slot(0, name) is None
    assert view.slot(0, "alpha") == 0.0


def test_a_view_reads_by_name():
    carried = {"kind": "vector", "channels": 4, "positions": 1}
    held = SlotReading(**carried, depth=1.0, stage=Stage.HOLDING, blueprint=3, alpha=0.5)
    slots = [SlotReading(**carried, depth=0.0), held]
    history = {"decision": 6, "horizon": 24, "scores": [0.25], "train_losses": [1.0], "val_losses": [3.0]}
    view = ObservationView(*encode(RunReading(**history, host_params=100, added_params=0, rent=0.02, slots=slots)))
    assert (view["progress"], view["score"], view["val_loss"]) == (0.25, 0.25, 0.75)
    assert (view.stage(0), view.stage(1)) == (Stage.DORMANT, Stage.HOLDING)
    assert (view.blueprint(0), view.blueprint(1), view.slot(1, "alpha")) == (-1, 3, 0.5)
    with pytest.raises(KeyError):
        view["loss"]
    with pytest.raises(ValueError, match="expected 58 features for 1 slots"):
        ObservationView(np.zeros(24, np.float32), np.array([-1]))
