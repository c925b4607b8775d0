"""What a search is asked for, kept in its folder so that it can go on."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import yaml

from recbole_cdsr.checkpoint import write_bytes
from recbole_cdsr.config import CDSRConfig, refuse_special_models
from recbole_cdsr.errors import CDSRError
from recbole_cdsr.files import make_folder
from recbole_cdsr.names import nearest
from recbole_cdsr.tune.space import Axis, active, examples, read_axes
from recbole_cdsr.yaml_values import read_yaml

PLAN = "search.yaml"
SCHEDULERS = ("asha", "median", "pbt", "fifo")
SEARCHES = ("random", "grid", "optuna", "hyperopt")
# Keys that pbt may change in training; others, such as sizes, come with the weights.
MUTABLE = ("learning_rate", "weight_decay", "hidden_dropout_prob", "attn_dropout_prob", "dropout_prob", "temperature")
MUTABLE += ("cross_domain_weight", "mask_ratio", "n_negatives")
# Keys that decide what a score is about: trials with several values of one could not be compared.
FIXED = (
    "valid_metric",
    "valid_candidates",
    "eval_args",
    "train_domains",
    "split_items_by_domain",
    "domain_groups",
    "seed",
)
FIXED += (
    "user_inter_num_interval",
    "item_inter_num_interval",
    "val_interval",
    "rm_dup_inter",
    "label_noise",
    "label_hidden",
    "load_col",
)


@dataclass(frozen=True)
class Search:
    """
    keys: settings that all trials share.
    space: key -> what it may be.
    samples: trials; of a grid, all its points.
    grace_epochs: no trial is stopped earlier.
    """

    model: str
    dataset: str
    keys: dict[str, Any]
    space: dict[str, Axis]
    samples: int
    scheduler: str
    search: str
    seed: int
    grace_epochs: int
    cpus_per_trial: float
    gpus_per_trial: float
    max_failures: int
    command: str = field(compare=False, default="")

    def config(self, drawn: dict[str, Any]) -> CDSRConfig:
        """The settings of a trial."""
        keys = {**self.keys, "show_progress": False, **active(drawn, self.space)}
        if not self.gpus_per_trial:  # Ray does not count such a trial among those of a GPU
            keys["use_gpu"] = False
        return CDSRConfig(self.model, self.dataset, config_dict=keys)

    def shares_data(self) -> bool:
        """Whether all trials have the same data: no key that decides about them is searched."""
        deciding = set(self.config({}).parameters["Dataset"])
        deciding |= {"domain_groups", "split_items_by_domain", "train_domains", "label_noise", "label_hidden"}
        deciding |= {"eval_args", "seed", "layout", "repeatable", "encoding"}
        return not deciding & set(self.space)

    def check(self) -> None:
        """Refuses what no trial could use.

        Raises:
            CDSRError: for an unknown scheduler, search, key or value.
        """
        for name, value, known in (("scheduler", self.scheduler, SCHEDULERS), ("search", self.search, SEARCHES)):
            if value not in known:
                advice = nearest(value, known, f"choose from {', '.join(known)}")
                raise CDSRError(f"there is no --{name} '{value}'; {advice}")
        if both := [key for key in self.space if key in self.keys]:
            raise CDSRError(f"'{both[0]}' is given a value and searched too; take it out of one of them")
        for key in FIXED:
            if key in self.space and len(self.space[key].values) > 1:
                raise CDSRError(f"'{key}' cannot be searched: scores with different values cannot be compared")
        if self.scheduler == "pbt" and not set(MUTABLE) & set(self.space):
            raise CDSRError(f"pbt changes {', '.join(MUTABLE)} in training; put one of them into the space")
        if self.scheduler == "pbt" and self.search not in ("random",):
            raise CDSRError("pbt changes keys while it trains, which needs --search random")
        for point in examples(self.space):
            refuse_special_models(self.config(point))

    def keep(self, folder: Path) -> None:
        """Writes the plan into the folder of a new search."""
        if (folder / PLAN).exists():
            raise CDSRError(f"{folder} holds a search; go on with it by --resume, or choose another --out")
        make_folder(folder)
        content = asdict(self)
        content["space"] = {
            key: {axis.kind: list(axis.values), **({"when": axis.when} if axis.when else {})}
            for key, axis in self.space.items()
        }
        write_bytes(folder / PLAN, yaml.safe_dump(content, sort_keys=False, allow_unicode=True).encode())

    @classmethod
    def kept(cls, folder: Path) -> Search:
        """The plan of the search in a folder."""
        if not (folder / PLAN).is_file():
            raise CDSRError(f"there is no search in {folder}; give the --out of one, or leave --resume out")
        content = read_yaml(folder / PLAN)
        try:
            return cls(**{**content, "space": read_axes(folder / PLAN, content["space"])})
        except (KeyError, TypeError) as error:
            raise CDSRError(f"{folder / PLAN} is no plan of a search ({error}); start a new one") from None
