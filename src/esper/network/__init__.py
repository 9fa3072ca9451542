"""What happens inside one growing network: slots, seeds, blueprints, attribution and the governor.

This package knows nothing of reinforcement learning and of no training loop.
"""

from esper.network.blueprints import BLUEPRINTS, SlotSpec, count_flops, count_parameters
from esper.network.growing_network import BudgetError, Event, GrowingNetwork
from esper.network.slot import Slot

__all__ = [
    "BLUEPRINTS",
    "BudgetError",
    "Event",
    "GrowingNetwork",
    "Slot",
    "SlotSpec",
    "count_flops",
    "count_parameters",
]
