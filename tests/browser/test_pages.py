"""Reports opened in a browser: no error, no request to anywhere, nothing sticks out at any width or in print."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

# The elements that reach beyond the window's right edge and are not inside a box that scrolls.
STICKING_OUT = """[...document.body.querySelectorAll('*')].filter(e => {
    if (e.closest('.wide, .scroll, svg') || !e.getClientRects().length) return false;
    return e.getBoundingClientRect().right > document.documentElement.clientWidth + 1;
}).map(e => e.outerHTML.slice(0, 120))"""


@pytest.fixture(scope="module", params=["smoke", "hostile", "comparison", "labels", "problem"])
def page(request) -> Path:
    if request.param in ("hostile", "comparison"):
        seeds = request.getfixturevalue("three_seeds")
        hostile = sorted(path for path in seeds.parent.iterdir() if path.name.startswith("<script>"))[0]
        return seeds if request.param == "comparison" else hostile / "report.html"
    name = {"smoke": "smoke_run", "labels": "wrong_labels", "problem": "solved_problem"}[request.param]
    return request.getfixturevalue(name) / "report.html"


def sound(browser):
    assert browser.complaints() == []
    asked = [address for address in browser.requests() if not address.startswith(("file:", "data:"))]
    assert asked == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1280])
def test_a_page_fits_its_window_and_asks_for_nothing(page, width, scheme, browser):
    assert page.stat().st_size < 3_000_000
    browser.open(page.as_uri(), width, 900, scheme)
    browser.run("document.querySelectorAll('details').forEach(d => d.open = true)")
    assert browser.run("document.documentElement.scrollWidth") <= width
    assert browser.run(STICKING_OUT) == []
    assert browser.run("document.querySelectorAll('script, iframe, link').length") == 0
    assert "nas_moreau" in browser.run("document.title") and browser.run("document.title") != "hit"
    ground = browser.run("getComputedStyle(document.body).backgroundColor")
    light = sum(map(int, re.findall(r"\d+", ground)[:3])) > 384
    assert light == (scheme == "light")
    sound(browser)


def test_a_page_is_printed_on_white_within_the_sheet(page, browser, tmp_path):
    browser.open(page.as_uri(), 1280, 900, "dark")
    browser.print(tmp_path / "page.pdf")
    sheet = (tmp_path / "page.pdf").read_bytes()
    assert sheet.startswith(b"%PDF") and sheet.count(b"/Type /Page\n") >= 1
    browser.call("Emulation.setEmulatedMedia", media="print", features=[])
    browser.resize(718, 1000)  # A4 between its margins, in CSS pixels
    assert browser.run("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert browser.run(STICKING_OUT) == []
    wider = "[...document.querySelectorAll('.wide, .scroll')].filter(e => e.scrollWidth > e.clientWidth + 1)"
    assert browser.run(f"{wider}.map(e => e.innerHTML.slice(0, 120))") == []  # paper does not scroll
    sound(browser)


def test_the_checks_can_fail(browser, tmp_path):
    wrong = tmp_path / "wrong.html"
    wrong.write_text(
        "<title>x</title><p style='width:2000px'>wide</p><script>console.error('no')</script>"
        "<img src='http://127.0.0.1:9/x.png'>"
    )
    browser.open(wrong.as_uri(), 360)
    assert browser.run(STICKING_OUT) and browser.run("document.documentElement.scrollWidth") > 360
    assert any("'no'" in said for said in browser.complaints())
    assert "http://127.0.0.1:9/x.png" in browser.requests()
