"""A model that sees every domain learns a rule across domains; one that sees a single domain cannot."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from recbole_cdsr.data.synthetic import planted_rule, write_atomic
from recbole_cdsr.quick_start import run

KEYS = {
    "show_progress": False, "epochs": 40, "stopping_step": 40, "train_batch_size": 1024, "learning_rate": 0.01,
    "hidden_size": 32, "hidden_dropout_prob": 0.1, "MAX_ITEM_LIST_LENGTH": 20,
}  # fmt: skip
TRANSFORMER = {"inner_size": 64, "attn_dropout_prob": 0.0, "objective_weighting": "none"}


def keep_domain(source: str, target: str, domain: str) -> None:
    """The data set `source` with the events of one domain only."""
    folder = Path("dataset") / target
    folder.mkdir(parents=True)
    header, *items = (Path("dataset") / source / f"{source}.item").read_text().splitlines()
    kept = [line for line in items if line.endswith(f"\t{domain}")]
    names = {line.split("\t")[0] for line in kept}
    (folder / f"{target}.item").write_text("\n".join([header, *kept]) + "\n")
    header, *events = (Path("dataset") / source / f"{source}.inter").read_text().splitlines()
    kept = [line for line in events if line.split("\t")[1] in names]
    (folder / f"{target}.inter").write_text("\n".join([header, *kept]) + "\n")


def ndcg_of_last_events(run_dir: str, domain: str, users: set[str] | None) -> tuple[float, set[str]]:
    """In-domain NDCG@10 on test events of `domain` at a switch (or of given users), and those users."""
    from recbole_cdsr.ranks import RankTable

    ranks = RankTable.load(Path(run_dir) / "ranks.npz")
    rows = ranks.domain == list(ranks.domain_names).index(domain)
    rows &= ranks.switch if users is None else np.isin(ranks.user, sorted(users))
    return ranks.metrics(("NDCG",), (10,), "domain", rows)["ndcg@10"], set(ranks.user[rows].tolist())


# Masked events teach slower, and in small batches not at all.
MASKED = {"train_batch_size": 4096, "learning_rate": 0.003, "epochs": 300, "stopping_step": 300}


@pytest.mark.parametrize(
    ("model", "keys"),
    [
        ("AutoCDSR", {"backbone": "sasrec", **TRANSFORMER}),
        pytest.param("AutoCDSR", {"backbone": "bert4rec", **TRANSFORMER, **MASKED}, marks=pytest.mark.slow),
        ("AutoCDSR+", TRANSFORMER),
        ("HSTU", {}),
        ("TAPE-DDSR-HSTU", {}),
    ],
)
def test_the_planted_rule_is_learned_across_domains_only(model, keys):
    events = planted_rule(600, 30, noise=0.0, seed=1)
    write_atomic("dataset/planted", "planted", events)
    keep_domain("planted", "single", "d0")
    keys = {**KEYS, **keys}
    run(model, "planted", config_dict=keys, run_dir="both")
    run(model, "single", config_dict=keys, run_dir="one")
    both, users = ndcg_of_last_events("both", "d0", None)
    one, same_users = ndcg_of_last_events("one", "d0", users)
    assert len(users) > 100 and len(same_users) > 100
    assert both > 3 * one and both > 0.5, (both, one)
