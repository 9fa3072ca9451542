"""One record of a growth: summary, figure, JSON and page are made of it, and say the same numbers."""

from __future__ import annotations

import io
import json
import math
import re
from dataclasses import replace

import pytest
import torch
from rich.console import Console

from esper.actions import Decision
from esper.figure import draw_growth
from esper.growth import GrowthResult
from esper.growth.page import growth_section
from esper.growth.summary import summary
from esper.growth.verdict import Compute, Control, paired_error
from esper.lifecycle import Op
from esper.record import told
from esper.tamiyo.networks import FactoredRecurrentActorCritic
from esper.tamiyo.policy.learned import LearnedPolicy
from esper.tamiyo.policy.lstm_bundle import LSTMPolicyBundle
from growing import Loop
from network.hosts import advance, fossilize, germinate, prune

GROWN = (germinate("mlp"), advance(), fossilize())


@pytest.fixture(scope="module")
def grown():
    """Two seeds that stay, one of them judged at the end, and one that went."""
    loop = Loop(horizon=12, rent=0.001).script(*GROWN, germinate("lora", 1), advance(1), prune(1))
    loop.epochs(8)
    loop.script(*[Decision()] * 8, germinate("mlp", 1), advance(1))
    loop.growth._remind_policy()
    loop.epochs(4)
    return loop.growth


@pytest.fixture(scope="module")
def result(grown):
    control = Control([0.2] * 11 + [0.3], difference=grown.history[-1].score - 0.3, error=0.021, test_score=0.28)
    return replace(grown.result(), control=control, compute=Compute(2e6, 1e6, 5e5, 2.5e5, 0))


def printed(result, width=80):
    text = io.StringIO()
    Console(file=text, width=width).print(summary(result))
    return text.getvalue()


def flowing(text):
    return " ".join(text.split())


# ---------------------------------------------------------------------- the same numbers everywhere


def test_summary_page_figure_and_json_say_the_same(result):
    assert [seed.fate for seed in result.seeds] == ["kept at 3", "pruned at 6", "kept at 12"]
    shown, page = flowing(printed(result)), growth_section(result)
    for label, text in result.facts().items():
        assert flowing(f"{label}: {text}") in shown
        assert text.replace("'", "&#x27;") in page
    plain = json.loads(json.dumps(result.to_json()))
    figure = draw_growth(result.figure_record())
    words = "\n".join(text.get_text() for text in figure.findobj(lambda part: hasattr(part, "get_text")))
    for name in ("J", "score", "added_params", "host_params"):
        assert plain[name] == getattr(result, name)
    total = f"{plain['host_params']:,} → {plain['host_params'] + plain['added_params']:,} parameters"
    score, alone = told(plain["score"]), told(plain["control"]["scores"][-1])
    for numbers in (total, score, alone):
        for where in (shown, page, words):
            assert numbers in where, numbers
    for where in (shown, page):
        assert f"{plain['J']:.3f}" in where
        assert f"{100 * plain['verdict']['gain']:+.1f} points ± {100 * plain['verdict']['error']:.1f}" in where
        for seed in plain["seeds"]:
            assert f"{100 * seed['contribution']:+.1f} points" in where
    assert f"+{plain['added_params']:,}" in words
    assert plain["verdict"]["words"] in page


def test_the_figure_marks_seeds_at_the_steps_that_the_summary_names(grown):
    _, lanes, below = grown.plot().axes
    step = {
        place: int(label.get_text()) for place, label in zip(below.get_xticks(), below.get_xticklabels(), strict=True)
    }
    first = step[min(step)] - min(step)
    assert all(name == place + first for place, name in step.items())
    marks = sorted((line.get_xdata()[0] + first, line.get_marker()) for line in lanes.lines)
    assert marks == [(3, "D"), (6, "X"), (12, "D")]


def test_what_is_told_before_the_end_is_what_would_be_taken_away():
    loop = Loop().script(*GROWN)
    assert loop.growth.result().added_params == 0
    loop.epochs(2)  # germinated, and let in for the next interval
    assert loop.growth.result().added_params == 0
    assert "training" not in loop.growth.result().seeds[0].outcome
    loop.train(1)
    assert loop.growth.result().added_params == 280
    loop.growth.remove()
    assert loop.growth.result().added_params == 280


def test_it_survives_json(result):
    plain = json.loads(json.dumps(result.to_json()))
    assert GrowthResult.from_json(plain) == result
    unknown = {**plain, "steps": [{**plain["steps"][0], "score": None, "loss": None}, *plain["steps"][1:]]}
    assert math.isnan(GrowthResult.from_json(unknown).steps[0].score)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"steps": None}, "'there': expected the result of a growth"),
        ({"steps": [{}]}, "field 'steps'"),
        ({"rent": "much"}, "'there': field 'rent': expected float, got 'much'"),
        ({"mine": 1}, "field 'mine' is unknown"),
    ],
)
def test_refuses_what_is_damaged(result, change, message):
    with pytest.raises(ValueError, match=message):
        GrowthResult.from_json({**result.to_json(), **change}, "there")


def test_a_page_runs_nothing_and_loads_nothing(grown):
    page = grown._repr_html_()
    assert "<script" not in page
    assert not re.findall(r"(?:src|href)=(?!'data:)", page)
    assert "http" not in page
    assert "<svg" not in page  # a picture, in which nothing can run


def test_names_from_outside_do_not_become_html(result):
    evil = replace(result, task="<b>task", policy="<i>policy")
    assert "<b>task" not in growth_section(evil)
    assert "<i>policy" not in growth_section(evil)


# ---------------------------------------------------------------------- was it worth it


def worth(result, *, difference, error, rent=0.01, measured=True, added=1000, host=1000):
    control = Control([0.0] * len(result.steps), difference, error, 0.5) if measured else None
    return replace(result, control=control, rent=rent, host_params=host, added_params=added).verdict


@pytest.mark.parametrize(
    ("difference", "error", "answer"),
    [
        (0.05, 0.02, "worth it"),
        (0.02, 0.02, "cannot tell"),
        (0.005, 0.01, "cannot tell"),
        (0.0, 0.005, "not worth it"),
        (-0.05, 0.02, "not worth it"),
    ],
)
def test_beside_the_host_alone_the_whole_interval_decides(result, difference, error, answer):
    verdict = worth(result, difference=difference, error=error)  # a doubling: a rent of one point
    assert verdict.answer == answer
    assert verdict.words.startswith(answer.capitalize())
    assert verdict.J - verdict.host_J == pytest.approx(difference - 0.01)


def test_an_estimate_never_says_that_it_was_worth_it(result):
    gain = result.steps[-1].score - result.steps[1].score  # until step 2 no seed acts
    for rent, answer in ((0.0, "cannot tell"), (gain / 2, "cannot tell"), (gain * 1.01, "not worth it")):
        verdict = worth(result, difference=0, error=0, rent=rent, measured=False)
        assert (verdict.answer, verdict.error, verdict.host_J) == (answer, None, None)
        assert verdict.gain == pytest.approx(gain)
        assert "estimated" in verdict.words


def test_where_nothing_is_left_the_verdict_says_so(result):
    assert worth(result, difference=0.0, error=0.01, added=0).answer == "nothing grew"


def test_a_run_in_which_nothing_ever_acted_is_the_host_alone():
    loop = Loop(horizon=3)
    loop.epochs(3)
    verdict = loop.growth.result().verdict
    assert (verdict.answer, verdict.gain, verdict.host_J) == ("nothing grew", 0, verdict.J)


def test_what_matters_most_is_named(result):
    most = max((seed for seed in result.seeds if seed.params), key=lambda seed: seed.contribution)
    assert f"What matters most is {most.blueprint} in {most.slot}" in result.verdict.words


def accuracy(output, target):
    return (output.argmax(-1) == target).float().mean()


def test_the_error_is_that_of_paired_samples():
    generator = torch.Generator().manual_seed(0)
    target = torch.zeros(1000, dtype=torch.long)
    right = torch.rand(1000, generator=generator)
    outputs = [torch.stack([(right < share).float(), (right >= share).float()], dim=1) for share in (0.8, 0.7)]
    d = (outputs[0].argmax(-1) == target).double() - (outputs[1].argmax(-1) == target).double()
    expected = 1.96 * float(d.std()) / 1000**0.5
    assert paired_error(accuracy, *outputs, target) == pytest.approx(expected, rel=0.2)
    assert paired_error(accuracy, *outputs, target, groups=1000) == pytest.approx(expected, rel=1e-3)


def test_the_error_covers_the_truth_of_an_r2_about_as_often_as_it_says():
    generator = torch.Generator().manual_seed(0)
    score = lambda output, y: 1 - (output - y).square().mean() / (y - y.mean()).square().mean()  # noqa: E731
    hits = 0
    for _ in range(100):
        y = torch.randn(200, generator=generator)
        grown, alone = (y + noise * torch.randn(200, generator=generator) for noise in (0.5, 0.7))
        hits += abs(float(score(grown, y) - score(alone, y)) - 0.24) < paired_error(score, grown, alone, y, groups=40)
    assert hits / 100 > 0.86


@pytest.mark.parametrize("samples", [1, 2, 10])
def test_from_few_samples_on_which_both_agree_little_is_known(samples):
    output, target = torch.eye(2)[[0] * samples], torch.zeros(samples, dtype=torch.long)
    assert paired_error(accuracy, output, output, target) == 3 / samples


# ---------------------------------------------------------------------- why


def test_a_step_is_explained_by_what_was_said_measured_and_seen():
    def rule(run):
        run.reason = "because I can" if run.decision == 0 else ""
        return germinate("lora") if run.decision == 0 else advance() if run.decision == 1 else Decision()

    loop = Loop(policy=rule, horizon=5, rent=0)
    loop.epochs(5)
    first = loop.growth.explain(1)
    assert first.startswith("Step 1 of 5: GERMINATE lora (add) in 1\n  why: because I can\n")
    assert "saw of the run: progress 0.2," in first
    assert "saw of 3: stage_dormant 1" in first
    assert "contributions: 1 " in loop.growth.explain(3)
    assert "judged, 1: contribution" in loop.growth.explain(5)
    seed = loop.growth.result().seeds[0]
    assert (seed.why_germinated, seed.fate) == ("because I can", "kept at 5")
    assert seed.why_ended == loop.growth.history[-1].judged["1"]
    with pytest.raises(ValueError, match="there is no step 9; those from 1 to 5 are known"):
        loop.growth.explain(9)
    with pytest.raises(ValueError, match="there is no step 1; none has been made yet"):
        Loop().growth.explain(1)


def test_a_learned_policy_explains_itself_by_numbers_that_stay_in_the_record():
    torch.manual_seed(0)
    policy = LearnedPolicy(LSTMPolicyBundle(FactoredRecurrentActorCritic(hidden_dim=16, head_dim=8)))
    loop = Loop(policy=policy, horizon=4)
    loop.epochs(4)
    for step in loop.growth.history[:-1]:
        op = step.decided.split()[0]
        assert sum(step.why.probabilities["op"].values()) == pytest.approx(1, abs=1e-4)
        assert op in step.why.probabilities["op"]
        assert set(step.why.op_values) == set(step.why.probabilities["op"])
        assert "probabilities of op" in loop.growth.explain(step.decision)
        assert f"{step.why.probabilities['op'][op]:.0%} (Q {step.why.op_values[op]:.3f})" in step.reason
        if op != Op.WAIT.name:
            assert set(step.why.probabilities["slot"]) <= {"1", "3"}
    back = GrowthResult.from_json(json.loads(json.dumps(loop.growth.result().to_json())))
    assert [step.why for step in back.steps] == [step.why for step in loop.growth.history]


def test_what_was_seen_and_said_comes_back_with_the_state():
    loop = Loop(horizon=8).script(*GROWN)
    loop.growth.policy = type(loop.growth.policy)(lambda run: _said(run))
    loop.growth.policy.reset(1, 0)
    loop.epochs(4)
    again = Loop(horizon=8, policy=_said)
    again.growth.load_state_dict(loop.growth.state_dict())
    assert again.growth.explain(2) == loop.growth.explain(2)
    assert "why: step 1" in again.growth.explain(2)


def _said(run):
    run.reason = f"step {run.decision}"
    return [*GROWN, Decision(), Decision()][run.decision]


def test_what_the_governor_takes_out_is_not_said_to_be_the_policys_wish():
    loop = Loop().script(*GROWN[:2])
    loop.epochs(3)
    loop.explode_seeds()
    assert loop.growth.step(loop.evaluate).rolled_back
    assert loop.growth.result().seeds[0].why_ended == "the run had diverged"
