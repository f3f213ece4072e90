"""The report in a browser: headless Chromium, at the width of a desktop and of a phone."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from browsing import SIZES, start, until, without_browser  # noqa: F401  (start is a fixture)
from test_report import run, scored  # noqa: F401  (fixtures)

pytestmark = without_browser


@pytest.fixture(scope="module")
def page(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:  # noqa: F811
    from bge_cocktail.report.build import build_report, write_report
    from bge_cocktail.report.collect import collect

    path = tmp_path_factory.mktemp("page") / "report.html"
    collected = collect([run])
    write_report(build_report(collected, "A report"), collected, path)
    return path


def requests(browser: Any) -> list[str]:
    sent = (json.loads(line["message"])["message"] for line in browser.get_log("performance"))
    return [one["params"]["request"]["url"] for one in sent if one["method"] == "Network.requestWillBeSent"]


@pytest.mark.parametrize("size", SIZES)
def test_a_reader_finds_the_way(start: Callable[[str], Any], page: Path, run: Path, size: str) -> None:  # noqa: F811
    from selenium.webdriver.common.by import By

    browser = start(size)
    browser.get_log("browser"), browser.get_log("performance")
    browser.get(page.as_uri())
    # the main table says what scores.json says
    scores = json.loads((run / "scores/scores.json").read_text())["models"]
    table = browser.find_element(By.CSS_SELECTOR, "#scores table")
    assert [cell.text for cell in table.find_elements(By.CSS_SELECTOR, "thead th")] == ["task", "base", "<b>other</b>"]
    first = [cell.text.split()[0] for cell in table.find_elements(By.CSS_SELECTOR, "tbody tr:first-child td")]
    assert first == [f"{model['scores'][0]['value']:.4f}" for model in scores]
    # nothing sticks out to the side
    assert browser.execute_script("return document.documentElement.scrollWidth") <= SIZES[size][0]
    # a plot is drawn when it comes near, and its other figure when asked
    figure = browser.find_element(By.CSS_SELECTOR, "#scores figure")
    browser.execute_script("arguments[0].scrollIntoView()", figure)
    until(lambda: figure.find_elements(By.CSS_SELECTOR, ".plot.drawn .scatterlayer .point"))

    def axis() -> str:
        return " ".join(one.text for one in figure.find_elements(By.CSS_SELECTOR, ".ytitle"))

    metrics = dict.fromkeys(score["metric"] for score in scores[0]["scores"] if score["main"])
    assert axis() == " or ".join(metrics)  # and dots, so that the axis need not begin at zero
    assert figure.find_elements(By.CSS_SELECTOR, ".errorbar")
    tabs = figure.find_elements(By.CSS_SELECTOR, '[role="tab"]')
    browser.execute_script("arguments[0].click()", tabs[1])
    until(lambda: axis() == "points")
    assert [tab.get_attribute("aria-selected") for tab in tabs] == ["false", "true"]
    # a lost query is searched for, and found with its document
    queries = browser.find_element(By.CSS_SELECTOR, ".queries")
    browser.execute_script("arguments[0].scrollIntoView()", queries)
    side = queries.find_element(By.CSS_SELECTOR, 'select[name="side"]')
    browser.execute_script("arguments[0].value = 'lost'; arguments[0].dispatchEvent(new Event('change'))", side)
    lost = queries.find_elements(By.CSS_SELECTOR, ".rows li")
    assert lost
    assert all(one.find_element(By.CSS_SELECTOR, ".pill").text.startswith("-") for one in lost)
    wanted = lost[0].find_element(By.CSS_SELECTOR, ".asked b").text
    queries.find_element(By.CSS_SELECTOR, "input").send_keys(wanted)
    shown = [one.text for one in queries.find_elements(By.CSS_SELECTOR, ".rows li .asked b")]
    assert wanted in shown
    assert all(set(wanted.lower().split()) <= set(one.lower().split()) or wanted in one for one in shown)
    queries.find_element(By.CSS_SELECTOR, "input").send_keys(" nowhere-to-be-found")
    assert "0 shown" in queries.find_element(By.CSS_SELECTOR, ".found").text
    # light and dark
    before = browser.execute_script("return getComputedStyle(document.body).backgroundColor")
    browser.execute_script("document.getElementById('theme').click()")
    assert browser.execute_script("return getComputedStyle(document.body).backgroundColor") != before
    # all plots draw, and nothing went wrong or out
    for place in browser.find_elements(By.CSS_SELECTOR, "figure"):
        browser.execute_script("arguments[0].scrollIntoView()", place)
        until(lambda place=place: place.find_elements(By.CSS_SELECTOR, ".plot.drawn"))  # type: ignore[misc]
    assert [line["message"] for line in browser.get_log("browser")] == []
    assert [url for url in requests(browser) if not url.startswith(("file:", "data:", "blob:"))] == []


def test_texts_are_never_run(start: Callable[[str], Any], tmp_path: Path) -> None:  # noqa: F811
    """Queries and documents are a stranger's: whatever they hold is shown, and not done."""
    from bge_cocktail.report.blocks import Plot, Queries, Report, Section, Table, Words
    from bge_cocktail.report.build import html_page

    evil = "</script><script>window.done = 1</script><img src=x onerror='window.done = 2'>"
    row = {"task": evil, "model": evil, "id": evil, "text": evil, "before": 0.0, "after": 1.0,
           "wanted": [[evil, 1, None]], "said": [[[evil, 1]], []]}  # fmt: skip
    trace = {"type": "scatter", "mode": "markers+text", "x": [1], "y": [1], "text": [evil], "name": evil}
    blocks = [
        Words(evil),
        Table([evil], [[evil]], evil),
        Plot(evil, {evil: {"data": [trace], "layout": {}}}, said=evil),
        Queries(evil, [row], {evil: {evil: evil}}, evil),
    ]
    path = tmp_path / "evil.html"
    path.write_text(html_page(Report(evil, [evil], [Section(evil, blocks)], evil)))
    browser = start("desktop")
    browser.get_log("performance")
    browser.get(path.as_uri())
    until(lambda: browser.execute_script("return document.querySelectorAll('.plot.drawn').length"))
    time.sleep(0.3)
    assert browser.execute_script("return window.done === undefined")
    assert [url for url in requests(browser) if not url.startswith(("file:", "data:", "blob:"))] == []
    assert "onerror" in browser.execute_script("return document.querySelector('.rows').innerText")


def test_the_page_of_a_run_that_goes_on_reloads_itself(
    start: Callable[[str], Any],  # noqa: F811
    run: Path,  # noqa: F811
    tmp_path: Path,
) -> None:
    from bge_cocktail.report.build import build_report, write_report
    from bge_cocktail.report.collect import collect

    collected = collect([run])
    path = tmp_path / "report.html"
    write_report(replace(build_report(collected, "Going on"), reload=1), collected, path)
    browser = start(next(iter(SIZES)))
    browser.get(path.as_uri())
    assert browser.title == "Going on"
    write_report(build_report(collected, "Done"), collected, path)
    until(lambda: browser.title == "Done")
    browser.execute_script("window.stays = true")
    time.sleep(1.5)
    assert browser.execute_script("return window.stays")  # a whole run's page is read once
