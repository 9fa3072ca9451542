"""What a policy remembers: an LSTM or a GRU, of one layer or several.

Shapes: B batch, T time, N = B·T rows, H size, L layers.

The state of a memory is a pair, its outputs ``[L, B, H]`` and its cells ``[L, B, H]``; a GRU has no cells, so that its
second part is empty, ``[0, B, H]``.
"""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from esper.tamiyo.networks.checks import HiddenState

MemoryKind = Literal["lstm", "gru", "none"]

_SHUT = -1e4


class Memory(nn.Module):
    """Layers of LSTM or GRU with orthogonal gates, zero biases and, in an LSTM, a forget bias of 1.

    The forget bias is that of Jozefowicz et al. (2015).

    Args:
        kind: Which.
        size: H.
        layers: L.
    """

    def __init__(self, kind: Literal["lstm", "gru"], size: int, layers: int) -> None:
        super().__init__()
        self.kind, self.size, self.layers = kind, size, layers
        self.rnn = (
            nn.LSTM(size, size, layers, batch_first=True)
            if kind == "lstm"
            else nn.GRU(size, size, layers, batch_first=True)
        )
        with torch.no_grad():
            for input_weight, hidden_weight, input_bias, hidden_bias in self.rnn.all_weights:
                for weight in (input_weight, hidden_weight):
                    for gate in weight.chunk(4 if kind == "lstm" else 3):
                        nn.init.orthogonal_(gate)
                for bias in (input_bias, hidden_bias):
                    bias.zero_()
                if kind == "lstm":
                    input_bias.chunk(4)[1].fill_(1.0)

    def forward(
        self, inputs_BTH: Float[Tensor, "B T H"], state: HiddenState, gaps_BT: Bool[Tensor, "B T"] | None = None
    ) -> tuple[Float[Tensor, "N H"], HiddenState]:
        """Outputs of all steps, and the state after the last one.

        Args:
            inputs_BTH: The steps.
            state: Before the first of them.
            gaps_BT: Rows that empty the memory; ``None`` for none.
        """
        if inputs_BTH.shape[1] == 1 and gaps_BT is None:
            return self._step(inputs_BTH[:, 0], state)
        if gaps_BT is None and self.kind == "lstm":
            outputs_BTH, after = self.rnn(inputs_BTH, state)
        elif gaps_BT is None:
            outputs_BTH, outputs = self.rnn(inputs_BTH, state[0])
            after = (outputs, state[1])
        else:
            outputs_BTH, after = self._between(inputs_BTH, state, gaps_BT)
        return outputs_BTH.flatten(0, 1), after

    def _step(self, output_BH: Tensor, state: HiddenState) -> tuple[Tensor, HiddenState]:
        """A single step calls the cells: of an LSTM 2.5 times as fast as the layers."""
        outputs, cells = [], []
        for layer, weights in enumerate(self.rnn.all_weights):
            if self.kind == "lstm":
                output_BH, cell_BH = torch.lstm_cell(output_BH, (state[0][layer], state[1][layer]), *weights)
                cells.append(cell_BH)
            else:
                output_BH = torch.gru_cell(output_BH, state[0][layer], *weights)
            outputs.append(output_BH)
        return output_BH, (_layered(outputs), _layered(cells) if cells else state[1])

    def _between(self, x_BTH: Tensor, state: HiddenState, gaps_BT: Tensor) -> tuple[Tensor, HiddenState]:
        """A memory that is empty after each gap, at the price of one more input, which is 1 at a gap and else 0.

        There it shuts all gates that let anything in or out, and what would come in is 0: output and cell become
        exactly 0, and no gradient passes. So episodes that lie one after the other stay apart without a loop over time.
        """
        flags = gaps_BT.unsqueeze(-1)
        outputs, cells = [], []
        for layer, (of_inputs, of_hidden, input_bias, hidden_bias) in enumerate(self.rnn.all_weights):
            shut = of_inputs.new_full((len(of_inputs), 1), _SHUT)
            if self.kind == "lstm":
                shut[2 * self.size : 3 * self.size] = 0.0  # the candidate cell: PyTorch orders i, f, g, o
            else:  # r, z, n: of the candidate n nothing but its bias is left, which is taken off
                shut = torch.cat([shut[: 2 * self.size], -input_bias[2 * self.size :, None]])
                x_BTH = x_BTH.masked_fill(flags, 0.0)
            x_BTH = torch.cat([x_BTH, flags.to(x_BTH.dtype)], dim=-1)
            weights = [torch.cat([of_inputs, shut], dim=1), of_hidden, input_bias, hidden_bias]
            before = tuple(part[layer : layer + 1] for part in state[: 2 if self.kind == "lstm" else 1])
            # biases, layers, dropout, training, both ways, B first
            options = (True, 1, 0.0, self.training, False, True)
            if self.kind == "lstm":
                x_BTH, output, cell = torch.lstm(x_BTH, before, weights, *options)
                cells.append(cell)
            else:
                x_BTH, output = torch.gru(x_BTH, before[0], weights, *options)
            outputs.append(output)
        return x_BTH, (torch.cat(outputs), torch.cat(cells) if cells else state[1])


def _layered(parts: list[Tensor]) -> Tensor:
    """Layers of a state in one tensor ``[L, B, H]``."""
    return parts[0].unsqueeze(0) if len(parts) == 1 else torch.stack(parts)
