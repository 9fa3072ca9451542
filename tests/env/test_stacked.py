"""The stacked engine means what the loop engine means, and keeps its rows apart."""

import gc
import logging
from dataclasses import asdict, replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from episodes import play, quick_task
from esper.actions import BLUEPRINT_NAMES, HEADS, Decision
from esper.auditions import Auditions
from esper.env import GrowthVectorEnv
from esper.env.engine.factory import make_engine
from esper.env.engine.loop import LoopEngine
from esper.env.engine.stacked import StackedEngine
from esper.env.engine.stacking.pool import Member, ParameterPool
from esper.env.episode import Episode
from esper.lifecycle import Op, Stage
from esper.tasks import SCHEDULES, TASKS, get_task

KIND_EXAMPLES = ("wine", "mnist1d", "charlm", "digits")
"""Vectors, sequences, causal sequences, images."""

LOOP_ONLY = ("pen_digits",)
"""Tasks whose hosts cannot be stacked: a recurrent layer of PyTorch has no rule."""

LONG = ("glyphs", "glyph_transformer", "glyph_stream", "library_lm", "satellite", "splice")
"""Tasks of larger hosts, whose likes are tested on the others."""

STACKED = [pytest.param(n, marks=[pytest.mark.slow] * (n in LONG)) for n in TASKS if n not in LOOP_ONLY]


@pytest.fixture
def double():
    """Double precision, in which equal arithmetic stays equal to many digits over a whole episode."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def small(task, batch_size=8, steps=2):
    """``task`` with short intervals, little validation data and inputs of the default precision."""
    task.batch_size, task.steps_per_decision, task.horizon = batch_size, steps, 12
    full = task.splits()
    parts = {
        name: (x[:64] if "val" in name or "test" in name else x)
        for name, x in vars(full).items()
        if "_x" in name or "_y" in name
    }
    parts = {name: x.to(torch.get_default_dtype()) if x.is_floating_point() else x for name, x in parts.items()}
    splits = SimpleNamespace(**parts, num_classes=full.num_classes)
    task.splits = lambda: splits
    return task


def episodes(task, rows, **kwargs):
    """An episode for each row, with learning rates of their own."""
    return {
        row: Episode(seed=row, horizon=12, rent=0.02, learning_rate=task.learning_rate * (1 + row / 10), **kwargs)
        for row in rows
    }


def random_decision(masks, rng):
    """A random legal decision that does something wherever it can."""
    ops = np.flatnonzero(masks["op"])
    choices = {"op": int(rng.choice(ops[ops > 0])) if len(ops) > 1 else 0}
    for head in HEADS[1:]:
        mask = masks[head.name]
        if mask.ndim == 2:
            mask = mask[choices[head.parent]]
        choices[head.name] = int(rng.choice(np.flatnonzero(mask))) if mask.any() else 0
    return Decision(**choices)


def assert_close(loop, stacked, tolerance=1e-6, where=""):
    """Two nests of readings: numbers within the tolerance, everything else equal."""
    if isinstance(loop, dict):
        for key in loop:
            assert_close(loop[key], stacked[key], tolerance, f"{where}.{key}")
    elif isinstance(loop, list | tuple):
        assert len(loop) == len(stacked), where
        for i, (a, b) in enumerate(zip(loop, stacked, strict=True)):
            assert_close(a, b, tolerance, f"{where}[{i}]")
    elif isinstance(loop, float) and stacked is not None:
        assert stacked == pytest.approx(loop, rel=tolerance, abs=tolerance, nan_ok=True), where
    else:
        assert loop == stacked, where


def assert_same_reports(loop, stacked, tolerance=1e-6):
    assert loop.keys() == stacked.keys()
    for row in loop:
        assert_close(asdict(loop[row].reading), asdict(stacked[row].reading), tolerance, f"row {row}")
        assert loop[row].train_samples_seen == stacked[row].train_samples_seen
        for head, mask in loop[row].masks.items():
            assert np.array_equal(mask, stacked[row].masks[head]), head


def both(task, rows=4, auditions=None, **kwargs):
    """A loop engine and a stacked one after the same reset, and the loop's reports."""
    engines = LoopEngine(task, rows), StackedEngine(task, rows)
    begun = episodes(task, range(rows), auditions=auditions, **kwargs)
    reports, other = (engine.reset(begun) for engine in engines)
    assert_same_reports(reports, other)
    return *engines, reports


def step_both(loop, stacked, decisions):
    reports = loop.step(decisions)
    assert_same_reports(reports, stacked.step(decisions))
    return reports


# ------------------------------------------------------------------------------------------------ the same meaning


@pytest.mark.parametrize("name", STACKED)
def test_random_legal_episodes_are_those_of_the_loop(double, name):
    task = small(get_task(name))
    host_params = sum(p.numel() for p in task.build_host().parameters())
    loop, stacked, reports = both(task, budget=max(5000, host_params), label_noise=0.1, train_samples=90)
    rng = np.random.default_rng(0)
    for _ in range(task.horizon):
        reports = step_both(loop, stacked, {row: random_decision(r.masks, rng) for row, r in reports.items()})
    assert_close(loop.test_scores(range(4)), stacked.test_scores(range(4)))


@pytest.mark.parametrize("name", KIND_EXAMPLES)
def test_auditions_are_those_of_the_loop(double, name):
    """Candidates learn, leave and are taken over, in hosts that hold auditions at different times."""
    task = small(get_task(name), batch_size=4)
    loop, stacked, reports = both(task, 3, auditions=Auditions(decisions=2), budget=5000)
    rng = np.random.default_rng(1)
    for decision in range(9):
        acting = rng.random(3) < 0.5
        decisions = {
            row: random_decision(r.masks, rng) if acting[row] and decision > 2 else Decision()
            for row, r in reports.items()
        }
        reports = step_both(loop, stacked, decisions)
    results = [slot.auditioned for r in reports.values() for slot in r.reading.slots]
    assert {result.trained for found in results for result in found.values()} == {1, 2}


def test_a_host_that_diverges_in_an_audition_is_rolled_back_as_in_the_loop(double):
    task = small(get_task("digits"), batch_size=4)
    loop, stacked, _ = both(task, 2, auditions=Auditions(decisions=3))
    waiting = dict.fromkeys(range(2), Decision())
    step_both(loop, stacked, waiting)
    step_both(loop, stacked, waiting)
    for engine in (loop, stacked):
        poison(engine, 1, seed=False)
    reports = step_both(loop, stacked, waiting)
    assert [report.reading.rolled_back for report in reports.values()] == [False, True]
    for _ in range(3):
        reports = step_both(loop, stacked, waiting)
    assert not any(report.reading.rolled_back for report in reports.values())


@pytest.mark.parametrize("name", KIND_EXAMPLES)
def test_every_blueprint_in_every_style_lives_as_in_the_loop(double, name):
    task = small(get_task(name), batch_size=4)
    fits = both(task, 1)[2][0].masks["blueprint"][1]
    seeds = [(int(b), style) for b in np.flatnonzero(fits) for style in range(3)]
    loop, stacked, _ = both(task, len(seeds))

    def act(op, **choices):
        return [Decision(op, slot=1, blueprint=b, style=s, **choices) for b, s in seeds]

    ending = [Decision(Op.FOSSILIZE if i % 2 else Op.PRUNE, slot=1, tempo=1) for i in range(len(seeds))]
    again = [Decision() if i % 2 else d for i, d in enumerate(act(Op.GERMINATE))]
    waiting = act(Op.WAIT)
    script = [
        act(Op.GERMINATE),
        waiting,
        act(Op.ADVANCE, tempo=1, curve=1, alpha_target=1),
        waiting,
        act(Op.SET_ALPHA_TARGET, tempo=0, alpha_target=2),
        ending,
        waiting,
        waiting,
        waiting,
        again,
    ]
    for decisions in script:
        reports = step_both(loop, stacked, dict(enumerate(decisions)))
    stages = [report.reading.slots[1].stage for report in reports.values()]
    assert stages[:2] == [Stage.TRAINING, Stage.FOSSILIZED]


def test_seeds_in_several_slots_and_prunes_while_isolated_are_as_in_the_loop(double):
    loop, stacked, _ = both(small(get_task("mnist1d")), 3)
    step_both(loop, stacked, {row: Decision(Op.GERMINATE, slot=row, blueprint="conv") for row in range(3)})
    step_both(loop, stacked, {row: Decision(Op.GERMINATE, slot=(row + 1) % 3, blueprint="mlp") for row in range(3)})
    step_both(loop, stacked, {0: Decision(Op.PRUNE, slot=0), 1: Decision(), 2: Decision(Op.ADVANCE, slot=2)})
    step_both(loop, stacked, {row: Decision(Op.GERMINATE, slot=(row + 2) % 3, blueprint="norm") for row in range(3)})
    step_both(loop, stacked, {row: Decision() for row in range(3)})


def test_any_rows_may_step_or_begin_anew_while_the_others_stand(double):
    task = small(get_task("digits"))
    loop, stacked, _ = both(task, 4)
    germinate = Decision(Op.GERMINATE, slot=0, blueprint="conv")
    step_both(loop, stacked, dict.fromkeys([3, 1], germinate))
    step_both(loop, stacked, {0: germinate, 3: Decision()})
    fresh = {1: Episode(seed=99, horizon=12, rent=0.0, learning_rate=1e-2)}
    assert_same_reports(loop.reset(fresh), stacked.reset(fresh))
    step_both(loop, stacked, {2: germinate, 1: germinate, 0: Decision(Op.ADVANCE, slot=0)})
    step_both(loop, stacked, dict.fromkeys(range(4), Decision()))


def test_hosts_that_train_for_different_times_are_as_in_the_loop(double):
    task = small(get_task("mnist1d"))
    begun = {
        row: replace(episode, interval=interval)
        for (row, episode), interval in zip(episodes(task, range(4)).items(), (1.0, 2.5, 1.0, 0.5), strict=True)
    }
    loop, stacked = LoopEngine(task, 4), StackedEngine(task, 4)
    assert_same_reports(loop.reset(begun), stacked.reset(begun))
    step_both(loop, stacked, dict.fromkeys(range(4), Decision(Op.GERMINATE, slot=1, blueprint="conv")))
    step_both(loop, stacked, dict.fromkeys(range(4), Decision(Op.ADVANCE, slot=1, tempo=1)))
    reports = step_both(loop, stacked, dict.fromkeys(range(4), Decision()))
    assert [report.train_samples_seen / task.batch_size for report in reports.values()] == [6, 15, 6, 3]


class TwoWidths(TASKS["wine"]):
    """Hosts of two structures, as the seed of the episode has it."""

    def build_host(self, width=1.0, depth=1):
        return super().build_host(width * float(torch.randint(1, 3, ())), depth)


def test_hosts_whose_learning_rates_move_differently_are_as_in_the_loop(double):
    task = small(get_task("wine"))
    loop, stacked = LoopEngine(task, 3), StackedEngine(task, 3)
    begun = {
        row: replace(episode, schedule=schedule)
        for (row, episode), schedule in zip(episodes(task, range(3)).items(), SCHEDULES, strict=True)
    }
    reports, other = (engine.reset(begun) for engine in (loop, stacked))
    assert_same_reports(reports, other)
    rates = []
    for decision in range(12):
        chosen = Decision(Op.GERMINATE, slot=0, blueprint="mlp") if decision == 2 else Decision()
        reports = step_both(loop, stacked, dict.fromkeys(range(3), chosen))
        rates.append([report.reading.learning_rate for report in reports.values()])
    for row, (name, episode) in enumerate(zip(SCHEDULES, begun.values(), strict=True)):
        expected = [episode.learning_rate * SCHEDULES[name](done, 12) for done in range(12)]
        assert [rate[row] for rate in rates] == pytest.approx(expected)
    assert len({report.reading.val_losses[-1] for report in reports.values()}) == 3


def test_hosts_of_different_structure_train_side_by_side(double):
    task = small(TwoWidths())
    loop, stacked, reports = both(task, 6)
    assert len({report.reading.host_params for report in reports.values()}) == 2
    rng = np.random.default_rng(1)
    for _ in range(6):
        reports = step_both(loop, stacked, {row: random_decision(r.masks, rng) for row, r in reports.items()})


def test_the_environment_pays_the_same_rewards_with_either_engine():
    envs = [GrowthVectorEnv(3, quick_task("mnist1d"), engine=engine) for engine in ("loop", "stacked")]
    (loop, actions), _ = (play(env, seed=4) for env in envs)
    observation, _ = envs[1].reset(seed=4)
    for (expected, rewards, *_), action in zip(loop, actions, strict=True):
        observation, got, *_ = envs[1].step(action)
        np.testing.assert_allclose(got, rewards, atol=5e-3)  # a sample or two of 800 may fall the other way
        np.testing.assert_allclose(observation["features"], expected["features"], atol=0.1)


def test_running_statistics_are_each_hosts_own_and_those_of_the_loop(double):
    loop, stacked, _ = both(small(get_task("glyphs")), 3)
    for decisions in (dict.fromkeys(range(3), Decision(Op.GERMINATE, slot=1, blueprint="norm")), {2: Decision()}):
        step_both(loop, stacked, decisions)
    kept = [
        [engine.runs[row].network.model.get_submodule("stem.1").running_var for row in range(3)]
        for engine in (loop, stacked)
    ]
    assert all(torch.allclose(a, b, rtol=1e-9) for a, b in zip(*kept, strict=True))
    assert not torch.allclose(kept[0][0], kept[0][1])


# ------------------------------------------------------------------------------------------------ divergence


def poison(engine, row, *, seed):
    """Put a NaN into a row's host, or into the seed of its slot 0."""
    network = engine.runs[row].network
    module = network.slots[0].seed if seed else network.model
    with torch.no_grad():
        next(module.parameters()).view(-1)[0] = torch.nan


@pytest.mark.parametrize("seed", [False, True])
@pytest.mark.parametrize("name", ["digits", pytest.param("glyphs", marks=pytest.mark.slow)])
def test_a_diverged_host_is_rolled_back_as_in_the_loop(double, name, seed):
    task = small(get_task(name))
    loop, stacked, _ = both(task, 3)
    germinate = Decision(Op.GERMINATE, slot=0, blueprint="mlp")
    waiting = dict.fromkeys(range(3), Decision())
    step_both(loop, stacked, dict.fromkeys(range(3), germinate))
    step_both(loop, stacked, dict.fromkeys(range(3), Decision(Op.ADVANCE, slot=0)))
    step_both(loop, stacked, waiting)
    for engine in (loop, stacked):
        poison(engine, 1, seed=seed)
    late = Decision(Op.GERMINATE, slot=1, blueprint="conv")
    reports = step_both(loop, stacked, waiting | {1: late})
    assert [report.reading.rolled_back for report in reports.values()] == [False, True, False]
    assert reports[1].reading.slots[1].blueprint == -1
    for _ in range(4):
        reports = step_both(loop, stacked, waiting)
    assert not any(report.reading.rolled_back for report in reports.values())


@pytest.mark.parametrize("name", KIND_EXAMPLES)
def test_a_nan_in_one_host_changes_no_bit_of_the_others(name):
    task = small(get_task(name))
    rng = np.random.default_rng(0)
    calm, poisoned = (StackedEngine(task, 32) for _ in range(2))
    reports, after = (engine.reset(episodes(task, range(32))) for engine in (calm, poisoned))
    for decision in range(8):
        decisions = {row: random_decision(reports[row].masks, rng) for row in range(32)}
        if decision == 4:
            poison(poisoned, 7, seed=False)
        reports = calm.step(decisions)
        after = poisoned.step(decisions if decision < 4 else decisions | {7: Decision()})
        for row in set(range(32)) - {7}:
            assert asdict(after[row].reading) == asdict(reports[row].reading), row
    assert after[7].reading.rolled_back or np.isfinite(after[7].reading.val_losses[-1])


@pytest.mark.parametrize("style", range(3))
@pytest.mark.parametrize("name", ["wine", "mnist1d", pytest.param("charlm", marks=pytest.mark.slow)])
def test_company_in_its_blueprint_changes_no_bit_of_a_seed(name, style):
    """Each blueprint held by one host, and by a second one too, in another style and stage."""
    task = small(get_task(name), batch_size=4)
    fits = StackedEngine(task, 1).reset(episodes(task, [0]))[0].masks["blueprint"][0]
    fitting = np.flatnonzero(fits).tolist()
    count = len(fitting)
    alone, joined = StackedEngine(task, count), StackedEngine(task, 2 * count)
    alone.reset(episodes(task, range(count)))
    joined.reset(episodes(task, range(2 * count)))

    def act(op, style=style):
        return [Decision(op, slot=0, blueprint=b, style=style, tempo=1, alpha_target=1) for b in fitting]

    waiting = act(Op.WAIT)
    mine = [act(Op.GERMINATE), waiting, act(Op.ADVANCE), waiting]
    others = [act(Op.GERMINATE, (style + 1) % 3), act(Op.ADVANCE), waiting, act(Op.PRUNE)]
    for decisions, company in zip(mine, others, strict=True):
        expected = alone.step(dict(enumerate(decisions)))
        got = joined.step(dict(enumerate(decisions + company)))
        for row in range(count):
            assert asdict(got[row].reading) == asdict(expected[row].reading), BLUEPRINT_NAMES[fitting[row]]


# ------------------------------------------------------------------------------------------------ what it refuses


class Custom(TASKS["wine"]):
    """Wine with a host of one's own."""

    slots = ("0",)

    def __init__(self, host):
        self.host = host

    def build_host(self, width=1.0, depth=1):
        return self.host()


class Unknown(nn.Module):
    def forward(self, x):
        return torch.kron(x, torch.ones(1, 1))


class MixesHosts(nn.Module):
    """Right for one host; a view of the storage would hand out the wrong numbers for many."""

    def forward(self, x):
        return x - x.detach().numpy().mean() if isinstance(x, torch.Tensor) else x


class Counts(nn.Module):
    """Right for one host; a count for each of many has no place."""

    def __init__(self):
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x):
        self.calls += 1
        return x


class Recurrent(nn.GRU):
    def __init__(self):
        super().__init__(13, 4)

    def forward(self, x):
        return super().forward(x)[0]


def frozen():
    host = nn.Sequential(nn.Linear(13, 4), nn.Linear(4, 3))
    host[0].weight.requires_grad_(False)
    return host


@pytest.mark.parametrize(
    ("host", "message"),
    [
        (lambda: nn.Sequential(nn.Linear(13, 4), nn.Dropout(0.5), nn.Linear(4, 3)), "dropout"),
        (lambda: nn.Sequential(nn.Linear(13, 4), nn.BatchNorm1d(4, momentum=None), nn.Linear(4, 3)), "BatchNorm"),
        (lambda: nn.Sequential(nn.Linear(13, 4), Counts(), nn.Linear(4, 3)), "buffers differ, or change"),
        (lambda: nn.Sequential(Recurrent(), nn.Linear(4, 3)), "fails on stacked tensors"),
        (lambda: nn.Sequential(nn.Linear(13, 4), Unknown(), nn.Linear(4, 3)), "no rule for 'kron'"),
        (lambda: nn.Sequential(nn.Linear(13, 4), MixesHosts(), nn.Linear(4, 3)), "differently"),
        (frozen, "frozen"),
    ],
)
def test_hosts_that_cannot_be_stacked_are_named_and_loop_instead(host, message, caplog):
    task = Custom(host)
    with pytest.raises(ValueError, match=message):
        make_engine(task, 2, kind="stacked")
    with caplog.at_level(logging.WARNING):
        assert isinstance(make_engine(task, 2, kind="auto"), LoopEngine)
    assert "one after the other" in caplog.text
    assert isinstance(make_engine(get_task("wine"), 2), StackedEngine)


def test_every_row_of_a_pool_lies_in_memory_as_the_first_does():
    """On some processors a product rounds by where its factors lie, and the row of a host would matter."""
    pool = ParameterPool({"weight": torch.Size([3, 5])}, dtype=torch.float32, device=torch.device("cpu"))
    for _ in range(3):
        pool.insert(Member({"weight": torch.ones(3, 5)}, 0.1))
    for rows in (pool.weights, pool.gradients, pool.first_moments, pool.second_moments):
        assert rows.shape[1] == 15
        assert [row.data_ptr() % 64 for row in rows] == [torch.ones(1).data_ptr() % 64] * len(rows)


def test_an_unknown_engine_is_named():
    with pytest.raises(ValueError, match="auto, stacked, loop; got 'fast'"):
        GrowthVectorEnv(2, "wine", engine="fast")


# ------------------------------------------------------------------------------------------------ memory


def tensors_alive():
    gc.collect()
    return sum(issubclass(type(x), torch.Tensor) for x in gc.get_objects())


def play_out(engine, task, first_seed, rng):
    reports = engine.reset(
        {
            row: Episode(seed=first_seed + row, horizon=4, rent=0.0, learning_rate=1e-2)
            for row in range(engine.num_hosts)
        }
    )
    for _ in range(4):
        reports = engine.step({row: random_decision(r.masks, rng) for row, r in reports.items()})


@pytest.mark.parametrize("count", [12, pytest.param(250, marks=pytest.mark.slow)])
def test_memory_stays_flat_over_many_episodes(count):
    task = small(get_task("wine"), steps=1)
    engine = StackedEngine(task, 4)
    rng = np.random.default_rng(0)
    alive = []
    for episode in range(count):
        play_out(engine, task, 4 * episode, rng)
        if episode % (count // 4) == count // 4 - 1:
            engine.reset(episodes(task, range(4)))
            alive.append(tensors_alive())
    assert alive[-1] <= alive[1] + 200  # a few pools for blueprints that are new
