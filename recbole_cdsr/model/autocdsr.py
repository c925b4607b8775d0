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
from torch import Tensor, nn

from recbole_cdsr import distributed
from recbole_cdsr.layers.attention import CrossDomainRecord, TransformerEncoder
from recbole_cdsr.model.backbone import BackboneRecommender
from recbole_cdsr.model.base import read_count, select


class AutoCDSR(BackboneRecommender):
    """items + positions -> LayerNorm, dropout -> transformer (a_cd noted on the way) -> [head] -> softmax over items.

    Config keys: n_layers; and those of the backbone and the base.
    """

    def __init__(self, config: Any, dataset: Any):
        super().__init__(config, dataset)
        self.encoder = TransformerEncoder(read_count(config, "n_layers"), causal=not self.bidirectional, **self.layer)
        self.apply(self.init_weights)

    def contextualise(self, items: Tensor, domains: Tensor, record: CrossDomainRecord | None = None) -> Tensor:
        """Items [B, L] to states [B, L, D] before the head; notes a_cd in ``record`` if there is one."""
        return self.encoder(self.embed(items), items != 0, record)

    def calculate_losses(self, interaction: Any) -> dict[str, Tensor]:
        """The recommendation loss(es), and ``cross_domain`` (a_cd, in [0, 1]) unless objective_weighting is none."""
        items, domains, targets, wanted = self.training_rows(interaction)
        record = CrossDomainRecord(domains, self.n_domains) if self.penalises else None
        states = select(self.contextualise(items, domains, record), wanted)
        losses = self.recommendation_losses(self.head(states), select(targets, wanted))
        if record is not None:
            losses["cross_domain"] = record.share() * distributed.share(record.counts.sum())
        return losses

    def shared_parameters(self) -> list[nn.Parameter]:
        if not self.penalises:
            return [p for p in self.parameters() if p is not self.item_embedding.weight]
        return self.parameters_of_embedding() + self.encoder.parameters_of_attention()

    @torch.no_grad()
    def transfer_record(self, interaction: Any) -> Tensor:
        """Mean attention of queries of each domain on keys of each domain, [C, C]; call it in eval mode."""
        items, domains, _ = self.history(interaction)
        record = CrossDomainRecord(domains, self.n_domains, keep_matrix=True)
        self.contextualise(items, domains, record)
        return record.matrix()
