"""Growth for anyone's model: one object in a training loop."""

from esper.grower.growth import Growth
from esper.grower.step import SeedLife, Step

__all__ = ["Growth", "SeedLife", "Step"]
