"""Search spaces: what is read, what is refused, what a drawn point means."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recbole_cdsr.errors import CDSRError
from recbole_cdsr.names import own_models
from recbole_cdsr.paths import properties_dir
from recbole_cdsr.tune.plan import Search
from recbole_cdsr.tune.space import RANGES, active, examples, grid, read_axes, space_of

SPACES = sorted(path.stem for path in (properties_dir() / "search").glob("*.yaml"))
PLAN = {
    "dataset": "toy", "keys": {}, "samples": 2, "scheduler": "asha", "search": "random", "seed": 1, "grace_epochs": 1,
    "cpus_per_trial": 1.0, "gpus_per_trial": 0.0, "max_failures": 0,
}  # fmt: skip


def written(text: str, name: str = "space.yaml") -> str:
    Path(name).write_text(text)
    return name


@pytest.mark.parametrize("model", SPACES)
def test_every_shipped_space_fits_its_model(model):
    axes = space_of(model, None)
    Search(model, space=axes, **PLAN).check()
    assert len(axes) >= 2


def test_every_own_model_has_a_space():
    assert set(own_models().values()) <= set(SPACES)


def test_all_kinds_are_read():
    axes = space_of(
        "AutoCDSR",
        written(
            "a: {uniform: [0, 1]}\nb: {loguniform: [1e-4, 1]}\nc: {randint: [1, 9]}\nd: {quniform: [0, 1, 0.5]}\n"
            "e: {qloguniform: [2, 8, 2]}\nf: {qrandint: [2, 8, 2]}\ng: [x, y]\nh: 3\n"
            "i: {uniform: [0, 1], when: {g: x}}\n"
        ),
    )
    assert [axis.kind for axis in axes.values()][:6] == list(dict.fromkeys(RANGES[:3])) + list(RANGES[3:])
    assert axes["h"].values == (3,) and axes["b"].values == (1e-4, 1)
    point = {"g": "y", "i": 0.5, "h": 3}
    assert active(point, axes) == {"g": "y", "h": 3} and active({**point, "g": "x"}, axes) == {**point, "g": "x"}


def test_recboles_hyper_files_are_read_in_their_meaning():
    text = "# a comment\nlearning_rate loguniform -8,0\nn_layers choice [1, 2]\nhidden_size choice ['a',8]\n\n"
    text += "x uniform 0,1\nq quniform 0,1,0.1\n"
    axes = space_of("AutoCDSR", written(text, "old.hyper"))
    assert axes["learning_rate"].values == (math.exp(-8), 1.0) and axes["learning_rate"].kind == "loguniform"
    assert axes["n_layers"].values == (1, 2) and axes["hidden_size"].values == ("a", 8)
    assert axes["x"].values == (0, 1) and axes["q"].values == (0, 1, 0.1)


def test_recboles_texts_of_lists_are_lists():
    axes = space_of("NARM", written("dropout_probs choice ['[0.25,0.5]','[0.2,0.2]']", "narm.hyper"))
    assert axes["dropout_probs"].values == ([0.25, 0.5], [0.2, 0.2])


@settings(max_examples=300)
@given(st.floats(-1e3, 1e3), st.sampled_from(RANGES), st.integers(1, 9), st.integers(1, 9), st.booleans())
def test_whatever_a_searcher_proposes_ends_on_the_axis(value, kind, low, steps, whole):
    step = 1 if whole or "int" in kind else 0.1
    ends = [low * step, (low + steps) * step, step][: 3 if kind.startswith("q") else 2]
    axis = read_axes(Path("a.yaml"), {"a": {kind: ends}})["a"]
    settled = axis.settled(value)
    assert low * step - 1e-9 <= settled <= (low + steps) * step - (kind == "randint") + 1e-9
    assert axis.settled(settled) == settled
    if kind not in ("uniform", "loguniform"):
        assert isinstance(settled, int) == (step == 1)  # a key like n_layers takes nothing else
    if kind.startswith("q"):
        assert settled == round(round(settled / step) * step, 12)
    if low * step <= value <= (low + steps) * step and not kind.startswith("q") and "int" not in kind:
        assert settled == value


def test_choices_have_names_that_every_searcher_takes():
    axis = read_axes(Path("a.yaml"), {"a": [[0.1, 0.2], [0.3], None, "x", 2, {"b": 1}]})["a"]
    assert axis.names() == ["[0.1, 0.2]", "[0.3]", None, "x", 2, "{'b': 1}"]
    assert tuple(map(axis.settled, axis.names())) == axis.values == tuple(map(axis.settled, axis.values))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("a: []", "key 'a': choice needs a list of one value or more"),
        ("a: {choice: 3}", "choice needs a list"),
        ("a: {uniform: [1, 0]}", "uniform needs low < high"),
        ("a: {uniform: [1, 1]}", "uniform needs low < high"),
        ("a: {uniform: [0, .inf]}", "uniform needs numbers"),
        ("a: {loguniform: [0, 1]}", "needs 0 < low < high"),
        ("a: {quniform: [0, 1]}", r"needs numbers \[low, high, step\]"),
        ("a: {quniform: [0, 1, 0]}", "a step above 0"),
        ("a: {quniform: [0.05, 0.6, 0.1]}", "ends that are multiples of the step"),
        ("a: {qrandint: [1, 8, 3]}", "ends that are multiples of the step"),
        ("a: {randint: [0, 1.5]}", "needs whole numbers"),
        ("a: {uniforn: [0, 1]}", "there is no 'uniforn'; did you mean 'uniform'"),
        ("a: {uniform: [0, 1], choice: [1]}", "write one of choice, uniform"),
        ("a: {uniform: ['__import__(\"os\")', 1]}", "uniform needs numbers"),
        ("a: {uniform: [0, 1], when: {b: 1}}", "when needs a choice of this space"),
        ("a: {uniform: [0, 1], when: {b: 3}}\nb: [1, 2]", "when needs a choice of this space"),
        ("", "holds no key to search"),
    ],
)
def test_spaces_that_make_no_sense_are_refused(line, message):
    with pytest.raises(CDSRError, match=message) as caught:
        space_of("AutoCDSR", written(line))
    assert "space.yaml" in str(caught.value)


@pytest.mark.parametrize("line", ["learning_rate loguniform", "a range 0,1", "a choice [1", "a uniform low,high"])
def test_bad_hyper_files_are_refused(line):
    with pytest.raises(CDSRError, match=r"bad\.hyper"):
        space_of("AutoCDSR", written(line, "bad.hyper"))


def test_code_in_a_hyper_file_is_text():
    axes = space_of("AutoCDSR", written("a choice [__import__('os')]", "code.hyper"))
    assert axes["a"].values == ("__import__('os')",)


def test_a_grid_has_every_point_once():
    axes = space_of("AutoCDSR", written("g: [x, y]\nn: [1, 2]\nm: {choice: [5, 6], when: {g: x}}\n"))
    points = grid(axes)
    assert len(points) == 2 * 2 + 2 and len({str(point) for point in points}) == 6
    assert all(("m" in point) == (point["g"] == "x") for point in points)
    with pytest.raises(CDSRError, match="'a' is uniform"):
        grid(space_of("AutoCDSR", written("a: {uniform: [0, 1]}")))
    assert {point["n"] for point in examples(axes)} == {1, 2}


@pytest.mark.parametrize(
    ("space", "change", "message"),
    [
        ("learning_rat: [1, 2]", {}, "no key 'learning_rat'; did you mean 'learning_rate'"),
        ("n_layers: [1, two]", {}, "the key 'n_layers' takes a whole number"),
        ("n_layers: [1, 2]", {"scheduler": "ashha"}, "there is no --scheduler 'ashha'; did you mean 'asha'"),
        ("n_layers: [1, 2]", {"search": "bayes"}, "there is no --search 'bayes'; choose from random"),
        ("n_layers: [1, 2]", {"keys": {"n_layers": 1}}, "'n_layers' is given a value and searched too"),
        ("learning_rate: [0.1, 0.2]", {"scheduler": "pbt", "search": "optuna"}, "needs --search random"),
        ("n_layers: [1, 2]", {"scheduler": "pbt"}, "pbt changes learning_rate, .* put one of them into the space"),
        ("valid_metric: [NDCG@5, NDCG@10]", {}, "'valid_metric' cannot be searched"),
        ("label_noise: {uniform: [0, 1]}", {}, "'label_noise' cannot be searched"),
    ],
)
def test_plans_that_no_trial_could_follow_are_refused(space, change, message):
    plan = Search("AutoCDSR", space=space_of("AutoCDSR", written(space)), **{**PLAN, **change})
    with pytest.raises(CDSRError, match=message):
        plan.check()


def test_a_trial_without_a_part_of_a_gpu_trains_on_the_cpu():
    axes = space_of("AutoCDSR", written("n_layers: [1, 2]"))
    for gpus in (0.0, 0.5):
        assert Search("AutoCDSR", space=axes, **{**PLAN, "gpus_per_trial": gpus}).config({})["use_gpu"] == bool(gpus)


def test_a_plan_is_kept_whole():
    axes = space_of("AutoCDSR", written("n_layers: [1, 2]\nlearning_rate: {uniform: [0, 1], when: {n_layers: 2}}"))
    plan = Search("AutoCDSR", space=axes, **{**PLAN, "keys": {"epochs": 3}})
    plan.keep(Path("out"))
    assert Search.kept(Path("out")) == plan
    with pytest.raises(CDSRError, match="holds a search"):
        plan.keep(Path("out"))
    with pytest.raises(CDSRError, match="there is no search in nothing"):
        Search.kept(Path("nothing"))


def test_only_keys_of_the_data_make_trials_load_their_own():
    for key, shared in (
        ("learning_rate", True),
        ("train_batch_size", True),
        ("MAX_ITEM_LIST_LENGTH", False),
        ("layout", False),
    ):
        axes = space_of("AutoCDSR", written(f"{key}: [1, 2]"))
        assert Search("AutoCDSR", space=axes, **PLAN).shares_data() == shared, key
