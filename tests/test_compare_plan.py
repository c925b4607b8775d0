"""Plans: which runs they name, which mistakes they tell, and how they may grow."""

from __future__ import annotations

from pathlib import Path

import pytest

from recbole_cdsr.compare.plan import keep_plan, make_plan
from recbole_cdsr.errors import CDSRError

CONTENT = {
    "models": {"autocdsr+": None, "bare": {"model": "AutoCDSR", "objective_weighting": "none", "epochs": 7}},
    "datasets": {"toy": {"hidden_size": 16, "epochs": 5}},
    "seeds": [1, 2],
    "keys": {"epochs": 3, "n_layers": 1},
    "single_domain": ["bare"],
}


def test_cells_of_a_plan():
    cells = make_plan(CONTENT).cells(lambda dataset: ["d 0", "d1"])
    assert [cell.name for cell in cells if cell.seed == 1] == [
        "toy/autocdsr+/1", "toy/bare/1", "toy/bare@d_0/1", "toy/bare@d1/1",
    ]  # fmt: skip
    assert len(cells) == 8 and cells[2].settings["train_domains"] == ["d 0"]
    first, bare = cells[0].settings, cells[1].settings
    assert (first["model"], first["epochs"], bare["model"], bare["epochs"]) == ("AutoCDSRPlus", 5, "AutoCDSR", 7)
    assert bare["n_layers"] == 1 and bare["hidden_size"] == 16 and bare["seed"] == 1 and bare["train_domains"] == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"models": []}, "a plan needs 'models'"),
        ({"models": ["SASRek"]}, "did you mean 'SASRec'"),
        ({"modles": []}, "did you mean 'models'"),
        ({"seeds": [1, 1]}, "different whole numbers"),
        ({"seeds": "a"}, "different whole numbers"),
        ({"keys": {"seed": 1}}, "'seed' is the comparison's to set"),
        ({"keys": {"model": "SASRec"}}, "'model' is the comparison's to set"),
        ({"keys": [1]}, "must map keys to values"),
        ({"single_domain": ["bar"]}, "did you mean 'bare'"),
    ],
)
def test_mistakes_are_told(change, message):
    with pytest.raises(CDSRError, match=message):
        make_plan({**CONTENT, **change})


def test_variants_that_would_share_a_folder_are_refused():
    plan = make_plan({"models": {"a b": {"model": "HSTU"}, "a_b": {"model": "HSTU"}}, "datasets": ["toy"]})
    with pytest.raises(CDSRError, match="'a_b' and 'a b' would share the folder toy/a_b"):
        plan.cells(lambda dataset: [])


def all_begun(dataset: str, variant: str) -> bool:
    return True


def test_a_plan_only_grows():
    folder = Path("out")
    keep_plan(make_plan(CONTENT), folder, all_begun, write=False)
    assert not folder.exists()
    keep_plan(make_plan(CONTENT), folder, all_begun, write=True)
    keep_plan(make_plan({**CONTENT, "seeds": [3, 2, 1], "single_domain": True}), folder, all_begun, write=True)
    for change, message in [
        ({"seeds": [1, 2]}, "'seeds' have 3"),
        ({"single_domain": ["bare"], "seeds": [1, 2, 3]}, r"'single_domain' have autocdsr\+"),
        ({"keys": {"epochs": 3, "n_layers": 2}, "seeds": [1, 2, 3], "single_domain": True}, "has n_layers = 1, not 2"),
    ]:
        with pytest.raises(CDSRError, match=message):
            keep_plan(make_plan({**CONTENT, **change}), folder, all_begun, write=True)
    keep_plan(
        make_plan({**CONTENT, **change}), folder, lambda dataset, variant: False, write=True
    )  # nothing trained yet
