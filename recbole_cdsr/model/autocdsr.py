"""AutoCDSR: a plain transformer over all domains that learns how much attention may cross them.

"Revisiting Self-attention for Cross-domain Sequential Recommendation", Ju et al., KDD 2025,
https://arxiv.org/abs/2505.21811

Two losses go to the trainer: the recommendation loss, and the cross-domain attention a_cd of
``recbole_cdsr.layers.attention``; ``objective_weighting`` says how they are balanced.

Where we differ from the paper:
- a_cd is a mean over queries, not a sum, so that it does not grow with length; queries and keys without a domain
  (padding, [MASK]) never count.
- The recommendation loss is RecBole's full softmax on dot products by default; the paper's softmax over cosine
  similarities is ``loss_type: cosine``.
- Layers, sizes and initialisation are RecBole's SASRec and BERT4Rec, so that ``objective_weighting: none`` is the
  backbone and nothing else.
Where we differ from the release:
- Its backbone is a T5 encoder with in-batch negatives, without the positive in its own denominator; ours is neither.
- Only its bidirectional backbone is public; ``sasrec`` follows the paper.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recbole_cdsr import distributed
from recbole_cdsr.errors import CDSRError
from recbole_cdsr.layers.attention import ACTIVATIONS, CrossDomainRecord, TransformerEncoder, dropout
from recbole_cdsr.model.base import CDSRRecommender, read_choice, read_count, read_number, select
from recbole_cdsr.objectives import STRATEGIES

BACKBONES = ("sasrec", "bert4rec")


class AutoCDSR(CDSRRecommender):
    """items + positions -> LayerNorm, dropout -> transformer (a_cd noted on the way) -> [head] -> softmax over items.

    Config keys: backbone, n_layers, n_heads, hidden_size, inner_size, hidden_dropout_prob, attn_dropout_prob,
    hidden_act, layer_norm_eps, mask_ratio and mask_last_ratio (bert4rec), objective_weighting; and those of the base.
    """

    other_objectives = ("cross_domain",)

    def __init__(self, config: Any, dataset: Any):
        super().__init__(config, dataset)
        self.backbone = read_choice(config, "backbone", BACKBONES)
        strategy = read_choice(config, "objective_weighting", tuple(STRATEGIES))
        self.penalises = "cross_domain" in self.objectives and strategy != "none"
        self.hidden_dropout_prob = read_number(config, "hidden_dropout_prob", 0, 1, "[)")
        hidden_size = read_count(config, "hidden_size")
        n_heads = read_count(config, "n_heads")
        epsilon = read_number(config, "layer_norm_eps", 0, ends="()")
        if hidden_size % n_heads:
            raise CDSRError(f"the key 'hidden_size' must be a multiple of n_heads ({n_heads}), but got {hidden_size}")

        bidirectional = self.backbone == "bert4rec"
        self.mask_token = self.n_items  # one row past the items, bert4rec only
        self.item_embedding = nn.Embedding(self.n_items + bidirectional, hidden_size, padding_idx=0)
        self.position_embedding = nn.Embedding(self.max_seq_length + bidirectional, hidden_size)
        self.input_norm = nn.LayerNorm(hidden_size, eps=epsilon)
        self.encoder = TransformerEncoder(
            n_layers=read_count(config, "n_layers"),
            causal=not bidirectional,
            hidden_size=hidden_size,
            inner_size=read_count(config, "inner_size"),
            n_heads=n_heads,
            hidden_dropout_prob=self.hidden_dropout_prob,
            attn_dropout_prob=read_number(config, "attn_dropout_prob", 0, 1, "[)"),
            hidden_act=read_choice(config, "hidden_act", tuple(ACTIVATIONS)),
            layer_norm_eps=epsilon,
        )
        if bidirectional:
            self.mask_ratio = read_number(config, "mask_ratio", 0, 1)
            self.mask_last_ratio = read_number(config, "mask_last_ratio", 0, 1)
            self.output = nn.Linear(hidden_size, hidden_size)
            self.output_norm = nn.LayerNorm(hidden_size, eps=epsilon)
            # A cosine has no use for a bias.
            self.output_bias = None if self.loss_type == "cosine" else nn.Parameter(torch.zeros(self.n_items))
        self.apply(self.init_weights)

    def encode(self, interaction: Any) -> Tensor:
        """States of the history: [B, L, D], with bert4rec [B, L + 1, D] with a [MASK] after the last event."""
        items, _, _ = self.history(interaction)
        return self.head(self.contextualise(items))

    def calculate_losses(self, interaction: Any) -> dict[str, Tensor]:
        """The recommendation loss(es), and ``cross_domain`` (a_cd, in [0, 1]) unless objective_weighting is none."""
        items, domains, targets, wanted = self.training_rows(interaction)
        record = CrossDomainRecord(domains, self.n_domains) if self.penalises else None
        states = select(self.contextualise(items, record), wanted)
        losses = self.recommendation_losses(self.head(states), select(targets, wanted))
        if record is not None:
            losses["cross_domain"] = record.share() * distributed.share(record.counts.sum())
        return losses

    def contextualise(self, items: Tensor, record: CrossDomainRecord | None = None) -> Tensor:
        """Items [B, L] to states [B, L, D] before the head; notes a_cd in ``record`` if there is one."""
        states = self.item_embedding(items) + self.position_embedding.weight[: items.size(1)]
        states = dropout(self.input_norm(states), self.hidden_dropout_prob, self.training)
        return self.encoder(states, items != 0, record)

    def head(self, states: Tensor) -> Tensor:
        """The vectors that are compared with the item table; BERT4Rec's output block, nothing for sasrec."""
        return self.output_norm(F.gelu(self.output(states))) if self.backbone == "bert4rec" else states

    def history(self, interaction: Any) -> tuple[Tensor, Tensor, Tensor]:
        """Items [B, L], their domains [B, L] and the position [B] whose state stands for the user."""
        items, domains = interaction[self.ITEM_SEQ], interaction[self.DOMAIN_SEQ]
        length = interaction[self.ITEM_SEQ_LEN]
        if self.backbone == "sasrec":
            return items, domains, length - 1
        items = F.pad(items, (0, 1)).scatter(1, length.unsqueeze(1), self.mask_token)
        return items, F.pad(domains, (0, 1)), length

    def user_state(self, interaction: Any) -> Tensor:
        """State at the last event, or with bert4rec at the [MASK] after it, [B, D]."""
        items, _, position = self.history(interaction)
        return self.head(self.gather_indexes(self.contextualise(items), position))

    def training_rows(self, interaction: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Input items, their domains, target items and where there is a target, each [B, L] (bert4rec [B, L + 1])."""
        items, domains, position = self.history(interaction)
        if self.backbone == "sasrec":
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
        return self.output_bias if self.backbone == "bert4rec" else None

    def shared_parameters(self) -> list[nn.Parameter]:
        if not self.penalises:
            return [p for p in self.parameters() if p is not self.item_embedding.weight]
        embedding = [self.position_embedding.weight, *self.input_norm.parameters()]
        return embedding + self.encoder.parameters_of_attention()

    @torch.no_grad()
    def transfer_record(self, interaction: Any) -> Tensor:
        """Mean attention of queries of each domain on keys of each domain, [C, C]; call it in eval mode."""
        items, domains, _ = self.history(interaction)
        record = CrossDomainRecord(domains, self.n_domains, keep_matrix=True)
        self.contextualise(items, record)
        return record.matrix()
