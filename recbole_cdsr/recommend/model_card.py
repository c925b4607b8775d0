"""The README of a bundle: what the model is, on which data, how good, and how to ask it."""

from __future__ import annotations

from typing import Any

from recbole_cdsr import __version__
from recbole_cdsr.config import CDSRConfig


def model_card(config: CDSRConfig, train: Any, result: dict[str, Any] | None) -> str:
    """Markdown.

    Args:
        train: the training part of the data (CDSRDataset).
        result: what result.json holds; None for a run that did not finish.
    """
    domains = ", ".join(train.domain_names[1:])
    return f"""# {config.model} on {config["dataset"]}

A bundle of recbole-cdsr {__version__}: weights, settings and names, without the data set. It knows {train.item_num - 1}
items in {len(train.domain_names) - 1} domains ({domains}).

```
recbole-cdsr recommend --run FOLDER --history ITEM ITEM ITEM --domain {train.domain_names[-1]}
```

```
from recbole_cdsr import Recommender
Recommender.load("FOLDER").recommend([["ITEM", "ITEM", "ITEM"]], domain={train.domain_names[-1]!r}, k=10)
```

## Metrics

{_metrics(result)}
## Files

`bundle.json` holds the sha256 of the others; a folder that does not match is refused. All are json or safetensors, so
loading runs no code from here. `users.json` and `histories.safetensors`, if present, are the users of the data set and
all their events. This page may be edited.
"""


def _metrics(result: dict[str, Any] | None) -> str:
    if result is None:
        return "The run did not finish, so there are none.\n"
    rows, candidates = result["rows"], result["candidates"]
    names = list(candidates["domain"]["macro"])
    told = "" if not result["target_domain_was_input"] else " The domain of the target was an input."
    text = (
        f"{result['part'].capitalize()} events, all items as candidates (seen ones too), seed {result['seed']}, "
        f"best epoch {result['best_epoch']}.{told}\n"
    )
    for which, title in (("domain", "among the items of the domain"), ("all", "among all items")):
        text += f"\n| {title} | rows | {' | '.join(names)} |\n|---|---{'|---' * len(names)}|\n"
        lines = {name: (rows["per_domain"][name], row) for name, row in candidates[which]["per_domain"].items()}
        lines |= {f"**{name}**": (rows["total"], candidates[which][name]) for name in ("macro", "micro")}
        for name, (count, row) in lines.items():
            cells = " | ".join("-" if row[key] is None else f"{row[key]:.4f}" for key in names)
            text += f"| {name} | {count} | {cells} |\n"
    return text
