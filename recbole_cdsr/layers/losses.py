"""Losses over the item catalogue.

``full_softmax_loss`` keeps RecBole's maths: every row of the table is a class, the padding row 0 too, so that quality
compares like for like. It takes the gradients in the forward pass, chunk by chunk, so that neither logits nor
probabilities of all targets ever exist at once; the idea is that of the fused linear cross entropy of Liger Kernel
(https://arxiv.org/abs/2410.10989).

``sampled_softmax_loss`` is the importance-sampled softmax of Bengio and Senecal (2008): negatives carry the log-Q
correction, the positive does not, and negatives that hit the positive are left out, so that the partition function
is estimated without bias. It tends to the full softmax over items 1 .. V-1 as the negatives grow.

``sampled_cosine_loss`` is HSTU's: cosines, and negatives of its own for each target.

The caller drops padding positions first: ``states[valid]``.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

# Logits made at once on CPU: as many as stay in a core's cache. Against one piece with autograd, forward and backward,
# D 64, one thread: 2.0 times faster at 1,683 items, 2.0 at 20,000, 1.9 at 100,000; 32 to 128 rows run alike.
LOGITS_PER_CHUNK = 2**17
LOGITS_PER_CHUNK_ON_ACCELERATOR = 2**26  # 256 MiB: fewer, larger kernels
# With fewer rows the products with a large table get slow; 64 rows of a million items take 256 MB.
MIN_CHUNK_ROWS = 64
# Numbers in the vectors of negatives that are gathered at once where each target has its own: 64 MiB.
GATHERED_PER_CHUNK = 2**24

SAMPLERS = ("uniform", "log_uniform")


def full_softmax_loss(states: Tensor, table: Tensor, targets: Tensor, bias: Tensor | None = None) -> Tensor:
    """Mean cross entropy of ``targets`` [N] under softmax(states [N, D] @ table [V, D].T + bias [V]); scalar.

    All V rows are classes, row 0 included, as in RecBole. Differentiable once in states, table and bias. No targets
    give 0 with zero gradients. At most max(LOGITS_PER_CHUNK, MIN_CHUNK_ROWS * V) logits exist at once.
    """
    if not torch.is_grad_enabled():  # the function itself cannot see this, and would take gradients
        states, table, bias = states.detach(), table.detach(), None if bias is None else bias.detach()
    return _FullSoftmax.apply(states, table, bias, targets)


def cosine_softmax_loss(states: Tensor, table: Tensor, targets: Tensor, temperature: float) -> Tensor:
    """``full_softmax_loss`` on cosine(states, table) / temperature; AutoCDSR's paper, equation of the loss."""
    return full_softmax_loss(F.normalize(states, dim=-1) / temperature, F.normalize(table, dim=-1), targets)


def sampled_softmax_loss(
    states: Tensor,
    table: Tensor,
    targets: Tensor,
    negatives: Tensor,
    log_probability: Tensor,
    bias: Tensor | None = None,
) -> Tensor:
    """Mean sampled softmax loss of ``targets`` [N] on states [N, D] @ table [V, D].T + bias [V]; scalar.

    ``negatives`` [n], shared by all targets, and the log of the probability with which each was drawn [n]: see
    ``draw_negatives``.
    """
    positive = (states * table[targets]).sum(-1).float()
    negative = (states @ table[negatives].T).float() - (log_probability + math.log(len(negatives)))
    if bias is not None:
        positive, negative = positive + bias[targets], negative + bias[negatives]
    negative = negative.masked_fill(targets[:, None] == negatives, -math.inf)
    partition = torch.logsumexp(torch.cat([positive[:, None], negative], dim=1), dim=1)
    return (partition - positive).sum() / max(targets.numel(), 1)


def sampled_cosine_loss(
    states: Tensor,
    table: Tensor,
    targets: Tensor,
    negatives: Tensor,
    temperature: float,
    log_expected: Tensor | None = None,
) -> Tensor:
    """Mean sampled softmax loss of ``targets`` [N] on cosine / temperature; ``negatives`` [N, n], see NegativeSampler.

    Negatives that hit the positive are left out. log_expected [N]: log of how often the draw takes each of its items on
    average, subtracted from negatives (log-Q), so that the loss tends to the full softmax as n grows; None: as drawn.
    At most max(n * D, GATHERED_PER_CHUNK) numbers of negatives' vectors exist at once, in the backward pass too.
    """
    states, table = F.normalize(states, dim=-1) / temperature, F.normalize(table, dim=-1)
    if log_expected is None:
        log_expected = states.new_zeros(len(targets))
    rows = max(1, GATHERED_PER_CHUNK // max(1, negatives.size(1) * table.size(1)))
    parts = [x.split(rows) for x in (states, targets, negatives, log_expected)]
    if len(targets) <= rows:
        total = _sampled_loss_sum(table, states, targets, negatives, log_expected)
    else:  # gathered again in the backward pass
        total = sum(
            checkpoint(_sampled_loss_sum, table, *part, use_reentrant=False, preserve_rng_state=False)
            for part in zip(*parts, strict=True)
        )
    return total / max(targets.numel(), 1)


def _sampled_loss_sum(table: Tensor, states: Tensor, targets: Tensor, negatives: Tensor, log_expected: Tensor):
    positive = (states * F.embedding(targets, table)).sum(-1, keepdim=True).float()
    negative = torch.bmm(F.embedding(negatives, table), states.unsqueeze(2)).squeeze(2).float()
    negative = negative - log_expected.unsqueeze(1)
    negative = negative.masked_fill(negatives == targets.unsqueeze(1), -math.inf)
    return (torch.logsumexp(torch.cat([positive, negative], dim=1), dim=1) - positive.squeeze(1)).sum()


class NegativeSampler(torch.nn.Module):
    """Draws items uniformly and with replacement for each target: of the catalogue, or of the target's domain.

    Args:
        item_domain: domain of each item [V], 0 for the padding item 0, which is never drawn.
        within_domain: whether negatives come from the target's domain only.
    """

    def __init__(self, item_domain: Tensor, within_domain: bool):
        super().__init__()
        pool = item_domain if within_domain else (item_domain > 0).long()
        count = torch.bincount(pool)
        for name, values in {
            "pool": pool,
            "items": pool.argsort(stable=True),  # those of each pool stand together
            "first": count.cumsum(0) - count,
            "count": count,
        }.items():
            self.register_buffer(name, values, persistent=False)

    def forward(self, targets: Tensor, n_negatives: int) -> tuple[Tensor, Tensor]:
        """Items [N, n] for targets [N], and the log of how often each item of the pool is drawn on average, [N]."""
        pool = self.pool[targets]
        count = self.count[pool]
        # In float64: float32 cannot tell more than 2**24 items apart, and its product may round up to the count.
        place = torch.rand(len(targets), n_negatives, device=targets.device, dtype=torch.float64) * count.unsqueeze(1)
        items = self.items[self.first[pool].unsqueeze(1) + place.long()]
        return items, math.log(n_negatives) - count.float().log()


def draw_negatives(count: int, n_items: int, sampler: str, device: torch.device) -> tuple[Tensor, Tensor]:
    """``count`` items of 1 .. n_items - 1, drawn with replacement, and the log probability of each, both [count].

    ``log_uniform`` draws item i with probability log((i + 1) / i) / log(V): it follows popularity only where item ids
    are sorted by falling frequency. Raises ValueError for any other sampler than it and ``uniform``.
    """
    if sampler == "uniform":
        negatives = torch.randint(1, n_items, (count,), device=device)
        return negatives, torch.full((count,), -math.log(n_items - 1), device=device)
    if sampler == "log_uniform":
        # The inverse of the distribution function log(i + 1) / log(V), in float64: large catalogues need the digits.
        uniform = torch.rand(count, device=device, dtype=torch.float64)
        negatives = torch.exp(uniform * math.log(n_items)).long().clamp_(1, n_items - 1)
        return negatives, torch.log(torch.log1p(1.0 / negatives.double()) / math.log(n_items)).float()
    raise ValueError(f"sampler is {sampler!r}; choose from {', '.join(SAMPLERS)}")


class _FullSoftmax(torch.autograd.Function):
    @staticmethod
    def forward(ctx, states: Tensor, table: Tensor, bias: Tensor | None, targets: Tensor) -> Tensor:
        wanted = ctx.needs_input_grad[:3]
        gradients = [
            torch.zeros_like(x, dtype=torch.float32) if need else None
            for x, need in zip((states, table, bias), wanted, strict=True)
        ]
        budget = LOGITS_PER_CHUNK if states.device.type == "cpu" else LOGITS_PER_CHUNK_ON_ACCELERATOR
        rows = max(MIN_CHUNK_ROWS, budget // table.size(0))
        loss = torch.zeros((), dtype=torch.float32, device=states.device)
        for start in range(0, targets.numel(), rows):
            chunk = slice(start, start + rows)
            loss += _add_chunk(states, table, bias, targets, gradients, chunk)
        count = max(targets.numel(), 1)
        ctx.count = count
        ctx.save_for_backward(*gradients)
        ctx.dtypes = [None if x is None else x.dtype for x in (states, table, bias)]
        return loss / count

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, upstream: Tensor):
        factor = upstream / ctx.count
        # Out of place: a graph that is kept may be walked again.
        return *(
            None if g is None else (g * factor).to(dtype)
            for g, dtype in zip(ctx.saved_tensors, ctx.dtypes, strict=True)
        ), None


def _add_chunk(states, table, bias, targets, gradients: list[Tensor | None], chunk: slice) -> Tensor:
    """Summed loss of the targets in ``chunk``; its gradients are added to ``gradients`` (of states, table, bias)."""
    states, targets = states[chunk], targets[chunk, None]
    logits = (states @ table.T).float()
    if bias is not None:
        logits += bias
    of_target = logits.gather(1, targets)
    largest = logits.amax(1, keepdim=True)
    probabilities = torch.softmax(logits, dim=1)
    # log of the partition function from the largest probability, which cannot underflow
    loss = (largest - probabilities.amax(1, keepdim=True).log() - of_target).sum()
    of_states, of_table, of_bias = gradients
    if of_states is None and of_table is None and of_bias is None:
        return loss
    difference = probabilities.scatter_add_(1, targets, torch.full_like(of_target, -1.0))
    if of_states is not None:
        of_states[chunk] = difference @ table
    if of_table is not None:
        _add_product(of_table, difference.T, states)
    if of_bias is not None:
        of_bias += difference.sum(0)
    return loss


def _add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """total += left @ right, in one pass unless autocast or another dtype forbids it."""
    if right.dtype == total.dtype and not torch.is_autocast_enabled(total.device.type):
        total.addmm_(left, right)
    else:
        total += left @ right.to(left.dtype)
