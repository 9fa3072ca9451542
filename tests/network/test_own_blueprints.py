"""Blueprints of the user's own, made of modules that PyTorch ships: registered, promised, grown, saved, not guessed."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import esper
from esper import Blueprint, Decision, GrowthVectorEnv, Op, SlotSpec
from esper.actions import ALL_BLUEPRINTS, BLUEPRINT_NAMES, HEADS, own_blueprints
from esper.env.episode import Variants
from esper.evaluation import run_episodes
from esper.network.blueprints import BLUEPRINTS, count_parameters, register_blueprint, unregister_blueprint
from esper.network.blueprints.promises import check_promises
from esper.tamiyo.networks import FactoredRecurrentActorCritic
from esper.tamiyo.policy import HeuristicPolicy, LearnedPolicy, LSTMPolicyBundle


class Recurrent(Blueprint):
    """An LSTM over the positions."""

    name = "recurrent"
    kinds = frozenset({"sequence"})
    mixes = True

    def __init__(self, spec: SlotSpec) -> None:
        super().__init__(spec)
        self.rnn = nn.GRU(spec.channels, 8, batch_first=True)
        self.out = nn.Linear(8, spec.channels)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, h: Tensor, keep: Tensor | None = None) -> Tensor:
        shown = h if keep is None else h * keep[..., None]
        return self.out(self.rnn(shown)[0])


class Encoder(Blueprint):
    """A layer of a transformer; it sees all positions, so a causal slot is refused."""

    name = "encoder"
    kinds = frozenset({"sequence"})
    mixes = True

    def __init__(self, spec: SlotSpec) -> None:
        super().__init__(spec)
        self.layer = nn.TransformerEncoderLayer(spec.channels, 2, 16, dropout=0.0, batch_first=True)
        self.weight = nn.Parameter(torch.zeros(spec.channels))

    @classmethod
    def fits(cls, spec: SlotSpec) -> bool:
        return super().fits(spec) and not spec.causal and spec.channels % 2 == 0

    def forward(self, h: Tensor, keep: Tensor | None = None) -> Tensor:
        return self.weight * self.layer(h, src_key_padding_mask=None if keep is None else ~keep)


@pytest.fixture
def own() -> Iterator[None]:
    register_blueprint(Recurrent)
    register_blueprint(Encoder)
    yield
    unregister_blueprint("recurrent")
    unregister_blueprint("encoder")


class Tagger(nn.Module):
    """Sequences [N, L, 4] → [N, 3]; slots: first, second."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 8)
        self.second = nn.Linear(8, 8)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.second(torch.relu(self.first(x)))).mean(1))


def tagger(policy: Any, **options: Any) -> tuple[Tagger, torch.optim.Optimizer, esper.Growth]:
    torch.manual_seed(0)
    model = Tagger()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    growth = esper.Growth(
        model, optimizer, slots=["first", "second"], example_input=torch.randn(4, 6, 4), policy=policy, **options
    )
    return model, optimizer, growth


X = torch.randn(64, 6, 4, generator=torch.Generator().manual_seed(1))
Y = (X[:, :, 0].cumsum(1).amax(1) > 1).long() + (X[:, 0, 1] > 0).long()


def evaluation_of(model: Tagger) -> Callable[[], tuple[Tensor, Tensor]]:
    return lambda: (F.cross_entropy(model(X), Y), (model(X).argmax(1) == Y).float().mean())


def train(model: Tagger, optimizer: torch.optim.Optimizer, growth: esper.Growth, steps: int) -> None:
    for _ in range(steps):
        for _ in range(4):
            optimizer.zero_grad()
            F.cross_entropy(model(X), Y).backward()
            optimizer.step()
        growth.step(evaluation_of(model))


SHORT = Variants(horizon=(4, 4), interval=(0.25, 0.25))


def recurrent_then_in(run: esper.RunView) -> Decision:
    """Germinates the recurrent block in the first slot and lets it in."""
    if run.decision == 0:
        return Decision(Op.GERMINATE, 0, "recurrent")
    return run.first_allowed(Op.ADVANCE) or Decision()


def test_the_thirteen_stay_what_they_are_and_others_come_after_them() -> None:
    assert tuple(ALL_BLUEPRINTS) == BLUEPRINT_NAMES == tuple(BLUEPRINTS)
    register_blueprint(Recurrent)
    try:
        assert ALL_BLUEPRINTS == [*BLUEPRINT_NAMES, "recurrent"] == list(BLUEPRINTS)
        assert HEADS.named("blueprint").num_choices == 14
        assert HEADS.named("blueprint").choices[-1] == "recurrent"
        assert Decision(Op.GERMINATE, 0, "recurrent").describe(["a"]) == "GERMINATE recurrent (add) in a"
    finally:
        unregister_blueprint("recurrent")
    assert tuple(ALL_BLUEPRINTS) == BLUEPRINT_NAMES == HEADS.named("blueprint").choices
    with pytest.raises(ValueError, match="there is no blueprint 'recurrent'"):
        Decision(Op.GERMINATE, 0, "recurrent")


def test_one_of_the_same_name_takes_the_place_of_the_former(own: None) -> None:
    before = count_parameters("recurrent", SlotSpec("sequence", 8, (6,)))

    class Wider(Recurrent):
        def __init__(self, spec: SlotSpec) -> None:
            super().__init__(spec)
            self.bias = nn.Parameter(torch.zeros(spec.channels))

        def forward(self, h: Tensor, keep: Tensor | None = None) -> Tensor:
            return super().forward(h, keep) + self.bias

    register_blueprint(Wider)
    assert own_blueprints() == ["recurrent", "encoder"]
    assert count_parameters("recurrent", SlotSpec("sequence", 8, (6,))) == before + 8


class TakesAName(Recurrent):
    name = "conv"


class TwoWords(Recurrent):
    name = "two words"


class OfGraphs(Recurrent):
    name, kinds = "broken", frozenset({"graph"})  # type: ignore[assignment]


class FitsNothing(Recurrent):
    name = "broken"

    @classmethod
    def fits(cls, spec: SlotSpec) -> bool:
        return False


class WithStatistics(Recurrent):
    name = "broken"

    def __init__(self, spec: SlotSpec) -> None:
        super().__init__(spec)
        self.norm = nn.BatchNorm1d(spec.channels)


class NotZero(Recurrent):
    name = "broken"

    def __init__(self, spec: SlotSpec) -> None:
        super().__init__(spec)
        nn.init.ones_(self.out.bias)


class LearnsNothing(Recurrent):
    name = "broken"

    def __init__(self, spec: SlotSpec) -> None:
        super().__init__(spec)
        self.out.requires_grad_(False)


class Shortens(Recurrent):
    name = "broken"

    def forward(self, h: Tensor, keep: Tensor | None = None) -> Tensor:
        return super().forward(h, keep)[:, 1:]


class Noisy(Recurrent):
    name = "broken"

    def forward(self, h: Tensor, keep: Tensor | None = None) -> Tensor:
        return F.dropout(super().forward(h, keep), training=self.training)


class LooksAround(Recurrent):
    name = "broken"

    def forward(self, h: Tensor, keep: Tensor | None = None) -> Tensor:
        return super().forward(h - h.mean(0), keep)


class LooksAhead(Recurrent):
    name = "broken"

    def forward(self, h: Tensor, keep: Tensor | None = None) -> Tensor:
        return super().forward(h.flip(1), None if keep is None else keep.flip(1)).flip(1)


class SeesPadding(Recurrent):
    name = "broken"

    def forward(self, h: Tensor, keep: Tensor | None = None) -> Tensor:
        return super().forward(h.flip(1)).flip(1)


class SaysItDoesNotMix(Recurrent):
    name, mixes = "broken", False


class Fails(Recurrent):
    name = "broken"

    def forward(self, h: Tensor, keep: Tensor | None = None) -> Tensor:
        raise ZeroDivisionError("division by zero")


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        (TakesAName, "the name 'conv' is that of one that comes with Esper"),
        (TwoWords, "`name` must be a word such as 'my_block', got 'two words'"),
        (OfGraphs, "`kinds` must be some of vector, sequence, image"),
        (FitsNothing, "fits none of the slots of 16 channels"),
        (WithStatistics, "it has buffers .*norm.running_mean.* a seed has parameters alone"),
        (NotZero, "delta is not 0 at birth; set the weights of its last layer to zero"),
        (LearnsNothing, "no gradient reaches it at birth"),
        (Shortens, r"h \[3, 6, 16\] it makes delta \[3, 5, 16\]"),
        (Noisy, "answers differently when called again, or in evaluation; leave out dropout"),
        (LooksAround, "a sample's delta depends on the other samples of the batch"),
        (LooksAhead, "in a causal sequence slot .* delta depends on later positions"),
        (SeesPadding, "positions at which `keep` is false"),
        (SaysItDoesNotMix, "delta at a position depends on others; say `mixes = True`"),
        (Fails, "it fails: ZeroDivisionError: division by zero"),
    ],
)
def test_a_promise_that_is_broken_is_said_at_registration(kind: type[Blueprint], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        register_blueprint(kind)
    assert tuple(ALL_BLUEPRINTS) == BLUEPRINT_NAMES


def test_the_thirteen_keep_what_is_asked_of_others() -> None:
    for kind in BLUEPRINTS.values():
        check_promises(kind)


def test_what_is_no_blueprint_is_refused() -> None:
    with pytest.raises(TypeError, match=r"expected a subclass of esper.Blueprint, got <class .*Tagger'>"):
        register_blueprint(Tagger)  # type: ignore[type-var]
    with pytest.raises(ValueError, match="'conv' is not a blueprint that has been registered"):
        unregister_blueprint("conv")


def test_growth_grows_it_and_what_leaves_is_plain(own: None) -> None:
    model, optimizer, growth = tagger(recurrent_then_in)
    train(model, optimizer, growth, 6)
    growth.finish(evaluation_of(model))
    assert [(seed.slot, seed.blueprint) for seed in growth.result().seeds if seed.params] == [("first", "recurrent")]
    plain, x = growth.grown_model(), torch.randn(5, 9, 4)
    torch.testing.assert_close(plain(x), model.eval()(x))


def test_the_heuristic_tries_it_first_and_auditions_invite_it(own: None) -> None:
    model, optimizer, growth = tagger(HeuristicPolicy())
    train(model, optimizer, growth, 1)
    assert growth.network.slots[0].blueprint == "recurrent"
    model, optimizer, growth = tagger("audition")
    train(model, optimizer, growth, 2)
    assert {"recurrent", "encoder"} <= set(growth.history[-1].auditions["first"])


def test_a_run_resumes_bit_for_bit_with_it_and_is_refused_without(own: None) -> None:
    whole = tagger(recurrent_then_in)
    train(*whole, 3)
    saved = copy.deepcopy([part.state_dict() for part in (whole[2], whole[0], whole[1])])
    resumed = tagger(recurrent_then_in)
    for part, state in zip((resumed[2], resumed[0], resumed[1]), saved, strict=True):
        part.load_state_dict(state)
    for run in (whole, resumed):
        train(*run, 3)
    ours, theirs = (run[0].state_dict() for run in (whole, resumed))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    unregister_blueprint("recurrent")
    try:
        other = tagger("wait")[2]
        with pytest.raises(ValueError, match=r"saved where the blueprints \['recurrent', 'encoder'\] were registered"):
            other.load_state_dict(saved[0])
    finally:
        unregister_blueprint("encoder")
        register_blueprint(Recurrent)
        register_blueprint(Encoder)


@pytest.mark.slow
def test_a_policy_that_was_trained_without_it_never_chooses_it(own: None) -> None:
    torch.manual_seed(0)
    policy = LearnedPolicy(LSTMPolicyBundle(FactoredRecurrentActorCritic()), deterministic=False)
    envs = GrowthVectorEnv(4, "digits_rows", variants=SHORT, autoreset_mode="NextStep")
    try:
        assert envs.single_action_space["blueprint"].n == 15
        policy.reset(4, seed=0)
        observation, _ = envs.reset(seed=0)
        for _ in range(3):
            actions = policy.act(observation)
            germinated = actions["blueprint"][actions["op"] == Op.GERMINATE]
            assert (germinated < len(BLUEPRINT_NAMES)).all()
            observation = envs.step(actions)[0]
    finally:
        envs.close()


def test_where_only_unknown_ones_fit_it_does_not_germinate(own: None) -> None:
    policy = LearnedPolicy(LSTMPolicyBundle(FactoredRecurrentActorCritic()), deterministic=False)
    model, optimizer, growth = tagger(policy, blueprints=["recurrent"])
    train(model, optimizer, growth, 6)
    assert {step.decided for step in growth.history} == {"WAIT"}


def test_it_says_so_where_a_slot_holds_one_that_it_does_not_know(own: None) -> None:
    saved = tagger(recurrent_then_in)
    train(*saved, 2)
    _, _, growth = tagger("tamiyo", horizon=10)
    with pytest.raises(ValueError, match="a slot holds recurrent, which this policy was trained without"):
        growth.load_state_dict(saved[2].state_dict())


def test_an_environment_and_a_rule_play_with_it(own: None) -> None:
    envs = GrowthVectorEnv(1, "codelm", variants=SHORT, autoreset_mode="NextStep")
    try:
        (result,) = run_episodes(envs, esper.make_policy(recurrent_then_in), [3], arm="own")
    finally:
        envs.close()
    assert result.architecture[0][1] == "recurrent"
    assert np.isfinite(result.J)
