"""What every model must hold, ours (found by their yaml) and RecBole's, built as a run builds them."""

from __future__ import annotations

import pytest
import torch

from recbole_cdsr import quick_start
from recbole_cdsr.config import CDSRConfig
from recbole_cdsr.evaluation import all_scores, rank_events
from recbole_cdsr.names import own_models

OWN = sorted(own_models().values())
RECBOLE = ["SASRec", "BERT4Rec", "GRU4Rec", "NARM", "CORE", "Caser", "STAMP", "LightSANs", "FPMC", "Pop", "BPR"]


@pytest.fixture
def build(tmp_path):
    def make(model, **keys):
        config = CDSRConfig(model, "toy", config_dict={"show_progress": False, "eval_batch_size": 16, **keys})
        run = quick_start.build(config, quick_start.prepare(config), tmp_path)
        if model == "Pop":
            run.trainer.fit(run.train)
        run.model.eval()
        return run

    return make


def scores(run, rows):
    with torch.no_grad():
        return all_scores(run.model, rows, "item_id", run.dataset.item_num)


@pytest.mark.parametrize("model", OWN + RECBOLE)
def test_scores_do_not_depend_on_the_target(build, model):
    """Neither the item that is to be predicted, nor its time, nor (unless declared) its domain is an input."""
    run = build(model)
    rows = next(iter(run.test))
    before = scores(run, rows)
    changed = ["item_id", "timestamp"]
    if not getattr(run.model, "needs_target_domain", False):
        changed.append("domain_id")
    for field in changed:
        rows[field] = rows[field].flip(0)
    assert torch.equal(before, scores(run, rows)), f"{model} sees its target"


@pytest.mark.parametrize("model", OWN + RECBOLE)
def test_a_user_is_scored_alike_alone_and_in_a_batch(build, model):
    run = build(model)
    rows = next(iter(run.test))
    together = scores(run, rows)
    alone = torch.cat([scores(run, rows[number : number + 1]) for number in range(len(rows))])
    assert torch.allclose(together, alone, atol=1e-4)


@pytest.mark.parametrize("model", OWN)
def test_padding_changes_nothing(build, model):
    run = build(model)
    rows = next(iter(run.test))
    before = scores(run, rows)
    width = run.config["MAX_ITEM_LIST_LENGTH"]
    for field in ("item_id_list", "domain_id_list", "timestamp_list"):
        missing = width - rows[field].shape[1]
        assert missing > 0
        rows[field] = torch.nn.functional.pad(rows[field], (0, missing))
    assert torch.allclose(before, scores(run, rows), atol=1e-5)


@pytest.mark.parametrize("model", OWN)
def test_tiles_rank_as_the_score_matrix_does(build, model):
    run = build(model)
    ranks = rank_events(run.model, run.test, run.config["device"])
    matrix = torch.cat([scores(run, rows) for rows in run.test])
    items = run.test.dataset.inter_feat["item_id"]
    target = matrix.gather(1, items[:, None])
    better = (matrix[:, 1:] > target).sum(1)
    assert torch.equal(torch.from_numpy(ranks.rank_all), 1.0 + better)


@pytest.mark.parametrize("model", OWN)
def test_training_lowers_every_loss_that_is_recommendation(build, model):
    run = build(model, epochs=8, train_batch_size=128, learning_rate=0.01)
    run.trainer.fit(run.train, run.valid)
    losses = [row["loss_rec"] for row in run.trainer.history]
    assert losses[-1] < 0.95 * losses[0]


@pytest.mark.parametrize("model", OWN)
def test_names_of_domains_do_not_matter(build, model, tmp_path):
    """Renaming the domains (the order of their first appearance stays) gives the same ranks."""
    run = build(model)
    ranks = rank_events(run.model, run.test, run.config["device"])
    folder = tmp_path / "dataset" / "toy"
    text = (folder / "toy.item").read_text().replace("\td0", "\tzebra").replace("\td1", "\tant")
    (folder / "toy.item").write_text(text)
    (folder / "meta.json").unlink()  # now it is a data set of the user's own
    renamed = build(model)
    again = rank_events(renamed.model, renamed.test, renamed.config["device"])
    assert sorted(renamed.test.dataset.domain_names[1:]) == ["ant", "zebra"]
    assert (ranks.rank_domain == again.rank_domain).all()
