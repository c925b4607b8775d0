"""What a run says of itself: the lines at its start, and the content of result.json; `built` is a `quick_start.Run`."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

from recbole_cdsr import memory
from recbole_cdsr.ranks import RankTable
from recbole_cdsr.report import result_dict, table
from recbole_cdsr.run_folder import ENVIRONMENT

logger = logging.getLogger()


def result_of(built: Any, part: str, ranks: RankTable) -> dict[str, Any]:
    """What result.json holds: the metrics of the `part` of the data that was ranked, and how they came about."""
    config, trainer = built.config, built.trainer
    written = Path(config["checkpoint_dir"]) / ENVIRONMENT
    return {
        "model": config.model,
        "dataset": config.dataset,
        "part": part,
        "layout": config["layout"],
        "seed": config["seed"],
        "target_domain_was_input": bool(getattr(built.model, "needs_target_domain", False)),
        "target_time_was_input": bool(getattr(built.model, "needs_target_time", False)),
        "best_epoch": trainer.best_epoch,
        "epochs": len(trainer.history),
        "valid_score": float(trainer.best_valid_score) if trainer.best_valid_result else None,
        "train_cpu_seconds": sum(row["train_cpu_seconds"] for row in trainer.history),
        "peak_memory_bytes": memory.peak_bytes(),
        "parameters": sum(p.numel() for p in built.model.parameters() if p.requires_grad),
        **result_dict(ranks, config["metrics"], config["topk"]),
        "run_dir": config["checkpoint_dir"],
        "environment": json.loads(written.read_text(encoding="utf-8")) if written.is_file() else None,
        "table": "\n".join([table(ranks, config["metrics"], config["topk"]), *_given(built.model)]),
    }


def _given(model) -> list[str]:
    """What stands below the table of a model that was told something about its targets."""
    lines = []
    if getattr(model, "needs_target_domain", False):
        lines.append("The target's domain was input: do not compare the ranks among all items with other models'.")
    if getattr(model, "needs_target_time", False):
        lines.append("The target's time was input: compare with models that were given it too.")
    return lines


def describe(built: Any) -> None:
    """Says in a few lines what the data and the model are."""
    data, config = built.train.dataset, built.config
    n_domains = len(data.true_domain_names)
    events = data.true_domain[data.events.columns[data.iid_field]].bincount(minlength=n_domains).tolist()
    items = data.true_domain.bincount(minlength=n_domains).tolist()
    for note in data.cache_notes:
        logger.info(note)
    users, catalogue, tied = data.user_num - 1, data.item_num - 1, 100 * data.tie_share
    logger.info("%s: %d users, %d items, %d events", config["dataset"], users, catalogue, len(data.events))
    logger.info("%.1f %% of neighbouring events share a time and keep the order of the file", tied)
    logger.info("%d events stand there a second time, with the same user, item and time", data.repeated)
    logger.info("dropped for too few events: %d users, %d events in all", *data.dropped.values())
    for name, n_events, n_items in list(zip(data.true_domain_names, events, items, strict=True))[1:]:
        logger.info("domain %s: %d events, %d items", name, n_events, n_items)
    count = sum(p.numel() for p in built.model.parameters() if p.requires_grad)
    logger.info("%s: %d parameters on %s, layout %s", config.model, count, config["device"], config["layout"])
    rows = [len(loader.dataset) for loader in (built.train, built.valid, built.test)]
    logger.info("targets: %d to train on, %d to validate, %d to test", *rows)
