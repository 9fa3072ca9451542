"""One page in HTML of what lies in a run's directory: a growth, a training run, or a comparison."""

from esper.report.pages import write_page

__all__ = ["write_page"]
