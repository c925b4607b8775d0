"""RecBole's own SASRec, data set, loader and trainer step, as installed, ranked by this package's protocol.

    python benchmarks/stock_recbole.py train --dataset ml-100k --seed 1 --out runs/stock/ml-100k-1
    python benchmarks/stock_recbole.py rank --dataset ml-100k --out runs/stock/ml-100k-1

`train` changes nothing in RecBole but what compat.py lists, and switches off autograd's anomaly detection, which
RecBole's import of SINE switches on for all of its models (same weights, 1.5 times the time). RecBole sorts float32
times (steps of 128 s), which would give another test event than ours; so the file it reads holds the exact order 0, 1,
2, ... as times. After each epoch its weights are put into SASRec on our data (items matched by name) and ranked by the
mean over domains of validation NDCG@10; after `--stopping_step` epochs without a better one training stops, as ours
does. The weights of every epoch are kept; `rank` chooses the best epoch and ranks the test events.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

import pandas as pd
import torch

from recbole_cdsr import quick_start
from recbole_cdsr.config import CDSRConfig
from recbole_cdsr.data.dataset import CDSRDataset
from recbole_cdsr.data.sources import ensure_built_in
from recbole_cdsr.environment import environment
from recbole_cdsr.report import result_dict, table

TOKENS = "tokens.json"  # RecBole's names of items, by its numbers


def our_config(options: argparse.Namespace) -> CDSRConfig:
    keys = {"data_path": options.data_path, "seed": options.seed, "show_progress": False}
    return CDSRConfig("SASRec", options.dataset, config_dict=keys)


def write_ordered(config: CDSRConfig, folder: Path) -> None:
    """The events in exact time order, with their number in that order as time (exact in float32 up to 2^24)."""
    ensure_built_in(config["dataset"], Path(config["data_path"]), config["domain_groups"])
    dataset = CDSRDataset(config)
    frame = dataset.inter_feat  # sorted by exact time, then file order
    tokens = {field: dataset.field2id_token[field] for field in ("user_id", "item_id")}
    ordered = pd.DataFrame({f"{field}:token": tokens[field][frame[field]] for field in tokens})
    ordered["timestamp:float"] = range(len(ordered))
    folder.mkdir(parents=True, exist_ok=True)
    ordered.to_csv(folder / f"{folder.name}.inter", sep="\t", index=False)


def stock(options: argparse.Namespace, data_path: Path, name: str):
    """Model, training loader and trainer exactly as RecBole's quick start builds them."""
    from recbole.config import Config
    from recbole.data import create_dataset, data_preparation
    from recbole.model.sequential_recommender.sasrec import SASRec
    from recbole.trainer import Trainer
    from recbole.utils import init_seed

    sys.argv = sys.argv[:1]  # RecBole takes every --key=value it finds there for a setting
    settings = {
        "data_path": str(data_path), "load_col": {"inter": ["user_id", "item_id", "timestamp"]},
        "normalize_all": False, "train_neg_sample_args": None, "seed": options.seed, "epochs": 1,
        "train_batch_size": options.train_batch_size, "show_progress": False, "checkpoint_dir": str(options.out),
    }  # fmt: skip
    config = Config(model=SASRec, dataset=name, config_dict=settings)
    init_seed(config["seed"], config["reproducibility"])
    dataset = create_dataset(config)
    train_data, _, _ = data_preparation(config, dataset)
    init_seed(config["seed"], config["reproducibility"])
    model = SASRec(config, train_data.dataset).to(config["device"])
    return dataset, train_data, Trainer(config, model)


def train(options: argparse.Namespace) -> None:
    """Trains epoch after epoch; a killed run starts anew."""
    torch.set_num_threads(1)
    config = our_config(options)
    write_ordered(config, options.out / "data" / "ordered")
    dataset, train_data, trainer = stock(options, options.out / "data", "ordered")
    torch.autograd.set_detect_anomaly(False)
    items = [str(token) for token in dataset.field2id_token["item_id"]]
    (options.out / TOKENS).write_text(json.dumps({"items": items}))
    ours = Ours(options, config)
    log, spent, scores = options.out / "progress.csv", 0.0, []
    log.write_text("")
    for epoch in range(options.epochs):
        start = time.process_time()
        loss = trainer._train_epoch(train_data, epoch)
        spent += time.process_time() - start
        torch.save(trainer.model.state_dict(), options.out / f"epoch{epoch}.pt")
        scores.append(ours.valid_score(epoch))
        with log.open("a") as file:
            file.write(f"{epoch},{loss},{spent}\n")
        print(f"epoch {epoch}: loss {loss:.1f}, valid {scores[-1]:.4f}, {spent:.0f} CPU s so far", flush=True)
        if spent > options.max_cpu_seconds or epoch - scores.index(max(scores)) >= options.stopping_step:
            break


class Ours:
    """SASRec on our data, for the weights that RecBole trained."""

    def __init__(self, options: argparse.Namespace, config: CDSRConfig) -> None:
        self.folder = options.out
        self.run = quick_start.build(config, quick_start.prepare(config), options.out / "ranked")
        tokens = json.loads((options.out / TOKENS).read_text())["items"]
        numbers = {token: number for number, token in enumerate(tokens)}
        self.order = torch.tensor([numbers[str(token)] for token in self.run.dataset.field2id_token["item_id"]])

    def valid_score(self, epoch: int) -> float:
        self.put_weights(epoch)
        return self.run.trainer._score(self.run.trainer.rank_table(self.run.valid))[0]

    def put_weights(self, epoch: int) -> None:
        """Loads an epoch's weights, the item table in our order of items."""
        state = torch.load(self.folder / f"epoch{epoch}.pt", weights_only=True)
        state["item_embedding.weight"] = state["item_embedding.weight"][self.order]
        self.run.model.load_state_dict(state)


def rank(options: argparse.Namespace) -> None:
    """Ranks validation events with every epoch's weights and test events with the best, and writes result.json."""
    config = our_config(options)
    ours = Ours(options, config)
    epochs = sorted(int(path.stem[5:]) for path in options.out.glob("epoch*.pt"))
    scores = {epoch: ours.valid_score(epoch) for epoch in epochs}
    best = max(scores, key=scores.get)
    ours.put_weights(best)
    ranks = ours.run.trainer.rank_table(ours.run.test)
    ranks.save(options.out / "ranks.npz")
    last = (options.out / "progress.csv").read_text().splitlines()
    seconds = {int(line.split(",")[0]): float(line.split(",")[2]) for line in last}
    result = {
        "model": "SASRec of RecBole", "dataset": options.dataset, "epochs": len(scores), "best_epoch": best,
        "valid_scores": scores, "valid_score": scores[best], "cpu_seconds_to_best_epoch": seconds[best],
        "train_cpu_seconds": seconds[max(scores)], **result_dict(ranks, config["metrics"], config["topk"]),
        "environment": environment(config, " ".join(sys.argv)),
    }  # fmt: skip
    (options.out / "result.json").write_text(json.dumps(result, indent=1) + "\n")
    print({epoch: round(score, 4) for epoch, score in scores.items()})
    print(table(ranks, config["metrics"], config["topk"]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=["train", "rank"])
    parser.add_argument("--dataset", default="ml-100k")
    parser.add_argument("--data_path", default="dataset/")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--train_batch_size", type=int, default=256)
    parser.add_argument("--epochs", type=int, default=50)
    parser.add_argument("--stopping_step", type=int, default=3)
    parser.add_argument("--max_cpu_seconds", type=float, default=float("inf"))
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    {"train": train, "rank": rank}[options.command](options)


if __name__ == "__main__":
    main()
