"""The page in a real browser: nothing is asked for, the picture tells what report.json tells, and all of it works."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from launcher.report.assemble import build_report
from launcher.report.document import Document, as_json
from launcher.report.gather import gather
from launcher.report.page import render_page
from tests.report.browser import CHROMIUM, DRIVER, Browser, browsing
from tests.report.made import evaluation, row, rows, write_rows, write_runs

pytestmark = pytest.mark.skipif(CHROMIUM is None or DRIVER is None, reason="chromium and chromium-driver are not here")


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with browsing(tmp_path_factory.mktemp("profile")) as found:
        yield found


def made(*names: Path, title: str = "a report") -> Document:
    return build_report(gather([str(name) for name in names], names[0]), title=title, made="2026-11-26 12:00:00")


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> tuple[Document, Path]:
    """Twelve runs of four points, one of them refused, with the page beside the document."""
    directory = tmp_path_factory.mktemp("report")
    name = write_runs(directory, 12)[3]
    path = directory / f"runs/{name}/summary.json"
    summary = json.loads(path.read_text())
    summary["points"][1] = {"concurrency": 16, "state": "invalid", "reason": "max_concurrency is 8, expected 16"}
    path.write_text(json.dumps(summary))
    value = made(directory)
    (directory / "report.html").write_text(render_page(value))
    return value, directory / "report.html"


def test_it_opens_and_asks_for_nothing(browser: Browser, report: tuple[Document, Path]) -> None:
    for dark in (False, True):
        for width in (1280, 390):
            browser.open(report[1], width, dark=dark)
            assert browser.said() == []
            assert browser.requests() == [report[1].as_uri()]
            widest, seen = browser.run("return [document.documentElement.scrollWidth, innerWidth]")
            assert widest <= seen, "the page itself must not scroll sideways"
            ground = browser.run("return getComputedStyle(document.body).backgroundColor")
            assert (sum(map(int, ground[4:-1].split(","))) < 200) == dark


def test_the_numbers_of_the_picture_are_those_of_the_json(browser: Browser, report: tuple[Document, Path]) -> None:
    browser.open(report[1])
    value = json.loads(as_json(report[0]))
    points = {point["id"]: point for point in value["points"]}
    marks = """[...e.querySelectorAll('a')].map(a => [a.getAttribute('href').slice(1), a.className.baseVal,
        ...['x', 'y'].map(name => a.querySelector('use')[name].baseVal.value)])"""
    drawn = browser.each(".chart", f"[e.dataset.x, e.dataset.y, {marks}]")
    assert len(drawn) == len(value["panels"]) == 2
    seen = []
    for panel, (x, y, marks) in zip(value["panels"], drawn, strict=True):
        for key, kind, left, top in marks:
            seen.append(key)
            for axis, scale, pixel in (("x", x, left), ("y", y, top)):
                low, high, begin, end, logarithmic = map(float, scale.split())
                assert not logarithmic
                read = low + (pixel - begin) / (end - begin) * (high - low)
                told = points[key]["metrics"][panel[axis]["metric"]]
                assert read == pytest.approx(told, abs=0.06 * (high - low) / abs(end - begin))
            assert (kind == "") == points[key].get("frontier", False)
    assert sorted(seen) == sorted(key for key, point in points.items() if point["state"] == "ok")
    cells = browser.each(".points tbody tr", "[e.id, ...[...e.cells].map(cell => cell.textContent)]")
    assert len(cells) == len(points)
    for key, state, _, _, topology, concurrency, tput, intvty, ttft, *_ in cells:
        point = points[key]
        assert (state, topology, concurrency) == (point["state"], point["topology"], str(point["concurrency"]))
        metrics = point.get("metrics", {})
        for text, name, digits in ((tput, "tput_per_gpu", 1), (intvty, "median_intvty", 2), (ttft, "median_ttft", 4)):
            assert text == (f"{metrics[name]:.{digits}f}" if metrics else "")


def test_a_mark_tells_its_point_and_leads_to_its_row(browser: Browser, report: tuple[Document, Path]) -> None:
    browser.open(report[1])
    told = {entry.id: entry for entry in report[0].points}
    for by in ("new PointerEvent('pointerover', {bubbles: true})", "new FocusEvent('focusin', {bubbles: true})"):
        browser.run(f"const a = document.querySelectorAll('.chart a')[7]; a.dispatchEvent({by})")
        entry = told[browser.each(".chart a", "e.getAttribute('href').slice(1)")[7]]
        run = next(run for run in report[0].runs if run.id == entry.run)
        text = browser.run("const tip = document.getElementById('tip'); return tip.hidden ? '' : tip.textContent")
        expected = (f"conc{entry.concurrency}", f"TTFT s ↓{entry.metrics['median_ttft']:.4f}", entry.topology)
        for part in (*expected, f"TPOT s ↓{entry.metrics['median_tpot']:.5f}", run.images[0].digest, run.id, run.nodes):
            assert part in text
        browser.press("Escape")
        assert browser.run("return document.getElementById('tip').hidden")
    browser.run("document.querySelectorAll('.chart a')[7].focus()")
    browser.press("Enter")
    assert browser.run("return document.querySelector('tr:target').id") == entry.id
    browser.run("document.querySelector('tr:target a').click()")
    assert run.id in browser.run("return document.querySelector('tr:target').textContent")


def test_it_is_used_by_keyboard(browser: Browser, report: tuple[Document, Path]) -> None:
    browser.open(report[1])
    focused = "return document.activeElement.getAttribute('href')"
    order = browser.each("figure:first-child .chart a", "e.getAttribute('href')")
    browser.run("document.querySelector('.chart a').focus()")
    for key, expected in (
        ("ArrowRight", 1),
        ("ArrowDown", 2),
        ("ArrowLeft", 1),
        ("End", -1),
        ("Home", 0),
        ("ArrowLeft", 0),
    ):
        browser.press(key)
        assert browser.run(focused) == order[expected]
    stops = browser.each(".chart", "e.querySelectorAll('a[tabindex=\"0\"]').length")
    assert stops == [1, 1], "a picture is one stop of the tab key"


def column(browser: Browser, number: int) -> list[str]:
    """The texts of a column, of the rows that are seen."""
    return browser.each(".points tbody tr:not([hidden])", f"e.cells[{number}].textContent")


def test_the_table_sorts_numbers_as_numbers_and_the_unknown_last(
    browser: Browser, report: tuple[Document, Path]
) -> None:
    browser.open(report[1])
    for number in (5, 3, 4):  # tokens, topology, concurrency
        head = f"document.querySelectorAll('.points th')[{number}]"
        for order in ("ascending", "descending"):
            browser.run(f"{head}.querySelector('button').focus()")
            browser.press("Enter")
            assert browser.run(f"return {head}.getAttribute('aria-sort')") == order
            found = column(browser, number)
            known = [text for text in found if text]
            assert found[len(known) :] == [""] * (len(found) - len(known))
            numbers: list[Any] = [float(text) for text in known] if number != 3 else known
            assert numbers == sorted(numbers, reverse=order == "descending")
    assert len(column(browser, 0)) == len(report[0].points)


def test_the_table_and_the_picture_filter_together(browser: Browser, report: tuple[Document, Path]) -> None:
    browser.open(report[1])
    put = "const i = document.querySelector(arguments[0]); i.value = arguments[1]; i.dispatchEvent(new Event('input'))"
    browser.run(put, "#tools input", "h200 2P2D")
    wanted = [e for e in report[0].points if e.hardware == "h200" and e.topology.startswith("2P2D")]
    assert len(column(browser, 0)) == len(wanted) > 0
    assert f"{len(wanted)} of {len(report[0].points)}" in browser.run(
        "return document.querySelector('output').textContent"
    )
    assert len(browser.each(".chart a:not(.off)", "0")) == len(wanted)
    browser.run(put, "#tools input", "")
    browser.run(put, "#tools select", "refused")
    assert column(browser, 0) == ["refused"]
    assert browser.each(".chart a:not(.off)", "0") == []


def test_a_configuration_is_hidden_and_shown_again(browser: Browser, report: tuple[Document, Path]) -> None:
    browser.open(report[1])
    shown = "[...e.querySelectorAll('g')].map(g => getComputedStyle(g).display !== 'none')"
    stops = "[...e.querySelectorAll('a[tabindex=\"0\"]')].map(a => a.getClientRects().length > 0)"
    names = browser.each(".legend button[aria-pressed]", "e.textContent")
    assert names == [curve.name for panel in report[0].panels for curve in panel.curves]
    first = browser.driver.find_element("css selector", ".legend button")

    def by_keyboard() -> None:
        browser.run("document.querySelector('.legend button').focus()")
        browser.press("Enter")

    for act, hidden in ((by_keyboard, True), (by_keyboard, False), (first.click, True), (first.click, False)):
        act()
        for panel, seen in zip(report[0].panels, browser.each(".chart", shown), strict=True):
            assert seen == [not (hidden and curve.name == names[0]) for curve in panel.curves]
        pressed = browser.each(".legend button", "e.getAttribute('aria-pressed')")
        assert pressed == [str(not (hidden and name == names[0])).lower() for name in names]
        assert browser.each(".chart", stops) == [[True], [True]], "the tab key stops at a mark that is seen"
    assert browser.said() == []


def test_evaluations_have_a_table_that_sorts_and_filters(browser: Browser, tmp_path: Path) -> None:
    (name,) = write_runs(tmp_path, 1)
    path = tmp_path / f"runs/{name}/summary.json"
    summary = json.loads(path.read_text())
    low = evaluation(64, "b<i>", score=0.5, em_strict=0.5)
    path.write_text(json.dumps({**summary, "evaluations": [evaluation(64, "a"), low, evaluation(64, "c", score=0.99)]}))
    (tmp_path / "report.html").write_text(render_page(made(tmp_path)))
    browser.open(tmp_path / "report.html")
    cells = "table.points tbody tr:not([hidden]) td:nth-child(6)"
    assert len(browser.each("table.points", "0")) == 2 and len(browser.each(".chart a", "0")) == 4
    tasks = [task for task in browser.each(cells, "e.textContent") if not task[0].isdigit()]
    assert sorted(tasks) == ["a", "b<i>", "c"]
    head = "document.querySelectorAll('table.points')[1].querySelectorAll('th button')[6]"
    browser.run(f"{head}.click()")
    assert [t for t in browser.each(cells, "e.textContent") if not t[0].isdigit()] == ["b<i>", "a", "c"]
    put = "const i = document.querySelector('#tools input'); i.value = 'refused'; i.dispatchEvent(new Event('input'))"
    browser.run(put)
    assert browser.each(cells, "e.textContent") == ["b<i>"] and browser.said() == []


def test_on_paper_it_is_whole_and_dark_on_white(browser: Browser, report: tuple[Document, Path]) -> None:
    browser.open(report[1], 800, dark=True)
    put = "const i = document.querySelector('#tools input'); i.focus()"
    browser.run(put)
    dark = [{"name": "prefers-color-scheme", "value": "dark"}]
    browser.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print", "features": dark})
    try:
        style = "return [getComputedStyle(document.body).backgroundColor, getComputedStyle(document.body).color]"
        assert browser.run(style) == ["rgb(255, 255, 255)", "rgb(0, 0, 0)"]
        assert browser.each("#tools, #tip", "getComputedStyle(e).display") == ["none", "none"]
        cut = "e.scrollHeight > e.clientHeight + 1 || e.scrollWidth > e.clientWidth + 1"
        assert not any(browser.each(".scroll", cut)), "nothing is behind a scroll bar"
    finally:
        browser.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "", "features": []})


def test_without_a_script_everything_is_there(browser: Browser, report: tuple[Document, Path]) -> None:
    browser.open(report[1], script=False)
    try:
        text = browser.driver.find_element("tag name", "body").text
        assert "max_concurrency is 8, expected 16" in text and report[0].runs[0].images[0].digest in text
        assert browser.driver.find_elements("css selector", "#tools *, #tip") == []
        assert browser.driver.find_elements("css selector", "button, .gone") == []
        marks = browser.driver.find_elements("css selector", ".chart a title")
        assert len(marks) == len(report[0].points) - 1
    finally:
        browser.driver.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": False})


HOSTILE = (
    "</script><script>document.title='taken'</script>", "<img src=http://127.0.0.1:9/x onerror=document.title='taken'>",
    "--><svg onload=document.title='taken'>", "'\" onmouseover=document.title='taken' x='",
    "<!--<script>", "</style><b>", "a\u202eb\x1b[31m\u2028c", "{{x}}${x}`", "&lt;b&gt;",
)  # fmt: skip


def test_hostile_text_shows_as_text(browser: Browser, tmp_path: Path) -> None:
    shapes = [(1, 4), (2, 4), (3, 4), (4, 4), (5, 4), (6, 4), (7, 4), (8, 4), (9, 4)]
    names = ("infmax_model_prefix", "hw", "framework", "precision", "spec_decoding", "image", "model")
    found = [row(shape=shape, **dict.fromkeys(names, text)) for shape, text in zip(shapes, HOSTILE, strict=True)]
    write_rows(tmp_path / "tree", found)
    ids = write_runs(tmp_path / "state", len(HOSTILE), [4])
    for name, text in zip(ids, HOSTILE, strict=True):
        path = tmp_path / f"state/runs/{name}/run.json"
        run = json.loads(path.read_text())
        changed = {"state": "failed", "verdict": {"layer": text, "text": text}}
        path.write_text(json.dumps({**run, **changed, "job": {**run["job"], "nodes": text}}))
        summary = path.with_name("summary.json")
        bad = {"points": [{"concurrency": 4, "state": "invalid", "reason": text}], "model": {"path": text}}
        summary.write_text(json.dumps({**json.loads(summary.read_text()), **bad}))
    value = made(tmp_path / "state", tmp_path / "tree", title=HOSTILE[0])
    assert len(value.points) >= len(HOSTILE)
    (tmp_path / "report.html").write_text(render_page(value))
    browser.open(tmp_path / "report.html")
    assert browser.driver.title == HOSTILE[0]
    assert browser.said() == [] and browser.requests() == [(tmp_path / "report.html").as_uri()]
    assert len(browser.each("script, style, img, iframe, link, object", "0")) == 2
    assert not any(browser.each("*", "[...e.attributes].some(a => a.name.startsWith('on'))"))
    text = browser.run("return document.body.textContent")
    for shown in (HOSTILE[0], HOSTILE[1], HOSTILE[4], HOSTILE[5], HOSTILE[7], HOSTILE[8]):
        assert shown in text
    assert "\x1b" not in text and "\u202e" not in text


def test_two_thousand_points_are_there_at_once(browser: Browser, tmp_path: Path) -> None:
    write_rows(tmp_path / "tree", list(rows(2000)))
    (tmp_path / "report.html").write_text(render_page(made(tmp_path / "tree")))
    browser.open(tmp_path / "report.html")
    assert browser.said() == []
    assert len(column(browser, 0)) == 2000
    assert math.isfinite(browser.run("return performance.timing.loadEventEnd - performance.timing.navigationStart"))
