"""Names in any language are letters in pictures, or it is said what lacks."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen
from matplotlib import font_manager
from matplotlib.figure import Figure

from bge_cocktail.core import pictures

# letters of a script that no font here has
RARE = "\U00016a40\U00016a41"


def figure_named(name: str) -> Figure:
    figure = Figure(figsize=(3, 2))
    axes = figure.subplots()
    axes.plot([1, 2], [1, 2])
    axes.set_title(name)
    return figure


@pytest.fixture
def font(tmp_path: Path) -> Iterator[str]:
    """A font of two letters, known to matplotlib while the test runs."""
    pen = TTGlyphPen(None)
    pen.moveTo((0, 0))
    pen.lineTo((0, 500))
    pen.lineTo((500, 500))
    pen.closePath()
    builder = FontBuilder(1000, isTTF=True)
    names = [".notdef", "one", "two"]
    builder.setupGlyphOrder(names)
    builder.setupCharacterMap({ord(RARE[0]): "one", ord(RARE[1]): "two"})
    builder.setupGlyf(dict.fromkeys(names, pen.glyph()))
    builder.setupHorizontalMetrics(dict.fromkeys(names, (600, 0)))
    builder.setupHorizontalHeader(ascent=800, descent=-200)
    builder.setupNameTable({"familyName": "Two Letters", "styleName": "Regular"})
    builder.setupOS2(sTypoAscender=800, usWinAscent=800, usWinDescent=200)
    builder.setupPost()
    builder.save(tmp_path / "two.ttf")
    before = list(font_manager.fontManager.ttflist)
    font_manager.fontManager.addfont(tmp_path / "two.ttf")
    yield "Two Letters"
    font_manager.fontManager.ttflist[:] = before


def test_a_font_that_has_the_letters_is_taken(font: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    figure = figure_named(f"model {RARE}")
    pictures.save(figure, tmp_path / "out.png", "png")
    assert figure.axes[0].title.get_fontfamily()[-1] == font
    assert (tmp_path / "out.png").read_bytes()[:4] == b"\x89PNG"
    assert caplog.text == ""


def test_letters_that_no_font_has_are_told_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for _ in range(2):
        pictures.save(figure_named("model \U00016a42"), tmp_path / "out.png", "png")
    assert caplog.text.count("install one that has") == 1


def test_letters_of_the_usual_font_are_left_alone(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    figure = figure_named("naïve Straße")
    before = figure.axes[0].title.get_fontfamily()
    pictures.save(figure, tmp_path / "out.png", "png")
    assert figure.axes[0].title.get_fontfamily() == before
    assert caplog.text == ""
