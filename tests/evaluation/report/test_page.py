import shutil
import subprocess

import pytest
from PIL import Image

from escdiff.evaluation.report.page import SHOWN, Card, Report, Section, Table, html, markdown


@pytest.fixture
def report(tmp_path):
    Image.new("RGB", (400, 300), "red").save(tmp_path / "a.png")
    (tmp_path / "f.svg").write_text("<svg xmlns='http://www.w3.org/2000/svg'/>", encoding="utf-8")
    cards = [Card(f"case {i} <script>", {"result": "a.png"}, [("colour", "#ff0000")], ["wrong"]) for i in range(60)]
    table = Table(("score", "mean"), [("a|b", "10.0 %"), ("c", "9.0 %")])
    sections = [Section("first", "About.", [table], {"figure": "f.svg"}, cards), Section("second")]
    return Report("Title", "The run.", sections, {"command": "x <y>", "seed": 3}, "Note.")


def test_the_page_holds_everything_and_may_fetch_nothing(report, tmp_path):
    page = html(report, tmp_path)
    assert "default-src 'none'" in page and "://" not in page and 'src="a.png"' not in page
    assert page.count("<article") == SHOWN and f"The {SHOWN} worst of 60" in page
    assert "<script>case" not in page and "case 0 &lt;script&gt;" in page and "x &lt;y&gt;" in page
    assert "data:image/svg+xml;base64," in page and "data:image/webp;base64," in page


def test_the_markdown_says_the_same(report):
    text = markdown(report)
    assert "| a\\|b | 10.0 % |" in text and "![figure](f.svg)" in text and '"seed": 3' in text
    assert "The worst of 60:" in text and "![result](a.png)" in text


@pytest.mark.slow
def test_a_browser_shows_it_without_a_word_of_complaint(report, tmp_path):
    """Sorting, no console errors, no request but the page itself, nothing wider than a phone."""
    browser = shutil.which("chromium") or shutil.which("chromium-browser")
    api = pytest.importorskip("playwright.sync_api")
    if browser is None:
        pytest.skip("no Chromium here")
    if subprocess.run([browser, "--version"], capture_output=True).returncode:
        pytest.skip("Chromium does not start here")
    (tmp_path / "report.html").write_text(html(report, tmp_path), encoding="utf-8")
    said, asked = [], []
    with api.sync_playwright() as p:
        page = p.chromium.launch(executable_path=browser, args=["--no-sandbox"]).new_page(
            viewport={"width": 390, "height": 800}
        )
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("request", lambda request: asked.append(request.url))
        page.goto((tmp_path / "report.html").as_uri())
        page.click("th:nth-child(2) button")
        assert page.locator("tbody tr td:first-child").all_inner_texts() == ["c", "a|b"]
        page.click("th:nth-child(2) button")
        assert page.locator("tbody tr td:first-child").all_inner_texts() == ["a|b", "c"]
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
        assert page.locator("article dl").first.evaluate("e => getComputedStyle(e).opacity") == "0"
        page.locator("article").first.focus()
        page.wait_for_timeout(300)
        assert page.locator("article dl").first.evaluate("e => getComputedStyle(e).opacity") == "1"
    assert not said and not [url for url in asked if not url.startswith(("file:", "data:"))]
