"""The report of a comparison: complete, safe, and usable in a real browser without a network."""

from __future__ import annotations

import json
import re
import shutil
import sys
from pathlib import Path

import pytest

from recbole_cdsr import html
from recbole_cdsr.compare import significance
from recbole_cdsr.compare.command import main
from recbole_cdsr.compare.figures import VERDICTS, sentence_of, verdict
from recbole_cdsr.compare.significance import Interval
from recbole_cdsr.compare.transfer import Gain
from recbole_cdsr.html import Cell
from tests.test_compare_tables import runs_of_two_models, table, write_run

SCRIPT = "<script>alert(1)</script>"


@pytest.fixture(autouse=True)
def _few_resamples(monkeypatch):
    monkeypatch.setattr(significance, "RESAMPLES", 499)


def many_runs() -> None:
    """Two models, single-domain runs of one of them, curves of the other."""
    runs_of_two_models()
    for number, only in enumerate(("a|b_1", "c")):
        write_run(f"runs/single{number}", table(3, 1, only), "SASRec", 1, only=(only,))
    history = "epoch,loss,loss_rec,weight_rec,valid_score\n0,3.0,3.0,1.0,0.1\n1,2.5,2.5,0.9,0.2\n"
    shares = "epoch,query_domain,key_domain,share\n"
    shares += "".join(f"{e},{q},{k},0.5\n" for e in (0, 1) for q in ("a|b_1", "c") for k in ("a|b_1", "c"))
    for seed in (1, 2):
        Path(f"runs/good{seed}/history.csv").write_text(history)
        Path(f"runs/good{seed}/transfer.csv").write_text(shares)


def test_it_holds_every_table_and_figure_and_links_to_nothing():
    many_runs()
    assert main(["--from", "runs", "--out", "out"]) == 0
    page = Path("out/report.html").read_text()
    titles = re.findall("^## (.*)$", Path("out/tables.md").read_text(), re.MULTILINE)
    assert titles and all(title.replace("'", "&#x27;") in page for title in titles)
    assert {path.name for path in Path("out/figures").iterdir()} == {
        f"toy_set-{name}.{kind}"
        for name in ("scores", "transfer", "cost", "histories", "training", "attention")
        for kind in ("png", "svg")
    }
    assert page.count("<img ") == 6 and "Negative transfer" in page
    assert "HSTU (given the target&#x27;s domain)" in page
    links = re.findall(r"""(?:src|href|url)\s*[=(]\s*["']?([^"' >)]+)""", page)
    assert links and all(link.startswith("data:") for link in links)


def test_names_from_users_stay_text(tmp_path):
    cell = html.table([SCRIPT], [[Cell(SCRIPT)], [Cell('"><img src=x onerror=alert(1)>', mark=SCRIPT)]], SCRIPT)
    figure = html.figure(b"<svg/>", SCRIPT, SCRIPT)
    parts = [cell, figure, html.heading(SCRIPT), html.paragraph(SCRIPT), html.listing([SCRIPT])]
    page = html.page(SCRIPT, parts)
    assert page.count("<script>") == 1 and "<img src=x" not in page
    folder = write_run(tmp_path / "runs" / "one", table(3, 1), "SASRec", 1)
    result = json.loads((folder / "result.json").read_text())
    (folder / "result.json").write_text(json.dumps({**result, "dataset": SCRIPT}))
    assert main(["--from", str(tmp_path / "runs"), "--out", str(tmp_path / "out")]) == 0
    assert (tmp_path / "out" / "report.html").read_text().count("<script>") == 1


def test_without_matplotlib_the_tables_are_there(monkeypatch):
    runs_of_two_models()
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setattr("recbole_cdsr.plots.find_spec", lambda name: None)
    assert main(["--from", "runs", "--out", "out"]) == 0
    page = Path("out/report.html").read_text()
    assert "recbole-cdsr[plots]" in page and "<img" not in page and "NDCG@10" in page


def gain(low: float, high: float, domain: str | None = "a") -> Gain:
    interval = Interval((low + high) / 2, low, high, 0.5)
    return Gain("M", domain, "ndcg@10", "domain", [1], 9, 9, 0.2, 0.1, interval)


def test_transfer_is_named_only_where_the_interval_leaves_out_zero():
    kinds = [
        verdict(gain(0.01, 0.03)),
        verdict(gain(-0.03, -0.01)),
        verdict(gain(-0.01, 0.03)),
        verdict(gain(0.0, 0.1)),
    ]
    assert kinds == ["helped", "hurt", "unclear", "unclear"] and set(kinds) == set(VERDICTS)
    told = sentence_of([gain(-0.03, -0.01, "books"), gain(-0.01, 0.02, "toys"), gain(-0.2, -0.1, None)])
    assert told == "Negative transfer: M in books. Positive transfer: in no domain."


@pytest.fixture
def browser():
    """Chromium without a window, which may load files and nothing else."""
    chromium, driver = shutil.which("chromium") or shutil.which("google-chrome"), shutil.which("chromedriver")
    if not chromium or not driver:
        pytest.skip("no Chromium with its chromedriver is installed")
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"):
        options.add_argument(argument)
    options.add_argument("--host-resolver-rules=MAP * ~NOTFOUND")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    opened = webdriver.Chrome(options=options, service=Service(driver))
    yield opened
    opened.quit()


def test_a_browser_shows_it_and_sorts_its_tables(browser):
    many_runs()
    main(["--from", "runs", "--out", "out"])
    browser.get(Path("out/report.html").resolve().as_uri())
    assert [entry for entry in browser.get_log("browser") if entry["level"] != "INFO"] == []
    pictures = browser.find_elements("css selector", "figure img")
    sizes = browser.execute_script("return [...document.images].map(i => [i.naturalWidth, i.complete])")
    assert len(pictures) == 6 and all(width > 100 and loaded for width, loaded in sizes)
    assert all(picture.is_displayed() and picture.size["height"] > 100 for picture in pictures)

    first = browser.find_element("tag name", "table")

    def column(number: int) -> list[str]:
        return [
            row.find_elements("tag name", "td")[number].text for row in first.find_elements("css selector", "tbody tr")
        ]

    head = first.find_elements("css selector", "th")[2]
    order = ["HSTU (given the target's domain)", "SASRec"]  # by the mean
    for expected, direction in ((order, "descending"), (order[::-1], "ascending"), (order, "descending")):
        head.find_element("tag name", "button").click()
        assert column(0) == expected and head.get_attribute("aria-sort") == direction
    first.find_element("css selector", "th button").send_keys("\n")  # from the keyboard
    assert column(0) == sorted(order) and head.get_attribute("aria-sort") is None
