"""What one more event costs TAPE-DDSR-HSTU when it serves, against a pass over the whole history.

    OMP_NUM_THREADS=1 python benchmarks/bench_append.py [--events 1000 10000 100000] [--domains 2 20]

append: an event is added and the state of the user is asked for under the domain of the next event, so that each event
is computed once. asked: the state under one other domain, which computes the last event anew. whole: one pass over the
history without gradients, up to 10,000 events. Medians of 200 (whole: of 3), process CPU time on one thread. Events are
spread evenly over domains, and keys and values of the history are random: only their number counts. Model as in the
defaults.
"""

from __future__ import annotations

import argparse
import statistics

import torch
from measuring import cpu_seconds
from torch import Tensor

from recbole_cdsr.config import CDSRConfig
from recbole_cdsr.model.tape_ddsr_hstu import TAPEDDSRHSTU
from recbole_cdsr.model.tape_ddsr_state import Event, UserHistory

N_ITEMS, WHOLE_UP_TO, REPEATS = 1001, 10_000, 200


class Catalogue:
    """As much of a data set as the model asks for."""

    def __init__(self, n_domains: int):
        self.n_domains = n_domains
        self.item_domain = torch.arange(N_ITEMS) % n_domains + 1
        self.item_domain[0] = 0

    def num(self, field: str) -> int:
        return self.n_domains + 1 if field == "domain_id" else N_ITEMS


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--events", type=int, nargs="+", default=[1000, 10_000, 100_000])
    parser.add_argument("--domains", type=int, nargs="+", default=[2, 20])
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
    print("| events | domains | append, ms | asked, ms | whole, ms |\n|---|---|---|---|---|")
    for count in options.events:
        for n_domains in options.domains:
            cells = [f"{1000 * seconds:.2f}" if seconds else "-" for seconds in measure(count, n_domains)]
            print(f"| {count} | {n_domains} | " + " | ".join(cells) + " |", flush=True)


def measure(count: int, n_domains: int) -> tuple[float, float, float | None]:
    """Seconds for an append, for another question, and for the whole pass."""
    torch.manual_seed(0)
    length = count + REPEATS + 1
    keys = {"MAX_ITEM_LIST_LENGTH": length, "show_progress": False}
    catalogue = Catalogue(n_domains)
    model = TAPEDDSRHSTU(CDSRConfig("TAPEDDSRHSTU", "toy", config_dict=keys), catalogue).eval()
    items = torch.randint(1, N_ITEMS, (length,))
    domains = catalogue.item_domain[items]
    user = filled(model, domains[:count])
    appended, asked = [], []
    for n in range(count, count + REPEATS):
        event = items[n].item(), domains[n].item(), float(n)
        following, other = domains[n + 1].item(), event[1] % n_domains + 1
        asked.append(cpu_seconds(lambda other=other: user.state(other)))
        user.state(event[1])  # back to what the next event turns out to be
        appended.append(cpu_seconds(lambda event=event, following=following: add(user, event, following)))
    whole = None
    if count <= WHOLE_UP_TO:
        row = torch.arange(count).double()[None]
        batch = {"item_id_list": items[None, :count], "domain_id_list": domains[None, :count], "timestamp_list": row}
        batch |= {"item_length": torch.tensor([count]), "domain_id": domains[count : count + 1]}
        model.ITEM_SEQ_LEN = "item_length"
        whole = statistics.median(cpu_seconds(lambda: model.user_state(batch)) for _ in range(3))
    return statistics.median(appended), statistics.median(asked), whole


def filled(model: TAPEDDSRHSTU, domains: Tensor) -> UserHistory:
    """A user with events of the given domains at 0, 1, 2, ... seconds."""
    user, last = model.start(), len(domains) - 1
    for domain in domains.unique().tolist():
        places, cache = (domains[:last] == domain).nonzero().squeeze(1), user.cache(domain)
        while len(cache.position) < len(places):
            cache.count = len(cache.position)
            cache.reserve(0, 0.0)
        cache.count = len(places)
        cache.position[: cache.count], cache.time[: cache.count] = places, places
        cache.key.normal_()
        cache.value.normal_()
    user.open = Event(1, domains[last].item(), float(last), last, domains[last - 1].item())
    return user


def add(user: UserHistory, event: tuple[int, int, float], following: int) -> None:
    user.append(*event)
    user.state(following)


if __name__ == "__main__":
    main()
