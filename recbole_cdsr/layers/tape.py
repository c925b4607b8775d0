"""TAPE: what an event adds to its input where the domain changes.

"Efficient Large-Scale Cross-Domain Sequential Recommendation with Dynamic State Representations", Loureiro et al.,
https://arxiv.org/abs/2508.20945: with a vector M[d] for each domain, a map W and a vector b,

    r_i = M[d_{i+1}] * (W M[d_i] + b)   if d_{i+1} != d_i, else 0,

added to the embeddings of item and position. It looks one domain ahead. ``causal`` is ours, for a target whose domain
is not known: r_i = M[d_i] * (W M[d_{i-1}] + b) if d_i != d_{i-1}, else 0.

The paper does not say how M, W and b start. Entries of M and W are drawn from N(0, 1 / D) and b is one: r then starts
at about the size of the other inputs. With the usual 0.02 and zero it would start at a thousandth of them and stay.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

TAPES = ("next", "causal", "off")


class DomainTransition(nn.Module):
    """r for each pair of domains; C domains counting padding, which is 0, and width D."""

    def __init__(self, n_domains: int, width: int):
        super().__init__()
        self.embedding = nn.Embedding(n_domains, width)
        self.map = nn.Linear(width, width)
        nn.init.normal_(self.embedding.weight, std=width**-0.5)
        nn.init.normal_(self.map.weight, std=width**-0.5)
        nn.init.ones_(self.map.bias)

    def table(self) -> Tensor:
        """r from each domain (rows) to each other one, [C, C, D]; zero on the diagonal and for padding."""
        vectors = self.embedding.weight
        both = torch.ones(len(vectors), len(vectors), dtype=vectors.dtype, device=vectors.device)
        both[0] = both[:, 0] = 0.0
        return self.map(vectors).unsqueeze(1) * vectors * both.fill_diagonal_(0.0).unsqueeze(-1)

    def forward(self, earlier: Tensor, later: Tensor) -> Tensor:
        """r [..., D] from the domains ``earlier`` to the domains ``later``, both [...]."""
        table = self.table()
        return F.embedding(earlier * len(table) + later, table.flatten(0, 1))
