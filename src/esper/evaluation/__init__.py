"""How a controller of growth is judged: the same episodes for every arm, statistics with intervals, one table.

Example:
    A policy on two episodes of a task, and the 95 % interval of its score.

    >>> from esper.env.growth_env import GrowthVectorEnv
    >>> from esper.tamiyo.policy.rules import WaitPolicy
    >>> envs = GrowthVectorEnv(num_envs=2, task="wine", autoreset_mode="NextStep")
    >>> results = run_episodes(envs, WaitPolicy(), evaluation_seeds(2, seed=0, purpose="try-out"), arm="host alone")
    >>> interval = bootstrap({"wine": [result.test_score for result in results]})
    >>> interval.low <= interval.estimate <= interval.high
    True
"""

from esper.evaluation.episodes import EpisodeResult, OnDecision, evaluation_seeds, run_episodes, validation_objectives
from esper.evaluation.statistics import (
    Interval,
    Scores,
    bootstrap,
    interquartile_mean,
    mean,
    paired_difference,
    probability_of_improvement,
)
from esper.evaluation.table import INTERQUARTILE_MEANS, MEANS, Column, Row, Table, compare

__all__ = [
    "INTERQUARTILE_MEANS",
    "MEANS",
    "Column",
    "EpisodeResult",
    "Interval",
    "OnDecision",
    "Row",
    "Scores",
    "Table",
    "bootstrap",
    "compare",
    "evaluation_seeds",
    "interquartile_mean",
    "mean",
    "paired_difference",
    "probability_of_improvement",
    "run_episodes",
    "validation_objectives",
]
