"""AutoCDSR+: one encoder per domain, a few bottleneck tokens as the only channel between them, a shared encoder on top.

"Revisiting Self-attention for Cross-domain Sequential Recommendation", Ju et al., KDD 2025,
https://arxiv.org/abs/2505.21811

Two losses go to the trainer: the recommendation loss, and ``cross_domain``, the attention that events put on the tokens
(``recbole_cdsr.layers.bottleneck``); ``objective_weighting`` says how they are balanced.

This is the causal form (a SASRec with AutoCDSR+'s parts), and it is ours: in the paper tokens attend to the whole
history, which would carry the future to the past. Here a token is read at position t as built from events up to t:
- a learned query per token summarises each domain's events up to t, by a softmax with bounded logits;
- the summaries of the domains seen up to t are merged (``bottleneck_merge``), and event t attends to the merged tokens
  and to earlier events of its own domain in one softmax.
So a layer's tokens are made and read in that layer; there are no token states that go from layer to layer.
The bidirectional form (BERT4Rec) is to come.

Where we differ from the paper besides:
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
from recbole_cdsr.layers.attention import ACTIVATIONS, TransformerEncoder, dropout
from recbole_cdsr.layers.bottleneck import MERGES, BottleneckRecord, DomainEncoder
from recbole_cdsr.layers.by_domain import DomainLinear, EventsByDomain
from recbole_cdsr.model.base import CDSRRecommender, read_choice, read_count, read_number, select
from recbole_cdsr.objectives import STRATEGIES


class AutoCDSRPlus(CDSRRecommender):
    """items + positions -> LayerNorm, dropout -> + domain encoders -> LayerNorm -> shared encoder -> softmax.

    Config keys: n_domain_layers, n_shared_layers, n_bottleneck_tokens, bottleneck_merge, exchange_layers, n_heads,
    hidden_size, inner_size, hidden_dropout_prob, attn_dropout_prob, hidden_act, layer_norm_eps, objective_weighting;
    and those of the base.
    """

    other_objectives = ("cross_domain",)

    def __init__(self, config: Any, dataset: Any):
        super().__init__(config, dataset)
        strategy = read_choice(config, "objective_weighting", tuple(STRATEGIES))
        n_domain_layers = read_count(config, "n_domain_layers")
        n_shared_layers = read_count(config, "n_shared_layers", least=0)
        exchange_layers = read_layers(config, "exchange_layers", n_domain_layers)
        self.penalises = "cross_domain" in self.objectives and strategy != "none" and bool(exchange_layers)
        self.hidden_dropout_prob = read_number(config, "hidden_dropout_prob", 0, 1, "[)")
        layer = {
            "hidden_size": read_count(config, "hidden_size"),
            "inner_size": read_count(config, "inner_size"),
            "n_heads": read_count(config, "n_heads"),
            "hidden_dropout_prob": self.hidden_dropout_prob,
            "attn_dropout_prob": read_number(config, "attn_dropout_prob", 0, 1, "[)"),
            "hidden_act": read_choice(config, "hidden_act", tuple(ACTIVATIONS)),
            "layer_norm_eps": read_number(config, "layer_norm_eps", 0, ends="()"),
        }
        width, n_heads, epsilon = layer["hidden_size"], layer["n_heads"], layer["layer_norm_eps"]
        if width % n_heads:
            raise CDSRError(f"the key 'hidden_size' must be a multiple of n_heads ({n_heads}), but got {width}")
        self.item_embedding = nn.Embedding(self.n_items, width, padding_idx=0)
        self.position_embedding = nn.Embedding(self.max_seq_length, width)
        self.input_norm = nn.LayerNorm(width, eps=epsilon)
        self.domain_encoder = DomainEncoder(
            n_domain_layers,
            exchange_layers,
            n_tokens=read_count(config, "n_bottleneck_tokens"),
            merge=read_choice(config, "bottleneck_merge", MERGES),
            n_domains=self.n_domains,
            **layer,
        )
        self.fusion_norm = nn.LayerNorm(width, eps=epsilon)
        self.shared_encoder = TransformerEncoder(n_shared_layers, causal=True, **layer)
        self.apply(self.init_weights)

    def encode(self, interaction: Any) -> Tensor:
        """States of the history, [B, L, D]."""
        return self.contextualise(interaction[self.ITEM_SEQ], self.events(interaction))

    def calculate_losses(self, interaction: Any) -> dict[str, Tensor]:
        """The recommendation loss(es); ``cross_domain``, in [0, 1], where it is asked for and a layer exchanges."""
        targets, wanted = self.targets(interaction)
        events = self.events(interaction)
        record = BottleneckRecord(events) if self.penalises else None
        states = self.contextualise(interaction[self.ITEM_SEQ], events, record)
        losses = self.recommendation_losses(select(states, wanted), select(targets, wanted))
        if record is not None:
            losses["cross_domain"] = record.share() * distributed.share(len(events.order))
        return losses

    def events(self, interaction: Any) -> EventsByDomain:
        return EventsByDomain(interaction[self.DOMAIN_SEQ], self.n_domains)

    def contextualise(self, items: Tensor, events: EventsByDomain, record: BottleneckRecord | None = None) -> Tensor:
        """Items [B, L] to states [B, L, D]; notes the attention on the tokens in ``record`` if there is one."""
        states = self.item_embedding(items) + self.position_embedding.weight[: items.size(1)]
        states = dropout(self.input_norm(states), self.hidden_dropout_prob, self.training)
        return self.shared_encoder(self.fusion_norm(states + self.domain_encoder(states, events, record)))

    def init_weights(self, module: nn.Module) -> None:
        super().init_weights(module)
        if isinstance(module, DomainLinear):
            nn.init.normal_(module.weight, std=self.initializer_range)

    def shared_parameters(self) -> list[nn.Parameter]:
        if not self.penalises:
            return [p for p in self.parameters() if p is not self.item_embedding.weight]
        embedding = [self.position_embedding.weight, *self.input_norm.parameters()]
        return embedding + self.domain_encoder.parameters_of_exchange()

    @torch.no_grad()
    def transfer_record(self, interaction: Any) -> Tensor:
        """Mean attention of events of each domain on each domain, through the tokens, [C, C]; call it in eval mode."""
        events = self.events(interaction)
        record = BottleneckRecord(events, keep_matrix=True)
        self.contextualise(interaction[self.ITEM_SEQ], events, record)
        return record.matrix()


def read_layers(config: Any, key: str, n_layers: int) -> list[int]:
    """The value of ``key``, numbers of layers from 0 or ``all``, as a list; else CDSRError."""
    value = config[key]
    if value == "all":
        return list(range(n_layers))
    if not isinstance(value, list) or any(isinstance(n, bool) or n not in range(n_layers) for n in value):
        last = n_layers - 1
        raise CDSRError(f"the key '{key}' takes all, or a list of numbers from 0 to {last}, but got {value!r}")
    return value
