"""Names as categories: what RecBole does with them one by one, and in no other order."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from recbole_cdsr import compat
from recbole_cdsr.data.tokens import filter_by_inter_num, numbered

compat.apply()

from recbole.data.dataset import Dataset  # noqa: E402


class Bare(Dataset):
    """The part of RecBole's data set that its filter reads."""

    uid_field, iid_field = "user_id", "item_id"

    def __init__(self, users: str | None, items: str | None, with_feats: bool):
        self.config = {"user_inter_num_interval": users, "item_inter_num_interval": items}
        self.logger = type("Silent", (), {"debug": print, "warning": print})()
        rng = np.random.default_rng(5)
        drawn = {"user_id": rng.zipf(1.5, 400) % 60, "item_id": rng.zipf(1.3, 400) % 90}
        self.inter_feat = pd.DataFrame({field: values.astype(str) for field, values in drawn.items()})
        self.user_feat = self.item_feat = None
        if with_feats:  # some of their names have no event
            self.user_feat = pd.DataFrame({"user_id": np.arange(70).astype(str)})
            self.item_feat = pd.DataFrame({"item_id": np.arange(100).astype(str)})

    def left(self) -> list[list]:
        feats = [feat for feat in (self.inter_feat, self.user_feat, self.item_feat) if feat is not None]
        return [feat.astype(str).reset_index().to_numpy().tolist() for feat in feats]


@pytest.mark.parametrize("with_feats", [True, False])
@pytest.mark.parametrize("items", [None, "[3,inf)", "[0,20]", "[2,9];[30,inf)"])
@pytest.mark.parametrize("users", [None, "[5,inf)", "(2,40)", "[0,inf)"])
def test_the_filter_leaves_what_recboles_leaves(users, items, with_feats):
    theirs, ours = (Bare(users, items, with_feats) for _ in range(2))
    before = ours.inter_feat
    ours.inter_feat = before.astype("category")
    theirs._filter_by_inter_num()
    filter_by_inter_num(ours)
    assert ours.left() == theirs.left()
    gone = set(before["user_id"]) - set(ours.inter_feat["user_id"])
    assert ours.dropped == {"users": len(gone), "events": len(before) - len(ours.inter_feat)}


def test_numbers_follow_the_order_of_appearance_over_all_columns():
    first = pd.Series(["b", None, "a", "b"]).astype("category")
    numbers, names = numbered([first, pd.Series(["c", "a"]), pd.Series(["d"], index=[7]).astype("category")])
    assert names == ["b", "a", "c", "d"]
    assert [column.tolist() for column in numbers] == [[1, 0, 2, 1], [3, 2], [4]]
