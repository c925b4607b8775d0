"""Each strategy of ours: what it decides, that it is the method it is called after, what it logs and refuses."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from recbole_cdsr.errors import CDSRError
from recbole_cdsr.objectives import gramian, make_weighting, min_norm_weights, pareto_weights, preference_weights
from tests.balancing import double, objectives, random_step

PAIR = objectives(2)
LOSSES = torch.tensor([4.0, 0.25])  # (rec, cross_domain)


def pair(cosine: float) -> torch.Tensor:
    return double([[1.0, cosine], [cosine, 1.0]])


# none and fixed


def test_none_and_fixed_need_no_gradients():
    none, fixed = make_weighting("none"), make_weighting("fixed", cross_domain_weight=0.3)
    assert not none.needs_gradients
    assert not fixed.needs_gradients
    assert none(None, LOSSES, PAIR).weights.tolist() == [1.0, 0.0]
    outcome = fixed(None, LOSSES.clone().requires_grad_(), PAIR)
    assert outcome.weights.tolist() == pytest.approx([1.0, 0.3])
    assert not outcome.weights.requires_grad
    assert outcome.log == {"weight_rec": 1.0, "weight_cross_domain": 0.3, "clipped": 0.0, "skipped": 0.0}
    skipped = fixed(None, torch.tensor([4.0, math.nan]), PAIR)
    assert skipped.weights.tolist() == [1.0, 0.0]
    assert skipped.log["skipped"] == 1.0


def test_none_and_fixed_share_the_weight_among_present_domains():
    losses, names = torch.tensor([4.0, 0.0, 2.0, 0.25]), ("rec_books", "rec_films", "rec_toys", "cross_domain")
    assert make_weighting("none")(None, losses, names).weights.tolist() == [0.5, 0.0, 0.5, 0.0]
    fixed = make_weighting("fixed", cross_domain_weight=0.25)
    assert fixed(None, losses, names).weights.tolist() == [0.5, 0.0, 0.5, 0.25]
    assert fixed(None, losses[:3], names[:3]).weights.tolist() == [0.5, 0.0, 0.5]
    assert fixed(None, losses[[1, 1]], names[:2]).weights.tolist() == [0.5, 0.5]
    nan = make_weighting("none")(None, torch.tensor([math.nan, 1.0]), names[:2])
    assert nan.weights.tolist() == [0.5, 0.5]  # what is broken must show


# mgda


@pytest.mark.parametrize("normalisation", ["none", "l2", "loss", "loss+"])
@pytest.mark.parametrize("n", [2, 3, 6, 21])
def test_mgda_is_the_minimum_norm_point_of_the_scaled_gradients(n, normalisation):
    matrix, losses = random_step(n, n)
    norms = matrix.diagonal().sqrt()
    scale = {"none": torch.ones(n).double(), "l2": norms, "loss": losses, "loss+": losses * norms}[normalisation]
    weighting = make_weighting("mgda", gradient_normalisation=normalisation)
    weights = weighting(matrix, losses, objectives(n)).weights
    scaled = matrix / scale[:, None] / scale[None, :]
    slack = (scaled @ weights - weights @ scaled @ weights) / scaled.diagonal().max()
    assert weights.min() >= 0
    assert weights.sum().item() == pytest.approx(1.0)
    assert slack.min() > -1e-12  # KKT
    assert (slack * weights).abs().max() < 1e-12


@pytest.mark.parametrize("cosine", [-0.9, 0.0, 0.4])
def test_mgda_with_unit_gradients_shares_equally_between_two(cosine):
    weighting = make_weighting("mgda", gradient_normalisation="l2", cross_domain_weight=0.1)
    matrix = torch.tensor([[4.0, 6.0 * cosine], [6.0 * cosine, 9.0]])
    assert weighting(matrix, LOSSES, PAIR).weights.tolist() == pytest.approx([0.5, 0.05])


def test_mgda_by_loss_leaves_out_what_has_no_positive_loss():
    matrix, names = torch.eye(3), objectives(3)
    for normalisation in ("loss", "loss+"):
        outcome = make_weighting("mgda", gradient_normalisation=normalisation)(matrix, double([1.0, 1.0, 0.0]), names)
        assert outcome.weights.tolist() == [0.5, 0.5, 0.0]
        assert outcome.log["skipped"] == 1.0


# preference


def test_preference_weighs_and_logs():
    weighting = make_weighting("preference")
    assert weighting.needs_gradients
    matrix = torch.tensor([[4.0, -3.0], [-3.0, 9.0]])  # norms 2 and 3, cosine -0.5
    outcome = weighting(matrix, LOSSES, PAIR)
    assert outcome.weights.tolist() == pytest.approx([1.0, 0.8])
    assert outcome.weights.dtype == LOSSES.dtype
    expected = {"gradient_norm_rec": 2.0, "gradient_norm_cross_domain": 3.0, "cosine": -0.5, "conflict": 1.0}
    expected |= {"factor": 0.8, "weight_rec": 1.0, "weight_cross_domain": 0.8, "clipped": 0.0, "skipped": 0.0}
    length = math.sqrt(4.96)  # of the step: 4 - 2 * 0.8 * 3 + 0.8 ** 2 * 9
    expected |= {"angle_rec": math.degrees(math.acos(1.6 / 2 / length))}
    expected |= {"angle_cross_domain": math.degrees(math.acos(4.2 / 3 / length))}
    assert outcome.log == pytest.approx(expected)


def test_a_negative_factor_is_clipped_and_counted_or_kept():
    matrix = pair(0.8).float()
    clipped = make_weighting("preference")(matrix, LOSSES, PAIR)
    assert clipped.weights.tolist() == [1.0, 0.0]
    assert clipped.log["clipped"] == 1.0
    assert clipped.log["factor"] == 0.0
    assert clipped.log["skipped"] == 0.0
    kept = make_weighting("preference", negative_factor="keep")(matrix, LOSSES, PAIR)
    assert kept.weights.tolist() == pytest.approx([1.0, -0.5])
    assert kept.log["clipped"] == 0.0


@pytest.mark.parametrize("scale", [1e-10, 1.0, 1e15])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_preference_does_not_depend_on_the_gradients_scales(scale, dtype):
    scales = torch.tensor([1.0, scale], dtype=dtype)
    outcome = make_weighting("preference")(pair(-0.5).to(dtype) * scales[:, None] * scales[None, :], LOSSES, PAIR)
    assert outcome.log["factor"] == pytest.approx(0.8, rel=1e-5)


@pytest.mark.parametrize("n", [2, 3, 6, 21])
@pytest.mark.parametrize("negative_factor", ["clip", "keep"])
def test_preference_of_any_number_follows_the_general_step(n, negative_factor):
    """Also with two objectives, where the strategy has a formula."""
    for seed in range(5):
        matrix, losses = random_step(n, seed)
        cross_first = torch.arange(n).roll(1)
        norms = matrix.diagonal().sqrt()
        unit = (matrix / norms[:, None] / norms[None, :])[cross_first][:, cross_first]
        vectors = torch.vstack([torch.eye(n).double(), torch.full((1, n), n**-0.5).double()])
        raw = preference_weights(unit, losses[cross_first], vectors, vectors[0])
        factor = (raw[0] / raw[1:].sum()).item()
        if negative_factor == "clip":
            factor = max(factor, 0.0)
        weighting = make_weighting("preference", negative_factor=negative_factor, cross_domain_weight=0.5)
        outcome = weighting(matrix, losses, objectives(n))
        torch.testing.assert_close(outcome.weights[:-1], raw[1:] / raw[1:].sum())
        assert outcome.weights[-1].item() == pytest.approx(0.5 * factor)
        assert outcome.log["factor"] == pytest.approx(factor)


def test_preference_without_a_cd_in_a_step_weighs_recommendation_equally():
    outcome = make_weighting("preference")(torch.diag(torch.tensor([1.0, 4.0, 0.0])), torch.ones(3), objectives(3))
    assert outcome.weights.tolist() == [0.5, 0.5, 0.0]
    assert outcome.log["skipped"] == 1.0
    assert outcome.log["factor"] == 0.0


def test_the_step_follows_rec_plus_factor_times_cross_domain():
    """From parameters to the combined gradient, on two quadratic losses."""
    parameter = torch.tensor([1.0, -2.0, 0.5], requires_grad=True)
    rec = ((parameter - torch.tensor([3.0, 1.0, -1.0])) ** 2).sum()
    cross_domain = 0.1 * ((parameter + 1) ** 2).sum()
    gradients = [torch.autograd.grad(loss, [parameter]) for loss in (rec, cross_domain)]
    outcome = make_weighting("preference")(gramian(gradients), torch.stack([rec, cross_domain]), PAIR)
    a, b = gradients[0][0], gradients[1][0]
    cosine = torch.nn.functional.cosine_similarity(a, b, dim=0).item()
    assert outcome.log["cosine"] == pytest.approx(cosine, abs=1e-6)
    assert outcome.weights[1].item() == pytest.approx(max((1 - 2 * cosine) / (2 - cosine), 0.0), abs=1e-6)


# pareto


@pytest.mark.parametrize("ratio", [0.001, 0.01, 0.3])
def test_pareto_is_the_step_of_pareto_weights(ratio):
    matrix, losses = random_step(2)[0], double([1.0, ratio])
    raw = pareto_weights(matrix, losses, 50)
    keep = make_weighting("pareto", n_preferences=50, negative_factor="keep", cross_domain_weight=0.5)
    torch.testing.assert_close(keep(matrix, losses, PAIR).weights, raw * double([1.0, 0.5]))
    clip = make_weighting("pareto", n_preferences=50)(matrix, losses, PAIR)
    torch.testing.assert_close(clip.weights, raw.clamp(min=0.0))
    assert clip.log["clipped"] == float((raw < 0).any())


# names, options, logs


def test_strategies_that_need_a_cd_say_what_to_use_instead():
    domains = ("rec_books", "rec_films")
    for name, names in [("preference", domains), ("pareto", domains), ("pareto", (*domains, "cross_domain"))]:
        with pytest.raises(CDSRError, match=f"{name} balances .*; use mgda or a surgery"):
            make_weighting(name)(torch.eye(len(names)), torch.ones(len(names)), names)
    weights = make_weighting("mgda", cross_domain_weight=0.1)(torch.eye(2), torch.ones(2), domains).weights
    assert weights.tolist() == [0.5, 0.5]  # cross_domain_weight is for a_cd alone


def test_cosines_of_more_than_two_objectives():
    matrix = torch.tensor([[1.0, -0.5, 0.25], [-0.5, 1.0, 0.75], [0.25, 0.75, 1.0]])
    log = make_weighting("mgda")(matrix, torch.ones(3), objectives(3)).log
    assert log["cosine"] == pytest.approx(0.5 / 3)
    assert log["cosine_min"] == -0.5
    assert log["conflict"] == pytest.approx(1 / 3)
    absent = make_weighting("mgda")(matrix.diag().diag().mul(double([1, 0, 1])), double([1, 0, 1]), objectives(3)).log
    assert absent["cosine"] == absent["conflict"] == 0.0


def test_wrong_names_options_and_shapes_name_the_choices():
    with pytest.raises(CDSRError, match="none, fixed, mgda, preference, pareto, pcgrad, imtl_g, cagrad"):
        make_weighting("pareto_front")
    with pytest.raises(CDSRError, match="clip, keep"):
        make_weighting("preference", negative_factor="drop")
    with pytest.raises(CDSRError, match=r"none, l2, loss, loss\+"):
        make_weighting("mgda", gradient_normalisation="l1")
    for bad in (-0.1, math.nan, math.inf, "0.1", True, None):
        with pytest.raises(CDSRError, match="cross_domain_weight"):
            make_weighting("fixed", cross_domain_weight=bad)
    for bad in (0, 1.5, "3", True, None):
        with pytest.raises(CDSRError, match="n_preferences"):
            make_weighting("pareto", n_preferences=bad)
    for bad in (None, torch.eye(3)):
        with pytest.raises(CDSRError, match="Gramian"):
            make_weighting("preference")(bad, LOSSES, PAIR)
    with pytest.raises(CDSRError, match="rec, cross_domain"):
        make_weighting("none")(None, torch.tensor(1.0), PAIR)


@pytest.mark.parametrize("names", [(), ("cross_domain",), ("cross_domain", "rec"), ("rec", "rec"),
                                   ("rec_a", "cross_domain", "rec_b")])  # fmt: skip
def test_names_that_make_no_sense_are_refused(names):
    with pytest.raises(CDSRError, match="one or more recommendation losses"):
        make_weighting("none")(None, torch.ones(len(names)), names)


def test_the_weights_of_the_functions_and_the_strategies_agree():
    matrix, losses = random_step(6, 1)
    torch.testing.assert_close(make_weighting("mgda")(matrix, losses, objectives(6)).weights, min_norm_weights(matrix))
    assert np.isfinite(list(make_weighting("mgda")(matrix, losses, objectives(6)).log.values())).all()
