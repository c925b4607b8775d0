"""A markdown table over seeds from finished runs: in-domain NDCG@10 on test events, mean and deviation.

    python benchmarks/quality_table.py "AutoCDSR=runs/a1,runs/a2,runs/a3" "SASRec of RecBole=runs/s1,runs/s2,runs/s3"

Reads result.json of each folder (written by `recbole-cdsr run` or stock_recbole.py).
"""

from __future__ import annotations

import json
import statistics
import sys
from pathlib import Path


def main(groups: list[str]) -> None:
    rows: dict[str, list[dict]] = {}
    for group in groups:
        name, _, folders = group.partition("=")
        rows[name] = [json.loads((Path(folder) / "result.json").read_text()) for folder in folders.split(",")]
    first = next(iter(rows.values()))[0]
    counts = first["rows"]["per_domain"]
    heads = ["model", "seeds", *(f"{domain} ({n})" for domain, n in counts.items())]
    heads += ["macro", "micro", "micro, all items", "valid macro", "epochs (best)", "training CPU s"]
    print("| " + " | ".join(heads) + " |\n" + "|---" * len(heads) + "|")
    for name, results in rows.items():
        domain, everything = ([result["candidates"][kind] for result in results] for kind in ("domain", "all"))
        cells = [name, ", ".join(str(result["environment"]["seed"]) for result in results)]
        cells += [spread([one["per_domain"][d]["ndcg@10"] for one in domain]) for d in counts]
        cells += [spread([one[part]["ndcg@10"] for one in domain]) for part in ("macro", "micro")]
        cells += [spread([one["micro"]["ndcg@10"] for one in everything])]
        cells += [spread([result["valid_score"] for result in results])]
        cells += [", ".join(f"{result['epochs']} ({result['best_epoch']})" for result in results)]
        cells += [", ".join(f"{result['train_cpu_seconds']:.0f}" for result in results)]
        print("| " + " | ".join(cells) + " |")


def spread(values: list[float]) -> str:
    """Mean, and deviation over seeds where there are several."""
    mean = f"{statistics.mean(values):.4f}"
    return mean if len(values) == 1 else f"{mean} ± {statistics.stdev(values):.4f}"


if __name__ == "__main__":
    main(sys.argv[1:])
