"""`train_domains`: the same events are ranked among the same candidates, and nothing of another domain is seen."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from recbole_cdsr.data.events import windows
from recbole_cdsr.data.loaders import make_loaders
from recbole_cdsr.errors import CDSRError
from recbole_cdsr.quick_start import evaluate, run
from recbole_cdsr.ranks import RankTable
from tests.helpers import make_dataset, random_events, write_dataset

SPLITS = [{"LS": "valid_and_test"}, {"RS": [0.6, 0.2, 0.2]}]


def loaders(model="AutoCDSR", split=SPLITS[0], **keys):
    config, dataset = make_dataset("x", model, eval_args={"split": split, "group_by": "user"}, **keys)
    return dataset, make_loaders(config, dataset)


def targets(part, domains):
    """{(user, item, events of its domain before it)} of the rows whose target is in `domains` and has such an event."""
    rows, described = part.inter_feat, part.describe_rows()
    domain = part.true_domain[rows["item_id"]]
    names = np.array(part.domain_names)[domain.numpy()]
    columns = (rows["user_id"], rows["item_id"], described["domain_history_length"])
    found = zip(*(column.tolist() for column in columns), names, strict=True)
    return {row[:3] for row in found if row[3] in domains and row[2] > 0}


@pytest.mark.parametrize("split", SPLITS)
def test_the_same_events_are_ranked(split):
    write_dataset("x", *random_events(times=3000))
    _, whole = loaders(split=split)
    for name in ("d0", "d1", "d2"):
        dataset, parts = loaders(split=split, train_domains=[name])
        for all_domains, one_domain in zip(whole[1:], parts[1:], strict=True):
            assert targets(one_domain.dataset, [name]) == targets(all_domains.dataset, [name])
            assert len(one_domain.dataset) == len(targets(one_domain.dataset, [name]))
        assert torch.equal(dataset.true_domain, whole[0].dataset.true_domain), "candidates are the same"


@pytest.mark.parametrize("layout", ["sequence", "prefix", "interaction"])
@pytest.mark.parametrize("wanted", [["d1"], ["d0", "d2"]])
def test_nothing_of_another_domain_is_seen(layout, wanted):
    write_dataset("x", *random_events(times=3000))
    model = {"sequence": "AutoCDSR", "prefix": "SASRec", "interaction": "BPR"}[layout]
    dataset, parts = loaders(model, train_domains=wanted)
    allowed = torch.tensor([0, *(dataset.domain_names.index(name) for name in wanted)])
    for loader in parts:
        for batch in loader:
            for field in ("item_id", "item_id_list"):
                if field in batch:
                    assert torch.isin(dataset.true_domain[batch[field]], allowed).all()
            if layout != "interaction":
                assert (batch["item_id_list"][:, 0] > 0).all(), "every row has a history"


@pytest.mark.parametrize("split", SPLITS)
def test_training_targets_are_those_of_the_whole_run(split):
    write_dataset("x", *random_events(times=3000))
    _, whole = loaders(split=split, layout="prefix")
    _, parts = loaders(split=split, layout="prefix", train_domains=["d1"])
    wanted = targets(whole[0].dataset, ["d1"])
    assert targets(parts[0].dataset, ["d1"]) == wanted
    _, (train, *_) = loaders(split=split, train_domains=["d1"])
    events, stop = train.dataset.events, train.dataset.train_stop
    most = int(events.offsets.diff().max())
    position, length = windows(events.offsets[:-1], stop, most, torch.full((len(stop),), most))
    assert int(length.sum()) >= len(wanted) and not torch.isin(position, held_out(parts)).any()


def held_out(parts):
    return torch.cat([loader.dataset.inter_feat["event_index"] for loader in parts[1:]])


def test_all_domains_named_are_all_domains():
    write_dataset("x", *random_events(times=3000))
    _, whole = loaders()
    _, named = loaders(train_domains=["d2", "d0", "d1"])
    for one, two in zip(whole, named, strict=True):
        assert one.dataset.digest() == two.dataset.digest()
        assert torch.equal(one.dataset.inter_feat["event_index"], two.dataset.inter_feat["event_index"])
    assert torch.equal(whole[0].dataset.train_stop, named[0].dataset.train_stop)


def test_unknown_names_are_told():
    write_dataset("x", *random_events())
    with pytest.raises(CDSRError, match="'train_domains' names 'd11', which no domain is called; did you mean 'd1'?"):
        loaders(train_domains=["d11"])


@pytest.mark.parametrize("model", ["AutoCDSR", "AutoCDSRPlus", "HSTU", "TAPE-DDSR-HSTU", "GRU4Rec", "BPR"])
def test_every_kind_of_model_trains_on_one_domain(model):
    keys = {"train_domains": ["d1"], "epochs": 1, "hidden_size": 16, "embedding_size": 16, "show_progress": False}
    keys.pop("embedding_size" if model not in ("GRU4Rec", "BPR") else "hidden_size")
    run(model, "toy", config_dict=keys, run_dir="run")
    ranks = RankTable.load("run/ranks.npz")
    assert set(ranks.domain) == {ranks.domain_names.index("d1")} and not ranks.switch.any()
    assert evaluate("run")["reproduced"]
