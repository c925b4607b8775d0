"""What the tests of the objectives share: gradients of many kinds, steps of M losses, strategies by name."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from recbole_cdsr.errors import CDSRError
from recbole_cdsr.objectives import Weighting, make_weighting, surgery


def double(values) -> torch.Tensor:
    return torch.as_tensor(values, dtype=torch.float64)


def random_gradients(seed: int, n: int, width: int, kind: str = "random") -> np.ndarray:
    rng = np.random.default_rng(seed)
    vectors = rng.standard_normal((n, width))
    if kind == "aligned":
        vectors += 2.0
    if kind == "mixed_scales":
        vectors *= 10.0 ** rng.uniform(-10, 15, (n, 1))
    if kind == "near_duplicates":
        vectors = vectors[rng.integers(0, n, n)] + 1e-7 * rng.standard_normal((n, width))
    if kind == "opposed":
        vectors[-1] = -3.0 * vectors[0]
    if kind == "integers":
        vectors = np.round(vectors) + 1.0
    return vectors


def objectives(n: int) -> tuple[str, ...]:
    """Names of n objectives, the last of them a_cd if there are more than one."""
    if n <= 2:
        return ("rec", "cross_domain")[:n]
    return (*(f"rec_{number}" for number in range(n - 1)), "cross_domain")


def random_step(n: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Gramian [n, n] and losses [n] of one step, float64; some gradients conflict."""
    vectors = double(random_gradients(seed, n, 30))
    losses = torch.rand(n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) + 2.0
    losses[1:][-1:] = 0.2
    return vectors @ vectors.T, losses


def strategy(name: str, **options) -> Weighting:
    """`make_weighting`, or a skipped test that says which library is missing."""
    try:
        return make_weighting(name, **options)
    except CDSRError as error:
        if name not in surgery.STRATEGIES or "not installed" not in str(error):
            raise
        pytest.skip(str(error))
