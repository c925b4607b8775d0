"""CDSRDataset: RecBole's SequentialDataset with a domain per item, exact time order and rows gathered on demand.

Where it differs from RecBole 1.2, and why:
- order is decided on exact int64 / float64 times with the file's order as tie-break, before anything is cast;
  RecBole sorts float32 (steps of 128 s at unix times). Tensors hold seconds since the first event, in float64.
- a row is (user, event, length); the padded lists are gathered per batch (see events.py), not stored.
- splits are computed with numpy and give RecBole's own parts.
"""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from recbole_cdsr import compat
from recbole_cdsr.data import cache, sources, split
from recbole_cdsr.data.atomic import read_columns, read_header, split_sequences
from recbole_cdsr.data.corrupt import corrupt_labels
from recbole_cdsr.data.domains import attach_domains, check_domains
from recbole_cdsr.data.events import EventStore, stable_order
from recbole_cdsr.data.restrict import restrict_to_domains
from recbole_cdsr.data.rows import EVENT_FIELD, EventRows
from recbole_cdsr.data.store import digest_of, store_events
from recbole_cdsr.data.tokens import NumbersOf, all_among, filter_by_inter_num, numbered
from recbole_cdsr.data.validate import PADDING, check_fields, check_items, check_times, fault
from recbole_cdsr.errors import CDSRError

compat.apply()

from recbole.data.dataset import Dataset, SequentialDataset  # noqa: E402
from recbole.data.interaction import Interaction  # noqa: E402
from recbole.utils import FeatureSource, FeatureType  # noqa: E402

# What a file must have.
KEY_FIELDS = {
    FeatureSource.INTERACTION: ("USER_ID_FIELD", "ITEM_ID_FIELD", "TIME_FIELD"),
    FeatureSource.ITEM: ("ITEM_ID_FIELD",),
}


class CDSRDataset(SequentialDataset):
    """Events with domains, ready to be split.

    Attributes (after `build`):
        events: EventStore of all events.
        item_domain: [V] domain of each item, 0 for padding, as models see it: wrong where `label_noise` says so, and
            the last domain, "[HIDDEN]", where `label_hidden` does.
        true_domain: [V] the right one; results are by these.
        domain_names: C names, "[PAD]" first, as models see them.
        true_domain_names: the same without "[HIDDEN]".
        tie_share: share of neighbouring events of a user with equal times.
        time_origin: raw time of second 0.
        dropped: numbers of users and of events that `user_inter_num_interval` and `item_inter_num_interval` took away.
        cache_notes: lines for the log on data that an earlier start has kept.
        repeated: number of events that say nothing new: same user, item and time as another one.

    Raises:
        CDSRError: for input that cannot be used; one sentence with file, line or key.
    """

    def __init__(self, config) -> None:
        try:
            super().__init__(config)
        except CDSRError:
            raise
        except ValueError as error:
            reason = f"the data set {config['dataset']} cannot be prepared ({error})"
            raise CDSRError(f"{reason}; check the keys that select and filter its columns") from error
        except MemoryError:
            reason = f"the data set {config['dataset']} does not fit into memory"
            raise CDSRError(f"{reason}; load fewer columns by load_col, or use a machine with more memory") from None

    # Loading

    def _from_scratch(self) -> None:
        """RecBole's, up to events in order; or what an earlier start has kept of it (see cache.py)."""
        config, self.cache_notes = self.config, []
        kept = cache.find(config) if type(self) is CDSRDataset else None
        if kept and kept.load(self):
            return
        watched = cache.Watched(config)
        self.config = watched if kept else config
        super()._from_scratch()
        store_events(self)
        self.config = config
        if kept:
            kept.keep(self, watched.read)

    def _get_preset(self) -> None:
        super()._get_preset()
        self.field2token_id = NumbersOf(self.field2id_token)
        self.inter_path = Path(self.dataset_path) / f"{self.dataset_name}.inter"
        self.item_path = Path(self.dataset_path) / f"{self.dataset_name}.item"
        self.encoding = self.config["encoding"] or "utf-8"

    def _get_field_from_config(self) -> None:
        super()._get_field_from_config()
        self.domain_field = self.config["DOMAIN_FIELD"]

    def _load_data(self, token: str, dataset_path: str) -> None:
        sources.require(token, self.inter_path.parent)
        super()._load_data(token, dataset_path)
        check_times(self.inter_path, self.time_field, self.inter_feat[self.time_field].to_numpy())
        attach_domains(self)

    def _load_feat(self, filepath: str, source) -> pd.DataFrame | None:
        load, unload = self._get_load_and_unload_col(source)
        if load == set() and source != FeatureSource.INTERACTION:
            return None
        path, separator = Path(filepath), self.config["field_separator"]
        fields = read_header(path, separator, self.encoding)
        names = [name for name in fields if (load is None or name in load) and name not in (unload or ())]
        keys = {key: self.config[key] for key in KEY_FIELDS.get(source, ())}
        required = check_fields(path, fields, names, keys, self.domain_field)
        if not names:
            return None
        frame = read_columns(path, fields, names, separator, self.encoding, required)
        for name in names:
            self.field2source[name], self.field2type[name] = source, FeatureType(fields[name])
            if fields[name].endswith("_seq"):
                kind = float if fields[name].startswith("float") else str
                limit = (self.config["seq_len"] or {}).get(name)
                frame[name] = split_sequences(path, name, frame[name], kind, self.config["seq_separator"], limit)
                self.field2seqlen[name] = max(map(len, frame[name]))
            else:
                self.field2seqlen[name] = 1
            if fields[name].startswith("float"):
                self.field2bucketnum[name] = 2
        if source == FeatureSource.ITEM and self.iid_field in frame:
            check_items(path, self.iid_field, frame[self.iid_field])
        if source != FeatureSource.INTERACTION:  # short tables, whose names are looked up and put together
            frame = frame.astype({name: object for name in names if frame[name].dtype == "category"})
        return frame

    # Processing

    def _data_filtering(self) -> None:
        time = self.inter_feat[self.time_field].to_numpy()
        order = stable_order(torch.from_numpy(time)).numpy()
        # Column by column, each given up when its copy is there.
        columns = {name: self.inter_feat.pop(name).array.take(order) for name in list(self.inter_feat)}
        self.inter_feat = pd.DataFrame(columns, copy=False)
        super()._data_filtering()

    def _filter_inter_by_user_or_item(self) -> None:
        tables = [(self.uid_field, self.user_feat), (self.iid_field, self.item_feat)]
        if not all(feat is None or all_among(self.inter_feat[field], feat[field]) for field, feat in tables):
            super()._filter_inter_by_user_or_item()

    def _filter_by_inter_num(self) -> None:
        filter_by_inter_num(self)

    def _remap(self, remap_list: list) -> None:
        """RecBole's, on categories."""
        if not remap_list or any(kind != FeatureType.TOKEN for *_, kind in remap_list):
            super()._remap(remap_list)
            return
        numbers, names = numbered([feat[field] for feat, field, _ in remap_list])
        names = np.array([PADDING, *names])
        for (feat, field, _), column in zip(remap_list, numbers, strict=True):
            self.field2id_token.setdefault(field, names)
            narrow = feat is self.inter_feat and field in (self.uid_field, self.iid_field)
            feat[field] = column if narrow else column.astype(np.int64)

    def _reset_index(self) -> None:
        if self.inter_feat.empty:
            what = f"no event is left, {self.dropped['events']} were of users or items with too few"
            keys = "user_inter_num_interval, item_inter_num_interval and val_interval"
            raise fault(self.inter_path, what, f"weaken the filters ({keys}), or give more events of each user")
        check_domains(self)
        super()._reset_index()

    def _remove_duplication(self) -> None:
        """RecBole's, without its second sort, which is not stable."""
        keep = self.config["rm_dup_inter"]
        if keep is not None:
            self.inter_feat = self.inter_feat.drop_duplicates(subset=[self.uid_field, self.iid_field], keep=keep)

    def _fill_nan(self) -> None:
        """RecBole's, without `fillna(inplace=True)` on a column, which pandas 3 turns into a no-op."""
        for name in self.feat_name_list:
            feat = getattr(self, name)
            for field in feat:
                kind = self.field2type[field]
                if kind in (FeatureType.TOKEN, FeatureType.FLOAT) and not feat[field].hasnans:
                    continue
                if kind == FeatureType.TOKEN:
                    feat[field] = feat[field].fillna(0).astype(np.int64)
                elif kind == FeatureType.FLOAT:
                    feat[field] = feat[field].fillna(feat[field].mean())
                else:
                    empty = np.array([], dtype=np.int64 if kind == FeatureType.TOKEN_SEQ else np.float64)
                    feat[field] = pd.Series([empty if isinstance(value, float) else value for value in feat[field]])

    def _normalize(self) -> None:
        """RecBole's, but time keeps its unit."""
        if self.config["normalize_field"] or self.config["normalize_all"]:
            time = self.inter_feat[self.time_field].copy()
            super()._normalize()
            self.inter_feat[self.time_field] = time

    def hold(self, offsets: Tensor, columns: dict[str, Tensor]) -> None:
        """Takes these events, as in EventStore, for its own, with a row for each."""
        self.events = EventStore(offsets, columns)
        fields = self.uid_field, self.item_list_length_field
        self.inter_feat = EventRows(self.events, None, *fields, self.max_item_list_len)

    def _change_feat_format(self) -> None:
        """Domains as models shall see them, in a column of the events too."""
        self.true_domain = self.item_feat[self.domain_field]
        self.true_domain_names = [str(name) for name in self.field2id_token[self.domain_field]]
        corrupt_labels(self)
        self.item_feat.update(Interaction({self.domain_field: self.item_domain}))
        columns = self.events.columns | {self.domain_field: self.item_domain[self.events.columns[self.iid_field]]}
        self.inter_feat = columns
        self._aug_presets()
        self.hold(self.events.offsets, columns)

    # Splitting and rows

    def build(self) -> list[CDSRDataset]:
        """Splits by `eval_args` into training, validation and test parts, as RecBole does.

        Returns:
            three datasets that share the events; the first knows in `train_stop` [users] where training events end.
        """
        self._change_feat_format()
        offsets, time = self.events.offsets, self.events.columns[self.time_field]
        part, trained = split.assign_events(offsets.numpy(), time.numpy(), self.config["eval_args"])
        rows = [np.flatnonzero(part == number) for number in (split.TRAIN, split.VALID, split.TEST)]
        stop = offsets[:-1] + torch.minimum(torch.from_numpy(trained) + 1, offsets.diff())
        if self.config["layout"] == "interaction":
            event = torch.arange(len(self.events))
            rows[0] = torch.nonzero(event < stop[self.events.user]).flatten().numpy()
        if wanted := self.config["train_domains"]:
            rows, stop = restrict_to_domains(self, rows, stop, wanted)
        parts = [self.copy(self.inter_feat.rows(torch.from_numpy(index))) for index in rows]
        parts[0].train_stop = stop
        return parts

    def copy(self, new_inter_feat: Interaction) -> CDSRDataset:
        part = copy.copy(self)
        part.inter_feat = new_inter_feat
        return part

    def gather(self, rows: Interaction, width: int | None = None) -> Interaction:
        """Adds the padded list of every field to `rows`; no lists in the layout `interaction`, whose models read none.

        Args:
            rows: scalar columns of B rows.
            width: columns of the lists; MAX_ITEM_LIST_LENGTH by default.

        Returns:
            `rows` with <field>_list [B, width].
        """
        if self.config["layout"] == "interaction":
            return rows
        suffix, width = self.config["LIST_SUFFIX"], width or self.max_item_list_len
        event, length = rows[EVENT_FIELD], rows[self.item_list_length_field]
        lists = {field + suffix: self.events.gather(field, event, length, width) for field in self.events.columns}
        rows.update(Interaction(lists))
        return rows

    def __getitem__(self, index, join: bool = True) -> Interaction:
        rows = self.gather(self.inter_feat[index])
        return self.join(rows) if join else rows

    def inter_matrix(self, form: str = "coo", value_field: str | None = None):
        """User x item matrix of the rows, without RecBole's detour through rows of length one."""
        return Dataset.inter_matrix(self, form, value_field)

    def digest(self) -> str:
        """A hash of everything that training sees: events, domains and the names behind the numbers."""
        return digest_of(self)

    def describe_rows(self) -> dict[str, Tensor]:
        """What a rank table says about each row beside its ranks.

        Returns:
            history_length, domain_history_length and switch (the target's domain is not the last event's), each [rows].
        """
        event = self.inter_feat[EVENT_FIELD]
        domain = self.true_domain[self.events.columns[self.iid_field]]
        return {
            "history_length": event - self.events.offsets[self.inter_feat[self.uid_field]],
            "domain_history_length": self.events.count_before(domain)[event],
            "switch": domain[event] != domain[event - 1],
        }
