"""The page as people see it: colours by arithmetic, and the rest in a real browser where there is one."""

import re
import shutil
import subprocess
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

import pytest
from audit_kit import ANSWER, PROMPT, REFERENCE, full_report
from browser_kit import Tab, browser, tab

import efface.audits.templates as templates
from efface.audits.report import render_html
from efface.audits.tables import Table

CSS = (Path(templates.__file__).parent / "report.css").read_text(encoding="utf-8")
TEXT = ("ink", "muted", "pass", "fail", "none")
DRAWN = ("after", "attack", "before", "s1", "s2", "s3", "s4", "s5", "s6")
WIDTHS = (1280, 390)
Color = tuple[float, float, float]


def tokens() -> dict[str, dict[str, Color]]:
    """The colours of each scheme by name, out of the style sheet itself."""
    light, dark, paper = (
        dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6});", block))
        for block in re.findall(r":root \{(.*?)\}", CSS, re.S)
    )
    schemes = {"light": light, "dark": dark, "print": paper}
    return {name: {key: rgb(value) for key, value in found.items()} for name, found in schemes.items()}


def rgb(text: str) -> Color:
    red, green, blue = (int(text[i : i + 2], 16) / 255 for i in (1, 3, 5))
    return red, green, blue


def luminance(color: Color) -> float:
    """WCAG 2.2, relative luminance."""
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in color]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: Color, other: Color) -> float:
    """WCAG 2.2, contrast ratio: 1 to 21."""
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def mixed(one: Color, other: Color, share: float) -> Color:
    a, b, c = (share * x + (1 - share) * y for x, y in zip(one, other, strict=True))
    return a, b, c


def test_the_arithmetic_of_contrast() -> None:
    assert contrast(rgb("#000000"), rgb("#ffffff")) == pytest.approx(21)
    assert contrast(rgb("#777777"), rgb("#ffffff")) == pytest.approx(4.48, abs=0.01)


@pytest.mark.parametrize("scheme", ["light", "dark", "print"])
def test_text_can_be_read_on_every_ground(scheme: str) -> None:
    """WCAG AA: 4.5 for text, on paper, on a card, and on the strongest shade of the matrix."""
    colors = tokens()[scheme]
    assert set(tokens()["light"]) == set(colors)
    strongest = mixed(colors["heat"], colors["paper"], 0.65)
    grounds = {"paper": colors["paper"], "card": colors["card"]}
    for name in TEXT:
        for ground, behind in grounds.items():
            assert contrast(colors[name], behind) >= 4.5, (name, ground)
    assert contrast(colors["ink"], strongest) >= 4.5
    assert contrast(colors["paper"], colors["ink"]) >= 4.5  # figures in the numbered marks


@pytest.mark.parametrize("scheme", ["light", "dark", "print"])
def test_what_is_drawn_stands_out(scheme: str) -> None:
    """WCAG AA 1.4.11: 3 for graphics."""
    colors = tokens()[scheme]
    for name in DRAWN:
        assert contrast(colors[name], colors["paper"]) >= 3, name


@pytest.fixture(scope="module")
def seen() -> Iterator[Tab]:
    program = browser()
    if program is None:
        pytest.skip("no Chromium on this machine")
    with tab(program) as found:
        yield found


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    secret = Table("Asked", ("question",), ((PROMPT,),))
    file = tmp_path_factory.mktemp("page") / "report.html"
    file.write_text(render_html(full_report(), table=secret), encoding="utf-8")
    return file


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", WIDTHS)
def test_it_fits_is_drawn_and_asks_nobody(seen: Tab, page: Path, width: int, dark: bool) -> None:
    seen.requests.clear()
    seen.open(page, width=width, dark=dark)
    assert seen.evaluate("document.documentElement.scrollWidth") <= width
    assert drawn_colours(seen.picture()) > 50
    assert set(seen.requests) == {page.resolve().as_uri()}
    assert seen.errors == []
    background = seen.evaluate("getComputedStyle(document.body).backgroundColor")
    paper = tokens()["dark" if dark else "light"]["paper"]
    assert background == "rgb({}, {}, {})".format(*(round(255 * c) for c in paper))


@pytest.mark.parametrize("width", WIDTHS)
def test_no_drawing_and_no_text_of_one_leaves_the_page(seen: Tab, page: Path, width: int) -> None:
    seen.open(page, width=width)
    outside = """[...document.querySelectorAll('svg.chart, svg.chart text')].filter(e => {
        const b = e.getBoundingClientRect(); return b.left < 0 || b.right > innerWidth + 1 }).length"""
    assert seen.evaluate("document.querySelectorAll('svg.chart text').length") > 50
    assert seen.evaluate(outside) == 0
    overlapping = """[...document.querySelectorAll('svg.chart')].flatMap(s => {
        const names = [...s.querySelectorAll('text.name')], ends = [...s.querySelectorAll('text.figures')];
        return names.filter(
            (n, i) => n.getBoundingClientRect().right > ends[i].getBoundingClientRect().left) }).length"""
    assert seen.evaluate(overlapping) == 0


def test_what_is_masked_is_nowhere(seen: Tab, page: Path, tmp_path: Path) -> None:
    secrets = (PROMPT, REFERENCE, ANSWER)
    seen.open(page, width=1280)
    everything = seen.evaluate("document.documentElement.outerHTML")
    assert "forget-0" in everything
    assert not any(text in everything for text in secrets)
    program = shutil.which("pdftotext")
    if program is None:
        pytest.skip("the page holds none of it; no pdftotext here to read the print")
    (tmp_path / "report.pdf").write_bytes(seen.pdf())
    printed = subprocess.run(
        [program, str(tmp_path / "report.pdf"), "-"], capture_output=True, check=True, text=True
    ).stdout
    assert "What an attacker could still do" in printed
    assert "forget-0" in printed
    assert not any(text in printed for text in secrets)


def test_revealed_texts_are_printed_so_the_test_above_can_see_them(seen: Tab, tmp_path: Path) -> None:
    program = shutil.which("pdftotext")
    if program is None:
        pytest.skip("no pdftotext on this machine")
    file = tmp_path / "revealed.html"
    file.write_text(render_html(full_report(), reveal=True), encoding="utf-8")
    seen.open(file, width=1280)
    (tmp_path / "revealed.pdf").write_bytes(seen.pdf())
    printed = subprocess.run(
        [program, str(tmp_path / "revealed.pdf"), "-"], capture_output=True, check=True, text=True
    ).stdout
    assert all(text in printed for text in (PROMPT, REFERENCE, ANSWER))


def test_print_is_dark_on_white_whatever_the_screen(seen: Tab, page: Path) -> None:
    seen.open(page, width=1280, dark=True, media="print")
    assert seen.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert seen.evaluate("getComputedStyle(document.body).color") == "rgb(0, 0, 0)"


def drawn_colours(png: bytes) -> int:
    """How many colours a picture has: one, if nothing was drawn."""
    image = pytest.importorskip("PIL.Image")
    return len(image.open(BytesIO(png)).convert("RGB").getcolors(1 << 24))
