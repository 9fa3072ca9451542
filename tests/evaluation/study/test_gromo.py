"""The arm `gromo`: another library's method grows the same hosts, on the same data, by the same measure."""

import pytest
import torch

from episodes import quick_task
from esper.evaluation import names
from esper.evaluation.study import Study, StudyConfig
from esper.evaluation.study.architectures import Architecture, episode_of, train_from_scratch
from esper.evaluation.study.gromo import grow_with_gromo, obstacle
from esper.tasks import get_task

needs_gromo = pytest.mark.skipif(
    obstacle(get_task("wine")) is not None, reason="gromo is not installed; pip install 'esper-lite[compare]'"
)


def grown(name, horizon=24, seed=3):
    task = quick_task(name, horizon)
    return task, grow_with_gromo(task, episode_of(task, seed, 0.02), arm="gromo")


@needs_gromo
@pytest.mark.parametrize("name", ["wine", "mnist1d", "digits"])  # a vector, a sequence, an image
def test_it_grows_hosts_of_every_kind_of_slot(name):
    task, result = grown(name)
    growths = [decision for decision, op in enumerate(result.ops) if op == "GERMINATE"]
    assert growths == [1, 2, 3, 4, 5, 6]
    assert result.sizes[:2] == [0, 0]
    assert result.sizes == sorted(result.sizes)
    assert result.added_params > 0
    assert {block[0] for block in result.architecture} <= set(task.slots)
    assert len(result.scores) == len(result.train_flops) == task.horizon + 1
    assert 0 <= result.test_score <= 1


@needs_gromo
def test_before_it_grows_it_is_the_host_alone():
    task, result = grown("digits")
    alone = train_from_scratch(task, episode_of(task, 3, 0.02), Architecture(()), arm="alone")
    assert result.host_params == alone.host_params
    assert result.train_samples_seen == alone.train_samples_seen
    assert result.scores[:2] == alone.scores[:2]
    assert result.train_flops[:2] == alone.train_flops[:2]
    assert result.train_flops[-1] > alone.train_flops[-1]


@needs_gromo
def test_it_ends_at_the_size_that_it_is_said_to():
    """Neurons for every channel of every slot: as many as three convolutions have, but for their last biases."""
    task, result = grown("digits")
    convolutions = Architecture(tuple((slot, "conv", "add", 1.0) for slot in task.slots))
    filled = train_from_scratch(task, episode_of(task, 3, 0.02), convolutions, arm="filled", decisions=1)
    assert result.added_params == filled.added_params - 3 * 8


@needs_gromo
def test_an_episode_has_one_outcome_and_leaves_the_random_state_alone():
    state = torch.get_rng_state()
    first, second, other = grown("wine")[1], grown("wine")[1], grown("wine", seed=4)[1]
    assert torch.equal(torch.get_rng_state(), state)
    assert first == second
    assert first.scores != other.scores


@needs_gromo
def test_a_growth_step_costs_compute():
    """In the interval of a growth the bill is higher than in a later one of the same network."""
    _, result = grown("digits")
    spent = [after - before for before, after in zip(result.train_flops[:-1], result.train_flops[1:], strict=True)]
    last = max(decision for decision, op in enumerate(result.ops) if op == "GERMINATE")
    assert spent[last] > spent[last + 1] == spent[-1]


def test_a_causal_host_is_refused_with_the_reason():
    task = quick_task("charlm")
    with pytest.raises(ValueError, match=r"cannot be run on the task 'charlm': .*causal"):
        grow_with_gromo(task, episode_of(task, 0, 0.02), arm="gromo")


def test_without_the_library_the_reason_says_how_to_install_it(monkeypatch):
    monkeypatch.setattr("esper.evaluation.study.gromo.find_spec", lambda name: None)
    assert "pip install 'esper-lite[compare]'" in obstacle(get_task("wine"))


def test_a_study_leaves_out_what_cannot_be_run(tmp_path, monkeypatch):
    config = StudyConfig(task=("wine", "charlm"))
    study = Study(config, tmp_path)
    assert ("charlm", names.GROMO) not in study.units
    assert "causal" in study.obstacles["charlm", names.GROMO]
    assert all(("charlm", arm) in study.units for arm in study.arms if arm != names.GROMO)
