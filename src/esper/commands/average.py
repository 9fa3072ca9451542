"""``esper average``: one policy out of several that were trained on from one another."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console

from esper.tamiyo.policy.average import average
from esper.tamiyo.policy.lstm_bundle import POLICY_FILE, LSTMPolicyBundle


@dataclass(frozen=True)
class AverageCommand:
    """Average the weights of trained policies of which each was trained on from another."""

    policy: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """Directories of the policies, two or more."""
    out: Path
    """Directory to write the new policy to."""
    op_share: float | None = None
    """In deterministic inference, choose among the ops at least this share as probable as the likeliest; by default as
    the first policy does."""

    def run(self, console: Console) -> None:
        """Average, write and say where."""
        if (self.out / POLICY_FILE).exists():
            raise FileExistsError(f"{self.out} holds a policy already; choose another --out")
        policies = [LSTMPolicyBundle.load(directory) for directory in self.policy]
        average(policies, op_share=self.op_share).save(self.out)
        console.print(f"Written: {self.out / POLICY_FILE}", soft_wrap=True)
