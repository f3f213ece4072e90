"""Names in any language are letters in pictures, or it is said what lacks."""

from __future__ import annotations

import warnings
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


@pytest.mark.parametrize("size", [(7.2, 4.6), (2.4, 1.6)])
def test_labels_stand_clear_of_curves_and_of_each_other(size: tuple[float, float]) -> None:
    """Eleven points of a curve that turns back on itself; needed labels stay, others go where there is no room."""
    xs = [0.59, 0.69, 0.743, 0.749, 0.7495, 0.7500, 0.7505, 0.7510, 0.7515, 0.753, 0.747]
    ys = [0.894, 0.9005, 0.903, 0.9058, 0.9059, 0.9060, 0.9061, 0.9062, 0.9063, 0.9032, 0.9029]
    names = {0: "base", 3: "cocktail, share 0.5", 10: "tuned"}
    places = []
    for _ in range(2):
        figure = Figure(figsize=size, dpi=150)
        axes = figure.subplots()
        axes.plot(xs, ys)
        axes.set_ylim(0.87, 0.93)
        labels = [
            pictures.Label(names.get(row, f"{row / 10:g}"), x, y, {"fontsize": 8}, needed=row in names)
            for row, (x, y) in enumerate(zip(xs, ys, strict=True))
        ]
        pictures.place_labels(axes, labels)
        figure.canvas.draw()
        places.append([(text.get_text(), text.get_position()) for text in axes.texts])
    assert places[0] == places[1]  # the same picture each time
    shown = [text for text, _ in places[0]]
    own = {name: (xs[row], ys[row]) for row, name in names.items()}
    assert {*names.values()} <= {*shown}
    assert (len(shown) < len(xs)) == (size[0] < 3)
    boxes = [text.get_window_extent() for text in axes.texts]
    for row, box in enumerate(boxes):
        apart = [other for other, text in zip(boxes[row + 1 :], shown[row + 1 :], strict=True) if text not in own]
        assert not any(box.overlaps(other) for other in apart), shown[row]
    if size[0] < 3:
        return
    # a label stands nearer to its own point than the picture is wide by a tenth
    for text, box in zip(axes.texts, boxes, strict=True):
        if text.get_text() in own:
            x, y = axes.transData.transform(own[text.get_text()])
            away = max(box.x0 - x, x - box.x1, box.y0 - y, y - box.y1)
            assert away < figure.bbox.width / 10


def test_letters_without_a_font_are_told_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Labels are drawn before the picture is written, and matplotlib would warn of each letter both times."""
    monkeypatch.setattr(pictures, "_family_with", lambda _: None)
    axes = Figure().subplots()
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        pictures.place_labels(axes, [pictures.Label("\U0001f9ff基座", 0.5, 0.5, {})])
        pictures.save(axes.figure, tmp_path / "a.png", "png")
    assert [str(one.message) for one in warned if "Glyph" in str(one.message)] == []
    assert sum("no font here has the letters" in record.message for record in caplog.records) == 1
