"""What growing late saves and costs: a whole transformer block in every slot, from a share of the run on.

    python benchmarks/late_growth.py --tasks library_lm glyph_transformer --seeds 5 --interval 0.5

A block is a kind of seed that is registered here: attention and a perceptron, as in the hosts. The fixed schedule fills
every slot with one, from the beginning or later (``FixedSchedulePolicy("transformer_block", start=0.5)``). Beside it
stand the same network trained from scratch for as long, and for as many FLOPs, and the host alone. Scores are on test
data, differences paired by seed. A run that was interrupted goes on where it stopped: finished episodes are in the file
of ``--out``.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

import esper
from esper.env.episode import Variants
from esper.env.growth_env import GrowthVectorEnv
from esper.evaluation.episodes import EpisodeResult, evaluation_seeds, run_episodes
from esper.evaluation.statistics import paired_difference
from esper.evaluation.study.architectures import Architecture, train_from_scratch
from esper.files import from_plain, write_json_atomic
from esper.network.blueprints import BLUEPRINTS, SlotSpec
from esper.tamiyo.policy.protocol import Policy
from esper.tamiyo.policy.rules import FixedSchedulePolicy, WaitPolicy
from esper.tasks import Task, get_task


@esper.register_blueprint
class TransformerBlock(esper.Blueprint):
    """Attention and then a perceptron of 4C hidden channels, each added to what it reads (Vaswani et al., 2017)."""

    name = "transformer_block"
    kinds = frozenset({"sequence"})
    mixes = True

    def __init__(self, spec: SlotSpec) -> None:
        super().__init__(spec)
        self.attention = BLUEPRINTS["attention"](spec)
        self.norm = nn.LayerNorm(spec.channels)
        self.perceptron = BLUEPRINTS["mlp_large"](spec)

    def forward(self, h: Tensor, keep: Tensor | None = None) -> Tensor:
        """``h [N, L, C]`` → what both parts add to it."""
        attended = self.attention(h, keep)
        return attended + self.perceptron(self.norm(h + attended))


class Runs:
    """Episodes of one task, played once and kept in a file.

    Args:
        task: What is learned.
        schedule: How the learning rate moves.
        interval: Length of the time between two decisions, of the task's own; there are as many more decisions.
        seeds: Paired episodes of every arm.
        path: Of the file, shared by all tasks.
    """

    def __init__(self, task: Task, schedule: str, interval: float, seeds: int, path: Path) -> None:
        self.task, self.path = task, path
        decisions = round(task.horizon / interval)
        self.conditions = f"{task.name}, {schedule}, {decisions} decisions"
        self.variants = Variants(schedule=(schedule,), horizon=(decisions, decisions), interval=(interval, interval))
        self.seeds = evaluation_seeds(seeds, seed=14, purpose="test")
        self.found = json.loads(path.read_text()) if path.is_file() else {}

    def arm(self, name: str, run: Callable[[int], EpisodeResult]) -> list[EpisodeResult]:
        """One result per seed."""
        results = []
        for seed in self.seeds:
            key = f"{self.conditions}, {name}, {seed}"
            if key not in self.found:
                self.found[key] = run(seed).to_json()
                write_json_atomic(self.path, self.found)
            results.append(from_plain(EpisodeResult, self.found[key], self.path))
        return results

    def steered(self, name: str, policy: Policy) -> list[EpisodeResult]:
        """Under a controller."""

        def run(seed: int) -> EpisodeResult:
            env = GrowthVectorEnv(1, self.task, variants=self.variants, engine="loop", autoreset_mode="NextStep")
            try:
                return run_episodes(env, policy, [seed], arm=name)[0]
            finally:
                env.close()

        return self.arm(name, run)

    def from_scratch(self, name: str, decisions: int | None = None) -> list[EpisodeResult]:
        """A block in every slot from the first step on; a shorter run moves its learning rate in less time."""
        architecture = Architecture(tuple((slot, TransformerBlock.name, "add", 1.0) for slot in self.task.slots))

        def run(seed: int) -> EpisodeResult:
            episode = self.variants.draw(self.task, seed, rent=0.02, budget=None, host_params=0)
            return train_from_scratch(self.task, episode, architecture, arm=name, decisions=decisions)

        return self.arm(name, run)


def table(runs: Runs, starts: Sequence[float]) -> None:
    """Print a row per arm."""
    deep = runs.from_scratch("from scratch")
    most = deep[0].train_flops[-1]

    def score(results: list[EpisodeResult]) -> dict[str, list[float]]:
        return {runs.task.name: [100 * result.test_score for result in results]}

    def row(name: str, results: list[EpisodeResult]) -> None:
        difference = paired_difference(score(results), score(deep))
        spent = np.mean([result.train_flops[-1] for result in results]) / most
        print(
            f"| `{runs.task.name}` | {name} | {np.mean(score(results)[runs.task.name]):.2f} | {difference:+.2f} "
            f"| {100 * (1 - spent):.0f} % |",
            flush=True,
        )

    row("from scratch", deep)
    row("host alone", runs.steered("host alone", WaitPolicy()))
    for start in starts:
        late = runs.steered(f"grown from {start:.0%} on", FixedSchedulePolicy(TransformerBlock.name, start=start))
        row(late[0].arm, late)
        if start:
            decisions = round(len(deep[0].ops) * late[0].train_flops[-1] / most)
            shorter = f"from scratch for {decisions} decisions"
            row(shorter, runs.from_scratch(shorter, decisions))


def main() -> None:
    """Print the test score of every arm, less that of the network from scratch, and the FLOPs saved."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tasks", nargs="+", default=["library_lm", "glyph_transformer"])
    parser.add_argument("--schedule", default="warmup-stable-decay")
    parser.add_argument("--interval", type=float, default=1.0, help="a multiple of 0.5, of the task's own")
    parser.add_argument("--starts", nargs="+", type=float, default=[0.0, 0.25, 0.5, 0.75])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path("late_growth.json"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    print("| task | arm | test score, % | less that from scratch | FLOPs saved |\n" + "|---" * 5 + "|")
    for task in options.tasks:
        table(Runs(get_task(task), options.schedule, options.interval, options.seeds, options.out), options.starts)


if __name__ == "__main__":
    main()
