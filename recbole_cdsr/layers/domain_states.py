"""DDSR: one state for each domain of a history, read by every event.

"Efficient Large-Scale Cross-Domain Sequential Recommendation with Dynamic State Representations", Loureiro et al.,
https://arxiv.org/abs/2508.20945, says only in words that a state per domain is stored and read by later predictions;
what follows is our design. The state of domain c at event i is the hidden vector of the latest event of c up to i, or a
learned vector where c has not occurred:

    S_i[c] = h_last(i, c) or s_c
    read_i = sum_c softmax_c(<q_i, k(S_i[c]) + e_c> / sqrt(W)) v(S_i[c])

``StateRead``:       h_i + W_o (gate_i * read_i), q and the gate from h_i
``TargetStateRead``: h_i + W_o [S_i[t] | read_i], q from S_i[t], t the domain of the event to predict
q may know t by a vector of its own. W_o starts at zero: the network starts as if there were no states. It is a softmax,
not SiLU / n, which would drown a handful of keys.

Every event is the state of its domain until the next of that domain, so the parallel form is a gather of one key per
event and domain. It runs in chunks, and again in the backward pass: [B, L, C, D] never exists for long histories.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recbole_cdsr.layers.attention import dropout

READS = ("layer", "final", "target", "off")
# Numbers of gathered keys at once: what a core's cache holds, or fewer and larger kernels.
GATHERED = 2**18
GATHERED_ON_ACCELERATOR = 2**26


def latest_events(domains: Tensor, n_domains: int) -> Tensor:
    """The row of the state of each domain at each event, [B * L, C - 1], for domains [B, L] of which 0 is padding.

    Rows 0 .. B * L - 1 are the events of the flattened batch, and B * L + c - 1 is domain c where it has not occurred.
    """
    batch, length = domains.shape
    known = torch.arange(1, n_domains, device=domains.device)
    position = torch.arange(length, device=domains.device).view(1, -1, 1)
    latest = torch.where(domains.unsqueeze(-1) == known, position, -1).cummax(1).values
    row = latest + torch.arange(batch, device=domains.device).view(-1, 1, 1) * length
    return torch.where(latest < 0, domains.numel() + known - 1, row).flatten(0, 1)


def read_states(query: Tensor, key: Tensor, value: Tensor, latest: Tensor) -> Tensor:
    """The softmax read [T, H, W] of queries [T, H, W] over keys and values [S, H, W] in the rows ``latest`` [T, C].

    Differentiable once. Half precision is computed in float32.
    """
    with torch.autocast(query.device.type, enabled=False):
        dtype = torch.promote_types(query.dtype, torch.float32)
        return _Read.apply(query.to(dtype), key.to(dtype), value.to(dtype), latest)


def _attend(query: Tensor, keys: Tensor) -> Tensor:
    """Probabilities [R, C, H] of queries [R, H, W] on keys [R, C, H, W]."""
    return torch.softmax((query.unsqueeze(1) * keys).sum(-1) * query.size(-1) ** -0.5, dim=1)


def _chunks(latest: Tensor, width: int) -> list[slice]:
    budget = GATHERED if latest.device.type == "cpu" else GATHERED_ON_ACCELERATOR
    rows = max(1, budget // (latest.size(1) * width))
    return [slice(start, start + rows) for start in range(0, len(latest), rows)]


def _gathered(values: Tensor, rows: Tensor) -> Tensor:
    """``values[rows]``: [S, H, W] to [R, C, H, W]."""
    return values.index_select(0, rows.flatten()).unflatten(0, rows.shape)


def _add_at(total: Tensor, rows: Tensor, values: Tensor) -> None:
    """Adds values [R, C, H, W] to the rows [R, C] of ``total`` [S, H * W]; on CPU much faster than index_add_."""
    total.scatter_add_(0, rows.flatten().unsqueeze(1).expand(-1, total.size(1)), values.flatten(0, 1).flatten(1))


class _Read(torch.autograd.Function):
    @staticmethod
    def forward(ctx, query: Tensor, key: Tensor, value: Tensor, latest: Tensor) -> Tensor:
        result = torch.empty_like(query)
        for chunk in _chunks(latest, query[0].numel()):
            weights = _attend(query[chunk], _gathered(key, latest[chunk]))
            result[chunk] = (weights.unsqueeze(-1) * _gathered(value, latest[chunk])).sum(1)
        ctx.save_for_backward(query, key, value, latest)
        return result

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, upstream: Tensor):
        query, key, value, latest = ctx.saved_tensors
        to_query = torch.empty_like(query)
        to_key, to_value = (torch.zeros_like(x).flatten(1) for x in (key, value))
        for chunk in _chunks(latest, query[0].numel()):
            q, to_read, rows = query[chunk], upstream[chunk].unsqueeze(1), latest[chunk]
            keys = _gathered(key, rows)
            weights = _attend(q, keys)
            to_weights = (to_read * _gathered(value, rows)).sum(-1)
            to_logits = weights * (to_weights - (to_weights * weights).sum(1, keepdim=True)) * q.size(-1) ** -0.5
            to_query[chunk] = (to_logits.unsqueeze(-1) * keys).sum(1)
            _add_at(to_key, rows, to_logits.unsqueeze(-1) * q.unsqueeze(1))
            _add_at(to_value, rows, weights.unsqueeze(-1) * to_read)
        return to_query, to_key.view_as(key), to_value.view_as(value), None


class StateRead(nn.Module):
    """h_i + W_o (gate_i * read_i).

    Args:
        n_domains: C, counting padding.
        hidden_size: D, split over n_heads.
        dropout_prob: on what is read, before W_o.
        layer_norm_eps: of the LayerNorm, without weights, before every projection.
        std: standard deviation of the initial projections and vectors.
        target: whether the query knows the domain of the event to predict.
    """

    def __init__(
        self,
        n_domains: int,
        hidden_size: int,
        n_heads: int,
        dropout_prob: float,
        layer_norm_eps: float,
        std: float,
        target: bool,
    ):
        super().__init__()
        self.n_heads, self.dropout_prob, self.layer_norm_eps = n_heads, dropout_prob, layer_norm_eps
        self.query = nn.Linear(hidden_size, hidden_size, bias=False)
        self.key_value = nn.Linear(hidden_size, 2 * hidden_size, bias=False)
        self.key_of_domain = nn.Embedding(n_domains, hidden_size)
        self.query_of_target = nn.Embedding(n_domains, hidden_size) if target else None
        self.unseen = nn.Embedding(n_domains, hidden_size)
        self.output = nn.Linear(self._make_output(hidden_size), hidden_size)
        for weight in self.parameters():
            nn.init.normal_(weight, std=std)
        for weight in self.output.parameters():
            nn.init.zeros_(weight)

    def _make_output(self, hidden_size: int) -> int:
        """Makes what the output needs beside the read; the width of W_o's input."""
        self.gate = nn.Linear(hidden_size, hidden_size, bias=False)
        return hidden_size

    def forward(self, states: Tensor, domains: Tensor, target: Tensor | None, latest: Tensor) -> Tensor:
        """[B, L, D] of states [B, L, D], with the domains of the events and of their targets [B, L].

        latest: of ``latest_events``, for the whole batch.
        """
        flat = states.flatten(0, 1)
        rows = torch.cat([flat, self.unseen.weight[1:].to(flat.dtype)])
        known = torch.arange(1, self.unseen.num_embeddings, device=domains.device)
        key, value = self.keys_and_values(rows, torch.cat([domains.flatten(), known]))
        target = None if target is None else target.flatten()
        return self.combine(flat, rows, target, latest, key, value).view_as(states)

    def keys_and_values(self, rows: Tensor, domains: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values [S, H, W] of hidden vectors [S, D] of the domains [S]."""
        key, value = self.key_value(self.normalised(rows)).chunk(2, dim=-1)
        key = key + self.key_of_domain(domains)
        return self._split(key), self._split(value)

    def combine(self, states: Tensor, rows: Tensor, target: Tensor | None, latest: Tensor, key, value) -> Tensor:
        """New states [T, D] of states [T, D] with targets [T], which read the rows ``latest`` [T, C - 1]."""
        hidden = self.normalised(states)
        read = read_states(self.queries(hidden, target), key, value, latest).flatten(1)
        return self._add(states, F.silu(self.gate(hidden)) * read)

    def queries(self, hidden: Tensor, target: Tensor | None) -> Tensor:
        """[T, H, W] of normalised vectors [T, D]."""
        query = self.query(hidden)
        return self._split(query if self.query_of_target is None else query + self.query_of_target(target))

    def normalised(self, values: Tensor) -> Tensor:
        return F.layer_norm(values, values.shape[-1:], eps=self.layer_norm_eps)

    def _add(self, states: Tensor, found: Tensor) -> Tensor:
        return states + self.output(dropout(found, self.dropout_prob, self.training))

    def _split(self, values: Tensor) -> Tensor:
        return values.unflatten(-1, (self.n_heads, -1))


class TargetStateRead(StateRead):
    """h_i + W_o [S_i[t] | read_i], q from S_i[t]; arguments as in ``StateRead``, and ``target`` is True."""

    def _make_output(self, hidden_size: int) -> int:
        return 2 * hidden_size

    def combine(self, states: Tensor, rows: Tensor, target: Tensor, latest: Tensor, key, value) -> Tensor:
        # Padding has no target: any state serves.
        row = latest.gather(1, (target - 1).clamp_(min=0).unsqueeze(1)).squeeze(1)
        hidden = self.normalised(rows.index_select(0, row))
        read = read_states(self.queries(hidden, target), key, value, latest).flatten(1)
        return self._add(states, torch.cat([hidden, read], dim=-1))
