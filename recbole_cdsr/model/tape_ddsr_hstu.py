"""TAPE-DDSR-HSTU: HSTU whose attention stays inside domains, told of changes of domain, with a state per domain.

"Efficient Large-Scale Cross-Domain Sequential Recommendation with Dynamic State Representations", Loureiro et al.,
https://arxiv.org/abs/2508.20945. No code was released. Confirmed from the paper: TAPE (``layers.tape``) and that
attention is masked to the own domain (``layers.intra_domain``). DDSR it describes in words only: what stands in
``layers.domain_states`` is our rebuild, in three variants. Ours too are the initial values of TAPE, its causal form,
and that a read of states starts at zero. The blocks, the loss and the rest of the input are those of ``model.hstu``.

The model may know the domain of the event to predict (the user opened Books; rank books): with ``tape: next``, with
``ddsr: target`` or with ``target_domain_input``. Queries of states then know it too, and ranks among all items mean
nothing. With ``tape: causal`` or ``off``, and the other two off, it knows nothing of its target.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recbole_cdsr.errors import CDSRError
from recbole_cdsr.layers.domain_states import READS, StateRead, TargetStateRead, latest_events
from recbole_cdsr.layers.hstu import Attention
from recbole_cdsr.layers.intra_domain import KINDS, intra_domain_attention
from recbole_cdsr.layers.tape import TAPES, DomainTransition
from recbole_cdsr.model.base import read_choice
from recbole_cdsr.model.hstu import HSTU
from recbole_cdsr.model.tape_ddsr_state import UserHistory


class TAPEDDSRHSTU(HSTU):
    """sqrt(D) * items + positions + changes of domain -> dropout -> (HSTU block in domains -> read of states) * n.

    Config keys: attention, tape, ddsr, and those of HSTU.
    """

    def __init__(self, config: Any, dataset: Any):
        super().__init__(config, dataset)
        self.attention_kind = read_choice(config, "attention", KINDS)
        self.tape = read_choice(config, "tape", TAPES)
        self.ddsr = read_choice(config, "ddsr", READS)
        self.needs_target_domain = self.target_domain_input or self.tape == "next" or self.ddsr == "target"
        width, layers = self.item_embedding.embedding_dim, self.encoder.layers
        self.n_heads = layers[0].n_heads
        if self.ddsr != "off" and width % self.n_heads:
            raise CDSRError(f"the key 'hidden_size' must be a multiple of n_heads ({self.n_heads}), but got {width}")
        if self.tape != "off":
            self.transition = DomainTransition(self.n_domains, width)
        read = TargetStateRead if self.ddsr == "target" else StateRead
        count = {"off": 0, "layer": len(layers)}.get(self.ddsr, 1)
        epsilon, std, target = layers[0].layer_norm_eps, self.initializer_range, self.needs_target_domain
        sizes = (self.n_domains, width, self.n_heads, self.hidden_dropout_prob, epsilon, std, target)
        self.reads = nn.ModuleList(read(*sizes) for _ in range(count))  # after each layer, or the one after the last

    def encode(self, interaction: Any) -> Tensor:
        """States of the history, [B, L, D]: each depends on events up to its own, and may on the domain of the next."""
        states, attention = self.embed(interaction), self.attention(interaction)
        if not self.reads:
            return self.encoder(states, attention)
        domains = interaction[self.DOMAIN_SEQ]
        target = self.following(interaction, self.DOMAIN_SEQ, self.DOMAIN_ID) if self.needs_target_domain else None
        latest = latest_events(domains, self.n_domains)
        silent = len(self.encoder.layers) - len(self.reads)
        for number, layer in enumerate(self.encoder.layers):
            states = layer(states, attention)
            if number >= silent:
                states = self.reads[number - silent](states, domains, target, latest)
        return states

    def inputs(self, interaction: Any) -> Tensor:
        states, domains = super().inputs(interaction), interaction[self.DOMAIN_SEQ]
        if self.tape == "next":
            return states + self.transition(domains, self.following(interaction, self.DOMAIN_SEQ, self.DOMAIN_ID))
        if self.tape == "causal":
            return states + self.transition(F.pad(domains[:, :-1], (1, 0)), domains)
        return states

    def attention(self, interaction: Any) -> Attention:
        times = self.times(interaction)
        kind, n = self.attention_kind, self.max_seq_length
        return intra_domain_attention(interaction[self.DOMAIN_SEQ], *times, self.n_heads, n, kind)

    # One event at a time, for serving: the same numbers as the methods above, at the cost of one event.

    def start(self) -> UserHistory:
        """A user without events; the model must be in eval mode, and its weights must stay as they are."""
        return UserHistory(self)

    def append(self, user: UserHistory, item: int, domain: int, time: float) -> None:
        """Adds an event to the end of the user's history, in place; see ``UserHistory``."""
        user.append(item, domain, time)

    @torch.no_grad()
    def score(self, user: UserHistory, target_domain: int | None = None) -> Tensor:
        """Scores [V] of all items after the user's last event; ``target_domain`` where the model needs it."""
        return self.score_items(user.state(target_domain).unsqueeze(0)).squeeze(0)
