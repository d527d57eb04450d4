"""The built site in Chromium: fits a phone, can be read in both schemes, answers to the reader.

`python scripts/try_site.py` installs what this needs and runs it on build/site.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.browser

ROOT = Path(__file__).resolve().parents[2]
SITE = ROOT / "build" / "site"
PHONE = {"width": 390, "height": 844}
DESK = {"width": 1280, "height": 900}
SCHEMES = {"light": "default", "dark": "slate"}
PAGES = (
    *("index", "papers/index", "papers/diff-pruning", "papers/tinyfusion", "claims", "unreported"),
    *("families/weight-pruning", "methods/index", "methods/diff_pruning", "methods/snapfusion"),
    *("methods/dense", "experiments/index"),
    *("tools", "tutorials", "data", "glossary", "fields", "rules"),
    "contributing",
)

# Text whose contrast to what lies behind it is below WCAG's 4.5 (3 for large letters), as
# [ratio, text, colour, background]; colours are taken from the page as it is painted.
FAINT = r"""
() => {
  const canvas = document.createElement("canvas").getContext("2d", {willReadFrequently: true});
  const rgba = (colour) => {
    canvas.clearRect(0, 0, 1, 1);
    canvas.fillStyle = colour;
    canvas.fillRect(0, 0, 1, 1);
    const [r, g, b, a] = canvas.getImageData(0, 0, 1, 1).data;
    return [r, g, b, a / 255];
  };
  const over = (top, under) => [0, 1, 2].map((i) => top[i] * top[3] + under[i] * (1 - top[3]));
  const light = (rgb) => {
    const linear = (v) => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
    const [r, g, b] = rgb.map((v) => linear(v / 255));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const behind = (element) => {
    const layers = [];
    for (let e = element; e; e = e.parentElement) {
      layers.push(rgba(getComputedStyle(e).backgroundColor));
    }
    return layers.reverse().reduce((under, layer) => over(layer, under), [255, 255, 255]);
  };
  const found = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const text = walker.currentNode.textContent.trim(), element = walker.currentNode.parentElement;
    if (!text || !element.checkVisibility({checkOpacity: true, checkVisibilityCSS: true})) continue;
    if (element.closest("script, style, [disabled], .md-clipboard, .headerlink, option")) continue;
    const style = getComputedStyle(element);
    let opacity = 1;
    for (let e = element; e; e = e.parentElement) opacity *= Number(getComputedStyle(e).opacity);
    const ground = behind(element), ink = rgba(style.color);
    ink[3] *= opacity;
    const [high, low] = [light(over(ink, ground)), light(ground)].sort((a, b) => b - a);
    const ratio = (high + 0.05) / (low + 0.05), size = parseFloat(style.fontSize);
    const large = size >= 24 || (size >= 18.66 && Number(style.fontWeight) >= 700);
    if (ratio < (large ? 3 : 4.5)) {
      found.push([ratio.toFixed(2), text.slice(0, 60), style.color, ground.join()]);
    }
  }
  return found;
}
"""


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture(scope="module")
def base() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(SITE)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    if "CHROMIUM" not in os.environ:
        pytest.fail("run this by scripts/try_site.py, which finds or installs a browser")
    with sync_playwright() as playwright:
        running = playwright.chromium.launch(
            executable_path=os.environ["CHROMIUM"], args=["--no-sandbox", "--disable-gpu"]
        )
        yield running
        running.close()


def opened(chromium: Any, address: str, **settings: Any) -> Any:
    """A page in a context of its own that gathers in `complaints` whatever goes wrong in it."""
    page = chromium.new_context(**{"viewport": DESK, **settings}).new_page()
    page.complaints = []
    page.on("console", lambda m: m.type in ("error", "warning") and page.complaints.append(m.text))
    page.on("pageerror", lambda error: page.complaints.append(str(error)))
    page.on("response", lambda r: r.status >= 400 and page.complaints.append(r.url))
    # Requests are dropped when the next page is opened before the last one has all its pictures.
    page.on(
        "requestfailed",
        lambda r: "ERR_ABORTED" in (r.failure or "") or page.complaints.append(r.url),
    )
    page.goto(address, wait_until="load")
    return page


@pytest.mark.parametrize("scheme", SCHEMES)
def test_pages_fit_and_can_be_read(chromium: Any, base: str, scheme: str) -> None:
    page = opened(chromium, f"{base}/index.html", color_scheme=scheme)
    results = sorted(f"results/{path.stem}" for path in SITE.glob("results/*.html"))
    for name in (*PAGES, *results):
        page.set_viewport_size(DESK)
        page.goto(f"{base}/{name}.html", wait_until="load")
        assert page.locator("body").get_attribute("data-md-color-scheme") == SCHEMES[scheme]
        # What is fading in or out when the window changes has no colour of its own yet.
        page.add_style_tag(content="* { transition: none !important; animation: none !important; }")
        for size in (DESK, PHONE):
            page.set_viewport_size(size)
            wide = page.evaluate("document.documentElement.scrollWidth")
            assert wide <= size["width"], f"{name} is {wide} pixels wide"
            assert page.evaluate(FAINT) == [], name
    assert page.complaints == []
    page.context.close()


def test_the_chooser_keeps_what_fits(chromium: Any, base: str) -> None:
    page = opened(chromium, f"{base}/index.html")
    rows = page.locator(".chooser tbody tr:visible")
    total = rows.count()
    page.get_by_label("My model, or any word").fill("sdxl")
    page.get_by_label("Machine").select_option("structured")
    kept = rows.count()
    assert 0 < kept < total
    assert page.get_by_role("status").inner_text() == f"{kept} of {total} works fit."
    for row in rows.all():
        assert "structured" in row.get_attribute("data-granularity").split()
        words = row.get_attribute("data-text") + row.inner_text()
        assert "sdxl" in words.lower()
    # The address holds the choice, so that it can be sent to somebody.
    again = opened(chromium, page.url)
    assert again.locator(".chooser tbody tr:visible").count() == kept
    assert again.get_by_label("My model, or any word").input_value() == "sdxl"
    page.get_by_role("button", name="Show all").click()
    assert rows.count() == total
    assert page.complaints == again.complaints == []
    again.context.close()
    page.context.close()


def test_every_choice_alone_leaves_something(chromium: Any, base: str) -> None:
    page = opened(chromium, f"{base}/index.html")
    rows = page.locator(".chooser tbody tr:visible")
    tried = 0
    for select in page.locator(".chooser-controls select").all():
        for value in select.locator("option").evaluate_all("all => all.map((o) => o.value)"):
            select.select_option(value)
            assert rows.count() > 0, value
            tried += 1
        select.select_option("")
    assert tried > 40
    page.context.close()


def test_the_home_page_without_scripts_is_a_plain_table(chromium: Any, base: str) -> None:
    page = opened(chromium, f"{base}/index.html", java_script_enabled=False)
    assert page.locator(".chooser-plain").is_visible()
    assert not page.locator(".chooser-controls").is_visible()
    assert page.locator(".chooser tbody tr").first.is_visible()
    page.context.close()


def test_the_home_page_opens_from_a_folder(chromium: Any) -> None:
    page = opened(chromium, (SITE / "index.html").as_uri())
    page.get_by_label("My model, or any word").fill("tinyfusion")
    page.locator(".chooser tbody tr:visible a").first.click()
    page.wait_for_url("**/papers/tinyfusion.html")
    assert "TinyFusion" in page.locator("h1").inner_text()
    page.context.close()


def test_works_are_cards_on_a_phone(chromium: Any, base: str) -> None:
    page = opened(chromium, f"{base}/families/weight-pruning.html", viewport=PHONE)
    for cell in page.locator(".stacked tbody tr").first.locator("td:visible").all():
        box = cell.bounding_box()
        assert box["x"] >= 0 and box["x"] + box["width"] <= PHONE["width"]
    page.context.close()


def test_the_first_column_stays_when_a_wide_table_is_scrolled(chromium: Any, base: str) -> None:
    page = opened(chromium, f"{base}/papers/tinyfusion.html", viewport=PHONE)
    wrap = page.locator(".md-typeset__scrollwrap").filter(has_text="Source and status").first
    assert wrap.evaluate("e => e.scrollWidth - e.clientWidth") > 100
    wrap.evaluate("e => { e.scrollLeft = 200; }")
    first, second = (wrap.locator("tbody tr").first.locator("td").nth(i) for i in (0, 1))
    assert first.bounding_box()["x"] >= 0
    assert second.bounding_box()["x"] < 0
    page.context.close()


def test_the_reader_chooses_the_scheme_and_it_is_kept(chromium: Any, base: str) -> None:
    page = opened(chromium, f"{base}/data.html", color_scheme="light")
    page.locator("label[title='Switch to dark']").click()
    page.goto(f"{base}/tools.html", wait_until="load")
    assert page.locator("body").get_attribute("data-md-color-scheme") == "slate"
    page.context.close()


def test_search_finds_a_work(chromium: Any, base: str) -> None:
    page = opened(chromium, f"{base}/tools.html")
    page.get_by_role("textbox", name="Search").fill("SnapFusion")
    result = page.locator(".md-search-result__item a[href*='papers/snapfusion']").first
    result.wait_for(timeout=20000)
    assert page.complaints == []
    page.context.close()
