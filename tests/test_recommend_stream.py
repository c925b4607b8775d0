"""Streams: after every event the answer is that of the whole history; TAPE-DDSR-HSTU makes no pass over it."""

from __future__ import annotations

import numpy as np
import pytest

from recbole_cdsr import Recommender, quick_start
from recbole_cdsr.errors import CDSRError

SMALL = {"hidden_size": 16, "n_layers": 1, "epochs": 1, "show_progress": False, "MAX_ITEM_LIST_LENGTH": 8}
BARE = {**SMALL, "tape": "off", "ddsr": "off"}
RUNS = {
    "TAPE-DDSR-HSTU": SMALL,
    "TAPE-DDSR-HSTU, no times": {**SMALL, "query_time": "none"},
    "TAPE-DDSR-HSTU, target unknown": {**SMALL, "tape": "causal", "ddsr": "final"},
    "TAPE-DDSR-HSTU, next time": {**BARE, "query_time": "next"},
    "AutoCDSR": {**SMALL, "inner_size": 16},
    "GRU4Rec": {"epochs": 1, "show_progress": False, "MAX_ITEM_LIST_LENGTH": 8},
}
# Twelve events with a tie and a repeat, one of them unknown: more than MAX_ITEM_LIST_LENGTH.
ITEMS = ["i1", "i7", "i5", "i2", "unknown", "i30", "i31", "i5", "i9", "i12", "i3", "i8"]
EVENTS = [(item, 1.6e9 + 3600.0 * (number // 2)) for number, item in enumerate(ITEMS)]


@pytest.fixture(scope="module")
def recommender(tmp_path_factory):
    root, made = tmp_path_factory.mktemp("runs"), {}

    def get(name: str) -> Recommender:
        if name not in made:
            folder, keys = root / str(len(made)), {**RUNS[name], "data_path": str(root / "data")}
            quick_start.run(name.partition(",")[0], "toy", config_dict=keys, run_dir=folder)
            made[name] = Recommender.load(folder)
        return made[name]

    return get


def same(answer, expected) -> None:
    assert answer.items == expected.items and (answer.by, answer.skipped) == (expected.by, expected.skipped)
    np.testing.assert_allclose(answer.scores, expected.scores, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "timed"),
    [*((name, True) for name in RUNS), ("TAPE-DDSR-HSTU, no times", False), ("AutoCDSR", False), ("GRU4Rec", False)],
)
def test_every_answer_is_that_of_the_whole_history(recommender, name, timed):
    one = recommender(name)
    stream, events = one.stream(), EVENTS if timed else ITEMS
    for count, event in enumerate(events, 1):
        stream.append(*(event if timed else (event,)))
        for domain in one.domains:
            same(stream.recommend(domain), one.recommend([events[:count]], domain)[0])
    same(stream.recommend("d1", k=3, exclude_seen=False), one.recommend([events], "d1", 3, exclude_seen=False)[0])
    assert len(stream) == len(events) - 1
    same(one.stream(events).recommend("d0"), stream.recommend("d0"))


@pytest.mark.parametrize("name", ["TAPE-DDSR-HSTU", "TAPE-DDSR-HSTU, no times", "TAPE-DDSR-HSTU, target unknown"])
def test_the_model_makes_no_pass_over_a_history_that_it_holds(recommender, name, monkeypatch):
    one = recommender(name)
    passes = []
    model = type(one._bundle.model)
    whole = model.user_state
    monkeypatch.setattr(model, "user_state", lambda self, rows: passes.append(1) or whole(self, rows))
    stream = one.stream()
    for count, event in enumerate(EVENTS):
        stream.append(*event)
        stream.recommend("d1")
        assert (len(passes) > 0) == (len(stream) > 8), count


def test_an_empty_stream_is_answered_by_popularity(recommender):
    one = recommender("TAPE-DDSR-HSTU")
    stream = one.stream()
    same(stream.recommend("d1"), one.recommend([[]], "d1")[0])
    stream.append("unknown", 1.0)
    assert (stream.recommend("d1").by, stream.recommend("d1").skipped) == ("popularity", 1)


@pytest.mark.parametrize(
    ("events", "message"),
    [
        ([("i1", 10.0), ("i2", 9.0)], "event 1: its time 9.0 lies before 10.0"),
        ([("i1", 10.0), ("i2",)], "event 1: give all events of a stream a timestamp or none"),
        ([("i1",), ("i2", 1.0)], "event 1: give all events of a stream a timestamp or none"),
        ([("i1", "noon")], "event 0: a timestamp is a finite number"),
        ([("i1", float("nan"))], "event 0: a timestamp is a finite number"),
        ([(1.5, 1.0)], "event 0: expected a text or a whole number"),
    ],
)
def test_events_that_cannot_be_are_refused_and_change_nothing(recommender, events, message):
    one = recommender("TAPE-DDSR-HSTU")
    stream = one.stream(events[:-1])
    with pytest.raises(CDSRError, match=message):
        stream.append(*events[-1])
    assert len(stream) == len(events) - 1


def test_questions_that_cannot_be_answered_are_told(recommender):
    with pytest.raises(CDSRError, match="this stream: TAPEDDSRHSTU needs the domain"):
        recommender("TAPE-DDSR-HSTU").stream(EVENTS).recommend()
    with pytest.raises(CDSRError, match="reads the times of events"):
        recommender("TAPE-DDSR-HSTU").stream(ITEMS).recommend("d1")
    with pytest.raises(CDSRError, match="this stream: there is no domain 'd'"):
        recommender("TAPE-DDSR-HSTU").stream(EVENTS).recommend("d")
