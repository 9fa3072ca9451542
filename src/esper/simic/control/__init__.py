"""Control of learning: statistics and normalisation."""

from esper.simic.control.normalization import RunningMeanStd

__all__ = ["RunningMeanStd"]
