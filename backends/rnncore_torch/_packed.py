"""One layer over a PackedSequence: one product for all rows, then one scan for each stretch of steps with equally many rows."""

from __future__ import annotations

from itertools import groupby

import torch
from torch import Tensor
from torch.nn import functional

from rnncore.nonlinearity.nonlinearity import Nonlinearity
from rnncore_torch._scans import SCANS


def packed_layer(
    data: Tensor,
    sizes: list[int],
    h0: Tensor,
    w_ih: Tensor,
    w_hh: Tensor,
    bias: Tensor | None,
    nonlinearity: Nonlinearity,
    reverse: bool,
) -> tuple[Tensor, Tensor]:
    """The states in the packed order (N, H) and the last state of each row (B, H).

    `sizes` has the number of rows of each step, never more than at the step before.
    """
    stretches = [(rows, len(list(equal))) for rows, equal in groupby(sizes)]
    pieces = torch.split(functional.linear(data, w_ih, bias), [rows * steps for rows, steps in stretches])
    runs = list(zip(stretches, pieces, strict=True))
    states: list[Tensor] = []
    ended: list[Tensor] = []
    state = h0[:0] if reverse else h0
    for (rows, steps), p in reversed(runs) if reverse else runs:
        if reverse:  # rows that end here join
            state = torch.cat([state, h0[state.shape[0] : rows]])
        elif rows < state.shape[0]:  # rows that have ended stay behind
            ended.append(state[rows:])
            state = state[:rows]
        h = SCANS.nonlinear(p.view(steps, rows, -1), state, w_hh, nonlinearity=nonlinearity, reverse=reverse)
        state = h[0] if reverse else h[-1]
        states.append(h.flatten(0, 1))
    if reverse:
        return torch.cat(states[::-1]), state
    return torch.cat(states), torch.cat([state, *reversed(ended)])
