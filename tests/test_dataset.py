"""CDSRDataset: order, domains, rows, splits and RecBole's own settings."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from recbole.data.dataset import SequentialDataset
from recbole.utils import init_seed

from recbole_cdsr.data.events import windows
from recbole_cdsr.data.loaders import WindowDataLoader, make_loaders
from recbole_cdsr.data.split import TEST, TRAIN, VALID, assign_parts
from recbole_cdsr.errors import CDSRError
from tests.helpers import make_config, make_dataset, plain_histories, random_events, write_dataset


def tokens(dataset, field, ids):
    return [str(t) for t in dataset.field2id_token[field][np.asarray(ids)]]


def test_order_is_exact_time_then_file_order():
    inter, item = random_events(times=30)
    write_dataset("x", inter, item)
    _, dataset = make_dataset("x", layout="prefix")
    dataset.build()
    expected = plain_histories(inter)
    events = dataset.events
    for user in range(1, dataset.user_num):
        part = slice(int(events.offsets[user]), int(events.offsets[user + 1]))
        name = tokens(dataset, "user_id", [user])[0]
        assert tokens(dataset, "item_id", events.columns["item_id"][part]) == [item for item, _ in expected[name]]


def test_seconds_survive_where_float32_loses_them():
    times = [1_700_000_000 + second for second in (7, 3, 5, 1, 9)]
    inter = [("u", f"i{n}", t) for n, t in enumerate(times)]
    write_dataset("x", inter, [(f"i{n}", "d") for n in range(5)])
    _, dataset = make_dataset("x")
    dataset.build()
    assert dataset.events.columns["timestamp"].tolist() == [0, 2, 4, 6, 8]
    assert tokens(dataset, "item_id", dataset.events.columns["item_id"]) == ["i3", "i1", "i2", "i0", "i4"]


def test_order_of_times_beyond_float64():
    big = 2**60
    inter = [("u", "a", big + 2), ("u", "b", big), ("u", "c", big + 1)]
    write_dataset("x", inter, [(i, "d") for i in "abc"])
    _, dataset = make_dataset("x")
    dataset.build()
    assert tokens(dataset, "item_id", dataset.events.columns["item_id"]) == ["b", "c", "a"]


@pytest.mark.parametrize("split", [{"LS": "valid_and_test"}, {"RS": [0.8, 0.1, 0.1]}, {"RS": [0.6, 0.3, 0.1]}])
def test_prefix_rows_and_parts_are_recboles(split):
    """Same rows in the same parts as RecBole's SequentialDataset, on times that float32 can hold."""
    inter, item = random_events(times=3000, seed=1)
    inter = [(u, i, t - 1_600_000_000) for u, i, t in inter]
    write_dataset("x", inter, item)
    keys = {"eval_args": {"split": split, "order": "TO", "group_by": "user", "mode": "full"}, "layout": "prefix"}
    config, ours = make_dataset("x", "SASRec", **keys)
    parts = ours.build()
    theirs = SequentialDataset(
        make_config("x", "SASRec", **keys, load_col={"inter": ["user_id", "item_id", "timestamp"]})
    )
    for mine, reference in zip(parts, theirs.build(), strict=True):
        got, want = mine[torch.arange(len(mine))], reference.inter_feat

        def rows(batch, dataset):
            return sorted(
                (tokens(dataset, "user_id", [u])[0], *tokens(dataset, "item_id", [t, *s]), int(n))
                for u, t, s, n in zip(
                    batch["user_id"], batch["item_id"], batch["item_id_list"], batch["item_length"], strict=True
                )
            )

        # Equal times: RecBole's sort keeps the file's order too, so the rows agree there as well.
        assert rows(got, ours) == rows(want, theirs)


@pytest.mark.parametrize("mode", ["valid_and_test", "valid_only", "test_only"])
def test_leave_one_out_keeps_a_training_row(mode):
    user = np.repeat([1, 2, 3, 4], [1, 2, 3, 5])
    part = assign_parts(user, np.arange(len(user)), {"split": {"LS": mode}, "group_by": "user"})
    for one in range(1, 5):
        assert part[user == one][0] == TRAIN
        assert (np.diff(part[user == one]) >= 0).all() or mode == "valid_and_test"
    last = part[np.flatnonzero(np.diff(user, append=9))]
    assert last[0] == TRAIN and set(last[1:]) == {VALID if mode == "valid_only" else TEST}


def test_split_over_all_users_follows_time():
    inter, item = random_events(times=100_000)
    write_dataset("x", inter, item)
    args = {"split": {"RS": [0.7, 0.1, 0.2]}, "order": "TO", "group_by": "none", "mode": "full"}
    _, dataset = make_dataset("x", eval_args=args)
    train, valid, test = dataset.build()
    time = [part.inter_feat["timestamp"] for part in (train, valid, test)]
    assert time[0].max() <= time[1].min() and time[1].max() <= time[2].min()


@pytest.mark.parametrize("width", [2, 5, 8, 50])
def test_windows_cover_every_training_target_once(width):
    inter, item = random_events(n_users=40, most=60)
    write_dataset("x", inter, item)
    config, dataset = make_dataset("x", MAX_ITEM_LIST_LENGTH=width)
    train, valid, _ = make_loaders(config, dataset)
    assert isinstance(train, WindowDataLoader)
    wanted = set(train.dataset.inter_feat["event_index"].tolist())
    seen_first = set()
    for epoch in range(3):
        train.set_epoch(epoch)
        seen: list[int] = []
        for batch in train:
            assert int(batch["item_length"].max()) <= width
            for event, length in zip(batch["event_index"].tolist(), batch["item_length"].tolist(), strict=True):
                seen.extend(range(event - length + 1, event + 1))
        assert sorted(seen) == sorted(wanted)
        seen_first.add(tuple(seen))
    assert len(seen_first) == 3, "every epoch draws its windows anew"


def test_windows_see_no_held_out_event():
    inter, item = random_events(n_users=40, most=60)
    write_dataset("x", inter, item)
    config, dataset = make_dataset("x")
    train, valid, test = make_loaders(config, dataset)
    held = set(valid.dataset.inter_feat["event_index"].tolist()) | set(test.dataset.inter_feat["event_index"].tolist())
    for batch in train:
        for event, length in zip(batch["event_index"].tolist(), batch["item_length"].tolist(), strict=True):
            assert not held & set(range(event - length, event + 1))


def test_window_rows_hold_what_the_events_say():
    inter, item = random_events()
    write_dataset("x", inter, item)
    config, dataset = make_dataset("x")
    train, _, _ = make_loaders(config, dataset)
    columns, offsets = train.dataset.events.columns, train.dataset.events.offsets
    for batch in train:
        for row in range(len(batch)):
            event, length = int(batch["event_index"][row]), int(batch["item_length"][row])
            for field in ("item_id", "domain_id", "timestamp"):
                values = batch[f"{field}_list"][row]
                assert values[:length].tolist() == columns[field][event - length : event].tolist()
                assert not values[length:].any()
                assert batch[field][row] == columns[field][event]
            user = int(batch["user_id"][row])
            assert offsets[user] <= event - length and event < offsets[user + 1]


def test_windows_of_a_single_long_user():
    start, stop = torch.tensor([0]), torch.tensor([11])  # ten targets
    event, length = windows(start, stop, 4, torch.tensor([3]))
    assert event.tolist() == [3, 7, 10] and length.tolist() == [3, 4, 3]


def test_batches_follow_seed_and_epoch_only():
    inter, item = random_events(n_users=40)
    write_dataset("x", inter, item)

    def events(seed, epoch):
        config, dataset = make_dataset("x", seed=seed)
        train = make_loaders(config, dataset)[0]
        train.set_epoch(epoch)
        return [batch["event_index"].tolist() for batch in train]

    assert events(1, 3) == events(1, 3)
    assert events(1, 3) != events(2, 3) != events(1, 4)


def test_domains_from_interactions_win():
    inter = [("u", f"i{n}", n, "x" if n < 2 else "y") for n in range(4)]
    header = ("user_id:token", "item_id:token", "timestamp:float", "domain_id:token")
    write_dataset("a", inter, [(f"i{n}", "z") for n in range(6)], header)
    write_dataset("b", inter, None, header)
    for name in "ab":
        _, dataset = make_dataset(name)
        dataset.build()
        ids = dataset.field2token_id["item_id"]
        named = {token: dataset.domain_names[dataset.item_domain[number]] for token, number in ids.items()}
        assert [named[f"i{n}"] for n in range(4)] == ["x", "x", "y", "y"]
        assert named["[PAD]"] == "[PAD]" and (named.get("i4") == "z") == (name == "a")


@pytest.mark.parametrize(
    ("keys", "check"),
    [
        ({"user_inter_num_interval": "[5,inf)"}, lambda d: (d.events.offsets.diff()[1:] >= 5).all()),
        ({"val_interval": {"timestamp": "[1600005000,inf)"}}, lambda d: d.events.columns["timestamp"].max() < 5000),
    ],
    ids=["user_inter_num_interval", "val_interval"],
)
def test_recboles_filters_work(keys, check):
    inter, item = random_events(seed=3)
    write_dataset("x", inter, item)
    _, dataset = make_dataset("x", **keys)
    dataset.build()
    assert 0 < len(dataset.events) < len(inter)
    assert check(dataset)


def test_removing_repeats_keeps_the_first_in_exact_order():
    inter = [("u", "a", 5), ("u", "b", 5), ("u", "a", 5), ("u", "b", 4), ("u", "c", 9)]
    write_dataset("x", inter, [(i, "d") for i in "abc"])
    _, dataset = make_dataset("x", rm_dup_inter="first")
    dataset.build()
    assert tokens(dataset, "item_id", dataset.events.columns["item_id"]) == ["b", "a", "c"]


def test_facts_about_rows_match_plain_counting():
    inter, item = random_events()
    write_dataset("x", inter, item)
    config, dataset = make_dataset("x")
    test = make_loaders(config, dataset)[2].dataset
    facts = {name: values.tolist() for name, values in test.describe_rows().items()}
    histories, domain_of = plain_histories(inter), dict(item)
    for row, user in enumerate(tokens(test, "user_id", test.inter_feat["user_id"])):
        domains = [domain_of[i] for i, _ in histories[user]]
        assert facts["history_length"][row] == len(domains) - 1
        assert facts["domain_history_length"][row] == domains[:-1].count(domains[-1])
        assert facts["switch"][row] == (domains[-1] != domains[-2])


def test_lines_are_counted_as_an_editor_does():
    folder = write_dataset("x", [("u", "a", 1), ("u", "b", 2)], [("a", "x"), ("b", "y")])
    file = folder / "x.inter"
    file.write_text(file.read_text().replace("u\tb\t2", "\n\nu\tb\tsoon"))
    with pytest.raises(CDSRError, match="line 5, column 'timestamp': 'soon'"):
        make_dataset("x")


def test_renamed_fields_are_read():
    header = ("uid:token", "asin:token", "when:float")
    inter, item = [("u", "a", 1), ("u", "c", 2), ("u", "a", 3)], [("a", "x"), ("b", "x"), ("c", "y"), ("d", "y")]
    write_dataset("x", inter, item, header, ("asin:token", "shelf:token"))
    names = {"USER_ID_FIELD": "uid", "ITEM_ID_FIELD": "asin", "TIME_FIELD": "when", "DOMAIN_FIELD": "shelf"}
    _, dataset = make_dataset("x", **names)
    dataset.build()
    assert dataset.domain_names == ["[PAD]", "x", "y"]


def test_missing_files_name_the_path():
    with pytest.raises(CDSRError, match="dataset/nowhere/nowhere.inter does not exist"):
        make_dataset("nowhere")


def test_random_state_of_the_caller_is_not_touched_by_windows():
    inter, item = random_events()
    write_dataset("x", inter, item)
    config, dataset = make_dataset("x")
    train = make_loaders(config, dataset)[0]
    init_seed(5, True)
    before = torch.get_rng_state()
    train.set_epoch(4)
    list(train)
    assert torch.equal(before, torch.get_rng_state())
