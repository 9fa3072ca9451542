"""The network that steers growth: where the sizes of a network meet the heads and the observation of growth."""

from __future__ import annotations

from esper.actions import BLUEPRINT_NAMES, HEADS
from esper.heads import HeadTable
from esper.observation import SLOT_SIZE, UNKNOWN, features_size
from esper.tamiyo.networks.config import NetworkConfig


def _heads() -> HeadTable:
    """The heads of growth by the blueprints that come with Esper, whatever has been registered since."""
    heads = HeadTable(HEADS)
    heads.resize("blueprint", BLUEPRINT_NAMES)
    return heads


GROWTH_NETWORK = NetworkConfig(
    heads=_heads(),
    state_dim=features_size(3),
    num_slots=3,
    slot_size=SLOT_SIZE,
    num_blueprints=len(BLUEPRINT_NAMES),
    unknown=UNKNOWN,
)
"""What :class:`~esper.tamiyo.networks.FactoredRecurrentActorCritic` is built for unless it is given something else."""
