"""The history of one user as TAPE-DDSR-HSTU keeps it between events, so that an event costs no pass over the history.

Per domain, the keys and values of its events in every layer; per read of DDSR, the state of every domain. An event of
domain c touches the n_c keys of its domain and the C states.

What the last event gives depends on the domain of the next (by TAPE; other parts of the model may know it too). So the
last event stays open: it is computed when it is asked for, under the domain asked for, and once more if the next event
turns out to be of another. All earlier events are computed for good.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from recbole_cdsr.errors import CDSRError

FIRST_CAPACITY = 16


class Event(NamedTuple):
    """The last event of a history; position counts from 0, ``before`` is the domain of the event before it, or 0."""

    item: int
    domain: int
    time: float
    position: int
    before: int


class DomainCache:
    """Keys and values of the events of one domain, [layers, H, capacity, W], and their positions and times."""

    def __init__(self, sizes: tuple[int, int, int, int], like: Tensor):
        layers, heads, key_size, value_size = sizes
        self.count = 0
        self.key = like.new_empty(layers, heads, FIRST_CAPACITY, key_size)
        self.value = like.new_empty(layers, heads, FIRST_CAPACITY, value_size)
        self.position = torch.empty(FIRST_CAPACITY, dtype=torch.int32, device=like.device)
        self.time = torch.empty(FIRST_CAPACITY, dtype=torch.float64, device=like.device)

    def reserve(self, position: int, time: float) -> int:
        """Makes room behind the events for an open one; how many events there are with it."""
        if self.count == len(self.position):  # doubling: an event is copied once or twice, however long the history
            self.key, self.value = (torch.cat([x, torch.empty_like(x)], dim=2) for x in (self.key, self.value))
            self.position, self.time = (torch.cat([x, torch.empty_like(x)]) for x in (self.position, self.time))
        self.position[self.count], self.time[self.count] = position, time
        return self.count + 1


class UserHistory:
    """Events of one user; made by ``TAPEDDSRHSTU.start``.

    Raises:
        CDSRError: from any method, for a model in training mode or with ``query_time: next``, events out of order or
            out of range, more events than MAX_ITEM_LIST_LENGTH, or a missing target domain.
    """

    @torch.no_grad()
    def __init__(self, model):
        if model.query_time == "next":
            raise CDSRError("with query_time: next an event depends on the next one's time; use last or none to serve")
        self.model = model
        self.layers = model.encoder.layers
        self.weight = model.item_embedding.weight
        self.caches: dict[int, DomainCache] = {}
        self.changes = model.transition.table() if model.tape != "off" else None
        known = torch.arange(1, model.n_domains, device=self.weight.device)
        self.states = []  # of each read: vectors [C - 1, D], keys and values [C - 1, H, W]
        for read in model.reads:
            vectors = read.unseen.weight[1:]
            self.states.append([x.clone() for x in (vectors, *read.keys_and_values(vectors, known))])
        self.open: Event | None = None
        self.assumed: int | None = None  # the next domain under which the open event was computed
        self.found: list[tuple[Tensor, Tensor, Tensor]] = []  # by it: its row in the states of each read
        self.result: Tensor | None = None  # by it: the state of the user [D]

    def __len__(self) -> int:
        return 0 if self.open is None else self.open.position + 1

    @torch.no_grad()
    def append(self, item: int, domain: int, time: float) -> None:
        """Adds an event: its item, its domain, and when it happened, in seconds since whenever."""
        self._check(item, domain, time)
        before = 0
        if self.open is not None:
            before = self.open.domain
            self._compute(domain)
            self.caches[before].count += 1
            for states, row in zip(self.states, self.found, strict=True):
                for whole, new in zip(states, row, strict=True):
                    whole[before - 1] = new[0]
        self.open, self.assumed = Event(item, domain, time, len(self), before), None

    @torch.no_grad()
    def state(self, target_domain: int | None = None) -> Tensor:
        """The state of the user [D] before an event of the target domain, which may be left out if nothing needs it."""
        if self.open is None:
            raise CDSRError("this user has no events yet; append one before asking for scores")
        if self.model.needs_target_domain and target_domain not in range(1, self.model.n_domains):
            raise CDSRError(f"this model needs a target domain from 1 to {self.model.n_domains - 1}: {target_domain!r}")
        self._compute(target_domain)
        return self.result

    def cache(self, domain: int) -> DomainCache:
        """The events of a domain, for all layers."""
        if domain not in self.caches:
            first = self.layers[0]
            _, value_size, _, key_size = (width // first.n_heads for width in first.widths)
            self.caches[domain] = DomainCache((len(self.layers), first.n_heads, key_size, value_size), self.weight)
        return self.caches[domain]

    def _check(self, item: int, domain: int, time: float) -> None:
        model, n = self.model, self.model.max_seq_length
        if item not in range(1, model.n_items) or domain not in range(1, model.n_domains):
            raise CDSRError(f"there is no item {item} or no domain {domain}; numbers start at 1")
        if self.open is not None and not time >= self.open.time:
            raise CDSRError(f"an event at {time} cannot follow one at {self.open.time}; append events in order of time")
        if len(self) == n:
            raise CDSRError(f"the history has MAX_ITEM_LIST_LENGTH ({n}) events; start anew with the latest of them")

    def _compute(self, following: int | None) -> None:
        """Computes the open event for a next event of the domain ``following``, unless that is done already."""
        if self.model.training:
            raise CDSRError("the model is in training mode; call model.eval() first")
        following = following if self.model.needs_target_domain else 0
        if following == self.assumed:
            return
        event, self.found = self.open, []
        cache = self.cache(event.domain)
        count = cache.reserve(event.position, event.time)
        vector = self._input(event, following).view(1, 1, -1)
        silent = len(self.layers) - len(self.states)
        for number in range(len(self.layers)):
            vector = self._attend(number, vector, cache, count)
            if self.states and number >= silent:
                vector = self._read(number - silent, vector[0], event.domain, following).unsqueeze(0)
        self.result, self.assumed = vector[0, 0], following

    def _input(self, event: Event, following: int) -> Tensor:
        """Input of the first block, [D]."""
        model = self.model
        vector = (
            self.weight[event.item] * math.sqrt(len(self.weight[0])) + model.position_embedding.weight[event.position]
        )
        if model.target_domain_input:
            vector = vector + model.domain_embedding.weight[following]
        if model.tape == "next":
            return vector + self.changes[event.domain, following]
        return vector + self.changes[event.before, event.domain] if model.tape == "causal" else vector

    def _attend(self, number: int, vector: Tensor, cache: DomainCache, count: int) -> Tensor:
        """One block for the open event [1, 1, D], whose key and value take the last place of the cache."""
        layer, model = self.layers[number], self.model
        gate, value, query, key = layer.project(vector)
        cache.key[number, :, count - 1], cache.value[number, :, count - 1] = key[0, :, 0], value[0, :, 0]
        position, time = cache.position[:count], cache.time[:count]
        scores = query[0] @ cache.key[number, :, :count].transpose(1, 2)
        scores += layer.bias(position[-1:], position, time[-1:], time)
        if model.attention_kind == "silu":
            weights = F.silu(scores) / model.max_seq_length
        else:
            weights = torch.softmax(scores, dim=-1)
        return layer.output(vector, gate, (weights @ cache.value[number, :, :count]).unsqueeze(0))

    def _read(self, number: int, vector: Tensor, domain: int, following: int) -> Tensor:
        """One read for the open event [1, D], which is the state of its own domain."""
        read = self.model.reads[number]
        own = torch.tensor([domain], device=vector.device)
        row = (vector, *read.keys_and_values(vector, own))
        self.found.append(row)
        rows, key, value = (torch.cat(pair) for pair in zip(self.states[number], row, strict=True))
        latest = torch.arange(len(rows) - 1, device=vector.device)
        latest[domain - 1] = len(rows) - 1
        target = torch.tensor([following], device=vector.device) if self.model.needs_target_domain else None
        return read.combine(vector, rows, target, latest.unsqueeze(0), key, value)
