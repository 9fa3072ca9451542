"""``esper report``: one page of a growth, a training run or a comparison, from what lies in its directory."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console

from esper.report import write_page


@dataclass(frozen=True)
class ReportCommand:
    """Make one self-contained page of a growth, a training run or a comparison; no scripts, nothing from elsewhere."""

    directory: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """Directory of a run of `esper grow`, `esper train`, `esper ppo` or `esper compare`."""

    def run(self, console: Console) -> None:
        """Write the page and say where."""
        console.print("Written:")
        console.print(f"  {write_page(self.directory)}", soft_wrap=True)
