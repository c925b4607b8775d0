"""The learner sparse_adam: dense Adam's gradients on the rows of a batch, nothing on others, exact resume."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from recbole_cdsr import quick_start, row_wise
from recbole_cdsr.cli import main
from recbole_cdsr.config import CDSRConfig
from recbole_cdsr.objectives import gramian
from recbole_cdsr.row_wise import with_values
from recbole_cdsr.run_folder import LAST

SMALL = {"hidden_size": 16, "show_progress": False, "n_negatives": 4, "train_batch_size": 64, "seed": 1}
MODELS = [
    ("HSTU", {"loss_type": "sampled"}),
    ("HSTU", {"loss_type": "sampled_cosine"}),
    ("HSTU", {"loss_type": "sampled_cosine", "negatives": "domain", "log_q": True}),
    ("TAPE-DDSR-HSTU", {"loss_type": "sampled_cosine"}),
    ("AutoCDSR", {"loss_type": "sampled"}),
    ("AutoCDSR", {"loss_type": "sampled", "backbone": "bert4rec"}),
    ("AutoCDSR", {"loss_type": "sampled", "objectives": ["rec_per_domain", "cross_domain"], "balance_over": "all",
                  "objective_weighting": "mgda"}),
    ("AutoCDSR+", {"loss_type": "sampled"}),
]  # fmt: skip
every_model = pytest.mark.parametrize(("model", "keys"), MODELS)


def build(folder: Path, model: str, learner: str = "sparse_adam", **keys):
    config = CDSRConfig(model, "toy", config_dict={**SMALL, "learner": learner, **keys})
    folder.mkdir(parents=True, exist_ok=True)
    return quick_start.build(config, quick_start.prepare(config), folder)


def first_step(run) -> tuple[dict[str, float], torch.Tensor]:
    """What the first step logs, and the gradient of the item table [V, D] before it, dense."""
    batch = next(iter(run.train))
    steps, kept = run.trainer.steps, {}
    steps.optimizer.step = lambda: kept.update(table=run.model.item_embedding.weight.grad.clone())
    torch.manual_seed(5)
    log = {name: value for one in steps.run([batch], 1, 0) for name, value in one.items()}
    table = kept["table"]
    return log, table.to_dense() if table.is_sparse else table


@every_model
@pytest.mark.parametrize("clip", [None, {"max_norm": 1e-4}])
def test_a_step_has_the_gradients_weights_and_norm_of_the_dense_one(tmp_path, model, keys, clip):
    rows = build(tmp_path / "rows", model, clip_grad_norm=clip, **keys)
    dense = build(tmp_path / "dense", model, "adam", clip_grad_norm=clip, **keys)
    (log, gradient), (expected_log, expected) = first_step(rows), first_step(dense)
    assert rows.model.item_embedding.weight.grad.is_sparse and not dense.model.item_embedding.weight.grad.is_sparse
    torch.testing.assert_close(gradient, expected, atol=1e-6, rtol=1e-4)
    assert log == pytest.approx(expected_log, rel=1e-4, abs=1e-6) and log["gradient_norm"] > 1e-4
    for one, two in zip(rows.model.parameters(), dense.model.parameters(), strict=True):
        if one is not rows.model.item_embedding.weight and two.grad is not None:
            torch.testing.assert_close(one.grad, two.grad, atol=1e-6, rtol=1e-4)


def test_items_that_a_step_does_not_see_stay_as_they_are(tmp_path):
    run = build(tmp_path, "HSTU", loss_type="sampled", train_batch_size=8)
    table = run.model.item_embedding.weight
    for batch in list(run.train)[:3]:
        before = table.detach().clone()
        list(run.trainer.steps.run([batch], 1, 0))
        seen = table.grad.coalesce().indices()[0]
        changed = (table != before).any(1).nonzero().flatten()
        assert set(changed.tolist()) <= set(seen.tolist()) and 0 < len(changed) < len(table)
        assert set(batch["item_id"].tolist()) <= set(changed.tolist())


@pytest.mark.parametrize(("model", "keys"), [MODELS[1], MODELS[4]])
@pytest.mark.parametrize("extra", [{}, {"enable_amp": True, "clip_grad_norm": {"max_norm": 0.5}}])
def test_it_trains_over_several_batches_in_mixed_precision(tmp_path, model, keys, extra):
    run = build(tmp_path, model, learning_rate=0.01, accumulate_batches=2, epochs=4, **keys, **extra)
    run.trainer.fit(run.train, run.valid)
    assert run.trainer.history[-1]["loss_rec"] < run.trainer.history[0]["loss_rec"]


@pytest.mark.parametrize(("model", "keys"), [MODELS[0], MODELS[5]])
def test_a_run_resumes_to_the_bit(tmp_path, model, keys):
    whole = build(tmp_path / "whole", model, epochs=3, **keys)
    whole.trainer.fit(whole.train, whole.valid)
    part = build(tmp_path / "part", model, epochs=2, **keys)
    part.trainer.fit(part.train, part.valid)
    again = build(tmp_path / "part", model, epochs=3, **keys)
    again.trainer.resume_checkpoint(tmp_path / "part" / LAST)
    again.trainer.fit(again.train, again.valid)
    for one, two in zip(whole.model.parameters(), again.model.parameters(), strict=True):
        assert torch.equal(one, two)
    assert whole.trainer.history[-1]["loss_rec"] < whole.trainer.history[0]["loss_rec"]


@pytest.mark.parametrize(
    ("model", "keys", "message"),
    [
        ("HSTU", [], "loss_type CE reads all; set loss_type to sampled or sampled_cosine, or learner to adam"),
        ("AutoCDSR", ["--loss_type", "cosine"], "reads all; set loss_type to sampled, or learner to adam"),
        ("HSTU", ["--loss_type", "sampled", "--weight_decay", "0.1"], "has no weight_decay"),
        ("SASRec", [], "is for models of this package, not SASRec; set learner to adam"),
    ],
)
def test_what_it_cannot_do_is_told(model, keys, message, capsys):
    arguments = ["run", "--model", model, "--dataset", "toy", "--learner", "sparse_adam", "--quiet", *keys]
    assert main(arguments) == 2
    said = capsys.readouterr().err
    assert message in said and "Traceback" not in said


@pytest.mark.parametrize(
    ("model", "loss_type", "told"), [("HSTU", "CE", True), ("HSTU", "sampled", False), ("SASRec", "CE", False)]
)
def test_the_cheap_losses_are_named_where_the_catalogue_is_large(model, loss_type, told, monkeypatch):
    monkeypatch.setattr(row_wise, "LARGE_CATALOGUE", 10)
    arguments = ["--loss_type", loss_type, "--epochs", "1", "--run_dir", "run", "--quiet"]
    assert main(["run", "--model", model, "--dataset", "toy", *arguments]) == 0
    assert ("the learner sparse_adam reads few" in Path("run", "run.log").read_text()) is told


def test_it_learns_what_adam_learns():
    scores = {}
    for learner in ("adam", "sparse_adam"):
        keys = ["--learner", learner, "--learning_rate", "0.01", "--epochs", "20", "--loss_type", "sampled"]
        keys += ["--n_negatives", "32", "--hidden_dropout_prob", "0.2", "--run_dir", learner, "--quiet"]
        assert main(["run", "--model", "HSTU", "--dataset", "toy", *keys]) == 0
        scores[learner] = json.loads(Path(learner, "result.json").read_text())["valid_score"]
    assert scores["sparse_adam"] == pytest.approx(scores["adam"], abs=0.1) and scores["sparse_adam"] > 0.2


def test_gradients_by_rows_have_the_inner_products_and_norms_of_dense_ones():
    table = torch.nn.Embedding(20, 3, sparse=True)
    items = torch.tensor([1, 4, 4, 7])
    rows = [torch.autograd.grad(table(items[k:]).pow(k + 2).sum(), table.weight)[0] for k in (0, 1)]
    dense = [row.to_dense() for row in rows]
    torch.testing.assert_close(gramian([[row] for row in rows]), gramian([[row] for row in dense]))
    table.weight.grad = rows[0]
    (stand_in,) = with_values([table.weight, torch.nn.Parameter(torch.ones(2))])
    torch.testing.assert_close(stand_in.grad.norm(), dense[0].norm())
    stand_in.grad.mul_(0.5)
    torch.testing.assert_close(table.weight.grad.to_dense(), 0.5 * dense[0])
