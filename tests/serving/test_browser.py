"""The server's page in a browser: a query typed, what two models find side by side."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from browsing import start, until, without_browser  # noqa: F401  (start is a fixture)
from conftest import perturb
from test_endpoint import TEXTS, running

from bge_cocktail.options import ServeOptions
from bge_cocktail.serving.endpoint import open_served

pytestmark = without_browser


def test_two_models_side_by_side(tiny: Path, tmp_path: Path, start: Callable[[str], Any]) -> None:  # noqa: F811
    other = perturb(tiny, tmp_path / "other", 5, scale=0.5)
    texts = [*TEXTS, "<b>bold</b> & <script>document.title = 'taken'</script>"]
    served = open_served({"one": str(tiny), "two": str(other)}, ServeOptions(device="cpu"), corpus=texts)
    with running(served) as place:
        browser = start("desktop")
        browser.get(place)
        until(lambda: browser.find_elements("css selector", "#model1 option"))
        assert [one.text for one in browser.find_elements("css selector", "#model0 option")] == ["one", "two"]
        box = browser.find_element("id", "query")
        box.send_keys("where is the fox")
        browser.find_element("css selector", "button").click()
        until(lambda: len(browser.find_elements("css selector", "#found1 li")) == len(texts))
        for number, name in enumerate(("one", "two")):
            rows = [row.text for row in browser.find_elements("css selector", f"#found{number} li")]
            encoder = served.encoders[name]
            query = encoder.backend.embed(encoder.backend.tokenize(["where is the fox"], "query"), "query")[0]
            best = int((encoder.documents @ query).argmax())
            assert texts[best] in rows[0]
        assert "are found by both" in browser.find_element("id", "said").text
        assert browser.title != "taken"  # documents are shown as text
        # a phone shows the columns one below the other
        browser = start("phone")
        left, right = (browser.find_element("id", name).location for name in ("found0", "found1"))
        assert right["y"] > left["y"]
        assert browser.execute_script("return document.documentElement.scrollWidth <= window.innerWidth")
        assert [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"] == []
