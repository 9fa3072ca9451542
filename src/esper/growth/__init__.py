"""Growth for anyone's model: one object in a training loop."""

from esper.growth.growth import Growth
from esper.growth.saving import grown_model, load_grown
from esper.growth.step import SeedLife, Step

__all__ = ["Growth", "SeedLife", "Step", "grown_model", "load_grown"]
