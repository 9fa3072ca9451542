"""``Growth``: one object in a training loop that lets the network grow."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from rich.console import Console
from torch import nn
from torch.optim import Optimizer

from esper.actions import ALL_BLUEPRINTS, Decision
from esper.auditions import Auditions
from esper.growth import ranks
from esper.growth.arguments import check_budget, check_joining, check_optimizer, check_options, unwrap, usual_rent
from esper.growth.averages import Follower
from esper.growth.evaluate import Evaluate, training_loss
from esper.growth.explain import explain
from esper.growth.export import export_model
from esper.growth.judgement import Judgement, carry_out
from esper.growth.log import Log, step_row, verdict_row
from esper.growth.measuring import Measured, Measuring
from esper.growth.observe import observe, to_arrays, to_tensors
from esper.growth.probe import Probe, compile_afresh
from esper.growth.result import GrowthResult
from esper.growth.saving import save_grown
from esper.growth.step import Step
from esper.growth.summary import slots_table, summary
from esper.growth.tally import seed_lives, what_was_seen
from esper.growth.undo import all_or_nothing, keep_state
from esper.lifecycle import Stage
from esper.modes import modes_kept
from esper.network.governor import Governor, Snapshot
from esper.network.growing_network import Event, GrowingNetwork
from esper.network.history import History
from esper.network.optimizer import ParamGroup, guard_loading, learning_rate
from esper.network.propose import propose_slots
from esper.network.seed import Seed
from esper.network.slot import Slot
from esper.page import view
from esper.tamiyo.policy.protocol import Actions, Observation, Policy, Reason
from esper.tamiyo.policy.registry import Rule, default_policy, make_policy

if TYPE_CHECKING:
    from esper.figure import Drawing

FORMAT = 1
"""Version of what ``Growth.state_dict`` returns."""


class Growth:
    """Lets a network grow while it trains; used like a learning rate scheduler.

    In a training loop::

        growth = esper.Growth(model, optimizer, slots="auto", example_input=x, horizon=epochs)
        for epoch in range(epochs):
            train_one_epoch(model, optimizer, loader)
            growth.step(evaluate)                  # evaluate() -> (loss, score) on validation data

    The host's code and its own ``state_dict`` keys stay as they are. Seeds are submodules of the host: whatever walks
    the model's modules and parameters sees them, and their parameters join the optimizer's groups. One :meth:`step`
    ends an interval of training, looks at the network, decides, and changes it for the next interval. The first
    interval is the host's alone.

    Args:
        model: The host, any ``nn.Module``. One that is compiled may be given as it is; of one in
            ``DistributedDataParallel`` give the module inside, and train what :meth:`parallel` returns.
        optimizer: What trains it: any optimizer that keeps its state for each parameter.
        slots: Paths of submodules whose outputs may grow (``*`` stands for any one part of a path), or ``"auto"``:
            proposed, and printed.
        example_input: What the model is called with, to see what the slots carry: a tensor, a tuple (positional
            arguments) or a mapping (keyword arguments).
        policy: Who decides: a name (``"tamiyo"``, ``"heuristic"``, ``"audition"``, ``"fixed"``, ``"random"``,
            ``"wait"``), the directory of a trained Tamiyo, a policy, or a function from
            :class:`~esper.tamiyo.policy.protocol.RunView` to :class:`~esper.actions.Decision`. By default the Tamiyo
            that comes with Esper where ``horizon`` is given, since it plans with that, and else the heuristic.
        budget: Cap on added parameters at any time, seeds in training counted, candidates of auditions not; ``None``
            for no cap.
        flops_budget: Cap on added FLOPs of a forward pass over one sample.
        param_group: Names the param group that a parameter of a seed joins: a function of the parameter's name, the
            parameter and the slot's name that returns the group's index. It is asked at once about all that may come,
            with parameters without data. By default each joins its like in the nearest module: biases and norms
            beside biases and norms, matrices beside matrices.
        rent: Price of a doubling of parameters, in points of score: what a seed must bring to be worth it. 0.02 is two
            points: two samples in a hundred for an accuracy, two percent of the variance for an R². By default 0.02,
            and 0.0025 where a budget caps the size already.
        horizon: Number of steps, if known: policies plan with it. The last step asks no policy: growth comes to its end
            there, as by :meth:`finish`.
        blueprints: Names of the blueprints that may be germinated.
        contributions: Whether the contribution of each undecided seed is measured, by one more evaluation a seed and
            step. A function like ``evaluate``, over fewer samples, makes it cheaper. ``False`` leaves it unknown, and
            policies that judge by it keep what they would have judged.
        governor: Whether divergence rolls the run back; it keeps one copy of the model and the optimizer's state.
        train_samples: Number of training samples, for policies that read it.
        chance_score: Score of a constant guess, for policies that read it.
        chance_loss: Loss of a constant guess, where ``evaluate`` returns the loss alone: its score is then the share of
            this loss that the network has done away with, 1 − loss / chance_loss.
        seed: Decides the seeds' initial weights and what the policy draws.
        causal: Whether sequence slots must not look ahead; ``None`` finds out.
        log: Called at the end of each step with a row of numbers and texts and the step's number, and once more by
            :meth:`finish`; :mod:`esper.growth.log` has the table of all names. The last row holds the verdict, too:
            ``log=lambda row, step: wandb.log(row, step=step)``, or the ``log`` of a
            :class:`~esper.tracking.Tracking`. Where several processes train, give it to one of them.
        auditions: Which kinds of seeds audition in empty slots before anything grows there, and for how long
            (:class:`~esper.auditions.Auditions`): each candidate costs its own forward and backward passes, and
            one more evaluation a step. ``None``: no auditions, unless the policy lives by them.

    Raises:
        ValueError: For slots, policies or blueprints that do not exist, a model that grows already, an optimizer that
            does not train the model or cannot take in parameters while it runs, a budget below the cheapest blueprint.
            Nothing has changed then.

    Example:
        >>> import torch
        >>> host = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> optimizer = torch.optim.Adam(host.parameters())
        >>> growth = Growth(host, optimizer, slots=["1"], example_input=torch.zeros(1, 4), budget=1000)
        >>> growth.step(lambda: (0.7, 0.5)).decided
        'GERMINATE gated_mlp (add) in 1'
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        *,
        slots: Sequence[str] | str = "auto",
        example_input: Any,
        policy: str | Path | Policy | Rule | None = None,
        param_group: ParamGroup | None = None,
        budget: int | None = None,
        flops_budget: int | None = None,
        rent: float | None = None,
        horizon: int | None = None,
        blueprints: Sequence[str] = ALL_BLUEPRINTS,
        contributions: bool | Evaluate = True,
        governor: bool = True,
        train_samples: int | None = None,
        chance_score: float | None = None,
        chance_loss: float | None = None,
        seed: int = 0,
        causal: bool | None = None,
        log: Log | None = None,
        auditions: Auditions | None = None,
    ) -> None:
        host = unwrap(model)
        check_options(
            rent=rent,
            horizon=horizon,
            train_samples=train_samples,
            contributions=contributions,
            param_group=param_group,
            chance_score=chance_score,
            chance_loss=chance_loss,
            log=log,
        )
        check_optimizer(optimizer, host)
        self.policy = make_policy(default_policy(horizon) if policy is None else policy)
        self.example_input = example_input
        self.optimizer = optimizer
        names = propose_slots(host, example_input) if slots == "auto" else slots
        self.network = GrowingNetwork(
            host,
            names,
            example_input,
            optimizer=optimizer,
            param_group=param_group,
            budget=budget,
            flops_budget=flops_budget,
            blueprints=blueprints,
            seed=seed,
            causal=causal,
            auditions=auditions or getattr(self.policy, "auditions", None),
        )
        try:
            check_budget(self.network, blueprints)
            check_joining(self.network)
            self.policy.reset(1, seed)
        except Exception:
            self.network.remove()
            raise
        if slots == "auto":
            Console().print(slots_table(self.network, f"Slots proposed for {type(host).__name__}"))
        self.history: list[Step] = []
        """One entry a step."""
        self.finished = False
        """Whether the last decision has been taken."""
        self._removed = False
        self._seed = seed
        self._log = log
        chance_score = chance_score if chance_loss is None else 0.0
        rent = usual_rent(budget, flops_budget) if rent is None else rent
        self._run = History(horizon, rent, budget, train_samples=train_samples, chance_score=chance_score)
        self._governor = Governor(self.network, optimizer) if governor else None
        self._probe = Probe(self.network, optimizer)
        self._loading = guard_loading(optimizer)
        self._parallel: ranks.GrowingParallel | None = None
        self._followers: list[Follower] = []
        self._measure = Measuring(self.network, contributions, chance_loss, self._followers)
        self._observations: list[Observation] = []
        self._policy_is_ahead = False  # it has seen one that led to no decision
        self._evaluated: list[tuple[Slot, Seed | None, float]] = []
        self._before_decision: dict[str, Any] | None = None
        self._clock = time.perf_counter()
        self.network.step(Decision())  # the first interval is the host's alone
        self._probe.begin_interval()

    # ------------------------------------------------------------------------------------------- a step

    def step(self, evaluate: Evaluate, train_loss: float | None = None) -> Step:
        """End an interval of training, and decide for the next one.

        In order: evaluate; let the governor look, and roll back if the run has diverged; measure contributions; let the
        policy decide, or, in the last step, judge every seed that is undecided; change the network.

        Args:
            evaluate: Returns (loss, score) on validation data, the same data at every call; the score is at most 1,
                higher is better, and 0 is what a useless network reaches (below, it counts as 0 for a policy). With
                ``chance_loss`` it returns the loss alone. It must put the model into evaluation mode itself; it runs
                without gradients, and the modes are restored afterwards.
            train_loss: Mean training loss of the interval. The governor holds it, or without it the validation loss,
                against its band; none of what is measured may be other than finite.

        Returns:
            What was measured and decided.

        Raises:
            ValueError: If ``evaluate`` or ``contributions`` returns anything but a loss and a score of at most 1 (with
                ``chance_loss``, a loss), or ``train_loss`` is not a number.
            IllegalMoveError: If the policy asks for what a slot does not accept; other ValueErrors as
                :meth:`GrowingNetwork.check <esper.network.growing_network.GrowingNetwork.check>` says.
            RuntimeError: If something else than the optimizer trains the host, so that seeds do not learn; after
                :meth:`remove`, as from every method that needs the model.

        After an error of measuring or deciding, whoever raised it, Growth and the model are as before (a rollback is
        taken back too); what ``evaluate`` itself drew or changed is not taken back, nor is a failure while the decision
        is carried out, such as running out of memory. What ``log`` raises is raised when the step is done.
        """
        self._check_in_use()
        ranks.check_wrapped(self._parallel, has_trained=self._probe.steps > 0)
        if not callable(evaluate):
            raise ValueError(f"step() takes the function evaluate() -> (loss, score), got {type(evaluate).__name__}")
        train_loss = training_loss(train_loss)
        self._probe.check_training()
        run = self._run
        with all_or_nothing() as undo:
            undo.callback(self._probe.resume_interval)
            keep_state(undo, self.network, run, self._governor)
            self._probe.end_interval()
            with torch.no_grad(), modes_kept(self.network.model):
                loss, score = self._measure(evaluate, finite=self._governor is None)
                rolled_back, events = self._watch(loss, score, train_loss, undo)
                if rolled_back:
                    loss, score = self._measure(evaluate, finite=True)
                ranks.average_statistics(self.network)
                run.decision += 1
                judged: list[Judgement] = []
                measured = Measured({}, 0, 0.0)
                if not (self.finished or self._has_decisions_left()):
                    judged, (loss, score), measured = self._measure.judge(evaluate, (loss, score), run.rent)
                elif not self.finished:
                    measured = self._measure.contributions(evaluate, (loss, score))
            run.rolled_back = rolled_back
            run.learning_rate = learning_rate(self.optimizer.param_groups[0])
            if train_loss is not None:
                run.train_losses.append(train_loss)
            run.record(loss, score)
            auditions = self.network.latest_auditions()
            choice = self._choose(undo)
        if self._governor is not None and not rolled_back:
            self._governor.take_snapshot()
        state = {s.name: (s.stage.name, s.blueprint, s.alpha) for s in self.network.slots}
        added = self.network.added_params
        had_finished = self.finished
        decided, changes = self._apply(*choice[:2]) if choice else self._rest(judged)
        now = time.perf_counter()
        step = Step(
            decision=run.decision,
            loss=loss,
            score=score,
            train_loss=train_loss,
            added_params=added,
            slots=state,
            contributions=measured.contributions,
            rolled_back=rolled_back,
            decided=decided,
            events=events + changes,
            auditions=auditions,
            evaluations=1 + rolled_back + measured.evaluations,
            contribution_seconds=measured.seconds,
            seconds=now - self._clock,
            why=choice[2] if choice else Reason(),
            judged={event.slot: "the run had diverged" for event in events} | self._words_of(judged),
        )
        self._clock = now
        self.history.append(step)
        self._probe.begin_interval()
        self._log_latest(with_verdict=self.finished and not had_finished)
        return step

    def _log_latest(self, *, with_verdict: bool) -> None:
        if self._log is not None:
            step = self.history[-1]
            self._log(step_row(step) | (verdict_row(self.result()) if with_verdict else {}), step.decision)

    def _watch(self, loss: float, score: float, train_loss: float | None, undo: ExitStack) -> tuple[bool, list[Event]]:
        """Let the governor look; whether it rolled back, and what it changed."""
        if self._governor is None:
            return False, []
        (watched,) = ranks.mean([loss if train_loss is None else train_loss])
        if not self._governor.check(math.nan if watched is None else watched, loss, score):
            return False, []
        ranks.average_statistics(self.network)
        undo.callback(self._restore, self._governor.present())
        with self._restructuring():
            return True, self._governor.roll_back()

    def _restore(self, state: Snapshot) -> None:
        """Make model, optimizer and growth what they were."""
        assert self._governor is not None
        with self._restructuring():
            self._governor.restore(state)

    def _words_of(self, judged: Sequence[Judgement]) -> dict[str, str]:
        return {self.network.slot_names[one.slot]: one.why for one in judged if not one.decided}

    def _choose(self, undo: ExitStack) -> tuple[Observation, Decision, Reason] | None:
        """What the policy sees, its decision, a legal one, and why; ``None`` if there is nothing to decide any more."""
        run = self._run
        if self.finished or not self._has_decisions_left():
            return None
        if self._policy_is_ahead:
            self._remind_policy()
        undo.callback(setattr, self, "_policy_is_ahead", True)
        observation = observe(run, self.network)
        decision = Decision.from_mapping({n: int(c[0]) for n, c in self._ask(observation).items()})
        decision = Decision.from_mapping(ranks.from_rank_0(decision.to_mapping()))
        self.network.check(decision)
        (why,) = getattr(self.policy, "reasons", None) or (Reason(),)
        return observation, decision, why

    def _has_decisions_left(self) -> bool:
        return self._run.horizon is None or self._run.decision < self._run.horizon

    def _remind_policy(self) -> None:
        """Let the policy see again what it has seen, which brings back whatever it remembers."""
        self.policy.reset(1, self._seed)
        for observation in self._observations:
            self._ask(observation)
        self._policy_is_ahead = False

    def _ask(self, observation: Observation) -> Actions:
        """What the policy answers; it is shown the names of the slots, too."""
        return self.policy.act({**observation, "slot_names": self.network.slot_names})

    def _apply(self, observation: Observation, decision: Decision) -> tuple[str, list[Event]]:
        """Change the network; what was decided, in words, and what happened."""
        self._observations.append(observation)
        self._evaluated = [(slot, slot.seed, slot.alpha) for slot in self.network.slots]
        before = self.network.state_dict()
        with self._restructuring():
            events = self.network.step(decision)
        moved = any(_effect(slot.seed, slot.alpha) != _effect(seed, alpha) for slot, seed, alpha in self._evaluated)
        self._before_decision = before if moved else None
        return decision.describe(self.network.slot_names), events

    def _rest(self, judged: Sequence[Judgement]) -> tuple[str, list[Event]]:
        """Growth has finished, now or before; what was decided, in words, and what happened."""
        self._evaluated, self._before_decision = [], None
        events = [] if self.finished else self._conclude(judged)
        return "no decision: growth has finished", events

    @contextmanager
    def _restructuring(self) -> Iterator[None]:
        """Afterwards, if the structure has changed inside: compile afresh, and renew the wrapper of all ranks."""
        before = self._structure()
        yield
        for follower in self._followers:
            follower.follow()
        if self._structure() != before:
            compile_afresh()
            if self._parallel is not None:
                self._parallel.renew()

    def _structure(self) -> list[tuple[Any, ...]]:
        slots = self.network.slots
        seeds = [(id(s.seed), s.stage is Stage.TRAINING, s.seed is not None and s.seed.whole) for s in slots]
        candidates = [(s.is_auditioning, list(map(id, s.nursery.seeds.values())) if s.nursery else []) for s in slots]
        return [*seeds, *candidates]

    # ------------------------------------------------------------------------------------------- the end

    def finish(self, evaluate: Evaluate) -> None:
        """End the growth: no more decisions, and every seed that is undecided is judged.

        What the policy has decided stands. Of what it has not, a seed that is blended in is kept, at the alpha that it
        has, if it contributes more than its rent, and else taken out, the least one first; one that is still in
        isolation is taken out (:mod:`esper.growth.judgement`). Without contributions what is blended in is kept.

        A decision that no training has followed is taken back before. The latest entry of :attr:`history` then says
        what was measured now. Training may go on; :meth:`step` then only evaluates and watches. Where ``horizon`` is
        known the last step does all this by itself, and a further call does nothing.

        Args:
            evaluate: As in :meth:`step`, and with its errors.
        """
        self._check_in_use()
        if self.finished:
            return
        self._take_back()
        with torch.no_grad(), modes_kept(self.network.model):
            as_is = self._measure(evaluate, finite=True)
            judged, (loss, score), measured = self._measure.judge(evaluate, as_is, self._run.rent)
        events = self._conclude(judged)
        if self.history:
            last = self.history[-1]
            self.history[-1] = replace(
                last,
                loss=loss,
                score=score,
                contributions=last.contributions | measured.contributions,
                events=last.events + events,
                evaluations=last.evaluations + 1 + measured.evaluations,
                contribution_seconds=last.contribution_seconds + measured.seconds,
                judged=self._words_of(judged),
            )
            self._log_latest(with_verdict=True)

    def _take_back(self) -> None:
        """Undo the latest decision if no training has followed it."""
        if self._before_decision is None or self._probe.steps > 0:
            return
        with self._restructuring():
            self.network.load_state_dict(self._before_decision)
        last = self.history[-1]
        self.history[-1] = replace(last, decided=f"{last.decided} (taken back)", events=[])
        self._before_decision, self._evaluated = None, []

    def _conclude(self, judged: Sequence[Judgement]) -> list[Event]:
        """Do what has been judged, and finish; what happened, under the number of the latest step."""
        with self._restructuring():
            for index in range(self.network.num_slots):
                self.network.end_audition(index)
            events = carry_out(self.network, judged)
        self._before_decision, self._evaluated = None, []
        self.finished = True
        if self._governor is not None:
            self._governor.take_snapshot()
        return events

    def remove(self) -> None:
        """Take everything off the host and the optimizer: both are as if they had never grown.

        Call :meth:`grown_model` first to keep what has grown. Afterwards only :attr:`history`, :meth:`result` and what
        is made of it (:meth:`summary`, :meth:`explain`, :meth:`plot`) can be used; a second call does nothing.
        """
        if not self._removed:
            self._removed = True
            self._probe.remove()
            self._loading.remove()
            for follower in self._followers:
                follower.let_go()
            self.network.remove()

    def _check_in_use(self) -> None:
        if self._removed:
            raise RuntimeError(
                "this Growth has been taken off its model by remove() and can only show its history and result(), "
                "summary(), explain() and plot(); build a new esper.Growth(model, optimizer, ...) to let it grow again"
            )

    # ------------------------------------------------------------------------------------------- what has grown

    @property
    def model(self) -> nn.Module:
        """The host."""
        return self.network.model

    def grown_model(self) -> nn.Module:
        """The grown network as a plain module, a copy, for further training or for use.

        Seeds that are not blended in are left out. It is the network as it was evaluated last, or trained since: a
        decision that no training has followed is not in it.
        """
        self._check_in_use()
        with self._as_evaluated():
            return self.network.grown_model()

    @contextmanager
    def _as_evaluated(self) -> Iterator[None]:
        pending = self._evaluated if self._probe.steps == 0 else []
        now = [(slot, slot.seed, slot.alpha) for slot, _, _ in pending]
        _set_seeds(pending)
        try:
            yield
        finally:
            _set_seeds(now)

    def export(self, path: str | os.PathLike[str]) -> Path:
        """Write :meth:`grown_model`, in evaluation mode, to a file that runs where Esper is not installed.

        Args:
            path: ``*.pt2`` for ``torch.export`` (read it by ``torch.export.load(path).module()``) or ``*.onnx`` (needs
                the packages of ``esper-lite[onnx]``). The file is written whole or not at all.

        Raises:
            ValueError: For another suffix, or missing packages.
        """
        return export_model(self.grown_model().eval(), self.example_input, Path(path))

    def save(self, directory: str | os.PathLike[str]) -> Path:
        """Write the grown network to ``directory``, as one file from which :func:`esper.load_grown` builds it again.

        What is written is what :meth:`grown_model` holds, as data: the host's weights, and the seeds of alpha > 0. The
        file is written whole or not at all. To go on *growing* later, save :meth:`state_dict` instead.

        Returns:
            The path of the file.

        Raises:
            ValueError: If the host's ``state_dict`` holds anything but tensors.
        """
        self._check_in_use()
        return save_grown(directory, self.model, self._state_as_evaluated()["slots"])

    def return_to(self, state: Mapping[str, Any]) -> None:
        """Make the network's structure that of an earlier ``state_dict()["network"]``, for weights to be loaded into.

        :attr:`history` stays: it tells the whole run.
        """
        self._check_in_use()
        with self._restructuring():
            self.network.load_state_dict(state)
        self._evaluated, self._before_decision = [], None

    def _state_as_evaluated(self) -> dict[str, Any]:
        """The network's state, without a decision that no training has followed."""
        pending = self._before_decision if self._probe.steps == 0 else None
        return self.network.state_dict() if pending is None else pending

    def result(self) -> GrowthResult:
        """Everything there is to say about this growth so far, as one record of plain data.

        :meth:`summary`, :meth:`plot` and :meth:`explain` are made of it.
        """
        network = self.network
        inside = {slot.name: sum(p.numel() for p in seed.parameters()) for slot, seed in self._acting().items()}
        seeds = seed_lives(self.history, network, inside)
        return GrowthResult(
            task=type(network.model).__name__,
            policy=type(self.policy).__name__,
            rent=self._run.rent,
            budget=network.budget,
            flops_budget=network.flops_budget,
            host_params=network.host_params,
            added_params=sum(inside.values()),
            host_flops=network.host_flops,
            added_flops=sum(seed.flops for seed in seeds),
            slots={slot.name: slot.output for slot in network.slots},
            seeds=seeds,
            steps=list(self.history),
            saw=what_was_seen(self._observations, network.slot_names),
            finished=self.finished,
            horizon=self._run.horizon,
        )

    def _acting(self) -> dict[Slot, Seed]:
        """The seeds that :meth:`grown_model` builds in."""
        seeds = {slot: (slot.seed, slot.alpha) for slot in self.network.slots}
        if self._probe.steps == 0:
            seeds |= {slot: (seed, alpha) for slot, seed, alpha in self._evaluated}
        return {slot: seed for slot, (seed, alpha) in seeds.items() if seed is not None and alpha > 0}

    def summary(self, console: Console | None = None) -> None:
        """Print what grew, when, what it contributed, what it cost, and whether it was worth it."""
        (console or Console()).print(summary(self.result()))

    def explain(self, step: int) -> str:
        """Why growth did at one step what it did: the policy's reason, what was measured, and what the policy saw.

        Args:
            step: Its number, ``Step.decision``; the first is 1.

        Raises:
            ValueError: If there is no such step.
        """
        return explain(self.result(), step)

    def plot(self) -> Drawing:
        """A picture of the growth: score, what lived in each slot and when, parameters; a matplotlib figure.

        A notebook shows it; ``growth.plot().savefig("growth.png")`` writes it.

        Raises:
            ValueError: Before the second step, when there is nothing to draw.
        """
        from esper.figure import draw_growth  # noqa: PLC0415 - matplotlib is imported when a picture is asked for

        return draw_growth(self.result().figure_record())

    def _repr_html_(self) -> str:
        """What a notebook shows: verdict, picture, seeds and decisions."""
        from esper.growth.page import growth_section  # noqa: PLC0415 - likewise

        return view(growth_section(self.result()))

    def parallel(self, **options: Any) -> nn.Module:
        """The network to train in ``torch.distributed``: ``DistributedDataParallel`` around the host and its seeds.

        Call the returned module for training steps. It stays the same object, but renews the wrapper inside whenever
        the network has grown. All ranks must call :meth:`step`; losses and scores are averaged over them, and rank 0
        decides. ``options`` go to ``DistributedDataParallel``.
        """
        self._check_in_use()
        self._parallel = ranks.GrowingParallel(self.network, options)
        return self._parallel

    def follow(self, averaged: nn.Module) -> None:
        """Let a copy of the host grow along: it gets each new seed when the host does, and loses it when the host does.

            averaged = torch.optim.swa_utils.AveragedModel(model)
            growth.follow(averaged)

        Its seeds act at the host's alpha; their weights are those of the host's until the seed is blended in, and then
        what the average makes of them. ``evaluate`` may run the copy in place of the model.

        Args:
            averaged: A ``copy.deepcopy`` of the host, or what holds one, such as an ``AveragedModel``.

        Raises:
            ValueError: If there is no copy of the host in it.
        """
        self._check_in_use()
        self._followers.append(Follower(self.network, averaged))

    # ------------------------------------------------------------------------------------------- state

    def state_dict(self) -> dict[str, Any]:
        """Everything that a resumed run needs but the host's weights and the optimizer's state.

        ``torch.load(weights_only=True)`` reads it. With a governor it holds the last good state of all, so it is as
        large as model and optimizer. To resume: build model, optimizer and ``Growth`` as at the start, then load *this
        state first*, then the model's and the optimizer's.
        """
        self._check_in_use()
        return {
            "format": FORMAT,
            "network": self.network.state_dict(),
            "governor": None if self._governor is None else self._governor.state_dict(),
            "run": {name: value for name, value in vars(self._run).items() if name not in ("rent", "budget")},
            "history": [step.to_state() for step in self.history],
            "observations": [to_tensors(observation) for observation in self._observations],
            "probe": self._probe.state_dict(),
            "finished": self.finished,
            "before_decision": self._before_decision,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Become what :meth:`state_dict` saved; model and optimizer are loaded *after* this.

        The policy sees again what it has seen, which brings back whatever it remembers. The horizon is that of this
        ``Growth``: with a larger one a growth that had come to the end of its own goes on.

        Raises:
            ValueError: If the state is of another format, another host, or was saved with another choice of
                ``governor``; nothing has changed then.
        """
        self._check_in_use()
        if state.get("format") != FORMAT or "network" not in state:
            raise ValueError(f"expected the state of a Growth, format {FORMAT}; got the keys {sorted(state)[:8]}")
        if (state["governor"] is None) != (self._governor is None):
            raise ValueError(
                f"the state was saved with governor={state['governor'] is not None}; build Growth likewise"
            )
        with self._restructuring():
            self.network.load_state_dict(state["network"])
        if self._governor is not None:
            self._governor.load_state_dict(state["governor"])
        planned = state["run"]["horizon"]
        for name, value in state["run"].items():
            if name != "horizon":  # this run's own, which may be another
                setattr(self._run, name, list(value) if isinstance(value, list) else value)
        self.history = [Step.from_state(step) for step in state["history"]]
        self._observations = [to_arrays(observation) for observation in state["observations"]]
        self._remind_policy()
        by_horizon = planned is not None and self._run.decision >= planned
        self.finished = state["finished"] and not (by_horizon and self._has_decisions_left())
        self._before_decision = state["before_decision"]
        self._evaluated = []
        self._probe.load_state_dict(state["probe"])
        self._clock = time.perf_counter()


def _effect(seed: Seed | None, alpha: float) -> tuple[int, float] | None:
    """Tells apart what seeds do to the host's output."""
    return None if seed is None or alpha == 0 else (id(seed), alpha)


def _set_seeds(seeds: Sequence[tuple[Slot, Seed | None, float]]) -> None:
    for slot, seed, alpha in seeds:
        slot.seed, slot.life.alpha = seed, alpha
        slot.refresh()
