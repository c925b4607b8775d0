"""HSTU over all domains: attention by SiLU, gated, biased by distance and time; full causal attention.

"Actions Speak Louder than Words", Zhai et al., ICML 2024, https://arxiv.org/abs/2402.17152; the block is in
``recbole_cdsr.layers.hstu`` and gives the numbers of the research code.

Where we differ from the paper's research code:
- Its time bias measures from the *next* event's time, in evaluation from the target's own. Here each event measures
  from its own (``query_time: last``); ``next`` is theirs, to replay published numbers, and results say so.
- Attention is divided by MAX_ITEM_LIST_LENGTH, theirs by the width to which a batch is padded.
- The bias of the output projection starts at zero, like all biases here.
- Adam with RecBole's beta_2 of 0.999; theirs is AdamW without weight decay (which is Adam) with 0.98.
``target_domain_input`` is ours: it gives the input the domain of the event to predict, as models get it that are built
on knowing it, so that a comparison with them changes one thing.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from recbole_cdsr.layers.attention import dropout
from recbole_cdsr.layers.hstu import Attention, CausalAttention, HSTUEncoder
from recbole_cdsr.layers.losses import NegativeSampler, sampled_cosine_loss
from recbole_cdsr.model.base import LOSS_TYPES, CDSRRecommender, read_choice, read_count, read_number

QUERY_TIMES = ("last", "next", "none")
NEGATIVES = ("all", "domain")


class HSTU(CDSRRecommender):
    """sqrt(D) * items + positions [+ target's domain] -> dropout -> HSTU blocks -> softmax over items.

    Config keys: n_layers, n_heads, hidden_size, query_key_size, value_size, hidden_dropout_prob, layer_norm_eps,
    query_time, target_domain_input; negatives and log_q (sampled_cosine); and those of the base.
    """

    loss_types = (*LOSS_TYPES, "sampled_cosine")

    def __init__(self, config: Any, dataset: Any):
        super().__init__(config, dataset)
        self.TIME = config["TIME_FIELD"] or "timestamp"
        self.TIME_SEQ = self.TIME + config["LIST_SUFFIX"]
        self.query_time = read_choice(config, "query_time", QUERY_TIMES)
        self.needs_target_time = self.query_time == "next"
        self.target_domain_input = self.needs_target_domain = bool(config["target_domain_input"])
        self.hidden_dropout_prob = read_number(config, "hidden_dropout_prob", 0, 1, "[)")
        if self.loss_type == "sampled_cosine":
            self.temperature = read_number(config, "temperature", 0, ends="()")
            self.n_negatives = read_count(config, "n_negatives")
            self.log_q = bool(config["log_q"])
            within = read_choice(config, "negatives", NEGATIVES) == "domain"
            self.sampler = NegativeSampler(dataset.item_domain, within)
        hidden_size = read_count(config, "hidden_size")
        self.item_embedding = nn.Embedding(self.n_items, hidden_size)
        self.position_embedding = nn.Embedding(self.max_seq_length, hidden_size)
        if self.target_domain_input:
            self.domain_embedding = nn.Embedding(self.n_domains, hidden_size)
        self.encoder = HSTUEncoder(read_count(config, "n_layers"), **self._layer_arguments(config))
        self._init_embeddings()

    def _layer_arguments(self, config: Any) -> dict[str, Any]:
        return {
            "hidden_size": read_count(config, "hidden_size"),
            "n_heads": read_count(config, "n_heads"),
            "query_key_size": read_count(config, "query_key_size"),
            "value_size": read_count(config, "value_size"),
            "dropout_prob": self.hidden_dropout_prob,
            "max_length": self.max_seq_length,
            "with_time": self.query_time != "none",
            "layer_norm_eps": read_number(config, "layer_norm_eps", 0, ends="()"),
            "std": self.initializer_range,
        }

    def encode(self, interaction: Any) -> Tensor:
        """States of the history, [B, L, D]."""
        return self.encoder(self.embed(interaction), self.attention(interaction))

    def embed(self, interaction: Any) -> Tensor:
        """Input of the first block, [B, L, D]."""
        return dropout(self.inputs(interaction), self.hidden_dropout_prob, self.training)

    def inputs(self, interaction: Any) -> Tensor:
        """Sum of what is known of each event before it meets others, [B, L, D]."""
        items = interaction[self.ITEM_SEQ]
        states = self.item_embedding(items) * math.sqrt(self.item_embedding.embedding_dim)
        states = states + self.position_embedding.weight[: items.size(1)]
        if self.target_domain_input:
            states = states + self.domain_embedding(self.following(interaction, self.DOMAIN_SEQ, self.DOMAIN_ID))
        return states

    def attention(self, interaction: Any) -> Attention:
        """What all blocks attend by: positions and times of the events."""
        items = interaction[self.ITEM_SEQ]
        position = torch.arange(items.size(1), device=items.device).unsqueeze(0)
        return CausalAttention(position, *self.times(interaction), divisor=self.max_seq_length)

    def times(self, interaction: Any) -> tuple[Tensor | None, Tensor | None]:
        """Seconds that each event as a query, and as a key, stands for, [B, L] each; None without a time bias."""
        if self.query_time == "none":
            return None, None
        times = interaction[self.TIME_SEQ]
        return self.following(interaction, self.TIME_SEQ, self.TIME) if self.query_time == "next" else times, times

    def item_loss(self, states: Tensor, targets: Tensor) -> Tensor:
        if self.loss_type != "sampled_cosine":
            return super().item_loss(states, targets)
        negatives, log_expected = self.sampler(targets, self.n_negatives)
        log_expected = log_expected if self.log_q else None
        table, _, targets, negatives = self.candidates(targets, negatives)
        return sampled_cosine_loss(states, table, targets, negatives, self.temperature, log_expected)

    def _init_embeddings(self) -> None:
        std = self.initializer_range
        nn.init.trunc_normal_(self.item_embedding.weight, std=std, a=-2 * std, b=2 * std)
        nn.init.xavier_normal_(self.position_embedding.weight)
        if self.target_domain_input:
            nn.init.xavier_normal_(self.domain_embedding.weight)
