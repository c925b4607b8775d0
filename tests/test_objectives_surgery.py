"""Gradient surgery by TorchJD: the published answers, failing solvers, missing libraries, state between epochs."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch

from recbole_cdsr.errors import CDSRError
from recbole_cdsr.objectives import make_weighting, surgery
from tests.balancing import double, objectives, random_gradients, random_step, strategy

EVERY = list(surgery.STRATEGIES)
PAIR = objectives(2)


def ask(name: str, gradients: np.ndarray, **options) -> np.ndarray:
    """Weights for these gradients, a row each."""
    losses = torch.ones(len(gradients), dtype=torch.float64)
    return strategy(name, **options)(
        double(gradients @ gradients.T), losses, objectives(len(gradients))
    ).weights.numpy()


def test_pcgrad_projects_each_of_two_off_the_other():
    gradients = np.array([[1.0, 0.0], [-1.0, 2.0]])
    a, b = gradients
    expected = (a - (a @ b) / (b @ b) * b) + (b - (a @ b) / (a @ a) * a)
    np.testing.assert_allclose(ask("pcgrad", gradients) @ gradients, expected, atol=1e-12)


@pytest.mark.parametrize("n", [2, 5])
def test_imtl_g_projects_equally_on_all_gradients(n):
    gradients = random_gradients(n, n, 20)
    projections = gradients @ (ask("imtl_g", gradients, negative_factor="keep") @ gradients)
    lengths = projections / np.linalg.norm(gradients, axis=1)
    np.testing.assert_allclose(lengths, lengths[0], rtol=1e-6)


@pytest.mark.parametrize("n", [2, 5])
def test_upgrad_conflicts_with_no_gradient(n):
    gradients = random_gradients(n, n, 20, "opposed" if n == 5 else "random")
    update = ask("upgrad", gradients) @ gradients
    assert (gradients @ update).min() > -1e-3 * np.linalg.norm(gradients) ** 2


@pytest.mark.parametrize("n", [2, 5])
def test_cagrad_stays_within_half_the_mean_gradient_of_it(n):
    gradients = random_gradients(n, n, 20)
    mean = gradients.mean(0)
    distance = np.linalg.norm(ask("cagrad", gradients) @ gradients - mean)
    assert distance == pytest.approx(0.5 * np.linalg.norm(mean), rel=1e-3)


@pytest.mark.parametrize("scale", [0.01, 100.0])
def test_nash_mtl_bounds_the_norm_of_the_step(scale):
    gradients = scale * random_gradients(2, 3, 20)
    norm = np.linalg.norm(ask("nash_mtl", gradients) @ gradients)
    assert 0 < norm < 1 + 1e-6


def test_negative_weights_of_imtl_g_are_clipped_or_kept():
    gradients = np.array([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.6, 0.6, 0.1]])
    assert ask("imtl_g", gradients, negative_factor="keep").min() < 0
    assert ask("imtl_g", gradients).min() == 0


@pytest.mark.parametrize("name", ["imtl_g", "cagrad"])
def test_all_zero_weights_are_no_answer(name):
    outcome = strategy(name)(double([[1.0, -1.0], [-1.0, 1.0]]), double([1.0, 1.0]), PAIR)
    assert outcome.weights.tolist() == [1.0, 0.0]
    assert outcome.log["skipped"] == 1.0


@pytest.mark.parametrize("name", EVERY)
def test_a_failing_solver_means_the_weights_of_none(name):
    weighting = strategy(name)
    matrix, losses = random_step(4)

    def fail(error):
        def solver(matrix):
            raise error("no solution")

        return solver

    answers = [fail(error) for error in weighting.failures] + [lambda matrix: matrix[0] * torch.nan]
    for weighting.solver in answers:
        outcome = weighting(matrix, losses, objectives(4))
        assert outcome.weights.tolist() == pytest.approx([1 / 3, 1 / 3, 1 / 3, 0.0])
        assert outcome.log["skipped"] == 1.0
        assert "cosine" in outcome.log
    weighting.solver = fail(KeyError)  # a mistake, not a failure
    with pytest.raises(KeyError):
        weighting(matrix, losses, objectives(4))


def test_a_solver_that_gives_up_silently_has_failed_too(monkeypatch):
    weighting = strategy("cagrad")
    monkeypatch.setattr("cvxpy.Problem.solve", lambda *_, **__: None)
    outcome = weighting(*random_step(3), objectives(3))
    assert outcome.weights.tolist() == [0.5, 0.5, 0.0]
    assert outcome.log["skipped"] == 1.0


@pytest.mark.parametrize(
    ("name", "library", "extra"),
    [
        ("pcgrad", "torchjd", "surgery"),
        ("imtl_g", "torchjd", "surgery"),
        ("cagrad", "torchjd", "surgery"),
        ("cagrad", "cvxpy", "surgery"),
        ("upgrad", "quadprog", "surgery-gpl"),
        ("upgrad", "qpsolvers", "surgery-gpl"),
        ("nash_mtl", "ecos", "surgery-gpl"),
    ],
)
def test_a_missing_library_names_the_extra(monkeypatch, name, library, extra):
    for module in [module for module in sys.modules if module.partition(".")[0] == library]:
        monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(CDSRError, match=rf'pip install "recbole-cdsr\[{extra}\]"'):
        make_weighting(name)


@pytest.mark.parametrize("name", EVERY)
def test_an_epoch_does_not_depend_on_the_one_before(name):
    steps = [random_step(n, seed) for seed, n in enumerate((3, 3, 2, 3))]

    def epoch(weighting):
        weighting.start_epoch()
        torch.manual_seed(1)
        return [weighting(matrix, losses, objectives(len(losses))).weights for matrix, losses in steps]

    resumed, whole = strategy(name), strategy(name)
    first, second, again = epoch(whole), epoch(whole), epoch(resumed)
    for weights in zip(first, second, again, strict=True):
        assert torch.equal(weights[0], weights[1])
        assert torch.equal(weights[0], weights[2])


def test_nash_mtl_starts_from_the_last_step_within_an_epoch():
    weighting = strategy("nash_mtl")
    one, other = random_step(3, 1), random_step(3, 2)
    weighting(*one, objectives(3))
    warm = weighting(*other, objectives(3)).weights
    weighting.start_epoch()
    cold = weighting(*other, objectives(3)).weights
    torch.testing.assert_close(warm, cold, rtol=0.1, atol=0.05)
    assert not torch.equal(warm, cold)
