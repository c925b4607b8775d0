"""Recommender: the best items for raw histories of known or new users, from a bundle.

What is answered, case by case:
- Unknown items of a history are skipped and counted (`Recommendation.skipped`).
- A history without a known item is answered by popularity: items by how often they stand in the training events, equal
  ones by their number. So is every question about a domain without training events.
- With a domain, candidates are the items of that domain; without, all items.
- Fewer than k items come back where fewer are left.
- Models that read event times need (item, timestamp) pairs; one that asks for the time of the question gets the last
  event's. Models that are told the domain need one. Models that know users by their ids serve known users only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from recbole_cdsr.errors import CDSRError
from recbole_cdsr.names import nearest
from recbole_cdsr.recommend import bundle as bundles
from recbole_cdsr.recommend.histories import Histories, read_histories, select, token_of
from recbole_cdsr.recommend.scoring import Best, Scorer
from recbole_cdsr.recommend.stream import Stream


class Recommendation(NamedTuple):
    """The answer for one history: items, best first, with their scores."""

    items: list[str]
    scores: list[float]  # the model's, to be compared within one answer only; or numbers of training events
    by: str  # "model" or "popularity"
    skipped: int  # unknown items of the history


class Recommender:
    """Answers from a bundle; the module says what is answered when.

    Attributes:
        items: the items it knows.
        domains: the domains they are in.
    """

    def __init__(self, bundle: bundles.Bundle) -> None:
        self._bundle, self._scorer = bundle, Scorer(bundle)
        self.items, self.domains = bundle.catalogue.items[1:], bundle.catalogue.domain_names[1:]
        self._number_of = {item: number for number, item in enumerate(self.items, 1)}
        self._names = np.array(bundle.catalogue.items, dtype=object)
        self._known: tuple[dict[str, int], Histories] | None = None

    @classmethod
    def load(cls, run_dir: str | Path, device: str = "cpu", model: type | None = None) -> Recommender:
        """Loads the bundle in `run_dir`: the folder of a run, or a bundle wherever it was copied.

        Args:
            device: "cpu", "cuda" or "cuda:N".
            model: the class, if it is your own; a bundle only names it.

        Raises:
            CDSRError: if there is no bundle, it is damaged or of a newer format, or its model is not known here.
        """
        folder = Path(run_dir)
        inside = folder / bundles.FOLDER
        if inside.is_dir():
            folder = inside
        elif (folder / "config.yaml").is_file():
            raise CDSRError(f"the run in {folder} has no bundle yet; write it: recbole-cdsr export --run {folder}")
        return cls(bundles.read(folder, device, model))

    def recommend(
        self,
        histories: Iterable[Sequence[Any]],
        domain: str | Sequence[str | None] | None = None,
        k: int = 10,
        exclude_seen: bool = True,
        names: Sequence[str] | None = None,
    ) -> list[Recommendation]:
        """The best k items for each history.

        Args:
            histories: one list per user of items in time order, or of (item, timestamp) pairs with timestamps as in
                the training data.
            domain: where to recommend from: one for all, or one (or None) for each history; None: anywhere.
            k: at most how many items.
            exclude_seen: leave out the items of the history.
            names: what errors call each history, such as a line of a file; by default its number from 0.

        Raises:
            CDSRError: for input that cannot be answered, naming the history.
        """
        known = read_histories(histories, self._number_of, names)
        return self._answer(known, None, self._domain_numbers(domain, len(known.unknown), names), k, exclude_seen)

    def recommend_users(
        self,
        users: Sequence[Any],
        domain: str | Sequence[str | None] | None = None,
        k: int = 10,
        exclude_seen: bool = True,
        names: Sequence[str] | None = None,
    ) -> list[Recommendation]:
        """The best k items for users of the data set, after all their events in it, those of the test included.

        Args:
            users: as the data set names them; the other arguments are those of `recommend`.

        Raises:
            CDSRError: if a user is not known, or the bundle came without users.
        """
        numbers, events = self._number_users(users, names)
        domains = self._domain_numbers(domain, len(numbers), names)
        return self._answer(select(events, numbers), numbers, domains, k, exclude_seen)

    def history(self, user: Any) -> list[tuple[str, float]]:
        """The (item, timestamp) pairs of a user of the data set, in time order; errors as in `recommend_users`."""
        numbers, events = self._number_users([user], None)
        own = select(events, numbers)
        return list(zip(self._names[own.items].tolist(), own.times.tolist(), strict=True))

    def stream(self, history: Sequence[Any] = ()) -> Stream:
        """One user whose events come one by one: `append` and `recommend` of the result.

        Args:
            history: the events so far, of items or of (item, timestamp) pairs, in time order.

        Raises:
            CDSRError: for events that cannot be, naming the event.
        """
        stream = Stream(self._bundle, self._number_of, self._answer_stream)
        for event in history:
            stream.append(*(event if isinstance(event, list | tuple) else (event,)))
        return stream

    def _answer_stream(self, history: Histories, domain, k: int, exclude_seen: bool, state_of) -> Recommendation:
        domains = self._domain_numbers(domain, 1, ["this stream"])
        return self._answer(history, None, domains, k, exclude_seen, state_of)[0]

    def _number_users(self, users: Sequence[Any], names: Sequence[str] | None) -> tuple[np.ndarray, Histories]:
        """The numbers of users, and the events of all users; both are read when first asked for."""
        if self._known is None:
            known, events = bundles.read_histories(self._bundle)
            self._known = {name: number for number, name in enumerate(known[1:], 1)}, events
        number_of, events = self._known
        numbers = []
        for position, user in enumerate(users):
            where = names[position] if names else f"user {position}"
            token = token_of(user, where)
            if token not in number_of:
                raise CDSRError(
                    f"{where}: there is no user '{token}' in {self._bundle.folder}; give the history instead"
                )
            numbers.append(number_of[token])
        return np.array(numbers, dtype=np.int64), events

    def _domain_numbers(
        self, domain: str | Sequence[str | None] | None, count: int, names: Sequence[str] | None
    ) -> np.ndarray:
        """[count] number of the domain of each history, 0 for None."""
        domains = [domain] * count if domain is None or isinstance(domain, str) else list(domain)
        if len(domains) != count:
            raise CDSRError(f"there are {count} histories, but {len(domains)} domains; give one, or one for each")
        number_of = {None: 0, **{name: number for number, name in enumerate(self.domains, 1)}}
        needed = getattr(self._bundle.model, "needs_target_domain", False)
        for position, name in enumerate(domains):
            where = names[position] if names else f"history {position}"
            if name not in number_of:
                advice = nearest(str(name), self.domains, f"there are {', '.join(self.domains)}")
                raise CDSRError(f"{where}: there is no domain '{name}'; {advice}")
            if name is None and needed:
                raise CDSRError(f"{where}: {self._bundle.config.model} needs the domain to recommend from; give one")
        return np.array([number_of[name] for name in domains], dtype=np.int64)

    @torch.no_grad()
    def _answer(
        self,
        histories: Histories,
        users: np.ndarray | None,
        domains: np.ndarray,
        k: int,
        exclude_seen: bool,
        state_of: Callable[[int], torch.Tensor] | None = None,
    ) -> list[Recommendation]:
        if isinstance(k, bool) or not isinstance(k, int | np.integer) or k < 1:
            raise CDSRError(f"k must be a whole number of 1 or more, but is {k!r}")
        answers: list[Any] = [None] * len(domains)
        order = np.argsort(histories.lengths, kind="stable")  # neighbours of one length need little padding
        for number in np.unique(domains).tolist():
            items = self._scorer.candidates(number)
            trained = bool(self._bundle.catalogue.popularity[items].any())
            rows = order[domains[order] == number]
            unaided = (histories.lengths[rows] == 0) | (not trained)
            for chosen in _batches(rows[unaided], self._scorer.users_at_once):
                best = self._scorer.by_popularity(select(histories, chosen), items, int(k), exclude_seen)
                self._fill(answers, chosen, best, "popularity", histories.unknown)
            for chosen in _batches(rows[~unaided], self._scorer.users_at_once):
                who = None if users is None else users[chosen]
                own = select(histories, chosen)
                best = self._scorer.by_model(own, who, number, items, int(k), exclude_seen, state_of)
                self._fill(answers, chosen, best, "model", histories.unknown)
        return answers

    def _fill(self, answers: list[Any], rows: np.ndarray, best: Best, by: str, skipped: np.ndarray) -> None:
        items, scores = self._names[best.items.numpy()].tolist(), best.scores.tolist()
        left = (best.scores > -torch.inf).sum(1).tolist()
        for n, row in enumerate(rows.tolist()):
            answers[row] = Recommendation(items[n][: left[n]], scores[n][: left[n]], by, int(skipped[row]))


def _batches(rows: np.ndarray, size: int) -> list[np.ndarray]:
    return [rows[start : start + size] for start in range(0, len(rows), size)]
