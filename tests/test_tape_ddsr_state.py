"""TAPE-DDSR-HSTU one event at a time: the numbers of the whole pass, and what it refuses."""

from __future__ import annotations

import pytest
import torch

from recbole_cdsr.errors import CDSRError
from tests.test_tape_ddsr_hstu import C, L, V, every_kind, every_read, every_tape, make_batch, make_model


def events(batch, row: int) -> list[tuple[int, int, float]]:
    lists = [batch[f"{name}_list"][row].tolist() for name in ("item_id", "domain_id", "timestamp")]
    return list(zip(*lists, strict=True))[: batch["item_length"][row]]


@every_tape
@every_read
@every_kind
@pytest.mark.parametrize("with_target", [False, True])
def test_event_by_event_gives_the_states_of_the_whole_pass(tape, ddsr, kind, with_target):
    """After every event, and whatever other target domains were asked about before."""
    length = 40
    model = make_model(
        spread=0.2, tape=tape, ddsr=ddsr, attention=kind, target_domain_input=with_target, MAX_ITEM_LIST_LENGTH=length
    )
    batch = make_batch(length=length, full=True)
    for row in range(2):
        states = model.encode(batch)[row]
        following = batch["domain_id_list"][row, 1:].tolist() + [batch["domain_id"][row].item()]
        user = model.start()
        for n, (item, domain, time) in enumerate(events(batch, row)):
            model.append(user, item, domain, time)
            assert len(user) == n + 1
            if n % 3 == 0:
                user.state(n % (C - 1) + 1)
            if n % 2 == 0:
                torch.testing.assert_close(user.state(following[n]), states[n], atol=1e-5, rtol=1e-5)
        whole = model.full_sort_predict(batch)[row]
        torch.testing.assert_close(model.score(user, batch["domain_id"][row].item()), whole, atol=1e-4, rtol=1e-5)


def test_users_do_not_share_states_and_weights_do_not_change():
    model, batch = make_model(), make_batch(full=True)
    before = [p.clone() for p in model.parameters()]
    users = [model.start() for _ in range(3)]
    for step in zip(*(events(batch, row) for row in range(3)), strict=True):
        for user, event in zip(users, step, strict=True):
            model.append(user, *event)
    states = model.user_state(batch)
    for row, user in enumerate(users):
        torch.testing.assert_close(user.state(batch["domain_id"][row].item()), states[row], atol=1e-5, rtol=1e-5)
    assert all(torch.equal(old, new) for old, new in zip(before, model.parameters(), strict=True))


@pytest.mark.parametrize(
    ("event", "hint"),
    [
        ((0, 1, 9.0), "no item 0"),
        ((V, 1, 9.0), f"no item {V}"),
        ((1, C, 9.0), f"domain {C}"),
        ((1, 1, 0.5), "in order"),
    ],
)
def test_an_event_that_cannot_be_is_refused(event, hint):
    model = make_model()
    user = model.start()
    model.append(user, 1, 1, 1.0)
    with pytest.raises(CDSRError, match=hint):
        model.append(user, *event)


def test_what_cannot_be_served_is_refused():
    model = make_model()
    user = model.start()
    with pytest.raises(CDSRError, match="no events"):
        model.score(user, 1)
    for time in range(L):
        model.append(user, 1, 1, float(time))
    with pytest.raises(CDSRError, match="MAX_ITEM_LIST_LENGTH"):
        model.append(user, 1, 1, float(L))
    for wrong in (None, 0, C):
        with pytest.raises(CDSRError, match="target domain"):
            model.score(user, wrong)
    with pytest.raises(CDSRError, match="model.eval"):
        model.train().score(user, 2)
    with pytest.raises(CDSRError, match="query_time"):
        make_model(query_time="next").start()


def test_without_knowledge_of_the_target_no_domain_is_asked_for():
    model = make_model(tape="causal")
    user = model.start()
    model.append(user, 3, 2, 0.0)
    assert torch.equal(model.score(user), model.score(user, 1))
