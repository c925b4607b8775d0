"""The attention that crosses domains, noted while a transformer runs, with its gradient in closed form.

Cross-domain attention (AutoCDSR, https://arxiv.org/abs/2505.21811, section 3): for each query that has a domain, the
softmax mass, before dropout, on keys of another domain; the mean over queries, heads, layers and batch, in [0, 1].
The paper writes the sum over queries; the mean keeps the value independent of length and padding.

With p the softmax of a row of logits, x_j = 1 for keys of another domain and s = sum_j p_j x_j the row's mass,
ds / dlogit_j = p_j (x_j - s): one product over the probabilities, no softmax backward.

- Explicit attention: the record reads the probabilities that the output needs anyway, and keeps s alone, [B, H, L].
- Fused attention shows no probabilities: the record makes them again, some queries at a time, takes the gradients of
  queries and keys at once and keeps those, two tensors [B, H, L, D / H]. Neither form keeps a tensor [B, L, L].
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

# Added to the logits of keys that a query may not attend to: vanishes in the softmax, fits half precision, and leaves a
# uniform row instead of NaN where a query may attend to nothing.
MASKED_LOGIT = -30000.0

# Probabilities that the fused form makes at once: what a core's cache holds, or fewer and larger kernels. At least
# MIN_TILE_ROWS queries of each head. On CPU 64 rows run as fast as 128 and 1.1 to 1.8 times as fast as 256.
TILE = 2**17
TILE_ON_ACCELERATOR = 2**25
MIN_TILE_ROWS = 64


def attention_logits(query: Tensor, key: Tensor, may_attend: Tensor | None, causal: bool, start: int = 0) -> Tensor:
    """Scaled and masked logits [B * H, T, K] of query [B * H, T, W] at positions from ``start`` on, key [B * H, K, W].

    may_attend [B, K] or None (every key); causal: a query sees keys up to its own position.
    """
    rows, keys = query.size(1), key.size(1)
    if causal:
        addend = query.new_full((rows, keys), MASKED_LOGIT).triu_(start + 1)
    elif may_attend is None:
        addend = query.new_zeros(1)
    else:
        addend = torch.zeros(may_attend.shape, dtype=query.dtype, device=query.device)
        addend = addend.masked_fill_(~may_attend, MASKED_LOGIT)
        addend = addend.repeat_interleave(query.size(0) // len(may_attend), dim=0).unsqueeze(1)
    # baddbmm scales the logits and adds the mask inside the product: no pass of their own over [B, H, L, L].
    return torch.baddbmm(addend, query, key.transpose(1, 2), alpha=query.size(-1) ** -0.5)


class CrossDomainRecord:
    """What one forward pass notes about attention between domains; make a new one for each pass.

    domains: [B, L] integers, 0 for padding and for tokens without a domain ([MASK]): these count neither as queries nor
    as keys. n_domains: C, counting domain 0. keep_matrix: note the mass per pair of domains too.
    """

    def __init__(self, domains: Tensor, n_domains: int, keep_matrix: bool = False):
        self.domains = domains
        self.n_domains = n_domains
        self._one_hot = F.one_hot(domains, n_domains).float()  # [B, L, C]
        self.counts = domains > 0  # [B, L]: which queries the mean is over
        each = self.counts / self.counts.sum().clamp(min=1)
        self._weights = (1.0 - self._one_hot) * each.unsqueeze(-1)
        self._weights[..., 0] = 0.0  # [B, L, C]: what mass of each query on each domain adds to the share
        self._shares: list[Tensor] = []  # one scalar per layer
        self._mass = domains.new_zeros((n_domains, n_domains), dtype=torch.float32) if keep_matrix else None

    def share(self) -> Tensor:
        """Mean mass on keys of another domain: scalar in [0, 1], 0 where no query has a domain."""
        return torch.stack(self._shares).mean()

    def matrix(self) -> Tensor:
        """Mean mass of the queries of each domain on the keys of each domain, [C, C]; zero rows where none occurred.

        Each other row sums to 1; column 0 is the mass on tokens without a domain.
        """
        if self._mass is None:
            raise ValueError("this record was made without keep_matrix=True and holds no matrix")
        queries = torch.bincount(self.domains.flatten(), minlength=self.n_domains).clamp(min=1)
        return self._mass / (len(self._shares) * queries[:, None])

    def add_explicit(self, logits: Tensor, probabilities: Tensor) -> None:
        """Note one layer from its logits and their softmax, both float32 [B, H, L, L]."""
        with torch.autocast(logits.device.type, enabled=False):
            probabilities = probabilities.detach()
            self._shares.append(_ExplicitShare.apply(logits, probabilities, self._weights, self._one_hot))
            self._add_mass(probabilities, 0)

    def add_tiled(self, query: Tensor, key: Tensor, may_attend: Tensor | None, causal: bool) -> None:
        """Note one layer from its queries and keys, [B, H, L, W]; the other arguments as in `attention_logits`."""
        with torch.autocast(query.device.type, enabled=False):
            attention = (may_attend, causal)
            add_mass = None if self._mass is None else self._add_mass
            self._shares.append(_TiledShare.apply(query, key, self._weights, self._one_hot, attention, add_mass))

    def _add_mass(self, probabilities: Tensor, start: int) -> None:
        """Note the mass of the queries from ``start`` on; probabilities [B, H, T, K]."""
        if self._mass is None:
            return
        rows, keys = probabilities.shape[2:]
        queries = self._one_hot[:, start : start + rows].clone()
        queries[..., 0] = 0.0
        mass = probabilities.mean(1) @ self._one_hot[:, :keys]
        self._mass += torch.einsum("blq,blk->qk", queries, mass)


def pair_weights(weights: Tensor, one_hot: Tensor) -> Tensor:
    """Weight of each key for each query, [B, 1, T, K], from weights [B, T, C] and one_hot [B, K, C].

    Made anew where it is needed: it costs a product over C columns, and keeping it [B, L, L] floats.
    """
    return torch.bmm(weights, one_hot.transpose(1, 2)).unsqueeze(1)


class _ExplicitShare(torch.autograd.Function):
    @staticmethod
    def forward(ctx, logits: Tensor, probabilities: Tensor, weights: Tensor, one_hot: Tensor) -> Tensor:
        mass = torch.linalg.vecdot(probabilities, pair_weights(weights, one_hot))  # [B, H, L], weighted
        ctx.save_for_backward(probabilities, mass, weights, one_hot)
        return mass.sum() / mass.size(1)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, upstream: Tensor):
        probabilities, mass, weights, one_hot = ctx.saved_tensors
        factor = upstream / mass.size(1)
        pairs = pair_weights(weights * factor, one_hot)
        return torch.sub(pairs, (mass * factor).unsqueeze(-1)).mul_(probabilities), None, None, None


class _TiledShare(torch.autograd.Function):
    @staticmethod
    def forward(ctx, query: Tensor, key: Tensor, weights: Tensor, one_hot: Tensor, attention, add_mass) -> Tensor:
        batch, heads, length, width = query.shape
        may_attend, causal = attention
        flat_query, flat_key = (x.reshape(batch * heads, length, width).float() for x in (query, key))
        wanted = ctx.needs_input_grad[0] or ctx.needs_input_grad[1]
        of_query, of_key = (torch.zeros_like(x) for x in (flat_query, flat_key)) if wanted else (None, None)
        share = flat_query.new_zeros(())
        budget = TILE if query.device.type == "cpu" else TILE_ON_ACCELERATOR
        step = max(MIN_TILE_ROWS, budget // (batch * heads * length))
        for start in range(0, length, step):
            rows = slice(start, min(start + step, length))
            keys = slice(0, rows.stop if causal else length)
            logits = attention_logits(flat_query[:, rows], flat_key[:, keys], may_attend, causal, start)
            probabilities = torch.softmax(logits, dim=-1).unflatten(0, (batch, heads))
            pairs = pair_weights(weights[:, rows], one_hot[:, keys])
            mass = torch.linalg.vecdot(probabilities, pairs)
            share += mass.sum()
            if add_mass is not None:
                add_mass(probabilities, start)
            if wanted:
                of_logits = torch.sub(pairs, mass.unsqueeze(-1)).mul_(probabilities).flatten(0, 1)
                of_query[:, rows] = torch.bmm(of_logits, flat_key[:, keys])
                of_key[:, keys].baddbmm_(of_logits.transpose(1, 2), flat_query[:, rows])
        if wanted:
            ctx.save_for_backward(of_query.view(query.shape), of_key.view(key.shape))
        ctx.factor, ctx.dtype = width**-0.5 / heads, query.dtype
        return share / heads

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, upstream: Tensor):
        factor = upstream * ctx.factor
        of_query, of_key = ((gradient * factor).to(ctx.dtype) for gradient in ctx.saved_tensors)
        return of_query, of_key, None, None, None, None
