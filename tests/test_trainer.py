"""MGDATrainer: balanced steps, early stopping, exact resume, honest failures."""

from __future__ import annotations

import csv
import pickle

import pytest
import torch

from recbole_cdsr import checkpoint, distributed, files, quick_start
from recbole_cdsr.config import CDSRConfig
from recbole_cdsr.errors import CDSRError
from recbole_cdsr.run_folder import BEST, HISTORY, LAST

SMALL = {
    "hidden_size": 16, "inner_size": 16, "n_layers": 1, "n_heads": 1, "MAX_ITEM_LIST_LENGTH": 10, "epochs": 4,
    "train_batch_size": 128, "show_progress": False, "learning_rate": 0.01,
}  # fmt: skip
MODELS = {
    "AutoCDSR": SMALL,
    "AutoCDSR bert4rec": {**SMALL, "backbone": "bert4rec"},
    "SASRec": SMALL,
    "BERT4Rec": SMALL,
    "GRU4Rec": {k: v for k, v in SMALL.items() if k not in ("inner_size", "n_layers", "n_heads")},
    "FPMC": {k: SMALL[k] for k in ("MAX_ITEM_LIST_LENGTH", "epochs", "train_batch_size", "show_progress")},
    "Pop": {"show_progress": False},
}


def build(folder, model="AutoCDSR", **keys):
    config = CDSRConfig(model.split()[0], "toy", config_dict={**MODELS[model], **keys})
    folder.mkdir(exist_ok=True)
    return quick_start.build(config, quick_start.prepare(config), folder)


def same_weights(first, second):
    return all(
        torch.equal(a, b) for a, b in zip(first.state_dict().values(), second.state_dict().values(), strict=True)
    )


class Stopped(Exception):
    pass


def stop_after(epoch):
    def callback(now, score):
        if now == epoch:
            raise Stopped

    return callback


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("epoch", [0, 2])
def test_resume_gives_the_weights_of_an_uninterrupted_run(tmp_path, model, epoch):
    whole = build(tmp_path / "whole", model)
    whole.trainer.fit(whole.train, whole.valid)
    if whole.trainer.epochs == 1 and epoch:
        pytest.skip("one epoch only")
    part = build(tmp_path / "part", model)
    with pytest.raises(Stopped):
        part.trainer.fit(part.train, part.valid, callback_fn=stop_after(epoch))
    torch.manual_seed(99)  # whatever happened in between
    again = build(tmp_path / "part", model)
    again.trainer.resume_checkpoint(tmp_path / "part" / LAST)
    again.trainer.fit(again.train, again.valid)
    assert same_weights(whole.model, again.model)
    assert whole.trainer.best_epoch == again.trainer.best_epoch
    assert whole.trainer.best_valid_score == again.trainer.best_valid_score
    assert [r["loss"] for r in whole.trainer.history] == [r["loss"] for r in again.trainer.history]


@pytest.mark.parametrize("model", ["AutoCDSR", "SASRec"])
def test_a_seed_fixes_everything(tmp_path, model):
    runs = []
    for number, seed in enumerate((1, 1, 2)):
        run = build(tmp_path / str(number), model, seed=seed, epochs=2)
        run.trainer.fit(run.train, run.valid)
        runs.append(run.model)
    assert same_weights(runs[0], runs[1]) and not same_weights(runs[0], runs[2])


def test_the_reported_loss_is_the_weighted_sum_of_each_step(tmp_path):
    run = build(tmp_path, objective_weighting="mgda", gradient_normalisation="l2", epochs=1)
    run.trainer.fit(run.train, run.valid)
    row = run.trainer.history[0]
    assert row["weight_rec"] == pytest.approx(0.5) and row["weight_cross_domain"] == pytest.approx(0.5 * 0.02)
    assert row["loss"] == pytest.approx(0.5 * row["loss_rec"] + 0.01 * row["loss_cross_domain"])


def test_every_epoch_starts_the_strategy_afresh(tmp_path, monkeypatch):
    """Otherwise a strategy that keeps something between steps could not be resumed exactly."""
    run = build(tmp_path, epochs=3)
    starts = []
    monkeypatch.setattr(
        run.trainer.steps.balancer.weighting, "start_epoch", lambda: starts.append(len(run.trainer.history))
    )
    run.trainer.fit(run.train, run.valid)
    assert starts == [0, 1, 2]


def test_history_tells_every_loss_norm_cosine_factor_and_attention(tmp_path):
    run = build(tmp_path, epochs=2)
    run.trainer.fit(run.train, run.valid)
    rows = list(csv.DictReader((tmp_path / HISTORY).read_text().splitlines()))
    assert [row["epoch"] for row in rows] == ["0", "1"]
    names = "loss loss_rec loss_cross_domain gradient_norm gradient_norm_rec gradient_norm_cross_domain cosine factor "
    names += "clipped skipped valid_score valid_ndcg@10_d0 train_cpu_seconds"
    for name in names.split():
        assert all(float(row[name]) == float(row[name]) for row in rows), name
    assert all(0 < float(row["loss_cross_domain"]) < 1 for row in rows)


def test_selection_is_the_mean_over_domains(tmp_path):
    run = build(tmp_path, epochs=1)
    run.trainer.fit(run.train, run.valid)
    row = run.trainer.history[0]
    assert row["valid_score"] == pytest.approx((row["valid_ndcg@10_d0"] + row["valid_ndcg@10_d1"]) / 2)


def test_early_stopping_keeps_the_best_epoch(tmp_path):
    run = build(tmp_path, epochs=50, stopping_step=2, learning_rate=0.05)
    run.trainer.fit(run.train, run.valid)
    scores = [row["valid_score"] for row in run.trainer.history]
    assert len(scores) < 50 and scores[run.trainer.best_epoch] == max(scores)
    run.trainer.load_best()
    assert run.trainer._score(run.trainer.rank_table(run.valid))[0] == max(scores)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_ends_training_and_keeps_the_best(tmp_path, value, monkeypatch):
    run = build(tmp_path)
    exact = run.model.calculate_losses

    def broken(batch):
        losses = exact(batch)
        return {**losses, "rec": losses["rec"] * value} if run.trainer.history else losses

    monkeypatch.setattr(run.model, "calculate_losses", broken)
    detects = torch.autograd.set_detect_anomaly(True)  # told before any backward pass, which would fail otherwise
    with detects, pytest.raises(CDSRError, match="the loss .rec. is (nan|inf) in epoch 1, batch 0; the best"):
        run.trainer.fit(run.train, run.valid)
    assert checkpoint.load(tmp_path / BEST)["epoch"] == 0


@pytest.mark.parametrize("number", [0, 1])
def test_a_model_that_counts_sees_every_row_in_every_process(tmp_path, number, monkeypatch):
    whole = build(tmp_path / "whole", "Pop")
    whole.trainer.fit(whole.train, whole.valid)
    monkeypatch.setattr(distributed, "world", lambda: 2)
    monkeypatch.setattr(distributed, "rank", lambda: number)
    run = build(tmp_path / "part", "Pop")
    run.trainer.fit(run.train, None, saved=False)
    assert torch.equal(whole.model.item_cnt, run.model.item_cnt)


@pytest.mark.parametrize(("model", "where"), [("SASRec", "calculate_loss"), ("AutoCDSR", "user_state")])
def test_a_process_that_is_lost_is_not_taken_for_a_fault_of_the_model(tmp_path, model, where, monkeypatch):
    run = build(tmp_path, model)

    def told_to_stop(*args):
        raise distributed.Lost("this process was told to stop")

    monkeypatch.setattr(run.model, where, told_to_stop)
    with pytest.raises(distributed.Lost, match="^this process was told to stop$"):
        run.trainer.fit(run.train, run.valid)


def test_an_unwritable_folder_is_told_before_training(tmp_path, monkeypatch):
    run = build(tmp_path)

    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(CDSRError, match="No space left on device; make room"):
        run.trainer.fit(run.train, run.valid)
    assert run.trainer.history == [] and not list(tmp_path.glob(".*pth*")), "no half-written file stays behind"


def test_checkpoints_never_run_code(tmp_path):
    class Evil:
        def __reduce__(self):
            return print, ("owned",)

    for name, content in (("pickle", pickle.dumps(Evil())), ("cut", b"PK\x03\x04half")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(CDSRError, match="damaged or not a checkpoint"):
            checkpoint.load(tmp_path / name)
    torch.save({"format": 1, "model": Evil()}, tmp_path / "zip")
    with pytest.raises(CDSRError, match="damaged or not a checkpoint"):
        checkpoint.load(tmp_path / "zip")
    with pytest.raises(CDSRError, match="there is no checkpoint"):
        checkpoint.load(tmp_path / "missing")


def test_a_checkpoint_of_another_size_is_refused(tmp_path):
    run = build(tmp_path, epochs=1)
    run.trainer.fit(run.train, run.valid)
    other = build(tmp_path / "b", hidden_size=8)
    with pytest.raises(CDSRError, match="does not fit this model and data"):
        other.trainer.resume_checkpoint(tmp_path / LAST)


def test_mixed_precision_and_clipping_train(tmp_path):
    run = build(tmp_path, enable_amp=True, clip_grad_norm={"max_norm": 0.1}, epochs=2)
    run.trainer.fit(run.train, run.valid)
    assert run.trainer.history[-1]["loss"] < run.trainer.history[0]["loss"]


def test_only_validated_epochs_are_best(tmp_path):
    run = build(tmp_path, epochs=3, eval_step=2)
    run.trainer.fit(run.train, run.valid)
    assert run.trainer.best_epoch == 1 == checkpoint.load(tmp_path / BEST)["epoch"]


def test_without_validation_the_last_epoch_is_kept(tmp_path):
    run = build(tmp_path, epochs=3, eval_args={"split": {"LS": "test_only"}})
    run.trainer.fit(run.train, None)
    assert run.trainer.best_epoch == 2 == checkpoint.load(tmp_path / BEST)["epoch"]


def test_one_flipped_bit_is_noticed(tmp_path):
    checkpoint.save(tmp_path / "a.pth", {"weights": torch.ones(1000)})
    content = bytearray((tmp_path / "a.pth").read_bytes())
    content[content.find(torch.ones(4).numpy().tobytes()) + 400] ^= 1
    (tmp_path / "a.pth").write_bytes(content)
    with pytest.raises(CDSRError, match="damaged"):
        checkpoint.load(tmp_path / "a.pth")


def test_a_longer_patience_wakes_a_run_that_stopped_early(tmp_path):
    run = build(tmp_path, epochs=60, stopping_step=1, learning_rate=0.05)
    run.trainer.fit(run.train, run.valid)
    stopped = len(run.trainer.history)
    assert stopped < 60
    again = build(tmp_path, epochs=60, stopping_step=5, learning_rate=0.05)
    again.trainer.resume_checkpoint(tmp_path / LAST)
    again.trainer.fit(again.train, again.valid)
    assert len(again.trainer.history) > stopped
