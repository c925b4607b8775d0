"""Encoders of single domains that exchange through a few bottleneck tokens, causal or bidirectional.

The channel of AutoCDSR+ (https://arxiv.org/abs/2505.21811); the causal form is ours, the paper's tokens see the whole
history. In a layer that exchanges, with d_t the domain of event t and h a head (left out below):

- Token b has a learned query u_b, the same at every position. Domain d holds at t the softmax summary
      s_d[t, b] = sum_{j <= t, d_j = d} e_bj v_j / sum_{j <= t, d_j = d} e_bj,   e_bj = exp(scale cosine(u_b, k_j)),
  with k_j and v_j the key and value of event j and 0 < scale < MAX_LOGIT learned. The bound spares the softmax its
  maximum: a shared maximum would let a later event change earlier summaries by rounding.
- z[t, b] merges s_d[t, b] over the domains d seen up to t, the reader's own among them (as in the paper). Only the
  domain of event j changes at j, so d's summary at t stands at the latest event of d up to t, and a merge is a sum over
  those events, one for each domain seen: no tensor has an axis for domains.
- Event t attends, in one softmax, to events j <= t of its own domain and to z[t, .] (+ a learned embedding, LayerNorm),
  keys and values projected by its own domain's weights.

Bidirectional: every "up to t" falls away, so that all positions of a row read the same tokens. A [MASK] has no domain:
it enters no summary and no event sees it; it attends to itself, all events and the tokens, with weights of its own.

Both sums run over lists of events (``layers.masked_sum``). Running sums with differences cost O(L), but in float32 lose
every digit where the weights of two domains differ by exp(2 MAX_LOGIT).

"Rows" are the valid events sorted by domain, [N, ...]; each domain has its own weights (``layers.by_domain``).
"""

from __future__ import annotations

import math
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recbole_cdsr.layers.attention import ACTIVATIONS, add_dropped, dropout
from recbole_cdsr.layers.by_domain import DomainLinear, DomainNorm, EventsByDomain, map_by_domain

MERGES = ("sum", "mean", "attention", "gate")
MAX_LOGIT = 8.0  # weights of events within a summary, and of domains within a merge, differ by at most exp(16)
SMALLEST_WEIGHT = math.exp(-MAX_LOGIT) / 2


class Bottleneck(nn.Module):
    """The tokens of one layer: from keys and values of events to what each event may read of all domains."""

    def __init__(self, n_tokens: int, hidden_size: int, merge: str, layer_norm_eps: float):
        super().__init__()
        self.merge = merge
        self.query = nn.Embedding(n_tokens, hidden_size)
        self.scale = nn.Parameter(torch.zeros(()))  # before the sigmoid
        self.embedding = nn.Embedding(n_tokens, hidden_size)
        self.norm = nn.LayerNorm(hidden_size, eps=layer_norm_eps)
        if merge == "attention":
            self.score = nn.Embedding(n_tokens, hidden_size)
        if merge == "gate":
            self.gate = nn.Linear(hidden_size, hidden_size)

    def forward(self, key: Tensor, value: Tensor, events: EventsByDomain) -> tuple[Tensor, Tensor]:
        """Keys and values [B, L, H, W] to the merged tokens that each position may read, [B, T, n, D].

        T is L, or 1 where all positions read the same.

        Second: the weight of each event's summary in a merge, [B, L, n], up to a factor for each merge.
        """
        with torch.autocast(key.device.type, enabled=False):
            merged, weights = self.merged(self.summaries(key.float(), value.float(), events), events)
            return self.norm(merged + self.embedding.weight), weights

    def summaries(self, key: Tensor, value: Tensor, events: EventsByDomain) -> Tensor:
        """s[t, b] of the domain of event t: [B, L, n, D]."""
        query = self.query.weight.unflatten(1, key.shape[2:])
        cosine = torch.einsum("blhw,nhw->blnh", F.normalize(key, dim=-1), F.normalize(query, dim=-1))
        weights = torch.exp(MAX_LOGIT * torch.sigmoid(self.scale) * cosine.contiguous()).unsqueeze(-1)
        totals = events.sum_of_own(weights * value.unsqueeze(2))
        return (totals * events.sum_of_own(weights).reciprocal()).flatten(3)

    def merged(self, summaries: Tensor, events: EventsByDomain) -> tuple[Tensor, Tensor]:
        """z [B, T, n, D] of summaries [B, L, n, D]; weights of the summaries [B, L, n]."""
        weights = summaries.new_ones(summaries.shape[:3])
        if self.merge == "attention":
            scores = (summaries * self.score.weight).sum(-1)
            weights = torch.exp(MAX_LOGIT * torch.tanh(scores / MAX_LOGIT))
            # Where nothing is to be read (a row of [MASK] alone) the sum is 0, and so is the mean.
            totals = events.sum_of_latest(weights).clamp(min=SMALLEST_WEIGHT).unsqueeze(-1)
            return events.sum_of_latest(weights.unsqueeze(-1) * summaries) / totals, weights
        if self.merge == "gate":
            summaries = torch.sigmoid(self.gate(summaries)) * summaries
        merge = events.mean_of_latest if self.merge == "mean" else events.sum_of_latest
        return merge(summaries), weights


class BottleneckRecord:
    """What one forward pass notes about attention on tokens, before dropout; make a new one for each pass.

    keep_matrix: note the mass by source domain too. Only events that have a domain count as readers.
    """

    def __init__(self, events: EventsByDomain, keep_matrix: bool = False):
        self.events = events
        self.count = len(events.order) - events.sizes[0]  # events that the mean is over
        self._weight = events.has_domain[:, None, :, None] / max(self.count, 1)  # [B, 1, L, 1]: of each event in it
        self._shares: list[Tensor] = []  # one scalar per exchanging layer
        self._keep_matrix = keep_matrix
        self._masses: list[Tensor] = []  # one [N, C] per exchanging layer

    def add(self, logits: Tensor, probabilities: Tensor, weights: Tensor) -> None:
        """Note a layer: logits and their softmax [B, H, L, L + n], tokens last; weights as `Bottleneck` gives them."""
        n_tokens = weights.size(-1)
        with torch.autocast(logits.device.type, enabled=False):
            self._shares.append(_TokenShare.apply(logits, probabilities.detach(), n_tokens, self._weight))
            if self._keep_matrix:
                self._masses.append(self._mass_by_domain(probabilities[..., -n_tokens:].mean(1), weights))

    def _mass_by_domain(self, mass: Tensor, weights: Tensor) -> Tensor:
        """Mass of each reader on the tokens [B, L, n], split over the domains in the merge, [N, C]."""
        one_hot = F.one_hot(self.events.domains, self.events.n_domains).float()
        parts = self.events.sum_of_latest(weights.unsqueeze(-1) * one_hot.unsqueeze(2))
        parts = parts / parts.sum(-1, keepdim=True).clamp(min=SMALLEST_WEIGHT)
        return self._readers((mass.unsqueeze(-1) * parts).sum(2))

    def _readers(self, values: Tensor) -> Tensor:
        return self.events.rows(values)[self.events.sizes[0] :]

    def share(self) -> Tensor:
        """Mean mass of an event on the tokens, over events, heads and exchanging layers: scalar in [0, 1]."""
        return torch.stack(self._shares).mean()

    def matrices(self) -> Tensor:
        """Mean mass of events of each domain on each domain in each exchanging layer, [layers, C, C].

        Rows sum to 1, or are 0 where no event of the domain occurred. The mass on a token is split over the domains in
        the merge by their weights (equal ones for sum and gate); the mass on events counts for their own domain, which
        is the reader's.
        """
        if not self._keep_matrix:
            raise ValueError("this record was made without keep_matrix=True and holds no matrix")
        own = F.one_hot(self._readers(self.events.domains), self.events.n_domains).float()
        masses = torch.stack(self._masses) if self._masses else own.new_zeros(0, *own.shape)
        total = own.T @ (masses + own * (1.0 - masses.sum(-1, keepdim=True)))
        return total / own.sum(0).clamp(min=1).unsqueeze(1)

    def matrix(self) -> Tensor:
        """Mean of `matrices` over layers, [C, C]; where no layer exchanges, every event reads its own domain."""
        matrices = self.matrices()
        if len(matrices):
            return matrices.mean(0)
        return torch.diag(
            torch.bincount(self._readers(self.events.domains), minlength=self.events.n_domains) > 0
        ).float()


class _TokenShare(torch.autograd.Function):
    """Weighted mean mass on the last n keys, with its gradient in closed form: see `layers.cross_domain`."""

    @staticmethod
    def forward(ctx, logits: Tensor, probabilities: Tensor, n_tokens: int, weight: Tensor) -> Tensor:
        mass = probabilities[..., -n_tokens:].sum(-1, keepdim=True)
        ctx.save_for_backward(probabilities, mass, weight)
        ctx.n_tokens = n_tokens
        return (mass * weight).sum() / mass.size(1)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, upstream: Tensor):
        probabilities, mass, weight = ctx.saved_tensors
        weight = weight * (upstream / mass.size(1))
        gradient = probabilities * (mass * -weight)
        gradient[..., -ctx.n_tokens :].addcmul_(probabilities[..., -ctx.n_tokens :], weight)
        return gradient, None, None, None


class _Scores(torch.autograd.Function):
    """Products [R, H, n] of queries [R, H, D] and tokens [R, n, D].

    The gradient of a transposed operand would be a product of D x H by H x n matrices, four times as slow on CPU.
    """

    @staticmethod
    def forward(ctx, query: Tensor, tokens: Tensor) -> Tensor:
        ctx.save_for_backward(query, tokens)
        return torch.bmm(query, tokens.transpose(1, 2))

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, upstream: Tensor):
        query, tokens = ctx.saved_tensors
        return torch.bmm(upstream, tokens), torch.bmm(upstream.transpose(1, 2), query)


class DomainLayer(nn.Module):
    """A transformer layer with weights for each domain: attention within it and to the tokens, then feed-forward."""

    def __init__(
        self,
        n_domains: int,
        hidden_size: int,
        inner_size: int,
        n_heads: int,
        hidden_dropout_prob: float,
        attn_dropout_prob: float,
        hidden_act: str,
        layer_norm_eps: float,
        bottleneck: Bottleneck | None,
    ):
        super().__init__()
        self.n_heads = n_heads
        self.hidden_dropout_prob, self.attn_dropout_prob = hidden_dropout_prob, attn_dropout_prob
        self.activation = ACTIVATIONS[hidden_act]
        self.bottleneck = bottleneck
        self.query_key_value = DomainLinear(n_domains, hidden_size, 3 * hidden_size)
        self.attention_output = DomainLinear(n_domains, hidden_size, hidden_size)
        self.attention_norm = DomainNorm(n_domains, hidden_size, layer_norm_eps)
        self.inner = DomainLinear(n_domains, hidden_size, inner_size)
        self.inner_output = DomainLinear(n_domains, inner_size, hidden_size)
        self.inner_norm = DomainNorm(n_domains, hidden_size, layer_norm_eps)

    def forward(self, rows: Tensor, events: EventsByDomain, record: BottleneckRecord | None = None) -> Tensor:
        """[N, D] to [N, D]."""
        sizes, probability, training = events.sizes, self.hidden_dropout_prob, self.training
        context = self.attention_output(self.attend(rows, events, record), sizes)
        rows = self.attention_norm(add_dropped(rows, context, probability, training), sizes)
        inner = self.inner_output(self.activation(self.inner(rows, sizes)), sizes)
        return self.inner_norm(add_dropped(rows, inner, probability, training), sizes)

    def attend(self, rows: Tensor, events: EventsByDomain, record: BottleneckRecord | None) -> Tensor:
        """Context [N, D] of each event, before the output projection."""
        heads = (3, self.n_heads, rows.size(-1) // self.n_heads)
        projected = self.query_key_value(rows, events.sizes).unflatten(-1, heads)
        query_rows = projected[:, 0] * heads[-1] ** -0.5
        key, value = events.spread(projected[:, 1:]).unbind(2)
        logits = events.spread(query_rows).transpose(1, 2) @ key.permute(0, 2, 3, 1)
        logits = logits.add_(events.barrier)  # an event sees itself: no empty row
        if self.bottleneck is not None:
            tokens, weights = self.bottleneck(key, value, events)
            token_logits = self._token_logits(query_rows, tokens, events)
            logits = torch.cat([logits, token_logits.transpose(1, 2)], dim=-1)
        logits = logits.float()
        probabilities = torch.softmax(logits, dim=-1)
        dropped = dropout(probabilities, self.attn_dropout_prob, self.training).to(value.dtype)
        length = key.size(1)
        context = events.rows((dropped[..., :length] @ value.transpose(1, 2)).transpose(1, 2))
        if self.bottleneck is not None:
            if record is not None:
                record.add(logits, probabilities, weights)
            context = context + self._read(dropped[..., length:].transpose(1, 2), tokens, events)
        return context.flatten(1)

    # Keys and values of tokens are projections by the reader's domain, without bias. Projecting queries, and what was
    # read, costs a row of work per event; projecting the tokens would cost n rows.

    def _token_logits(self, query: Tensor, tokens: Tensor, events: EventsByDomain) -> Tensor:
        """Logits [B, L, H, n] of queries [N, H, W] on the tokens [B, T, n, D]."""
        weight = self.query_key_value.weight.unflatten(1, (3, *query.shape[1:]))[:, 1]
        query = events.spread(map_by_domain(partial(torch.einsum, "rhw,hwd->rhd"), query, events.sizes, weight))
        tokens = tokens.flatten(0, 1).to(query.dtype)
        return _Scores.apply(query.reshape(len(tokens), -1, query.size(-1)), tokens).view(*query.shape[:3], -1)

    def _read(self, mass: Tensor, tokens: Tensor, events: EventsByDomain) -> Tensor:
        """Values [N, H, W] of tokens [B, T, n, D], weighted with mass [B, L, H, n]."""
        weight = self.query_key_value.weight.unflatten(1, (3, self.n_heads, -1))[:, 2]
        tokens = tokens.flatten(0, 1).to(mass.dtype)
        mixed = torch.bmm(mass.reshape(len(tokens), -1, mass.size(-1)), tokens)
        mixed = events.rows(mixed.view(*mass.shape[:3], -1))
        return map_by_domain(partial(torch.einsum, "rhd,hwd->rhw"), mixed, events.sizes, weight)


class DomainEncoder(nn.Module):
    """A stack of ``DomainLayer``; those whose number, from 0, is in ``exchange_layers`` have bottleneck tokens."""

    def __init__(self, n_layers: int, exchange_layers: list[int], n_tokens: int, merge: str, **layer):
        super().__init__()
        sizes = (n_tokens, layer["hidden_size"], merge, layer["layer_norm_eps"])
        self.layers = nn.ModuleList(
            DomainLayer(bottleneck=Bottleneck(*sizes) if number in exchange_layers else None, **layer)
            for number in range(n_layers)
        )

    def forward(self, states: Tensor, events: EventsByDomain, record: BottleneckRecord | None = None) -> Tensor:
        """[B, L, D] to [B, L, D], zero at padding."""
        rows = events.rows(states)
        for layer in self.layers:
            rows = layer(rows, events, record)
        return events.spread(rows)

    def parameters_of_exchange(self) -> list[nn.Parameter]:
        """What attention on the tokens depends on: all before the last exchanging layer, and what that attends by."""
        last = max(number for number, layer in enumerate(self.layers) if layer.bottleneck is not None)
        layer = self.layers[last]
        earlier = [p for layer in self.layers[:last] for p in layer.parameters()]
        return earlier + [*layer.query_key_value.parameters(), *layer.bottleneck.parameters()]
