"""Esper grows PyTorch networks while they train.

What most users need is here; each name is imported when it is first asked for, so that ``import esper`` is light.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

import gymnasium

if TYPE_CHECKING:
    from esper.actions import Decision
    from esper.auditions import Auditions
    from esper.env.growth_env import GrowthVectorEnv
    from esper.env.reward import Outcome, register_objective
    from esper.figure import growth_figure
    from esper.growth import Growth, GrowthResult, grown_model, load_grown
    from esper.lifecycle import Op, Stage
    from esper.network.blueprints import Blueprint, SlotSpec, register_blueprint
    from esper.record import GrowthRecord
    from esper.tamiyo.policy.protocol import Policy, RulePolicy, RunView
    from esper.tamiyo.policy.registry import load_policy, make_policy
    from esper.tasks import Splits, Task, register_host, register_task

__version__ = "0.2.0"
__all__ = [
    "Auditions",
    "Blueprint",
    "Decision",
    "Growth",
    "GrowthRecord",
    "GrowthResult",
    "GrowthVectorEnv",
    "Op",
    "Outcome",
    "Policy",
    "RulePolicy",
    "RunView",
    "SlotSpec",
    "Splits",
    "Stage",
    "Task",
    "__version__",
    "grown_model",
    "growth_figure",
    "load_grown",
    "load_policy",
    "make_policy",
    "register_blueprint",
    "register_host",
    "register_objective",
    "register_task",
]

_HOMES = {
    "Auditions": "esper.auditions",
    "Blueprint": "esper.network.blueprints",
    "Decision": "esper.actions",
    "Growth": "esper.growth",
    "GrowthRecord": "esper.record",
    "GrowthResult": "esper.growth",
    "GrowthVectorEnv": "esper.env.growth_env",
    "Op": "esper.lifecycle",
    "Outcome": "esper.env.reward",
    "Policy": "esper.tamiyo.policy.protocol",
    "RulePolicy": "esper.tamiyo.policy.protocol",
    "RunView": "esper.tamiyo.policy.protocol",
    "SlotSpec": "esper.network.blueprints",
    "Splits": "esper.tasks",
    "Stage": "esper.lifecycle",
    "Task": "esper.tasks",
    "growth_figure": "esper.figure",
    "grown_model": "esper.growth",
    "load_grown": "esper.growth",
    "load_policy": "esper.tamiyo.policy.registry",
    "make_policy": "esper.tamiyo.policy.registry",
    "register_blueprint": "esper.network.blueprints",
    "register_host": "esper.tasks",
    "register_objective": "esper.env.reward",
    "register_task": "esper.tasks",
}
"""Where each name lives."""


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'esper' has no attribute {name!r}; it offers {', '.join(__all__)}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


gymnasium.register(
    "esper/Growth-v0",
    entry_point="esper.env.growth_env:GrowthEnv",
    vector_entry_point="esper.env.growth_env:GrowthVectorEnv",
)
gymnasium.register("esper/Archer-v0", entry_point="esper.simic.archer:Archer")
gymnasium.register("esper/Locksmith-v0", entry_point="esper.simic.locksmith:Locksmith")
