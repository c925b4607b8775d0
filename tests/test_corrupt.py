"""Wrong and hidden domain labels: how many there are, who sees them, and that results are not counted by them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from recbole_cdsr.cli import main
from recbole_cdsr.data.corrupt import hidden_labels, wrong_labels
from recbole_cdsr.errors import CDSRError
from recbole_cdsr.ranks import RankTable
from tests.helpers import make_config, make_dataset, random_events, write_dataset

DOMAINS = torch.cat([torch.zeros(1, dtype=torch.long), torch.arange(30000) % 4 + 1])


@pytest.mark.parametrize("share", [0.1, 0.5, 1.0])
def test_a_share_of_the_items_gets_another_domain(share):
    wrong = wrong_labels(DOMAINS, 5, share, seed=1)
    changed = wrong != DOMAINS
    assert changed.sum() == round(share * 30000) and wrong[0] == 0
    pairs = torch.bincount(DOMAINS[changed] * 5 + wrong[changed], minlength=25).view(5, 5)[1:, 1:]
    others = pairs[~torch.eye(4, dtype=torch.bool)]
    assert not pairs.diagonal().any() and others.min() > 0.7 * others.float().mean()


def test_a_larger_share_keeps_the_wrong_labels_of_a_smaller_one():
    few, many = (wrong_labels(DOMAINS, 5, share, seed=3) for share in (0.1, 0.3))
    changed = few != DOMAINS
    assert torch.equal(few[changed], many[changed])
    assert not torch.equal(few, wrong_labels(DOMAINS, 5, 0.1, seed=4))


def test_without_noise_nothing_is_copied_and_one_domain_cannot_be_wrong():
    assert wrong_labels(DOMAINS, 5, 0.0, seed=1) is DOMAINS
    with pytest.raises(CDSRError, match="'label_noise' needs two domains or more"):
        wrong_labels(DOMAINS.clamp(max=1), 2, 0.3, seed=1)


def test_hidden_labels_are_one_more_domain():
    few, many = (hidden_labels(DOMAINS, 5, share, seed=3) for share in (0.1, 0.3))
    assert (few == 5).sum() == 3000 and (many == 5).sum() == 9000 and few[0] == 0
    assert torch.equal(few[few != 5], DOMAINS[few != 5]) and (many[few == 5] == 5).all()


@pytest.mark.parametrize("key", ["label_noise", "label_hidden"])
@pytest.mark.parametrize("share", [-0.1, 1.1])
def test_a_share_out_of_range_is_told(key, share):
    with pytest.raises(CDSRError, match=f"'{key}' takes a share from 0 to 1"):
        make_config("toy", **{key: share})


def test_models_have_a_domain_for_hidden_labels_and_results_do_not():
    write_dataset("drawn", *random_events(n_users=40))
    keys = ["--dataset", "drawn", "--label_hidden", "0.4", "--objectives", "[rec_per_domain,cross_domain]"]
    main(["run", "--model", "AutoCDSR", *keys, "--epochs", "1", "--run_dir", "run", "--quiet"])
    _, dataset = make_dataset("drawn", label_hidden=0.4)
    dataset.build()
    assert dataset.domain_names == [*dataset.true_domain_names, "[HIDDEN]"]
    assert (dataset.item_domain == dataset.num("domain_id") - 1).sum() == 12
    header = Path("run/history.csv").read_text().splitlines()[0]
    assert "loss_rec_[HIDDEN]" in header and "valid_ndcg@10_[HIDDEN]" not in header
    assert RankTable.load(Path("run/ranks.npz")).domain_names == dataset.true_domain_names
    assert len(set(dataset.true_domain.tolist())) == len(dataset.true_domain_names)


@pytest.mark.parametrize("key", ["label_noise", "label_hidden"])
@pytest.mark.parametrize("told", [["--model", "HSTU", "--target_domain_input", "True"], ["--model", "TAPE-DDSR-HSTU"]])
def test_a_model_that_is_told_the_targets_domain_is_refused(key, told, capsys):
    """The wrong label of a target is known of few items: ranks would be far better than with right labels."""
    assert main(["run", *told, "--dataset", "toy", f"--{key}", "0.3", "--quiet"]) == 2
    assert f"with {key} a label that is not the right one tells which items it may be" in capsys.readouterr().err
    free = ["--model", "TAPE-DDSR-HSTU", "--tape", "causal", "--ddsr", "layer", "--epochs", "1", "--run_dir", "free"]
    assert main(["run", *free, "--dataset", "toy", f"--{key}", "0.3", "--quiet"]) == 0


def test_a_domain_of_the_name_for_hidden_ones_is_told():
    inter, item = random_events()
    write_dataset("taken", inter, [(name, "[HIDDEN]" if domain == item[0][1] else domain) for name, domain in item])
    with pytest.raises(CDSRError, match="a domain is called '\\[HIDDEN\\]'"):
        make_dataset("taken", label_hidden=0.1)[1].build()


def test_models_see_wrong_labels_and_nothing_else_changes():
    write_dataset("noisy", *random_events())
    _, right = make_dataset("noisy")
    _, wrong = make_dataset("noisy", label_noise=0.4)
    for old, new in zip(right.build(), wrong.build(), strict=True):
        assert torch.equal(old.true_domain, new.true_domain)
        assert (old.item_domain != new.item_domain).sum() == round(0.4 * 30)
        for name, values in old.describe_rows().items():
            assert torch.equal(values, new.describe_rows()[name]), name
        rows = new[torch.arange(len(new.inter_feat))]
        assert torch.equal(rows["domain_id_list"], new.item_domain[rows["item_id_list"]])
        assert torch.equal(rows["domain_id"], new.item_domain[rows["item_id"]])


def test_ranks_are_counted_by_right_labels():
    write_dataset("noisy", *random_events(n_users=40))
    tables = []
    for noise in ("0", "0.5"):
        folder = f"runs/{noise}"
        main(["run", "--model", "Pop", "--dataset", "noisy", "--label_noise", noise, "--run_dir", folder, "--quiet"])
        tables.append(RankTable.load(Path(folder) / "ranks.npz"))
    for name, values in vars(tables[0]).items():
        np.testing.assert_array_equal(values, getattr(tables[1], name), name)
