"""Growth in a training loop: order of things, optimizers, schedulers, budget, policies, bad input."""

from __future__ import annotations

import io
import math

import numpy as np
import pytest
import torch
from rich.console import Console
from torch import nn

import esper
from esper.actions import Decision
from esper.figure import growth_figure
from esper.growth.observe import observe
from esper.lifecycle import IllegalMoveError, Op
from esper.network.governor import Governor
from esper.observation import encode
from esper.tamiyo.policy.rules import HeuristicPolicy
from growing import Loop, grown_modules
from network.hosts import advance, fossilize, germinate, mlp, of_host, prune

GROWN = (germinate("mlp"), advance(), fossilize())


@pytest.mark.parametrize("kind", ["vector", "sequence", "causal", "image"])
def test_the_heuristic_grows_every_kind_of_host(kind):
    loop = Loop(kind, policy=HeuristicPolicy(probation=1), budget=3000, rent=0.0)
    names = list(loop.model.state_dict())
    steps = loop.epochs(8)
    assert list(of_host(loop.model.state_dict().items())) == names
    assert any(event.kind == "germinated" for step in steps for event in step.events)
    assert any(step.contributions for step in steps)
    assert all(step.added_params <= 3000 for step in steps)
    grown = loop.growth.grown_model().eval()
    assert grown_modules(grown)
    torch.testing.assert_close(grown(loop.x), loop.model.eval()(loop.x))


def test_a_step_sees_what_the_environment_would_see_and_changes_the_next_interval():
    seen = []

    def rule(run):
        seen.append((run.decision, run.observation["progress"], run.observation["score"]))
        return germinate("lora")

    loop = Loop(policy=rule, horizon=4)
    loop.train()
    step = loop.growth.step(loop.evaluate)
    assert seen == [(0, 0.25, pytest.approx(step.score))]
    assert step.slots["1"] == ("DORMANT", None, 0.0)
    assert step.decided == "GERMINATE lora (add) in 1"
    assert loop.stages[0] == "TRAINING"


def test_observations_are_those_of_the_encoder():
    loop = Loop().script(*GROWN)
    loop.epochs(2)
    features, blueprints = encode(loop.growth._run.reading(loop.growth.network))
    observation = observe(loop.growth._run, loop.growth.network)
    assert np.array_equal(observation["features"][0], features)
    assert np.array_equal(observation["blueprints"][0], blueprints)
    assert observation["features"].dtype == np.float32


def test_the_last_batch_of_an_interval_is_measured():
    loop = Loop().script(germinate("mlp"))
    loop.epochs(2)
    slot = loop.growth.network.slots[0]
    loop.train(2)
    assert slot._measuring
    before = slot.statistics.slot_gradient_rms
    loop.train(1)
    assert not slot._measuring
    assert slot.statistics.slot_gradient_rms is not before
    assert slot.statistics.seed_gradient_rms is not None


def test_modes_and_random_states_are_as_after_one_evaluation():
    loop = Loop().script(*GROWN)
    calls = []

    def evaluate():
        calls.append(torch.rand(()))
        return loop.evaluate()

    loop.epochs(2)
    loop.train()
    torch.manual_seed(5)
    loop.growth.step(evaluate)
    after = torch.rand(())
    torch.manual_seed(5)
    torch.rand(())
    assert torch.equal(after, torch.rand(()))
    assert len(calls) == 2
    assert all(module.training for module in loop.model.modules())


# ---------------------------------------------------------------------- optimizers and schedulers


@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW, torch.optim.RMSprop])
def test_the_optimizer_keeps_its_state_and_its_groups(optimizer):
    loop = Loop(optimizer=optimizer).script(*GROWN, germinate("lora", 1), prune(1))
    loop.epochs(1)
    weight = loop.model[0].weight
    before = {k: id(v) for k, v in loop.optimizer.state[weight].items()}
    loop.epochs(7)
    assert {k: id(v) for k, v in loop.optimizer.state[weight].items()} == before
    assert len(loop.optimizer.param_groups) == 1
    hosts, seeds = loop.growth.network.host_parameters(), loop.growth.network.seed_parameters()
    assert [id(p) for p in loop.optimizer.param_groups[0]["params"]] == [id(p) for p in hosts + seeds]
    assert seeds


@pytest.mark.parametrize(
    "make",
    [
        lambda o: torch.optim.lr_scheduler.OneCycleLR(o, 0.1, total_steps=40),
        lambda o: torch.optim.lr_scheduler.LambdaLR(o, lambda t: 1 / (1 + t)),
        lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, 40),
        lambda o: torch.optim.lr_scheduler.ReduceLROnPlateau(o, patience=1),
    ],
    ids=["OneCycleLR", "LambdaLR", "CosineAnnealingLR", "ReduceLROnPlateau"],
)
def test_schedulers_go_on_undisturbed(make):
    rates = []
    for decisions in ((), (*GROWN, germinate("lora", 1), prune(1))):
        loop = Loop(optimizer=torch.optim.SGD).script(*decisions)
        scheduler = make(loop.optimizer)
        rates.append([])
        for _ in range(8):
            loop.train()
            loop.growth.step(loop.evaluate)
            scheduler.step(*([1.0] if "Plateau" in type(scheduler).__name__ else []))
            rates[-1].append(loop.optimizer.param_groups[0]["lr"])
    assert rates[0] == rates[1]
    assert len(set(rates[0])) > 1


# ---------------------------------------------------------------------- budget, contributions, summary


@pytest.mark.parametrize("limits", [{"budget": 300}, {"budget": None, "flops_budget": 600}])
def test_the_budget_is_never_exceeded(limits):
    loop = Loop(policy="random", seed=3, **limits)
    seen = 0
    for step in loop.epochs(25):
        network = loop.growth.network
        seen = max(seen, network.added_params)
        assert step.added_params <= (limits["budget"] or math.inf)
        assert network.added_flops <= limits.get("flops_budget", math.inf)
    assert seen > 0


def test_contributions_can_be_off_or_measured_on_less():
    small = []

    def subset():
        small.append(1)
        return 0.1, 0.25

    off = Loop(contributions=False).script(*GROWN).epochs(3)
    assert [step.evaluations for step in off] == [1, 1, 1]
    cheap = Loop(contributions=subset).script(*GROWN).epochs(3)
    assert [step.evaluations for step in cheap] == [1, 3, 3]
    assert len(small) == 4
    full = Loop().script(*GROWN).epochs(3)
    assert [step.evaluations for step in full] == [1, 2, 2]
    assert cheap[1].contributions == {"1": 0.0}


def test_the_summary_says_what_grew_when_and_what_it_cost():
    loop = Loop().script(*GROWN, germinate("lora", 1), prune(1))
    loop.epochs(6)
    text = io.StringIO()
    loop.growth.summary(Console(file=text, width=140))
    for words in ("mlp", "kept at 3", "lora", "pruned at 5", "points", "extra evaluations", "added 280, budget 4,000"):
        assert words in text.getvalue(), words


def test_the_record_makes_a_figure(tmp_path):
    loop = Loop().script(*GROWN)
    loop.epochs(4)
    record = loop.growth.result().figure_record()
    assert record.slots["1"][1].stage == "TRAINING"
    assert list(record.added_params) == [0, 280, 280, 280]
    growth_figure(record, tmp_path / "growth.png")
    assert (tmp_path / "growth.png").stat().st_size > 10_000


# ---------------------------------------------------------------------- the end


def test_the_last_step_decides_nothing_and_leaves_what_was_evaluated():
    loop = Loop(horizon=3).script(germinate("mlp"), germinate("lora", 1), advance())
    steps = loop.epochs(3)
    assert steps[-1].decided == "no decision: growth has finished"
    assert loop.stages == ["EMBARGOED", "EMBARGOED"]
    assert loop.growth.network.added_params == 0
    text = io.StringIO()
    loop.growth.summary(Console(file=text, width=140))
    assert text.getvalue().count("pruned at 3") == 2
    assert steps[-1].judged == dict.fromkeys(("1", "3"), "it was still in isolation when growth ended")
    assert loop.epochs(1)[0].decision == 4


def test_a_decision_that_no_training_followed_is_not_in_the_grown_model():
    loop = Loop().script(germinate("mlp"), advance())
    loop.epochs(2)
    assert loop.stages[0] == "HOLDING"
    assert grown_modules(loop.growth.grown_model()) == []
    assert loop.stages[0] == "HOLDING"
    loop.train(1)
    assert grown_modules(loop.growth.grown_model()) == ["1"]


def test_finish_takes_back_what_no_training_followed():
    loop = Loop(rent=0).script(*GROWN[:2], prune())
    loop.epochs(3)
    assert loop.growth.network.added_params == 0  # pruned, but what was evaluated had the seed
    loop.growth.finish(loop.evaluate)
    assert loop.growth.network.added_params == 280
    with torch.no_grad():
        assert loop.evaluate()[1] == pytest.approx(loop.growth.history[-1].score, abs=1e-6)
    text = io.StringIO()
    loop.growth.summary(Console(file=text, width=140))
    assert "pruned" not in text.getvalue()
    assert loop.growth.history[-1].decided.endswith("(taken back)")


def test_remove_leaves_the_host_as_if_it_had_never_grown():
    loop = Loop().script(*GROWN)
    loop.epochs(3)
    loop.growth.remove()
    assert [id(p) for g in loop.optimizer.param_groups for p in g["params"]] == [id(p) for p in loop.model.parameters()]
    assert not any(module._forward_hooks for module in loop.model.modules())
    assert not loop.optimizer._optimizer_step_post_hooks
    esper.Growth(loop.model, loop.optimizer, slots=["1"], example_input=loop.x)


@pytest.mark.parametrize(
    "use",
    [
        lambda growth, loop: growth.step(loop.evaluate),
        lambda growth, loop: growth.finish(loop.evaluate),
        lambda growth, loop: growth.grown_model(),
        lambda growth, loop: growth.export("never.pt2"),
        lambda growth, loop: growth.parallel(),
        lambda growth, loop: growth.state_dict(),
        lambda growth, loop: growth.load_state_dict({}),
    ],
    ids=["step", "finish", "grown_model", "export", "parallel", "state_dict", "load_state_dict"],
)
def test_what_has_been_removed_is_used_no_more(use):
    loop = Loop().script(*GROWN)
    loop.epochs(3)
    loop.growth.remove()
    with pytest.raises(RuntimeError, match=r"taken off its model by remove\(\).*build a new esper.Growth"):
        use(loop.growth, loop)
    assert not any(module._forward_hooks for module in loop.model.modules())
    assert len(loop.growth.history) == 3
    loop.growth.summary(Console(file=io.StringIO()))
    assert [step.added_params for step in loop.growth.result().steps] == [0, 280, 280]
    assert loop.growth.result().added_params == 280


def test_a_second_remove_does_not_touch_the_next_growth():
    loop = Loop()
    loop.growth.remove()
    esper.Growth(loop.model, loop.optimizer, slots=["1"], example_input=loop.x)
    loop.growth.remove()
    with pytest.raises(ValueError, match="growing already"):
        esper.Growth(loop.model, loop.optimizer, slots=["1"], example_input=loop.x)


# ---------------------------------------------------------------------- the governor


def _broken(loop):
    with torch.no_grad():
        next(loop.model.parameters())[0, 0] = float("nan")


def test_an_injected_nan_is_rolled_back():
    loop = Loop().script(*GROWN[:2])
    loop.epochs(3)
    good = {k: v.clone() for k, v in loop.model.state_dict().items()}
    loop.train()
    _broken(loop)
    step = loop.growth.step(loop.evaluate)
    assert step.rolled_back
    assert math.isfinite(step.loss)
    assert all(torch.equal(v, good[k]) for k, v in loop.model.state_dict().items())
    assert not loop.epochs(1)[0].rolled_back


def test_an_exploding_seed_is_pruned_and_said_so():
    loop = Loop().script(*GROWN[:2])
    loop.epochs(3)
    loop.explode_seeds()
    step = loop.growth.step(loop.evaluate)
    assert step.rolled_back
    assert [(event.kind, event.blueprint) for event in step.events] == [("pruned", "mlp")]
    assert loop.growth.network.added_params == 0
    text = io.StringIO()
    loop.growth.summary(Console(file=text, width=120))
    assert "Rolled back by the governor: at step 4" in text.getvalue()


def test_a_spike_of_the_learning_rate_is_rolled_back():
    loop = Loop(optimizer=torch.optim.SGD)
    loop.epochs(4)
    loop.optimizer.param_groups[0]["lr"] = 1e4
    (step,) = loop.epochs(1)
    assert step.rolled_back
    assert step.loss < 2


def test_without_a_governor_nan_is_an_error_and_nothing_changes():
    loop = Loop(governor=False)
    loop.epochs(1)
    _broken(loop)
    with pytest.raises(ValueError, match="evaluate\\(\\) returned the loss nan"):
        loop.growth.step(loop.evaluate)
    assert len(loop.growth.history) == 1


# ---------------------------------------------------------------------- policies


def test_policies_by_name_object_and_function():
    for policy in ("heuristic", "fixed", "random", "wait", HeuristicPolicy(), lambda run: Decision()):
        assert len(Loop(policy=policy).epochs(2)) == 2


def test_an_illegal_decision_of_a_rule_is_an_error():
    loop = Loop(policy=lambda run: Decision(Op.FOSSILIZE, 0))
    loop.train()
    with pytest.raises(IllegalMoveError, match="FOSSILIZE was asked of slot '1', which is DORMANT"):
        loop.growth.step(loop.evaluate)


# ---------------------------------------------------------------------- slots="auto"


def test_auto_proposes_slots_and_prints_them(capsys):
    loop = Loop(slots="auto")
    assert loop.growth.network.slot_names == ("1", "3")
    assert "Slots proposed for Sequential" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("kind", "names"), [("sequence", ("first", "second")), ("image", ("block",)), ("causal", None)]
)
def test_auto_finds_something_in_every_host(kind, names):
    found = Loop(kind, slots="auto").growth.network.slot_names
    assert names is None or found == names


# ---------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"slots": ["11"]}, "slot '11' is not a submodule of Sequential; did you mean"),
        ({"budget": 3}, "no blueprint is within budget=3 .* needs 32 here"),
        ({"flops_budget": 0, "blueprints": ["mlp"]}, "no blueprint is within"),
        ({"policy": "heuristics"}, "did you mean 'heuristic'"),
        ({"blueprints": ["conv"]}, "none of the blueprints"),
        ({"horizon": 0}, "horizon must be 1 or more"),
        ({"rent": -1.0}, "rent is a price"),
        ({"budget": -1}, "budget must be a number of parameters"),
        ({"contributions": 500}, r"contributions is True, False, or a function .* got 500"),
    ],
)
def test_bad_arguments_are_refused_and_leave_no_trace(kwargs, message):
    model, x = mlp(), torch.randn(4, 4)
    optimizer = torch.optim.Adam(model.parameters())
    with pytest.raises(ValueError, match=message):
        esper.Growth(model, optimizer, **{"slots": ["1"], "example_input": x} | kwargs)
    assert not any(module._forward_hooks for module in model.modules())
    esper.Growth(model, optimizer, slots=["1"], example_input=x)


@pytest.mark.parametrize(
    ("options", "rent"),
    [({}, 0.02), ({"budget": 900}, 0.0025), ({"flops_budget": 10**6}, 0.0025), ({"budget": 900, "rent": 0.02}, 0.02)],
)
def test_who_gives_a_budget_pays_little_rent_for_what_it_holds(options, rent):
    assert Loop(**{"budget": None} | options).growth.result().rent == rent


def test_the_wrong_optimizer_and_wrappers_are_refused():
    model, x = mlp(), torch.randn(4, 4)
    with pytest.raises(ValueError, match="Adam trains no parameter of this Sequential"):
        esper.Growth(model, torch.optim.Adam(mlp().parameters()), example_input=x)
    with pytest.raises(ValueError, match=r"got it inside DataParallel.*growth\.parallel"):
        esper.Growth(nn.DataParallel(model), torch.optim.Adam(model.parameters()), example_input=x)


def test_an_optimizer_with_one_state_for_all_parameters_is_refused():
    model = mlp()
    with pytest.raises(ValueError, match="LBFGS keeps one state for all parameters"):
        esper.Growth(model, torch.optim.LBFGS(model.parameters()), example_input=torch.randn(4, 4))


def test_growing_twice_is_refused():
    loop = Loop()
    with pytest.raises(ValueError, match="growing already"):
        esper.Growth(loop.model, loop.optimizer, slots=["1"], example_input=loop.x)


@pytest.mark.parametrize(
    ("result", "message"),
    [
        (None, "must return a pair of numbers"),
        (0.5, "Growth must know what a loss is worth"),
        ((0.5, 1.5), "score of at most 1.*got 1.5"),
        ((0.5, math.nan), "no good state is left"),
        ((0.5, 0.5, 0.5), "must return a pair of numbers"),
        ((math.nan, 0.5), "no good state is left"),
    ],
)
def test_a_bad_evaluation_is_refused_and_changes_nothing(result, message):
    loop = Loop(policy="fixed")
    loop.train()
    before = {k: v.clone() for k, v in loop.model.state_dict().items()}
    with pytest.raises(ValueError, match=message):
        loop.growth.step(lambda: result)
    assert loop.growth.history == []
    assert loop.growth.network.added_params == 0
    if result is None or not math.isnan(np.atleast_1d(result)[0]):
        assert all(torch.equal(v, before[k]) for k, v in loop.model.state_dict().items())
    assert loop.growth.step(loop.evaluate).decided.startswith("GERMINATE")


def test_step_wants_a_function():
    with pytest.raises(ValueError, match=r"step\(\) takes the function"):
        Loop().growth.step((0.5, 0.5))


def test_the_training_loss_may_be_a_tensor_but_must_be_a_number():
    loop = Loop()
    loop.train()
    with pytest.raises(ValueError, match="train_loss is the mean training loss of the interval, a number; got 'low'"):
        loop.growth.step(loop.evaluate, "low")
    assert loop.growth.history == []
    assert isinstance(loop.growth.step(loop.evaluate, loop.loss()).train_loss, float)
    loop.growth.state_dict()


def test_the_governor_is_the_environments():
    assert isinstance(Loop().growth._governor, Governor)
