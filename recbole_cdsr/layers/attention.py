"""Transformer encoder of the ``sasrec`` and ``bert4rec`` backbones, and the attention that crosses domains.

The encoder's maths and sizes are those of RecBole's ``TransformerEncoder`` (post-LayerNorm, scaled dot product,
a feed-forward block per layer); a test copies RecBole's weights and compares the outputs.

Attention has two forms, chosen by length, dropout and gradient mode, never by whether a record is wanted:

- explicit softmax: while attention dropout is active, or up to ``EXPLICIT_MAX_LENGTH`` events. The record of attention
  between domains (``layers.cross_domain``) reads the probabilities that the output needs anyway.
- fused ``scaled_dot_product_attention``: no [B, H, L, L] tensor. The record makes the probabilities again in tiles, and
  leaves the output's call alone.

In both forms the output has the same bits, and the same random numbers are drawn, with and without a record.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recbole_cdsr.layers.cross_domain import CrossDomainRecord, attention_logits

# Longest sequence that takes the explicit form when no attention dropout is active, with and without gradients.
# Measured on CPU with one thread, 2,048 events per batch, D 64, H 2, causal; time of explicit / fused:
#   L                                      50    100   200   500   1,000
#   forward and backward                   0.8   1.1   1.1   1.3   2.1
#   with a record, one backward per loss   0.6   0.6   0.7   0.7   1.0
#   forward only                           1.2   1.1   1.6   2.9   2.0
# Above 256 memory decides for the fused form: explicit holds B x H x L x L floats per layer until the backward pass.
EXPLICIT_MAX_LENGTH = 256
EXPLICIT_MAX_LENGTH_WITHOUT_GRADIENT = 64

ACTIVATIONS = {"gelu": F.gelu, "relu": F.relu, "swish": F.silu, "tanh": torch.tanh, "sigmoid": torch.sigmoid}


def dropout_mask(shape: torch.Size, probability: float, like: Tensor) -> tuple[Tensor, float]:
    """A mask of zeros and ones in the dtype of ``like``, and the factor that keeps the expectation.

    On CPU it compares 16-bit slices of random words, which is several times cheaper than ``bernoulli_``; the
    probability is rounded to 1/65536 and the factor follows the rounded value.
    """
    count = shape.numel()
    threshold = min(round(probability * 65536), 65535)
    words = torch.empty((count + 3) // 4, dtype=torch.int64, device=like.device).random_(-(2**63), None)
    kept = words.view(torch.int16)[:count] >= threshold - 32768
    return kept.to(like.dtype).view(shape), 65536 / (65536 - threshold)


def dropout(values: Tensor, probability: float, training: bool) -> Tensor:
    """Inverted dropout; the same distribution as ``torch.nn.functional.dropout``, faster on CPU."""
    if not training or probability == 0.0:
        return values
    if values.device.type != "cpu":
        return F.dropout(values, probability, training=True)
    mask, factor = dropout_mask(values.shape, probability, values)
    return values * mask.mul_(factor)


def add_dropped(residual: Tensor, values: Tensor, probability: float, training: bool) -> Tensor:
    """``residual + dropout(values)``, on CPU in one pass over the data."""
    if not training or probability == 0.0 or values.device.type != "cpu" or values.dtype != residual.dtype:
        return residual + dropout(values, probability, training)
    mask, factor = dropout_mask(values.shape, probability, values)
    return torch.addcmul(residual, values, mask, value=factor)


class SelfAttention(nn.Module):
    """Multi-head attention up to, not including, the output projection.

    Queries and keys share one projection, values have their own: the record depends on the first and not on the second.
    """

    def __init__(self, hidden_size: int, n_heads: int, attn_dropout_prob: float, causal: bool):
        super().__init__()
        if hidden_size % n_heads:
            raise ValueError(f"hidden_size {hidden_size} is not a multiple of n_heads {n_heads}")
        self.n_heads = n_heads
        self.attn_dropout_prob = attn_dropout_prob
        self.causal = causal
        self.query_key = nn.Linear(hidden_size, 2 * hidden_size)
        self.value = nn.Linear(hidden_size, hidden_size)

    def forward(self, states: Tensor, may_attend: Tensor | None, record: CrossDomainRecord | None = None) -> Tensor:
        """[B, L, D] to [B, L, D]; ``may_attend`` as made by ``TransformerEncoder``."""
        query, key = self._split(self.query_key(states), 2)
        (value,) = self._split(self.value(states), 1)
        drops = self.training and self.attn_dropout_prob > 0.0
        limit = EXPLICIT_MAX_LENGTH if torch.is_grad_enabled() else EXPLICIT_MAX_LENGTH_WITHOUT_GRADIENT
        if drops or states.size(1) <= limit:
            context = self._explicit(query, key, value, may_attend, record)
        else:
            context = self._fused(query, key, value, may_attend)
            if record is not None:
                record.add_tiled(query, key, may_attend, self.causal)
        return context.transpose(1, 2).flatten(2)

    def _split(self, projected: Tensor, parts: int) -> tuple[Tensor, ...]:
        """[B, L, parts * D] to ``parts`` tensors [B, H, L, D / H]."""
        return projected.unflatten(-1, (parts, self.n_heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)

    def _explicit(self, query, key, value, may_attend, record) -> Tensor:
        batch, heads, length, width = query.shape
        flat = (batch * heads, length, width)
        logits = attention_logits(query.reshape(flat), key.reshape(flat), may_attend, self.causal).float()
        probabilities = torch.softmax(logits, dim=-1)
        if record is not None:
            shape = (batch, heads, length, length)
            record.add_explicit(logits.view(shape), probabilities.view(shape))
        dropped = dropout(probabilities, self.attn_dropout_prob, self.training)
        return torch.bmm(dropped.to(value.dtype), value.reshape(flat)).view(batch, heads, length, width)

    def _fused(self, query, key, value, may_attend) -> Tensor:
        mask = None if self.causal or may_attend is None else may_attend[:, None, None, :]
        return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, is_causal=self.causal)


class TransformerLayer(nn.Module):
    """Attention, then feed-forward, each with dropout, residual and LayerNorm after it."""

    def __init__(
        self,
        hidden_size: int,
        inner_size: int,
        n_heads: int,
        hidden_dropout_prob: float,
        attn_dropout_prob: float,
        hidden_act: str,
        layer_norm_eps: float,
        causal: bool,
    ):
        super().__init__()
        self.hidden_dropout_prob = hidden_dropout_prob
        self.activation = ACTIVATIONS[hidden_act]
        self.attention = SelfAttention(hidden_size, n_heads, attn_dropout_prob, causal)
        self.attention_output = nn.Linear(hidden_size, hidden_size)
        self.attention_norm = nn.LayerNorm(hidden_size, eps=layer_norm_eps)
        self.inner = nn.Linear(hidden_size, inner_size)
        self.inner_output = nn.Linear(inner_size, hidden_size)
        self.inner_norm = nn.LayerNorm(hidden_size, eps=layer_norm_eps)

    def forward(self, states: Tensor, may_attend: Tensor | None, record: CrossDomainRecord | None = None) -> Tensor:
        """[B, L, D] to [B, L, D]."""
        context = self.attention_output(self.attention(states, may_attend, record))
        states = self.attention_norm(add_dropped(states, context, self.hidden_dropout_prob, self.training))
        inner = self.inner_output(self.activation(self.inner(states)))
        return self.inner_norm(add_dropped(states, inner, self.hidden_dropout_prob, self.training))


class TransformerEncoder(nn.Module):
    """A stack of ``TransformerLayer``; hyperparameters carry RecBole's names and meaning.

    causal: each position sees itself and earlier ones. Rows must then be padded on the right, so that a padded key
    never comes before a valid query and no padding mask is needed; outputs at padded positions are meaningless.
    """

    def __init__(self, n_layers: int, causal: bool, **layer):
        super().__init__()
        self.causal = causal
        self.layers = nn.ModuleList(TransformerLayer(causal=causal, **layer) for _ in range(n_layers))

    def forward(self, states: Tensor, valid: Tensor | None = None, record: CrossDomainRecord | None = None) -> Tensor:
        """Contextual states [B, L, D] of ``states`` [B, L, D]; ``valid`` [B, L] is True where there is an event."""
        may_attend = None if self.causal else valid
        for layer in self.layers:
            states = layer(states, may_attend, record)
        return states

    def parameters_of_attention(self) -> list[nn.Parameter]:
        """What attention probabilities depend on: all but what follows the queries and keys of the last layer."""
        earlier = [p for layer in self.layers[:-1] for p in layer.parameters()]
        return earlier + list(self.layers[-1].attention.query_key.parameters())
