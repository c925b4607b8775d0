"""What all models of this package share: targets by layout, the loss over items, scores, the hooks of the trainer.

A model writes ``__init__`` (with ``self.item_embedding``), ``encode`` and, if it has more than one loss,
``calculate_losses``. RecBole's own trainer and evaluator work with it too, through ``calculate_loss``, ``predict`` and
``full_sort_predict``.
"""

from __future__ import annotations

import numbers
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recbole_cdsr import compat, distributed
from recbole_cdsr.errors import CDSRError
from recbole_cdsr.layers.losses import (
    cosine_softmax_loss,
    draw_negatives,
    full_softmax_loss,
    sampled_softmax_loss,
)

compat.apply()

from recbole.model.abstract_recommender import SequentialRecommender  # noqa: E402
from recbole.utils import InputType  # noqa: E402

LAYOUTS = ("sequence", "prefix")
LOSS_TYPES = ("CE", "cosine", "sampled")


def read_choice(config: Any, key: str, choices: Sequence[str]) -> str:
    """The value of ``key``, which must be one of ``choices``; else CDSRError."""
    value = config[key]
    if value is False and "off" in choices:  # what yaml makes of a bare off
        value = "off"
    if value not in choices:
        raise CDSRError(f"the key '{key}' takes one of {', '.join(choices)}, but got {value!r}")
    return value


def read_number(config: Any, key: str, low: float, high: float = float("inf"), ends: str = "[]") -> float:
    """The value of ``key``, a number from ``low`` to ``high``, else CDSRError; ``ends`` says which ends count."""
    value = config[key]
    fits = isinstance(value, numbers.Real) and not isinstance(value, bool)
    fits = fits and (low < value or (low == value and ends[0] == "["))
    fits = fits and (value < high or (value == high and ends[1] == "]"))
    if not fits:
        raise CDSRError(f"the key '{key}' takes a number in {ends[0]}{low:g}, {high:g}{ends[1]}, but got {value!r}")
    return value


def read_count(config: Any, key: str, least: int = 1) -> int:
    """The value of ``key``, a whole number of at least ``least``; else CDSRError."""
    value = config[key]
    if not isinstance(value, numbers.Integral) or isinstance(value, bool) or value < least:
        raise CDSRError(f"the key '{key}' takes a whole number of at least {least}, but got {value!r}")
    return int(value)


class CDSRRecommender(SequentialRecommender):
    """history -> encode -> states [B, L, D] -> state of the user [B, D] -> scores of the items [B, V].

    Config keys: layout, loss_type, temperature (cosine), n_negatives (sampled), initializer_range, objectives.
    """

    input_type = InputType.POINTWISE
    needs_target_domain = False  # True for a model that sees the target's domain when it scores; results say so
    needs_target_time = False  # True for a model that sees the target's time when it scores; results say so
    loss_types: tuple[str, ...] = LOSS_TYPES  # what the key loss_type may be

    other_objectives: tuple[str, ...] = ()  # losses that a model offers beside recommendation

    item_embedding: nn.Embedding  # [V or more, D]; rows past V are special tokens and are never scored

    def __init__(self, config: Any, dataset: Any):
        super().__init__(config, dataset)
        self.DOMAIN_ID = config["DOMAIN_FIELD"] or "domain_id"
        self.DOMAIN_SEQ = self.DOMAIN_ID + config["LIST_SUFFIX"]
        self.n_domains = dataset.num(self.DOMAIN_ID)
        self.layout = read_choice(config, "layout", LAYOUTS)
        self.loss_type = read_choice(config, "loss_type", self.loss_types)
        self.objectives = self._read_objectives(config)
        if "rec_per_domain" in self.objectives:
            self.domain_names = dataset.domain_names
            self.register_buffer("item_domain", dataset.item_domain, persistent=False)
        self.initializer_range = read_number(config, "initializer_range", 0, ends="()")
        if self.loss_type == "cosine":
            self.temperature = read_number(config, "temperature", 0, ends="()")
        if self.loss_type == "sampled":
            self.n_negatives = read_count(config, "n_negatives")

    def encode(self, interaction: Any) -> Tensor:
        """States of the history, [B, L, D]; the state at t may depend on events up to t only."""
        raise NotImplementedError(f"{type(self).__name__} must define encode(interaction)")

    def calculate_losses(self, interaction: Any) -> dict[str, Tensor]:
        """Scalar losses by name; the trainer balances them. Here: the recommendation loss(es)."""
        targets, wanted = self.targets(interaction)
        return self.recommendation_losses(select(self.encode(interaction), wanted), select(targets, wanted))

    def calculate_loss(self, interaction: Any) -> Tensor:
        """Plain sum of the losses, for trainers that know only one."""
        return sum(self.calculate_losses(interaction).values())

    def predict(self, interaction: Any) -> Tensor:
        """Score of each row's item_id, [B]."""
        state, table = self.comparable(self.user_state(interaction), self.item_table())
        items = interaction[self.ITEM_ID]
        scores = (state * table[items]).sum(-1)
        bias = self.item_bias()
        return scores if bias is None else scores + bias[items]

    def full_sort_predict(self, interaction: Any) -> Tensor:
        """Scores of all items, [B, V]."""
        return self.score_items(self.user_state(interaction))

    def user_state(self, interaction: Any) -> Tensor:
        """What the model knows of each user after the whole history, [B, D]; blind to the target."""
        return self.gather_indexes(self.encode(interaction), interaction[self.ITEM_SEQ_LEN] - 1)

    def score_items(self, state: Tensor, items: Tensor | None = None) -> Tensor:
        """Scores [B, n] of ``items`` [n] (all V if None) for states [B, D]: dot product (+ bias), or cosine / t."""
        table, bias = self.item_table(), self.item_bias()
        if items is not None:
            table, bias = table[items], None if bias is None else bias[items]
        state, table = self.comparable(state, table)
        scores = state @ table.T
        return scores if bias is None else scores + bias

    def shared_parameters(self) -> list[nn.Parameter]:
        """The parameters that all losses reach, the item table left out; the trainer compares gradients over these."""
        return []

    def transfer_record(self, interaction: Any) -> Tensor | None:
        """Mean attention of queries of each domain on keys of each domain, [C, C]; None if the model has none."""
        return None

    def targets(self, interaction: Any) -> tuple[Tensor, Tensor]:
        """Target item of each position [B, L], and where there is one [B, L].

        ``sequence``: each event's target is the next one, and item_id follows the last. ``prefix``: item_id only.
        """
        last = interaction[self.ITEM_SEQ_LEN].unsqueeze(1) - 1
        position = torch.arange(interaction[self.ITEM_SEQ].size(1), device=last.device)
        wanted = position == last if self.layout == "prefix" else position <= last
        return self.following(interaction, self.ITEM_SEQ, self.ITEM_ID), wanted

    def following(self, interaction: Any, list_field: str, field: str) -> Tensor:
        """What follows each event, [B, L]: the next value of the list, the target's after the last; void at padding."""
        values, last = interaction[list_field], interaction[self.ITEM_SEQ_LEN].unsqueeze(1) - 1
        position = torch.arange(values.size(1), device=values.device)
        return torch.where(position == last, interaction[field].unsqueeze(1), F.pad(values[:, 1:], (0, 1)))

    def item_loss(self, states: Tensor, targets: Tensor) -> Tensor:
        """Mean loss over the catalogue by ``loss_type``; states [N, D] and targets [N] without padding."""
        if self.loss_type == "cosine":
            return cosine_softmax_loss(states, self.item_table(), targets, self.temperature)
        if self.loss_type == "sampled":
            negatives, log_probability = draw_negatives(self.n_negatives, self.n_items, "uniform", targets.device)
            table, bias, targets, negatives = self.candidates(targets, negatives)
            return sampled_softmax_loss(states, table, targets, negatives, log_probability, bias)
        return full_softmax_loss(states, self.item_table(), targets, self.item_bias())

    def recommendation_losses(self, states: Tensor, targets: Tensor) -> dict[str, Tensor]:
        """``rec``; or with the objective rec_per_domain one mean loss for each domain of targets, rec_<domain>.

        states [N, D], targets [N]. The loss of a domain without targets is 0. Means are over all processes.
        """
        if "rec_per_domain" not in self.objectives:
            return {"rec": self.item_loss(states, targets) * distributed.share(targets.numel())}
        domain = self.item_domain[targets]
        counts = torch.bincount(domain, minlength=self.n_domains)
        shares = distributed.share(counts) * torch.ones_like(counts)
        order = domain.argsort(stable=True).split(counts.tolist())
        return {
            f"rec_{name}": self.item_loss(states[rows], targets[rows]) * part
            for name, rows, part in list(zip(self.domain_names, order, shares, strict=True))[1:]
        }

    def _read_objectives(self, config: Any) -> tuple[str, ...]:
        names = config["objectives"]
        if names is None and not self.other_objectives:  # a model of one loss needs no key
            names = ["rec"]
        known = ("rec", "rec_per_domain", *self.other_objectives)
        fits = isinstance(names, list) and all(name in known and names.count(name) == 1 for name in names)
        if not fits or len({"rec", "rec_per_domain"} & set(names)) != 1:
            others = "".join(f", then {name} or not" for name in self.other_objectives)
            raise CDSRError(f"the key 'objectives' takes a list: rec or rec_per_domain{others}; but got {names!r}")
        return tuple(names)

    def item_table(self) -> Tensor:
        """Embeddings of the V items, [V, D]."""
        table = self.item_embedding.weight
        return table if table.size(0) == self.n_items else table[: self.n_items]

    def item_bias(self) -> Tensor | None:
        """Addend to the score of each item, [V]; None for none."""
        return None

    def candidates(self, *items: Tensor) -> tuple[Tensor | None, ...]:
        """Table, bias, and the numbers of ``items`` in them: the whole catalogue's, or with gradients by rows a table
        of these items alone, whose backward pass never makes a tensor of all items."""
        if not self.item_embedding.sparse:
            return self.item_table(), self.item_bias(), *items
        chosen, places = torch.unique(torch.cat([x.flatten() for x in items]), return_inverse=True)
        parts = places.split([x.numel() for x in items])
        bias = self.item_bias()
        table, bias = self.item_embedding(chosen), None if bias is None else bias[chosen]
        return table, bias, *(part.view_as(x) for part, x in zip(parts, items, strict=True))

    def comparable(self, state: Tensor, table: Tensor) -> tuple[Tensor, Tensor]:
        """States and item vectors whose dot product is the score that ``loss_type`` trains."""
        if self.loss_type not in ("cosine", "sampled_cosine"):
            return state, table
        return F.normalize(state, dim=-1) / self.temperature, F.normalize(table, dim=-1)

    def init_weights(self, module: nn.Module) -> None:
        """RecBole's initialisation: normal weights (the padding row too), zero biases, LayerNorm as identity."""
        if isinstance(module, (nn.Linear, nn.Embedding)):
            nn.init.normal_(module.weight, std=self.initializer_range)
        if isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)


def select(values: Tensor, wanted: Tensor) -> Tensor:
    """``values[wanted]`` for values [B, L, ...] and a mask [B, L], with a cheaper backward pass than mask indexing."""
    return values.flatten(0, 1).index_select(0, wanted.flatten().nonzero().squeeze(1))
