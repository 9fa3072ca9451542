"""Growth for anyone's model: one object in a training loop."""

from esper.growth.growth import Growth
from esper.growth.result import GrowthResult, SeedLife
from esper.growth.saving import grown_model, load_grown
from esper.growth.step import Step
from esper.growth.verdict import Verdict

__all__ = ["Growth", "GrowthResult", "SeedLife", "Step", "Verdict", "grown_model", "load_grown"]
