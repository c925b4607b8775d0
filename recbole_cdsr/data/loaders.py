"""What the trainer iterates over: windows (sequence layout), RecBole's own loader (the others), evaluation rows."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import torch

from recbole_cdsr import compat
from recbole_cdsr.data.dataset import EVENT_FIELD, CDSRDataset
from recbole_cdsr.data.events import windows
from recbole_cdsr.errors import CDSRError

compat.apply()

from recbole.data.dataloader import TrainDataLoader  # noqa: E402
from recbole.data.interaction import Interaction  # noqa: E402
from recbole.data.transform import construct_transform  # noqa: E402
from recbole.data.utils import create_samplers  # noqa: E402

# Scores of at most this many (row, item) pairs are asked of a RecBole model at once: 256 MB in float32.
MAX_SCORES = 2**26
# Windows are sorted by length within pools of this many batches: little padding, and still a random order.
POOL_BATCHES = 16


class WindowDataLoader:
    """Batches of windows for a loss at every position, cut at new random places in every epoch.

    Everything random follows from (seed, epoch), so a resumed run sees the same batches.

    Args:
        config: seed, train_batch_size (targets per batch), MAX_ITEM_LIST_LENGTH.
        dataset: the training part.
    """

    def __init__(self, config, dataset: CDSRDataset) -> None:
        self._dataset = dataset
        self.seed, self.width = config["seed"], dataset.max_item_list_len
        self.batch_size = config["train_batch_size"]
        self.set_epoch(0)

    @property
    def dataset(self) -> CDSRDataset:
        return self._dataset

    def set_epoch(self, epoch: int) -> None:
        """Draws the windows and their order for `epoch`."""
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
        start, stop = self._dataset.events.offsets[:-1], self._dataset.train_stop
        first = torch.randint(1, self.width + 1, (len(start),), generator=generator)
        event, length = windows(start, stop, self.width, first)
        order = torch.randperm(len(event), generator=generator)
        pool = torch.cumsum(length[order], 0) // (self.batch_size * POOL_BATCHES)
        order = order[torch.argsort(pool * (self.width + 1) + length[order], stable=True)]
        batch = (torch.cumsum(length[order], 0) - 1) // self.batch_size
        batches = order.split(torch.bincount(batch)[torch.bincount(batch) > 0].tolist())
        shuffled = torch.randperm(len(batches), generator=generator).tolist()
        self._batches = [batches[number] for number in shuffled]
        self._event, self._length = event, length

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator[Interaction]:
        dataset, events = self._dataset, self._dataset.events
        for index in self._batches:
            event, length = self._event[index], self._length[index]
            rows = {name: values[event] for name, values in events.columns.items()}
            rows[dataset.uid_field] = events.user_of(event)
            rows[dataset.item_list_length_field], rows[EVENT_FIELD] = length, event
            yield dataset.gather(Interaction(rows), int(length.max()))


class RowDataLoader:
    """Evaluation rows in order, `eval_batch_size` at a time, with the model's transform applied.

    Args:
        trim: cut the lists to the longest history of the batch; RecBole's models need the full width.
    """

    def __init__(self, config, dataset: CDSRDataset, trim: bool) -> None:
        self._dataset, self.trim = dataset, trim
        self.batch_size = config["eval_batch_size"]
        if not trim:
            self.batch_size = max(1, min(self.batch_size, MAX_SCORES // dataset.item_num))
        self.transform = construct_transform(config)

    @property
    def dataset(self) -> CDSRDataset:
        return self._dataset

    def part(self, number: int, count: int) -> RowDataLoader:
        """The loader of part `number` (from 0) of `count` parts of the rows; itself where there are fewer rows."""
        rows = len(self._dataset)
        if count == 1 or rows < count:
            return self
        part = copy.copy(self)
        part._dataset = self._dataset.copy(
            self._dataset.inter_feat[slice(rows * number // count, rows * (number + 1) // count)]
        )
        return part

    def __len__(self) -> int:
        return -(-len(self._dataset) // self.batch_size)

    def __iter__(self) -> Iterator[Interaction]:
        dataset = self._dataset
        for start in range(0, len(dataset), self.batch_size):
            rows = dataset.inter_feat[slice(start, start + self.batch_size)]
            width = max(int(rows[dataset.item_list_length_field].max()), 1) if self.trim else None
            yield self.transform(dataset, dataset.join(dataset.gather(rows, width)))


def make_loaders(config, dataset: CDSRDataset):
    """Splits the data and wraps the parts.

    Args:
        config: CDSRConfig; its `layout` decides the training loader.
        dataset: not yet built.

    Returns:
        training loader, validation loader, test loader; the last two may be empty.

    Raises:
        CDSRError: if no training target is left, or no item to draw as a negative.
    """
    return loaders_of(config, dataset.build())


def loaders_of(config, parts: list[CDSRDataset]):
    """The loaders of parts that `CDSRDataset.build` made; arguments, result and errors as in `make_loaders`."""
    if len(parts[0]) == 0:
        raise CDSRError(f"{config['dataset']} has no user with at least two training events; weaken the filters")
    if not len(parts[1]) and not len(parts[2]):
        raise CDSRError(f"eval_args.split leaves no event of {config['dataset']} to validate or test; change it")
    own = config["layout"] == "sequence"
    if own:
        train = WindowDataLoader(config, parts[0])
    else:
        try:
            sampler = create_samplers(config, parts[0], parts)[0]
        except ValueError as error:  # a user knows every item
            raise CDSRError(f"{config.model} cannot be trained on {config['dataset']}: {error}") from error
        train = TrainDataLoader(config, parts[0], sampler, shuffle=config["shuffle"])
    return train, RowDataLoader(config, parts[1], trim=own), RowDataLoader(config, parts[2], trim=own)
