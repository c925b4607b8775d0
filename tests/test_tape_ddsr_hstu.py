"""TAPE-DDSR-HSTU: what a state may see and does see, and that its fast forms are its plain ones."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from recbole_cdsr import quick_start
from recbole_cdsr.config import CDSRConfig, read_yaml
from recbole_cdsr.errors import CDSRError
from recbole_cdsr.layers import intra_domain
from recbole_cdsr.layers.domain_states import READS
from recbole_cdsr.layers.intra_domain import KINDS
from recbole_cdsr.layers.tape import TAPES
from recbole_cdsr.model.base import read_choice
from recbole_cdsr.model.tape_ddsr_hstu import TAPEDDSRHSTU
from recbole_cdsr.paths import properties_dir
from recbole_cdsr.yaml_values import parse_keys, parse_value
from tests import test_autocdsr

V, C, L = 41, 5, 14
ITEM_DOMAIN = torch.cat([torch.zeros(1, dtype=torch.long), torch.arange(V - 1) % (C - 1) + 1])
every_tape = pytest.mark.parametrize("tape", TAPES)
every_read = pytest.mark.parametrize("ddsr", READS)
every_kind = pytest.mark.parametrize("kind", KINDS)


class FakeDataset:
    item_domain = ITEM_DOMAIN

    def num(self, field: str) -> int:
        return {"item_id": V, "domain_id": C}[field]


def make_model(spread: float | None = 0.3, **keys) -> TAPEDDSRHSTU:
    """In eval mode; with `spread`, weights are far from their start, so that every part has its say."""
    torch.manual_seed(0)
    own = read_yaml(properties_dir() / "model" / "TAPEDDSRHSTU.yaml")
    small = {"hidden_size": 16, "query_key_size": 6, "value_size": 5, "MAX_ITEM_LIST_LENGTH": L}
    config = test_autocdsr.make_config(**{**own, "objectives": ["rec"], **small, **keys})
    model = TAPEDDSRHSTU(config, FakeDataset())
    if spread is not None:
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=spread)
    return model.eval()


def make_batch(rows: int = 4, length: int = L, full: bool = False, seed: int = 1) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    items = torch.randint(1, V, (rows, length + 1), generator=generator)
    times = (torch.rand(rows, length + 1, generator=generator, dtype=torch.float64) * 1e5).cumsum(1)
    lengths = torch.randint(1, length + 1, (rows,), generator=generator)
    lengths[0] = length
    if full:
        lengths[:] = length
    last, valid = lengths[:, None], torch.arange(length) < lengths[:, None]
    batch = {"item_id": items, "timestamp": times, "domain_id": ITEM_DOMAIN[items]}
    lists = {f"{name}_list": values[:, :-1] * valid for name, values in batch.items()}
    return {name: values.gather(1, last)[:, 0] for name, values in batch.items()} | lists | {"item_length": lengths}


def use_form(monkeypatch, form: str) -> None:
    monkeypatch.setattr(intra_domain, "MASKED_MAX_LENGTH", 1000 if form == "masked" else 0)
    monkeypatch.setattr(intra_domain, "MOST_PAIRS", 1.0)


every_form = pytest.mark.parametrize("form", ["masked", "segments"])


# What a state may see


@every_form
@every_tape
@every_read
@every_kind
def test_no_state_sees_a_later_item_or_time_or_a_domain_but_the_next(monkeypatch, form, tape, ddsr, kind):
    use_form(monkeypatch, form)
    model, batch = make_model(tape=tape, ddsr=ddsr, attention=kind), make_batch(full=True)
    before = model.encode(batch)
    for j in range(1, L + 1):
        changed = {name: values.clone() for name, values in batch.items()}
        for name, count in (("item_id", V), ("domain_id", C), ("timestamp", None)):
            new = (lambda x, count=count: x + 1e7) if count is None else (lambda x, count=count: x % (count - 1) + 1)
            changed[f"{name}_list"][:, j:] = new(changed[f"{name}_list"][:, j:])
            changed[name] = new(changed[name])
        seen = j - 1 if model.needs_target_domain else j  # positions that know nothing of j and later
        after = model.encode(changed)
        torch.testing.assert_close(after[:, :seen], before[:, :seen], atol=1e-6, rtol=1e-5)
        if model.needs_target_domain:  # position j - 1 knows the domain of j and no more
            assert not torch.allclose(after[:, j - 1], before[:, j - 1], atol=1e-3)
            changed["domain_id_list"][:, j : j + 1] = batch["domain_id_list"][:, j : j + 1]
            if j == L:
                changed["domain_id"] = batch["domain_id"]
            torch.testing.assert_close(model.encode(changed)[:, j - 1], before[:, j - 1], atol=1e-6, rtol=1e-5)


@every_read
@every_tape
def test_every_past_event_reaches_every_state_through_the_states_of_domains(ddsr, tape):
    """Without DDSR an event reaches states of its own domain only (and, by its domain, TAPE's neighbour)."""
    model, batch = make_model(ddsr=ddsr, tape=tape, n_layers=1), make_batch(rows=1, full=True)
    domains = batch["domain_id_list"][0]
    items = torch.zeros(1, L, 16, requires_grad=True)
    plain = model.item_embedding.weight[batch["item_id_list"]]
    model.item_embedding.forward = lambda _: plain.detach() + items
    states = model.encode(batch)
    reach = torch.stack([torch.autograd.grad(states[0, i].square().sum(), items, retain_graph=True)[0].abs().sum(-1)[0]
                         for i in range(L)])  # fmt: skip
    past = torch.ones(L, L).tril() > 0
    expected = past if ddsr != "off" else past & (domains[:, None] == domains)
    assert (reach > 0).equal(expected)


@pytest.mark.parametrize(
    ("keys", "needs"),
    [
        ({"tape": "next", "ddsr": "off"}, True),
        ({"tape": "causal", "ddsr": "layer"}, False),
        ({"tape": "off", "ddsr": "final"}, False),
        ({"tape": "off", "ddsr": "target"}, True),
        ({"tape": "off", "ddsr": "off", "target_domain_input": True}, True),
    ],
)
def test_it_says_whether_it_knows_the_targets_domain(keys, needs):
    model, batch = make_model(**keys), make_batch()
    other = {**batch, "domain_id": batch["domain_id"] % (C - 1) + 1}
    assert model.needs_target_domain == needs
    assert torch.equal(model.user_state(batch), model.user_state(other)) != needs


def test_a_model_that_knows_the_targets_domain_refuses_to_be_chosen_by_ranks_among_all_items(tmp_path):
    keys = {"show_progress": False, "valid_candidates": "all"}
    config = CDSRConfig("TAPE-DDSR-HSTU", "toy", config_dict=keys)
    data = quick_start.prepare(config)
    with pytest.raises(CDSRError, match="'valid_candidates'"):
        quick_start.build(config, data, tmp_path)
    config = CDSRConfig("tape_ddsr_hstu", "toy", config_dict={**keys, "tape": "causal"})
    assert quick_start.build(config, quick_start.prepare(config), tmp_path).model.tape == "causal"


def test_a_comparison_with_hstu_changes_nothing_but_what_the_paper_adds():
    folder = properties_dir() / "model"
    hstu, ours = read_yaml(folder / "HSTU.yaml"), read_yaml(folder / "TAPEDDSRHSTU.yaml")
    assert hstu == {key: value for key, value in ours.items() if key not in ("attention", "tape", "ddsr")}


# Fast forms and plain ones


@every_tape
@every_read
@every_kind
def test_sorting_by_domain_is_the_mask(monkeypatch, tape, ddsr, kind):
    model, batch = make_model(tape=tape, ddsr=ddsr, attention=kind), make_batch()
    valid = batch["item_id_list"] > 0
    states = {}
    for form in ("masked", "segments"):
        use_form(monkeypatch, form)
        states[form] = model.encode(batch)[valid]
    torch.testing.assert_close(states["masked"], states["segments"], atol=1e-5, rtol=1e-5)


@every_tape
@every_read
def test_padding_and_the_other_rows_change_nothing(tape, ddsr):
    model, batch = make_model(tape=tape, ddsr=ddsr), make_batch(length=9)
    before = model.user_state(batch)
    wider = {name: F.pad(values, (0, 5)) if name.endswith("_list") else values for name, values in batch.items()}
    torch.testing.assert_close(model.user_state(wider), before, atol=1e-5, rtol=1e-5)
    for row in range(4):
        one = {name: values[row : row + 1] for name, values in wider.items()}
        torch.testing.assert_close(model.user_state(one)[0], before[row], atol=1e-5, rtol=1e-5)


@every_tape
@every_read
def test_numbers_of_domains_mean_nothing(tape, ddsr):
    """Renumbered domains, with their parameters, give the same states."""
    model, batch = make_model(tape=tape, ddsr=ddsr, target_domain_input=True), make_batch()
    before = model.user_state(batch)
    number = torch.tensor([0, 3, 1, 4, 2])
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, torch.nn.Embedding) and module.num_embeddings == C:
                module.weight[number] = module.weight.clone()
    renamed = {name: number[values] if name.startswith("domain") else values for name, values in batch.items()}
    torch.testing.assert_close(model.user_state(renamed), before, atol=1e-5, rtol=1e-5)


# Learning


@every_read
def test_it_starts_as_if_there_were_no_states_and_they_learn(ddsr):
    model, batch = make_model(spread=None, ddsr=ddsr), make_batch()
    torch.testing.assert_close(model.user_state(batch), make_model(spread=None, ddsr="off").user_state(batch))
    model.calculate_loss(batch).backward()
    assert all(read.output.weight.grad.abs().sum() > 0 for read in model.reads)
    assert model.transition.embedding.weight.grad.abs().sum() > 0


@every_tape
@every_read
def test_every_parameter_gets_a_gradient(tape, ddsr):
    model, batch = make_model(tape=tape, ddsr=ddsr), make_batch()
    model.train().calculate_loss(batch).backward()
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()] == []


def test_off_may_be_written_without_quotes():
    config = CDSRConfig("TAPE-DDSR-HSTU", "toy", config_dict=parse_keys(["--tape", "off", "--ddsr=off"]))
    assert read_choice(config, "tape", TAPES) == read_choice(config, "ddsr", READS) == "off"
    model = make_model(tape=parse_value("off"), ddsr=parse_value("off"))
    assert (model.tape, model.ddsr, model.needs_target_domain) == ("off", "off", False)


@every_read
@pytest.mark.parametrize("tape", ["next", "causal"])
def test_it_learns_64_users_by_heart(tape, ddsr):
    model = make_model(spread=None, tape=tape, ddsr=ddsr, hidden_size=32, hidden_dropout_prob=0.0).train()
    batch = make_batch(rows=64)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(60):
        optimizer.zero_grad()
        model.calculate_loss(batch).backward()
        optimizer.step()
    best = model.eval().full_sort_predict(batch)[:, 1:].argmax(1) + 1
    known = batch["item_length"] > 3  # after one or two events several users look alike
    assert (best == batch["item_id"])[known].float().mean() > 0.9


@pytest.mark.parametrize(
    ("key", "value", "hint"),
    [
        ("attention", "relu", "silu, softmax"),
        ("tape", True, "next, causal, off"),
        ("ddsr", "every", "layer, final, target, off"),
        ("n_heads", 3, "'hidden_size'.*multiple of n_heads"),
    ],
)
def test_a_wrong_value_names_its_key_and_choices(key, value, hint):
    with pytest.raises(CDSRError, match=hint):
        make_model(**{key: value})


@pytest.mark.slow
@every_kind
def test_a_step_on_long_histories_fits_in_memory(kind):
    """8 histories of 8,192 events: the scores of one layer and head alone would take 2 GB."""
    length = 8192
    model = make_model(spread=None, MAX_ITEM_LIST_LENGTH=length, hidden_size=64, query_key_size=32, value_size=32,
                       attention=kind)  # fmt: skip
    batch = make_batch(rows=8, length=length, full=True)
    before = peak_mb(reset=True)
    model.train().calculate_loss(batch).backward()
    assert peak_mb() - before < 2500


def peak_mb(reset: bool = False) -> float:
    """The most memory that this process has held, in MB; ``reset`` forgets what was before now."""
    if not Path("/proc/self/clear_refs").exists():
        pytest.skip("peaks can be read on Linux only")
    if reset:
        Path("/proc/self/clear_refs").write_text("5")
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) / 1024
