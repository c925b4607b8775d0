"""Balancer: one gradient from several losses, batches and strategies; the keys of the trainer that steer it."""

from __future__ import annotations

import math

import pytest
import torch

from recbole_cdsr import quick_start
from recbole_cdsr.balance import Balancer
from recbole_cdsr.config import CDSRConfig
from recbole_cdsr.errors import CDSRError
from recbole_cdsr.objectives import make_weighting
from recbole_cdsr.run_folder import LAST
from tests.helpers import random_events, write_dataset

SMALL = {
    "hidden_size": 16, "inner_size": 16, "n_layers": 1, "n_heads": 1, "MAX_ITEM_LIST_LENGTH": 10, "epochs": 2,
    "train_batch_size": 128, "show_progress": False, "learning_rate": 0.01,
}  # fmt: skip
STILL = {"hidden_dropout_prob": 0.0, "attn_dropout_prob": 0.0}


def build(folder, **keys):
    config = CDSRConfig("AutoCDSR", "toy", config_dict={**SMALL, **keys})
    folder.mkdir(exist_ok=True)
    return quick_start.build(config, quick_start.prepare(config), folder)


def gradients(run):
    return [None if p.grad is None else p.grad.clone() for p in run.trainer.steps.parameters]


def assert_close(first, second):
    for one, other in zip(first, second, strict=True):
        assert (one is None) == (other is None)
        if one is not None:
            torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-4)


# without a network


def balancer(strategy, parameters, refresh_every=1, **keys):
    weighting = make_weighting(strategy, **keys)
    compared = list(range(len(parameters)))
    return Balancer(weighting, parameters, compared, torch.amp.GradScaler("cpu", enabled=False), refresh_every)


def two_losses(parameters):
    first, second = parameters
    return {"rec": (first**2).sum() + (second**3).sum(), "cross_domain": (first - 1).abs().sum()}


def make_parameters():
    torch.manual_seed(0)
    return [torch.nn.Parameter(torch.randn(4)), torch.nn.Parameter(torch.rand(3, 2))]


@pytest.mark.parametrize("strategy", ["none", "fixed", "preference", "mgda", "pcgrad"])
def test_the_gradient_is_the_weighted_sum_of_the_losses_gradients(strategy):
    parameters = make_parameters()
    one = balancer(strategy, parameters, cross_domain_weight=0.5)
    values = one.add(two_losses(parameters))
    log = one.combine()
    weights = {name: log[f"weight_{name}"] for name in values}
    assert log["loss"] == pytest.approx(sum(weights[name] * value for name, value in values.items()), rel=1e-5)
    got = [p.grad for p in parameters]
    for p in parameters:
        p.grad = None
    sum(weights[name] * loss for name, loss in two_losses(parameters).items() if weights[name]).backward()
    assert_close(got, [p.grad for p in parameters])


@pytest.mark.parametrize("strategy", ["fixed", "preference"])
def test_two_halves_make_the_step_of_the_whole(strategy):
    parameters = make_parameters()
    whole = balancer(strategy, parameters)
    whole.add(two_losses(parameters))
    log = whole.combine()
    expected = [p.grad for p in parameters]
    halves = balancer(strategy, parameters)
    for _ in range(2):
        halves.add(two_losses(parameters), part=0.5)
    again = halves.combine()
    assert again == pytest.approx(log)
    assert_close(expected, [p.grad for p in parameters])


def test_a_step_forgets_the_gradients_of_the_step_before():
    parameters = make_parameters()
    one = balancer("fixed", parameters)
    for _ in range(2):
        one.add(two_losses(parameters))
        one.combine()
    got = [p.grad.clone() for p in parameters]
    fresh = balancer("fixed", parameters)
    fresh.add(two_losses(parameters))
    fresh.combine()
    assert_close(got, [p.grad for p in parameters])


def test_weights_are_asked_for_in_every_nth_step_and_kept_in_between():
    parameters = make_parameters()
    asked = []
    one = balancer("preference", parameters, refresh_every=3, negative_factor="keep")
    for number in range(7):
        one.add(two_losses(parameters))
        log = one.combine()
        asked.append("cosine" in log)
        weights = one.weights
        if number == 0:
            first = weights
        assert number > 2 or weights == first
        with torch.no_grad():
            parameters[0][0] -= 1.0
    assert asked == [True, False, False, True, False, False, True]
    assert weights != first
    one.start_epoch()
    one.add(two_losses(parameters))
    assert "cosine" in one.combine(), "each epoch begins with new weights"


def test_a_weight_of_zero_leaves_a_loss_out_even_if_its_gradient_is_not_finite():
    parameters = make_parameters()
    one = balancer("preference", parameters)
    losses = two_losses(parameters)
    losses["cross_domain"] = losses["cross_domain"] + (parameters[0] - parameters[0].detach()).sum().sqrt()
    one.add(losses)
    assert one.combine()["skipped"] == 1
    assert all(p.grad.isfinite().all() for p in parameters)


# with the trainer


def test_one_step_of_the_model_is_the_weighted_sum(tmp_path):
    run = build(tmp_path, objective_weighting="preference", cross_domain_weight=0.5, **STILL)
    batch = next(iter(run.train))
    run.trainer.steps.balancer.add(run.model.calculate_losses(batch))
    log = run.trainer.steps.balancer.combine()
    got = gradients(run)
    run.model.zero_grad()
    losses = run.model.calculate_losses(batch)
    (losses["rec"] + log["weight_cross_domain"] * losses["cross_domain"]).backward()
    assert log["weight_cross_domain"] == pytest.approx(0.5 * log["factor"]) and log["factor"] > 0
    assert_close(got, gradients(run))


@pytest.mark.parametrize("strategy", ["none", "preference"])
def test_accumulated_batches_take_one_step(tmp_path, strategy):
    keys = {"objective_weighting": strategy, **STILL}
    run = build(tmp_path / "a", accumulate_batches=4, **keys)
    batches = list(run.train)
    assert len(batches) > 4 and len(batches) % 4
    row = run.trainer._train_epoch(run.train, 0)
    assert row["steps"] == -(-len(batches) // 4)
    one = build(tmp_path / "b", **keys)
    one.train.set_epoch(0)
    batches = list(one.train)
    for start in range(0, len(batches), 4):
        group = batches[start : start + 4]
        for batch in group:
            one.trainer.steps.balancer.add(one.model.calculate_losses(batch), 1 / len(group))
        one.trainer.steps.balancer.combine()
        one.trainer.optimizer.step()
    for first, second in zip(run.model.parameters(), one.model.parameters(), strict=True):
        torch.testing.assert_close(first, second)


@pytest.mark.parametrize("learner", ["adam", "adamw", "sgd", "adagrad", "rmsprop"])
@pytest.mark.parametrize("extra", [{}, {"enable_amp": True, "clip_grad_norm": {"max_norm": 0.5}}])
def test_every_optimiser_trains_with_clipping_and_mixed_precision(tmp_path, learner, extra):
    rate = 0.5 if learner == "sgd" else 0.01
    run = build(tmp_path, learner=learner, learning_rate=rate, accumulate_batches=2, epochs=4, **extra)
    run.trainer.fit(run.train, run.valid)
    assert run.trainer.history[-1]["loss_rec"] < run.trainer.history[0]["loss_rec"]


def test_a_step_whose_weights_are_all_zero_changes_nothing(tmp_path):
    run = build(tmp_path, objective_weighting="pareto", cross_domain_weight=0.0, epochs=1)  # its step is a_cd's alone
    before = [p.clone() for p in run.model.parameters()]
    row = run.trainer._train_epoch(run.train, 0)
    assert row["weight_rec"] == row["gradient_norm"] == row["loss"] == 0
    assert all(torch.equal(a, b) for a, b in zip(before, run.model.parameters(), strict=True))


def test_weights_kept_for_steps_resume_to_the_bit(tmp_path):
    keys = {"weight_refresh_every": 3, "epochs": 3, "objective_weighting": "preference"}
    whole = build(tmp_path / "whole", **keys)
    whole.trainer.fit(whole.train, whole.valid)
    part = build(tmp_path / "part", **{**keys, "epochs": 1})
    part.trainer.fit(part.train, part.valid)
    again = build(tmp_path / "part", **keys)
    again.trainer.resume_checkpoint(tmp_path / "part" / LAST)
    again.trainer.fit(again.train, again.valid)
    for first, second in zip(whole.model.parameters(), again.model.parameters(), strict=True):
        assert torch.equal(first, second)
    assert whole.trainer.history[-1]["cosine"] == again.trainer.history[-1]["cosine"]
    assert [epoch for epoch, _ in again.trainer.transfer] == [0, 1, 2]


def test_balance_over_chooses_the_parameters(tmp_path):
    numbers = {}
    for over in ("shared", "encoder", "all"):
        run = build(tmp_path / over, balance_over=over)
        names = [name for name, p in run.model.named_parameters() if p.requires_grad]
        numbers[over] = {names[number] for number in run.trainer.steps.balancer.compared}
    assert numbers["encoder"] < numbers["shared"] < numbers["all"]
    assert numbers["shared"] - numbers["encoder"] == {"position_embedding.weight"}
    assert "item_embedding.weight" in numbers["all"] - numbers["shared"]
    losses = run.model.calculate_losses(next(iter(run.train)))
    for name, parameter in run.model.named_parameters():
        found = [torch.autograd.grad(loss, parameter, retain_graph=True, allow_unused=True) for loss in losses.values()]
        reached = all(gradient is not None for (gradient,) in found)
        assert reached == (name in numbers["shared"] or name == "item_embedding.weight"), name


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("balance_over", "everything", "shared, all, encoder"),
        ("weight_refresh_every", 0, "at least 1"),
        ("accumulate_batches", 0, "at least 1"),
        ("objectives", ["cross_domain"], "rec or rec_per_domain, then cross_domain or not"),
        ("objectives", ["rec", "rec_per_domain"], "takes a list"),
        ("objectives", ["rec", "speed"], "takes a list"),
        ("objectives", ["rec", ["cross_domain"]], "takes a list"),
        ("objectives", None, "takes a list"),
    ],
)
def test_wrong_values_name_the_choices(tmp_path, key, value, message):
    with pytest.raises(CDSRError, match=message):
        build(tmp_path, **{key: value})


# one recommendation loss per domain


def test_losses_by_domain_are_the_means_over_each_domains_targets(tmp_path):
    run = build(tmp_path, objectives=["rec_per_domain", "cross_domain"], **STILL)
    batch = next(iter(run.train))
    losses = run.model.calculate_losses(batch)
    names = run.dataset.domain_names[1:]
    assert list(losses) == [*(f"rec_{name}" for name in names), "cross_domain"]
    targets, wanted = run.model.targets(batch)
    domain = run.dataset.item_domain[targets[wanted]]
    counts = [int((domain == number + 1).sum()) for number in range(len(names))]
    mean = sum(losses[f"rec_{name}"] * count for name, count in zip(names, counts, strict=True)) / sum(counts)
    one = build(tmp_path / "one", **STILL)
    one.model.load_state_dict(run.model.state_dict())
    torch.testing.assert_close(mean, one.model.calculate_losses(batch)["rec"])


@pytest.mark.parametrize("n_domains", [2, 5, 20])
def test_a_minimum_norm_step_hurts_no_domain(tmp_path, n_domains):
    """Over the compared parameters the step lowers every domain's loss to first order, whatever the conflicts."""
    write_dataset("many", *random_events(n_users=60, n_items=80, n_domains=n_domains, seed=3))
    keys = {**SMALL, **STILL, "objectives": ["rec_per_domain", "cross_domain"], "cross_domain_weight": 1.0}
    config = CDSRConfig("AutoCDSR", "many", config_dict={**keys, "objective_weighting": "mgda"})
    run = quick_start.build(config, quick_start.prepare(config), tmp_path)
    steps = run.trainer.steps
    run.trainer._train_epoch(run.train, 0)  # away from the start, where all gradients look alike
    batch = max(run.train, key=len)
    losses = run.model.calculate_losses(batch)
    assert len(losses) == n_domains + 1
    compared = [steps.parameters[number] for number in steps.balancer.compared]
    found = {name: torch.autograd.grad(loss, compared, retain_graph=True) for name, loss in losses.items()}
    steps.balancer.start_epoch()
    steps.balancer.add(losses)
    log = steps.balancer.combine()
    assert sum(log[f"weight_{name}"] for name in losses) == pytest.approx(1)
    step = sum(float((p.grad**2).sum()) for p in compared)
    for name, gradient in found.items():
        inner = sum(float((g * p.grad).sum()) for g, p in zip(gradient, compared, strict=True))
        assert inner >= step * (1 - 1e-3) or float(losses[name]) == 0, name


@pytest.mark.parametrize("strategy", ["none", "fixed", "mgda", "preference", "pcgrad"])
def test_one_loss_per_domain_trains(tmp_path, strategy):
    # By their raw lengths a_cd's gradient would get nearly all the weight.
    keys = {"objective_weighting": strategy, "gradient_normalisation": "l2", "epochs": 3}
    run = build(tmp_path, objectives=["rec_per_domain", "cross_domain"], **keys)
    run.trainer.fit(run.train, run.valid)
    first, *_, last = run.trainer.history
    assert last["loss_rec_d0"] < first["loss_rec_d0"] and last["loss_rec_d1"] < first["loss_rec_d1"]
    assert all(math.isfinite(value) for row in run.trainer.history for value in row.values())


def test_conflicts_between_domains_are_balanced_without_the_attention_penalty(tmp_path):
    run = build(tmp_path, objectives=["rec_per_domain"], objective_weighting="mgda")
    run.trainer.fit(run.train, run.valid)
    assert {"cosine", "conflict", "weight_rec_d0", "weight_rec_d1"} <= set(run.trainer.history[0])
    names = [name for name, _ in run.model.named_parameters()]
    compared = {names[number] for number in run.trainer.steps.balancer.compared}
    assert set(names) - compared == {"item_embedding.weight"}
    with pytest.raises(CDSRError, match="cross_domain"):
        build(tmp_path / "b", objectives=["rec_per_domain"], objective_weighting="preference").trainer.fit(run.train)
