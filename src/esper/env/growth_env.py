"""Growth as a reinforcement-learning environment: K networks that train side by side, one decision per interval.

    envs = gymnasium.make_vec("esper/Growth-v0", num_envs=8, vectorization_mode="vector_entry_point", task="mnist1d")

An episode is one host's training run with a fixed number of decisions; it ends by ``terminated``, since the objective
J = score_T − rent · log2(params_T / params_host) is a finite-horizon one and the observation holds the progress.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space, iterate

from esper.actions import ALL_BLUEPRINTS, HEADS, Decision
from esper.auditions import Auditions
from esper.env.engine.engine import Engine, RowReport
from esper.env.engine.factory import EngineKind, make_engine
from esper.env.engine.parallel import LocalWorkers, ParallelEngine, Workers
from esper.env.engine.run import build_episode_host
from esper.env.episode import NO_VARIANTS, Episode, Variants
from esper.env.flops import ComputeMeter
from esper.env.growth_spaces import action_space, observation_space
from esper.env.reward import Objective, RewardConfig
from esper.lifecycle import IllegalMoveError
from esper.observation import encode, encode_prospects
from esper.tasks import Task, get_task


@dataclass
class Row:
    """One network of the environment: the stream of its episodes, and the episode that runs."""

    entropy: int
    """From it and the count of episodes the seed of each episode is made."""
    episodes_begun: int = 0
    reset_next: bool = False
    """Whether the next step begins an episode (autoreset mode ``NEXT_STEP``)."""
    episode: Episode = field(init=False)
    objective: Objective = field(init=False)
    other_objective: Objective | None = field(init=False)
    """The same run at the other price, where the price is drawn."""
    meter: ComputeMeter | None = field(init=False)
    """Counts compute where it has a price."""
    report: RowReport = field(init=False)
    """The latest."""
    actions: list[Decision] = field(init=False)
    """The decisions of this episode so far."""

    def next_seed(self) -> int:
        """Seed of the episode that the row's stream has next."""
        return int(np.random.SeedSequence([self.entropy, self.episodes_begun]).generate_state(1)[0])

    def begin(self, episode: Episode, config: RewardConfig, task: Task) -> None:
        """An episode begins; its first report is still to come."""
        self.episodes_begun += 1
        self.reset_next = False
        self.episode = episode
        self.objective = Objective(config, episode.rent)
        self.other_objective = None if episode.other_rent is None else Objective(config, episode.other_rent)
        self.meter = ComputeMeter(task, episode) if config.waste or config.compute else None
        self.actions = []

    def rewards(self, slot_names: Sequence[str], *, done: bool) -> tuple[float, float]:
        """What the latest decision paid, under the row's rent and under its other rent (0 where there is none)."""
        reading, (waste, extra) = self.report.reading, self._compute(slot_names)
        params, host_params = reading.host_params + reading.added_params, reading.host_params

        def paid(objective: Objective | None) -> float:
            if objective is None:
                return 0.0
            return objective.reward(
                self.report.score,
                params,
                host_params,
                rolled_back=reading.rolled_back,
                done=done,
                waste=waste,
                extra=extra,
            )

        return paid(self.objective), paid(self.other_objective)

    def _compute(self, slot_names: Sequence[str]) -> tuple[float, float]:
        """Compute so far, in training runs of the host alone: what nothing is left of, and all that is beyond these."""
        if self.meter is None:
            return 0.0, 0.0
        slots = dict(zip(slot_names, self.report.reading.slots, strict=True))
        self.meter.record(
            {name: (slot.stage.name, slot.blueprint_name) for name, slot in slots.items()},
            {name: slot.auditioning for name, slot in slots.items()},
        )
        return self.meter.wasted / self.meter.host_alone, self.meter.extra / self.meter.host_alone


class GrowthVectorEnv(VectorEnv):
    """K growing networks as one Gymnasium ``VectorEnv``.

    Args:
        num_envs: Number of hosts K.
        task: Name of a task, or a task.
        reward: Kind of reward, the prices of parameters, rollbacks and compute, and Φ if it is one of your own.
        budget: Cap on added parameters; ``None`` for no cap.
        blueprints: Names of the blueprints that may be germinated; all others are masked.
        variants: Ranges from which each episode draws its conditions.
        autoreset_mode: ``SAME_STEP`` (default; the last observation and info of an episode are in
            ``infos["final_obs"]`` and ``infos["final_info"]``) or ``NEXT_STEP``.
        num_workers: Processes over which the hosts are spread; 1 stays in this process. Or workers elsewhere, as
            :class:`RayWorkers`. Results do not depend on it.
        paired: All rows play the same episodes when ``reset`` is given one seed: the same conditions, initial weights
            and order of the data, so that what they come to differs by their decisions alone (common random numbers).
        engine: ``"stacked"`` trains all hosts in one graph, ``"loop"`` one after the other (the meaning, slower);
            ``"auto"`` stacks where the task's host allows it.
        auditions: What auditions in dormant slots; ``None`` for nothing. A reset may say otherwise.
        on_illegal: What a masked action does: ``"raise"`` (default), or ``"wait"`` for agents that know no masks; then
            it counts as WAIT and ``infos["illegal"]`` is True for its row.

    ``infos`` holds ``action_mask`` (as in the observation), ``score``, ``added_params``, ``train_samples_seen``,
    ``conditions`` (what this episode drew) and, where an episode has ended, ``episode_metrics`` (``J``, ``score``,
    ``added_params``, ``penalty``) with the mask ``_episode_metrics``.

    Rent changes neither training nor what is legal, only what a run is worth. So where it is drawn (``variants.rent``),
    ``infos["other_objective"]`` tells how each run looks and pays at another price drawn from the same range:
    ``features`` and ``prospects`` (as in the observation) and ``rewards`` (of this step). A learner gets two prices
    from one run.

    Raises:
        ValueError: For an unknown task, blueprint or autoreset mode.
        IllegalMoveError: From ``step`` for an action that the mask forbids; no host has been touched then.
    """

    metadata: dict[str, Any] = {"render_modes": [], "autoreset_mode": AutoresetMode.SAME_STEP}  # noqa: RUF012 (declared so by gymnasium)

    def __init__(
        self,
        num_envs: int = 1,
        task: str | Task = "mnist1d",
        *,
        reward: RewardConfig | None = None,
        budget: int | None = None,
        blueprints: Sequence[str] = ALL_BLUEPRINTS,
        variants: Variants = NO_VARIANTS,
        autoreset_mode: AutoresetMode | str = AutoresetMode.SAME_STEP,
        num_workers: int | Workers = 1,
        paired: bool = False,
        engine: EngineKind = "auto",
        auditions: Auditions | None = None,
        on_illegal: str = "raise",
    ) -> None:
        if on_illegal not in ("raise", "wait"):
            raise ValueError(f"on_illegal must be 'raise' or 'wait', got '{on_illegal}'")
        if num_envs < 1:
            raise ValueError(f"num_envs must be 1 or more, got {num_envs}")
        self.on_illegal = on_illegal
        self.autoreset_mode = _known_mode(autoreset_mode)
        unknown = sorted(set(blueprints) - set(ALL_BLUEPRINTS))
        if unknown:
            raise ValueError(f"unknown blueprint(s) {unknown}; choose among {', '.join(ALL_BLUEPRINTS)}")
        self.task = _find_task(task)
        self.num_envs = num_envs
        self.reward_config = reward or RewardConfig()
        self.budget, self.variants, self.paired = budget, variants, paired
        self.auditions = auditions
        self.metadata = {**type(self).metadata, "autoreset_mode": self.autoreset_mode, "heads": HEADS.to_json()}
        self.num_slots = len(self.task.slots)
        self.single_observation_space = observation_space(self.num_slots)
        self.single_action_space = action_space(self.num_slots)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self.engine = self._make_engine(tuple(blueprints), num_workers, engine)
        host = build_episode_host(self.task, Variants().draw(self.task, 0, rent=0.0, budget=None, host_params=1))
        self._host_params = sum(p.numel() for p in host.parameters())
        self._rows: list[Row] = []
        """Empty until the first ``reset``."""

    def _make_engine(self, blueprints: tuple[str, ...], num_workers: int | Workers, kind: EngineKind) -> Engine:
        make = partial(make_engine, self.task, kind=kind, blueprints=blueprints)
        if num_workers == 1:
            return make(self.num_envs)
        workers = LocalWorkers(min(num_workers, self.num_envs)) if isinstance(num_workers, int) else num_workers
        return ParallelEngine(make, self.num_envs, workers, self.task.slots)

    # ------------------------------------------------------------------ Gymnasium

    def reset(
        self, *, seed: int | Sequence[int] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Begin a new episode in every row.

        Args:
            seed: One seed (row i gets its own stream from it), or one per row. ``None``: the streams go on.
            options: ``{"episode_seeds": [K ints]}`` begins exactly these episodes, as an evaluation needs them;
                ``{"reset_mask": bool [K]}`` resets only the rows that are True; ``{"auditions": ...}`` are held in
                episodes from now on, in place of those that the environment was made with.
        """
        options = options or {}
        rows = self._rows_to_reset(options)
        episode_seeds = options.get("episode_seeds")
        if episode_seeds is not None and len(episode_seeds) != self.num_envs:
            raise ValueError(f"expected {self.num_envs} episode_seeds, one per row, got {len(episode_seeds)}")
        if seed is not None or not self._rows:
            self._seed(seed)
        self.auditions = options.get("auditions", self.auditions)
        self._begin(rows, episode_seeds)
        return self._observe(), self._info()

    def step(
        self, actions: Mapping[str, Any]
    ) -> tuple[dict[str, Any], np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """One decision for every host, then one interval of training each."""
        if not self._rows:
            raise RuntimeError("step() was called before reset(); call reset() first")
        decisions, illegal = self._decisions(actions)
        waking = [i for i, row in enumerate(self._rows) if row.reset_next]
        stepping = [i for i, row in enumerate(self._rows) if not row.reset_next]
        if waking:
            self._begin(waking)
        for i, report in self.engine.step({i: decisions[i] for i in stepping}).items():
            self._rows[i].report = report
            self._rows[i].actions.append(decisions[i])
        rewards, terminated = np.zeros((2, self.num_envs)), np.zeros(self.num_envs, dtype=bool)
        for i in stepping:
            row = self._rows[i]
            terminated[i] = row.report.reading.decision >= row.episode.horizon
            rewards[:, i] = row.rewards(self.task.slots, done=terminated[i])
        info = self._info(rewards[1]) | {"illegal": illegal}
        if terminated.any():
            info |= self._final_info(terminated)
            if self.autoreset_mode is AutoresetMode.SAME_STEP:
                info |= {"final_obs": self._rows_observed(terminated), "_final_obs": terminated}
                info |= {"final_info": self._info(rewards[1]), "_final_info": terminated}
                self._begin(np.flatnonzero(terminated).tolist())
                info |= self._info(rewards[1])
            else:
                for i in np.flatnonzero(terminated).tolist():
                    self._rows[i].reset_next = True
        return self._observe(), rewards[0], terminated, np.zeros_like(terminated), info

    def close_extras(self, **kwargs: Any) -> None:
        """Stop the workers."""
        self.engine.close()

    # ------------------------------------------------------------------ state

    def state_dict(self) -> dict[str, Any]:
        """Everything needed to go on bit for bit, as plain JSON data: the episodes and the actions taken in them.

        Episodes are deterministic, so :meth:`load_state_dict` replays the actions.
        """
        return {
            "entropy": [row.entropy for row in self._rows],
            "episode_counts": [row.episodes_begun for row in self._rows],
            "episode_seeds": [row.episode.seed for row in self._rows],
            "actions": [[decision.to_mapping() for decision in row.actions] for row in self._rows],
            "reset_next": [row.reset_next for row in self._rows],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> dict[str, Any]:
        """Restore :meth:`state_dict` and return the observation that belongs to it."""
        if len(state["episode_seeds"]) != self.num_envs:
            raise ValueError(
                f"the state is of {len(state['episode_seeds'])} environments, this one has {self.num_envs}"
            )
        self._rows = [Row(entropy) for entropy in state["entropy"]]
        self._begin(list(range(self.num_envs)), state["episode_seeds"])
        histories = [[Decision.from_mapping(a) for a in actions] for actions in state["actions"]]
        for t in range(max(map(len, histories), default=0)):
            decisions = {i: history[t] for i, history in enumerate(histories) if t < len(history)}
            for i, report in self.engine.step(decisions).items():
                self._rows[i].report = report
                self._rows[i].rewards(self.task.slots, done=False)
        for row, actions, count, reset_next in zip(
            self._rows, histories, state["episode_counts"], state["reset_next"], strict=True
        ):
            row.actions, row.episodes_begun, row.reset_next = actions, count, reset_next
        return self._observe()

    def test_scores(self) -> np.ndarray:
        """Score of every row's network on test data, ``[K]``. Test data is for the final evaluation only."""
        scores = self.engine.test_scores(range(self.num_envs))
        return np.array([scores[row] for row in range(self.num_envs)])

    @property
    def reports(self) -> list[RowReport]:
        """The latest raw report of every row, for figures and logs."""
        return [row.report for row in self._rows]

    @property
    def episodes(self) -> list[Episode]:
        """The running episode of every row."""
        return [row.episode for row in self._rows]

    # ------------------------------------------------------------------ pieces

    def _seed(self, seed: int | Sequence[int] | None) -> None:
        if seed is None:
            seed = int(np.random.SeedSequence().generate_state(1)[0])
        if isinstance(seed, (int, np.integer)):
            streams = [int(s) for s in np.random.SeedSequence(int(seed)).generate_state(self.num_envs)]
            entropy = streams[:1] * self.num_envs if self.paired else streams
        elif len(seed) == self.num_envs:
            entropy = [int(s) for s in seed]
        else:
            raise ValueError(f"expected one seed or {self.num_envs}, got {len(seed)}")
        self._rows = self._rows or [Row(number) for number in entropy]
        for row, number in zip(self._rows, entropy, strict=True):
            row.entropy, row.episodes_begun = number, 0

    def _rows_to_reset(self, options: Mapping[str, Any]) -> list[int]:
        unknown = sorted(set(options) - {"auditions", "episode_seeds", "reset_mask"})
        if unknown:
            raise ValueError(
                f"unknown reset option(s) {unknown}; expected 'episode_seeds', 'reset_mask' or 'auditions'"
            )
        mask = np.asarray(options.get("reset_mask", np.ones(self.num_envs)), dtype=bool)
        if mask.shape != (self.num_envs,):
            raise ValueError(f"expected a reset_mask of shape [{self.num_envs}], got {list(mask.shape)}")
        if not self._rows and not mask.all():
            raise ValueError("the first reset() begins an episode in every row; leave reset_mask out")
        return np.flatnonzero(mask).tolist()

    def _begin(self, rows: Sequence[int], episode_seeds: Sequence[int] | None = None) -> None:
        """Begin the next episode of each of these rows (or the one with the given seed)."""
        for i in rows:
            seed = self._rows[i].next_seed() if episode_seeds is None else int(episode_seeds[i])
            episode = self.variants.draw(
                self.task, seed, rent=self.reward_config.rent, budget=self.budget, host_params=self._host_params
            )
            episode = replace(episode, auditions=self.auditions)
            self._rows[i].begin(episode, self.reward_config, self.task)
        for i, report in self.engine.reset({i: self._rows[i].episode for i in rows}).items():
            self._rows[i].report = report

    def _decisions(self, actions: Mapping[str, Any]) -> tuple[list[Decision], np.ndarray]:
        """The decisions of all rows, and which of them came as illegal actions."""
        missing = [name for name in HEADS.names if name not in actions]
        if missing:
            raise ValueError(f"expected an action for every head {list(HEADS.names)}, missing {missing}")
        arrays = {name: np.asarray(actions[name]).reshape(-1) for name in HEADS.names}
        for name, array in arrays.items():
            if len(array) != self.num_envs:
                raise ValueError(f"expected {self.num_envs} choices for head '{name}', got {len(array)}")
        decisions = [Decision.from_mapping({n: arrays[n][i] for n in HEADS.names}) for i in range(self.num_envs)]
        illegal = np.zeros(self.num_envs, dtype=bool)
        for i, (row, decision) in enumerate(zip(self._rows, decisions, strict=True)):
            complaint = None if row.reset_next else find_illegal(decision, row.report.masks)
            if complaint is None:
                continue
            if self.on_illegal == "raise":
                raise IllegalMoveError(f"environment {i}: {complaint}")
            decisions[i], illegal[i] = Decision(), True
        return decisions, illegal

    def _observe(self) -> dict[str, Any]:
        encoded = [encode(row.report.reading) for row in self._rows]
        return {
            "features": np.stack([features for features, _ in encoded]),
            "blueprints": np.stack([blueprints for _, blueprints in encoded]),
            "prospects": np.stack([encode_prospects(row.report.reading) for row in self._rows]),
            "action_mask": self._masks(),
        }

    def _rows_observed(self, rows: np.ndarray) -> np.ndarray:
        """Object array [K]: the observation of each chosen row, ``None`` elsewhere (Gymnasium's form of final_obs)."""
        observed = np.full(self.num_envs, None, dtype=object)
        for i, observation in enumerate(iterate(self.observation_space, self._observe())):
            if rows[i]:
                observed[i] = observation
        return observed

    def _masks(self) -> dict[str, np.ndarray]:
        return {name: np.stack([row.report.masks[name] for row in self._rows]) for name in HEADS.names}

    def _info(self, other_rewards: np.ndarray | None = None) -> dict[str, Any]:
        """Of all rows; ``other_rewards`` [K] are those of the step under the other rent, ``None`` after a reset."""
        conditions = [row.episode.info() for row in self._rows]
        return self._other_objective(other_rewards) | {
            "action_mask": self._masks(),
            "score": np.array([row.report.score for row in self._rows]),
            "added_params": np.array([row.report.reading.added_params for row in self._rows]),
            "train_samples_seen": np.array([row.report.train_samples_seen for row in self._rows]),
            "conditions": {name: np.array([c[name] for c in conditions]) for name in conditions[0]},
        }

    def _other_objective(self, rewards: np.ndarray | None) -> dict[str, Any]:
        if self.variants.rent is None:
            return {}
        priced = [(row, row.other_objective.rent if row.other_objective else 0.0) for row in self._rows]
        readings = [replace(row.report.reading, rent=rent) for row, rent in priced]
        return {
            "other_objective": {
                "features": np.stack([encode(reading)[0] for reading in readings]),
                "prospects": np.stack([encode_prospects(reading) for reading in readings]),
                "rewards": np.zeros(self.num_envs) if rewards is None else rewards,
            }
        }

    def _final_info(self, ended: np.ndarray) -> dict[str, Any]:
        metrics = {
            "J": np.array([row.objective.potential for row in self._rows]),
            "score": np.array([row.report.score for row in self._rows]),
            "added_params": np.array([float(row.report.reading.added_params) for row in self._rows]),
            "penalty": np.array([row.objective.penalty for row in self._rows]),
        }
        return {"episode_metrics": metrics, "_episode_metrics": ended}


def _known_mode(mode: AutoresetMode | str) -> AutoresetMode:
    for known in (AutoresetMode.SAME_STEP, AutoresetMode.NEXT_STEP):
        if mode in (known, known.value):
            return known
    raise ValueError(
        f"autoreset_mode must be SAME_STEP or NEXT_STEP ('SameStep' or 'NextStep'), got {mode!r}; hosts may end their "
        "episodes at different times"
    )


def _find_task(task: str | Task) -> Task:
    if isinstance(task, str):
        return get_task(task)
    if isinstance(task, Task):
        return task
    raise ValueError(f"expected the name of a task, the path of data, or a Task, got {type(task).__name__}")


def find_illegal(decision: Decision, masks: Mapping[str, np.ndarray]) -> str | None:
    """What the masks of one environment forbid about ``decision``, in words; ``None`` when it is legal."""
    choices = decision.to_mapping()
    for head in HEADS:
        if not HEADS.is_used(head.name, choices):
            continue
        mask = HEADS.allowed(head.name, masks[head.name], choices)
        choice = choices[head.name]
        if not (0 <= choice < len(mask) and mask[choice]):
            return (
                f"choice {choice} of head '{head.name}' is not allowed now (allowed: {np.flatnonzero(mask).tolist()}); "
                "choose among what the action mask allows"
            )
    return None


class GrowthEnv(gym.Env):
    """One growing network as an ordinary Gymnasium ``Env``: a :class:`GrowthVectorEnv` of one row.

    Takes the same arguments, but for ``num_envs`` and ``autoreset_mode``.
    """

    metadata: dict[str, Any] = {"render_modes": []}  # noqa: RUF012 (declared so by gymnasium)

    def __init__(self, task: str | Task = "mnist1d", render_mode: str | None = None, **kwargs: Any) -> None:
        self.render_mode = render_mode
        self.vector_env = GrowthVectorEnv(1, task, autoreset_mode=AutoresetMode.NEXT_STEP, **kwargs)
        self.observation_space = self.vector_env.single_observation_space
        self.action_space = self.vector_env.single_action_space

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Begin a new episode."""
        super().reset(seed=seed)
        observation, info = self.vector_env.reset(seed=seed, options=options)
        return _first(observation), _first(info)

    def step(self, action: Mapping[str, Any]) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """One decision, then one interval of training."""
        batched = {name: np.asarray([choice]) for name, choice in action.items()}
        observation, reward, terminated, truncated, info = self.vector_env.step(batched)
        return _first(observation), float(reward[0]), bool(terminated[0]), bool(truncated[0]), _first(info)

    def close(self) -> None:
        """Release the engine."""
        self.vector_env.close()


def _first(batched: Any) -> Any:
    """The first row of a nest of dicts of arrays."""
    return {k: _first(v) for k, v in batched.items()} if isinstance(batched, dict) else batched[0]
