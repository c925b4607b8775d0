"""AutoCDSR+: one encoder per domain, a few bottleneck tokens as the only channel between them, a shared encoder on top.

"Revisiting Self-attention for Cross-domain Sequential Recommendation", Ju et al., KDD 2025,
https://arxiv.org/abs/2505.21811

Two losses go to the trainer: the recommendation loss, and ``cross_domain``, the attention that events put on the tokens
(``recbole_cdsr.layers.bottleneck``); ``objective_weighting`` says how they are balanced.

``backbone: bert4rec`` is the paper's form; ``sasrec`` is causal, and ours: tokens that attend to the whole history
would carry the future to the past. There a token is read at position t as built from events up to t:
- a learned query per token summarises each domain's events up to t, by a softmax with bounded logits;
- the summaries of the domains seen up to t are merged (``bottleneck_merge``), and event t attends to the merged tokens
  and to earlier events of its own domain in one softmax.
With bert4rec "up to t" falls away, nothing else changes.

Where we differ from the paper besides:
- A layer's tokens are made and read in that layer; there are no token states that go from layer to layer.
- In the paper every domain's encoder sees every [MASK]. Here a [MASK], whose domain nobody knows, has an encoder of its
  own that reads the events of all domains and the tokens. So cost grows with events alone.
- The penalty is a mean over events, heads and exchanging layers, not a sum over layers and domains: it stays in [0, 1]
  whatever the numbers of layers, domains and events, so that ``cross_domain_weight`` keeps its meaning.
- The domain encoders' output is added to the normalised sum of item and position embedding; beside the raw item
  embedding, whose initial values are about 0.02, it would be all that is left after LayerNorm.
- Loss, layers, sizes and initialisation are those of AutoCDSR here.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from recbole_cdsr import distributed
from recbole_cdsr.errors import CDSRError
from recbole_cdsr.layers.attention import TransformerEncoder
from recbole_cdsr.layers.bottleneck import MERGES, BottleneckRecord, DomainEncoder
from recbole_cdsr.layers.by_domain import DomainLinear, EventsByDomain
from recbole_cdsr.model.backbone import BackboneRecommender
from recbole_cdsr.model.base import read_choice, read_count, select


class AutoCDSRPlus(BackboneRecommender):
    """items + positions -> LayerNorm, dropout -> + domain encoders -> LayerNorm -> shared encoder -> [head] -> softmax.

    Config keys: n_domain_layers, n_shared_layers, n_bottleneck_tokens, bottleneck_merge, exchange_layers; and those of
    the backbone and the base.
    """

    def __init__(self, config: Any, dataset: Any):
        super().__init__(config, dataset)
        n_domain_layers = read_count(config, "n_domain_layers")
        n_shared_layers = read_count(config, "n_shared_layers", least=0)
        exchange_layers = read_layers(config, "exchange_layers", n_domain_layers)
        self.penalises = self.penalises and bool(exchange_layers)
        self.domain_encoder = DomainEncoder(
            n_domain_layers,
            exchange_layers,
            n_tokens=read_count(config, "n_bottleneck_tokens"),
            merge=read_choice(config, "bottleneck_merge", MERGES),
            n_domains=self.n_domains,
            **self.layer,
        )
        self.fusion_norm = nn.LayerNorm(self.layer["hidden_size"], eps=self.layer["layer_norm_eps"])
        self.shared_encoder = TransformerEncoder(n_shared_layers, causal=not self.bidirectional, **self.layer)
        self.apply(self.init_weights)

    def contextualise(self, items: Tensor, domains: Tensor, record: BottleneckRecord | None = None) -> Tensor:
        """Items and domains [B, L] to states [B, L, D] before the head; notes attention on tokens in ``record``."""
        events = self.events(items, domains) if record is None else record.events
        states = self.embed(items)
        states = self.fusion_norm(states + self.domain_encoder(states, events, record))
        return self.shared_encoder(states, items != 0)

    def calculate_losses(self, interaction: Any) -> dict[str, Tensor]:
        """The recommendation loss(es); ``cross_domain``, in [0, 1], where it is asked for and a layer exchanges."""
        items, domains, targets, wanted = self.training_rows(interaction)
        record = BottleneckRecord(self.events(items, domains)) if self.penalises else None
        states = select(self.contextualise(items, domains, record), wanted)
        losses = self.recommendation_losses(self.head(states), select(targets, wanted))
        if record is not None:
            losses["cross_domain"] = record.share() * distributed.share(record.count)
        return losses

    def events(self, items: Tensor, domains: Tensor) -> EventsByDomain:
        return EventsByDomain(domains, items != 0, self.n_domains, causal=not self.bidirectional)

    def init_weights(self, module: nn.Module) -> None:
        super().init_weights(module)
        if isinstance(module, DomainLinear):
            nn.init.normal_(module.weight, std=self.initializer_range)

    def shared_parameters(self) -> list[nn.Parameter]:
        if not self.penalises:
            return [p for p in self.parameters() if p is not self.item_embedding.weight]
        return self.parameters_of_embedding() + self.domain_encoder.parameters_of_exchange()

    def transfer_record(self, interaction: Any) -> Tensor:
        """Mean attention of events of each domain on each domain, through the tokens, [C, C]; call it in eval mode."""
        return self.record_of(interaction).matrix()

    def transfer_by_layer(self, interaction: Any) -> Tensor:
        """The same for each layer in exchange_layers, in their order, [layers, C, C]."""
        return self.record_of(interaction).matrices()

    @torch.no_grad()
    def record_of(self, interaction: Any) -> BottleneckRecord:
        items, domains, _ = self.history(interaction)
        record = BottleneckRecord(self.events(items, domains), keep_matrix=True)
        self.contextualise(items, domains, record)
        return record


def read_layers(config: Any, key: str, n_layers: int) -> list[int]:
    """The value of ``key``, numbers of layers from 0 or ``all``, as a list; else CDSRError."""
    value = config[key]
    if value == "all":
        return list(range(n_layers))
    if not isinstance(value, list) or any(isinstance(n, bool) or n not in range(n_layers) for n in value):
        last = n_layers - 1
        raise CDSRError(f"the key '{key}' takes all, or a list of numbers from 0 to {last}, but got {value!r}")
    return value
