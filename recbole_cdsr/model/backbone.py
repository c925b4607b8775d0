"""The two backbones: what a model reads of a row, what it is asked to predict, and what is compared with the items.

sasrec: causal, a target at every position (RecBole's SASRec, https://arxiv.org/abs/1808.09781).
bert4rec: bidirectional, targets hidden behind [MASK]; prediction appends one [MASK] (https://arxiv.org/abs/1904.06690).
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recbole_cdsr.errors import CDSRError
from recbole_cdsr.layers.attention import ACTIVATIONS, dropout
from recbole_cdsr.model.base import CDSRRecommender, read_choice, read_count, read_number
from recbole_cdsr.objectives import STRATEGIES

BACKBONES = ("sasrec", "bert4rec")


def read_layer(config: Any) -> dict[str, Any]:
    """The keys that transformer layers take, by name; CDSRError for a value that does not fit."""
    layer = {
        "hidden_size": read_count(config, "hidden_size"),
        "inner_size": read_count(config, "inner_size"),
        "n_heads": read_count(config, "n_heads"),
        "hidden_dropout_prob": read_number(config, "hidden_dropout_prob", 0, 1, "[)"),
        "attn_dropout_prob": read_number(config, "attn_dropout_prob", 0, 1, "[)"),
        "hidden_act": read_choice(config, "hidden_act", tuple(ACTIVATIONS)),
        "layer_norm_eps": read_number(config, "layer_norm_eps", 0, ends="()"),
    }
    if layer["hidden_size"] % layer["n_heads"]:
        raise CDSRError(
            f"the key 'hidden_size' must be a multiple of n_heads ({layer['n_heads']}), but got {layer['hidden_size']}"
        )
    return layer


class BackboneRecommender(CDSRRecommender):
    """items + positions -> LayerNorm, dropout -> contextualise (the model's) -> [head] -> softmax over items.

    A model writes ``__init__``, which ends with ``self.apply(self.init_weights)``, ``contextualise`` and
    ``calculate_losses``; it finds the arguments of its layers in ``self.layer``.
    Config keys: backbone, mask_ratio and mask_last_ratio (bert4rec), objective_weighting, those of `read_layer`, and
    those of the base.
    """

    other_objectives = ("cross_domain",)

    def __init__(self, config: Any, dataset: Any):
        super().__init__(config, dataset)
        self.backbone = read_choice(config, "backbone", BACKBONES)
        self.bidirectional = self.backbone == "bert4rec"
        strategy = read_choice(config, "objective_weighting", tuple(STRATEGIES))
        self.penalises = "cross_domain" in self.objectives and strategy != "none"
        self.layer = read_layer(config)
        width, epsilon = self.layer["hidden_size"], self.layer["layer_norm_eps"]
        self.mask_token = self.n_items  # one row past the items, bert4rec only
        self.item_embedding = nn.Embedding(self.n_items + self.bidirectional, width, padding_idx=0)
        self.position_embedding = nn.Embedding(self.max_seq_length + self.bidirectional, width)
        self.input_norm = nn.LayerNorm(width, eps=epsilon)
        if self.bidirectional:
            self.mask_ratio = read_number(config, "mask_ratio", 0, 1)
            self.mask_last_ratio = read_number(config, "mask_last_ratio", 0, 1)
            self.output = nn.Linear(width, width)
            self.output_norm = nn.LayerNorm(width, eps=epsilon)
            # A cosine has no use for a bias.
            self.output_bias = None if self.loss_type == "cosine" else nn.Parameter(torch.zeros(self.n_items))

    def encode(self, interaction: Any) -> Tensor:
        """States of the history: [B, L, D], with bert4rec [B, L + 1, D] with a [MASK] after the last event."""
        items, domains, _ = self.history(interaction)
        return self.head(self.contextualise(items, domains))

    def contextualise(self, items: Tensor, domains: Tensor, record: Any = None) -> Tensor:
        """Items and their domains [B, L] to states [B, L, D] before the head; ``record`` notes attention on the way."""
        raise NotImplementedError(f"{type(self).__name__} must define contextualise(items, domains, record)")

    def embed(self, items: Tensor) -> Tensor:
        """Items [B, L] to [B, L, D]."""
        states = self.item_embedding(items) + self.position_embedding.weight[: items.size(1)]
        return dropout(self.input_norm(states), self.layer["hidden_dropout_prob"], self.training)

    def head(self, states: Tensor) -> Tensor:
        """The vectors that are compared with the item table; BERT4Rec's output block, nothing for sasrec."""
        return self.output_norm(F.gelu(self.output(states))) if self.bidirectional else states

    def history(self, interaction: Any) -> tuple[Tensor, Tensor, Tensor]:
        """Items [B, L], their domains [B, L] and the position [B] whose state stands for the user."""
        items, domains = interaction[self.ITEM_SEQ], interaction[self.DOMAIN_SEQ]
        length = interaction[self.ITEM_SEQ_LEN]
        if not self.bidirectional:
            return items, domains, length - 1
        items = F.pad(items, (0, 1)).scatter(1, length.unsqueeze(1), self.mask_token)
        return items, F.pad(domains, (0, 1)), length

    def user_state(self, interaction: Any) -> Tensor:
        """State at the last event, or with bert4rec at the [MASK] after it, [B, D]."""
        items, domains, position = self.history(interaction)
        return self.head(self.gather_indexes(self.contextualise(items, domains), position))

    def training_rows(self, interaction: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Input items, their domains, target items and where there is a target, each [B, L] (bert4rec [B, L + 1])."""
        items, domains, position = self.history(interaction)
        if not self.bidirectional:
            return items, domains, *self.targets(interaction)
        position = position.unsqueeze(1)
        item, domain = interaction[self.ITEM_ID].unsqueeze(1), interaction[self.DOMAIN_ID].unsqueeze(1)
        events = items.scatter(1, position, item)
        if self.layout == "prefix":
            return items, domains, events, items == self.mask_token
        masked = self.draw_masks(events != 0, position)
        return (
            events.masked_fill(masked, self.mask_token),
            domains.scatter(1, position, domain).masked_fill(masked, 0),
            events,
            masked,
        )

    def draw_masks(self, valid: Tensor, last: Tensor) -> Tensor:
        """Which events are hidden, [B, L]: each with mask_ratio, at least one; or the last alone, as in prediction."""
        noise = torch.rand(valid.shape, device=valid.device).masked_fill(~valid, 2.0)
        masked = noise < self.mask_ratio
        masked.scatter_(1, noise.argmin(1, keepdim=True), True)  # already hidden wherever anything is
        only_last = torch.rand(len(valid), 1, device=valid.device) < self.mask_last_ratio
        return torch.where(only_last, torch.zeros_like(masked).scatter(1, last, True), masked)

    def item_bias(self) -> Tensor | None:
        return self.output_bias if self.bidirectional else None

    def parameters_of_embedding(self) -> list[nn.Parameter]:
        """What `embed` depends on beside the item table."""
        return [self.position_embedding.weight, *self.input_norm.parameters()]
