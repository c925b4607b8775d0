"""What every strategy holds, ours and TorchJD's: defined weights for any step, absent domains, order, scale."""

from __future__ import annotations

import math

import pytest
import torch

from recbole_cdsr.objectives import STRATEGIES
from tests.balancing import double, objectives, random_gradients, random_step, strategy

EVERY = list(STRATEGIES)
WITH_GRADIENTS = [name for name in EVERY if name not in ("none", "fixed")]
every_strategy = pytest.mark.parametrize("name", EVERY)


def cases(names: list[str], *sizes: int) -> pytest.MarkDecorator:
    """Each strategy with each number of objectives that it takes."""
    return pytest.mark.parametrize(("name", "n"), [(x, n) for x in names for n in sizes if x != "pareto" or n == 2])


def ask(name: str, matrix: torch.Tensor, losses: torch.Tensor, names: tuple[str, ...], **options):
    torch.manual_seed(0)  # PCGrad draws an order
    outcome = strategy(name, **options)(matrix, losses, names)
    assert outcome.weights.shape == losses.shape
    assert outcome.weights.dtype == losses.dtype
    assert outcome.weights.isfinite().all()
    assert all(isinstance(value, float) and math.isfinite(value) for value in outcome.log.values())
    return outcome


def spoil(matrix: torch.Tensor, losses: torch.Tensor, which: int, how: str) -> tuple[torch.Tensor, torch.Tensor]:
    """The step with one objective broken."""
    matrix, losses = matrix.clone(), losses.clone()
    if how.endswith("loss"):
        losses[which] = {"nan loss": math.nan, "inf loss": math.inf}[how]
    else:
        value = {"zero gradient": 0.0, "nan gradient": math.nan, "inf gradient": math.inf}[how]
        matrix[which, :] = matrix[:, which] = value
    return matrix, losses


@cases(EVERY, 2, 3, 6, 21)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_sound_step_has_finite_weights_and_a_full_log(name, n, dtype):
    matrix, losses = random_step(n, n)
    outcome = ask(name, matrix.to(dtype), losses.to(dtype), objectives(n))
    assert outcome.weights.abs().sum() > 0
    assert outcome.log["skipped"] == 0.0
    expected = {f"weight_{objective}" for objective in objectives(n)} | {"clipped", "skipped"}
    if name in WITH_GRADIENTS:
        expected |= {f"{what}_{objective}" for objective in objectives(n) for what in ("gradient_norm", "angle")}
        expected |= {"cosine", "conflict"}
        expected |= {"cosine_min"} if n > 2 else set()
        expected |= {"factor"} if name == "preference" else set()
    assert set(outcome.log) == expected
    assert outcome.weights.tolist() == pytest.approx([outcome.log[f"weight_{o}"] for o in objectives(n)])


@cases(EVERY, 2, 3, 6)
def test_angles_are_those_between_gradients_and_the_step(name, n):
    vectors = double(random_gradients(n, n, 30, "aligned"))
    _, losses = random_step(n, n)
    outcome = ask(name, vectors @ vectors.T, losses, objectives(n), record_gradients=True)
    step = outcome.weights @ vectors
    cosines = torch.nn.functional.cosine_similarity(vectors, step[None])
    logged = [outcome.log[f"angle_{objective}"] for objective in objectives(n)]
    assert logged == pytest.approx(torch.rad2deg(torch.arccos(cosines)).tolist(), abs=1e-5)


@pytest.mark.parametrize("name", ["none", "fixed"])
def test_gradients_are_recorded_where_no_decision_needs_them(name):
    matrix, losses = random_step(3, 3)
    plain = ask(name, None, losses, objectives(3))
    seen = ask(name, matrix, losses, objectives(3), record_gradients=True)
    assert torch.equal(plain.weights, seen.weights)
    logged = {key: seen.log[key] for key in ("cosine", "cosine_min", "conflict", "gradient_norm_rec_0")}
    assert logged.items() <= ask("mgda", matrix, losses, objectives(3)).log.items()
    broken = ask(name, *spoil(matrix, losses, 2, "nan gradient"), objectives(3), record_gradients=True)
    assert "angle_cross_domain" not in broken.log and broken.log["cosine"] == broken.log["cosine_min"]


@every_strategy
def test_a_single_loss_has_weight_one(name):
    for loss in (4.0, 0.0, math.nan):
        outcome = strategy(name)(None, torch.tensor([loss]), ("rec",))
        assert outcome.weights.tolist() == [1.0]
        assert outcome.log == {}


@cases(WITH_GRADIENTS, 2, 3, 6, 21)
@pytest.mark.parametrize("how", ["zero gradient", "nan gradient", "inf gradient", "nan loss", "inf loss"])
def test_a_broken_objective_is_left_out_and_counted(name, n, how):
    """The others are balanced as if it were not there; a broken recommendation loss stays visible in the sum."""
    matrix, losses = random_step(n, n)
    for which in (0, n - 1):
        outcome = ask(name, *spoil(matrix, losses, which, how), objectives(n))
        assert outcome.log["skipped"] == 1.0
        if n == 2:
            assert outcome.weights.tolist() == [1.0, 0.0]
            assert "cosine" not in outcome.log
            assert outcome.log.get("factor", 0.0) == 0.0
            continue
        if which == 0:
            assert outcome.weights[0] == pytest.approx(1 / (n - 2))
        else:
            assert outcome.weights[-1] == 0.0
        if name != "preference" or which == 0:
            rest = [number for number in range(n) if number != which]
            alone = ask(name, matrix[rest][:, rest], losses[rest], tuple(objectives(n)[number] for number in rest))
            torch.testing.assert_close(outcome.weights[rest], alone.weights)


@cases(EVERY, 3, 6, 21)
def test_an_absent_domain_changes_nothing_for_the_others(name, n):
    matrix, losses = random_step(n, n + 1)
    absent, losses = 1, losses.clone()
    matrix, losses = spoil(matrix, losses, absent, "zero gradient")
    losses[absent] = 0.0
    outcome = ask(name, matrix, losses, objectives(n), cross_domain_weight=0.5)
    rest = [number for number in range(n) if number != absent]
    names = tuple(objectives(n)[number] for number in rest)
    alone = ask(name, matrix[rest][:, rest], losses[rest], names, cross_domain_weight=0.5)
    assert outcome.weights[absent] == 0.0
    assert outcome.log["skipped"] == 0.0
    torch.testing.assert_close(outcome.weights[rest], alone.weights)


@cases(WITH_GRADIENTS, 2, 3, 6, 21)
def test_a_step_without_any_usable_recommendation_is_that_of_none(name, n):
    names = objectives(n)
    expected = [1 / (n - 1)] * (n - 1) + [0.0]
    usable_penalty = torch.zeros(n, n)
    usable_penalty[-1, -1] = 1.0
    for matrix in (torch.zeros(n, n), torch.full((n, n), math.nan), usable_penalty):
        for losses in (torch.ones(n), torch.zeros(n), torch.full((n,), math.nan)):
            outcome = ask(name, matrix, losses, names, negative_factor="keep")
            assert outcome.weights.tolist() == pytest.approx(expected)
            assert outcome.log["skipped"] == 1.0


@pytest.mark.parametrize("name", WITH_GRADIENTS)
@pytest.mark.parametrize("matrix", [[[1.0, 1.0], [1.0, 1.0]], [[1.0, -1.0], [-1.0, 1.0]], [[1.0, math.nan], [0.0, 1.0]],
                                    [[1e-20, 0.0], [0.0, 1e30]], [[-1.0, 0.0], [0.0, 1.0]]])  # fmt: skip
def test_identical_opposed_and_senseless_gradients_have_finite_weights(name, matrix):
    for losses in ([4.0, 0.2], [0.2, 4.0], [0.0, 0.2]):
        assert ask(name, double(matrix), double(losses), objectives(2)).weights.abs().sum() > 0


@cases([name for name in WITH_GRADIENTS if name not in ("pcgrad", "nash_mtl")], 3, 6, 21)
def test_the_order_of_domains_does_not_matter(name, n):
    """Not for PCGrad, which draws an order, nor for Nash-MTL, which stops early."""
    matrix, losses = random_step(n, n)
    order = torch.cat([torch.randperm(n - 1, generator=torch.Generator().manual_seed(n)), torch.tensor([n - 1])])
    names = tuple(objectives(n)[number] for number in order)
    permuted = ask(name, matrix[order][:, order], losses[order], names).weights
    tolerance = 1e-3 if name == "cagrad" else 1e-8  # an iterative solver
    torch.testing.assert_close(
        permuted, ask(name, matrix, losses, objectives(n)).weights[order], rtol=0, atol=tolerance
    )


@cases([name for name in WITH_GRADIENTS if name != "nash_mtl"], 2, 6)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_common_scale_of_gradients_does_not_matter(name, n, dtype):
    """Not for Nash-MTL, which bounds the norm of the step."""
    matrix, losses = random_step(n, n)
    expected = ask(name, matrix.to(dtype), losses, objectives(n)).weights
    for scale in (1e-10, 1e-3, 1e5, 1e15):
        weights = ask(name, (matrix * scale**2).to(dtype), losses, objectives(n)).weights
        torch.testing.assert_close(weights, expected, rtol=1e-4, atol=1e-5)


@cases([name for name in EVERY if name != "none"], 2, 6)
def test_cross_domain_weight_scales_a_cd_alone(name, n):
    matrix, losses = random_step(n, n)
    published = ask(name, matrix, losses, objectives(n)).weights
    scaled = ask(name, matrix, losses, objectives(n), cross_domain_weight=0.02).weights
    assert torch.equal(scaled[:-1], published[:-1])
    torch.testing.assert_close(scaled[-1], 0.02 * published[-1])
