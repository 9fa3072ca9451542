"""The names of the arms of a comparison, as they stand in its tables, figures and files."""

from __future__ import annotations

HOST_ALONE = "host alone"
RANDOM_LEGAL = "random legal"
FIXED = "fixed schedule"
HEURISTIC = "heuristic"
AUDITION = "audition"
TAMIYO = "Tamiyo"
SHUFFLED = "Tamiyo, shuffled observations"
FOREIGN = "Tamiyo, observations of other tasks"
EARLIEST = "the same network, grown at once"
STATIC_EPOCHS = "static-final, equal epochs"
STATIC_FLOPS = "static-final, equal FLOPs"
ALL_FILLED = "all slots filled"
RANDOM_POPULATION = "random architectures"
BEST_OF_RANDOM = "best of random"
GROMO = "gromo"
SUCCESSIVE_HALVING = "successive halving"
ONE_EPOCH = "one epoch, best k"
RANDOM_SEARCH = "random search"
WIDER_HOST = "wider host"
DEEPER_HOST = "deeper host"
SMALLER_STATIC = "best smaller static"


def at_rent(arm: str, rent: float) -> str:
    """Name of the arm that plays under another rent."""
    return f"{arm}, rent {rent:g}"


def at_budget(arm: str, budget: float) -> str:
    """Name of the arm that has this many times the compute of one growth."""
    return f"{arm}, {budget:g}× compute"
