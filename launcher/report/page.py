"""``report.html``: a single file that loads nothing and is complete without its script.

All its text comes from the document and is escaped. It contains its style and its script; its content security policy
allows only these two, by their hashes. docs/design.md explains why no library draws the charts.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path

from launcher.core.lines import count_of
from launcher.report.chart import PHASES, SYMBOLS, classes, panel_svg, phases, symbol, timeline_svg
from launcher.report.document import (
    MEANING,
    STATES,
    Attempt,
    Comparison,
    Document,
    Entry,
    Panel,
    Run,
    all_notes,
    points_not_ok,
)
from launcher.report.points import SCORES, metrics
from launcher.report.text import (
    change_text,
    duration_text,
    escaped,
    local_time,
    metric_text,
    samples_text,
    shorten_digests,
)

COLUMNS = ("tput_per_gpu", "{x}", "median_ttft", "median_tpot", "median_e2el")
"""Metrics of the table of points; ``{x}`` is the metric of the x axis of the point's panel."""

_SHORT = {
    "tput_per_gpu": "throughput",
    "median_ttft": "TTFT",
    "median_tpot": "TPOT",
    "median_e2el": "E2EL",
    **dict.fromkeys(("{x}", "median_intvty", "p90_e2e_norm_intvty"), "interactivity"),
}


def render_page(document: Document) -> str:
    """The page as HTML."""
    style, script = (_compact(name) for name in ("page.css", "page.js"))
    policy = f"default-src 'none'; style-src '{_hash(style)}'; script-src '{_hash(script)}'"
    numbers = {run.id: number for number, run in enumerate(document.runs, 1)}
    links = {run.id: f"<a href=#r{numbers[run.id]}>{escaped(run.job or run.id)}</a>" for run in document.runs}
    body = [
        _head(document),
        *_not_ok(document, links),
        *(_comparison(document.comparison) if document.comparison is not None else ()),
        *_panels(document),
        *_points(document, links),
        *_runs(document, numbers),
    ]
    return "".join(
        [
            "<!doctype html><html lang=en><head><meta charset=utf-8>",
            f'<meta http-equiv=Content-Security-Policy content="{policy}">',
            "<meta name=viewport content='width=device-width,initial-scale=1'>",
            f"<title>{escaped(document.title)}</title><style>{style}</style></head><body>",
            *body,
            f"<script>{script}</script></body></html>\n",
        ]
    )


def _compact(name: str) -> str:
    """A file of the page without indentation, comment lines, and the spaces that CSS does not need."""
    text = re.sub(r"^\s+|^//.*\n", "", Path(__file__).with_name(name).read_text(), flags=re.MULTILINE)
    return re.sub(r"\s*([{};,]|:(?= ))\s*", r"\1", text) if name.endswith(".css") else text


def _hash(text: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"


def _head(document: Document) -> str:
    counts = "".join(
        f"<li title='{escaped(MEANING[state])}'><b class={state}>{document.counts[state]}</b> {state}</li>"
        for state in STATES
        if state in document.counts
    )
    best = sum(entry.frontier for entry in document.points)
    about = f"{count_of(len(document.points), 'point')} of {count_of(len(document.runs), 'run')}, {best} on a frontier"
    banner = f"<p class=banner><b>{document.rehearsed}.</b></p>" if document.rehearsed else ""
    return (
        f"<header class=head><h1>{escaped(document.title)}</h1><p class=soft>{about}. Made {escaped(document.made)}"
        f" of {escaped(', '.join(document.sources))}</p><ul class=counts>{counts}</ul>{banner}</header><main>"
    )


def _not_ok(document: Document, links: dict[str, str]) -> Iterator[str]:
    """The points that are not ok by state and reason, those with several attempts, and problems and notes."""
    others = list(points_not_ok(document))
    if others:
        yield "<h2>Not ok, and why</h2><div class=scroll><table class=wide><thead>"
        yield "<tr><th>state<th>layer<th>why<th>points<tbody>"
    for first, group in others:
        points = ", ".join(f"<a href=#{entry.id}>{escaped(entry.short)}</a>" for entry in group)
        rule = f" <small>launcher report --explain {escaped(first.rule)}</small>" if first.rule else ""
        reason = f"<td>{escaped(first.layer)}<td>{escaped(first.reason)}{rule}"
        yield f"<tr><td class={first.state}>{first.state}{reason}<td>{points}"
    yield "</table></div>" if others else ""
    repeated = [entry for entry in document.points if len(entry.attempts) > 1]
    if repeated:
        yield "<h2>More than one attempt</h2><div class=scroll><table class=wide>"
        yield "<thead><tr><th>point<th>attempts, the oldest first<tbody>"
        for entry in repeated:
            name = escaped(f"{entry.configuration} {entry.lengths} {entry.short}")
            attempts = "; ".join(_attempt(attempt, links.get(attempt.run, "")) for attempt in entry.attempts)
            yield f"<tr><td><a href=#{entry.id}>{name}</a><td>{attempts}"
        yield "</table></div>"
    notes = tuple(f"{name}: {note}" for name, note in all_notes(document))
    for title, texts in (("What could not be read", document.problems), ("Notes", notes)):
        if texts:
            yield f"<h2>{title}</h2><ul class=notes>{''.join(f'<li>{escaped(text)}' for text in texts)}</ul>"


def _attempt(attempt: Attempt, link: str) -> str:
    layer = f"{attempt.layer}: " if attempt.layer and attempt.reason else ""
    return f"{link} <span class={attempt.state}>{attempt.state}</span> {escaped(layer + attempt.reason)}".strip()


def _comparison(comparison: Comparison) -> Iterator[str]:
    """The failed thresholds, and a row for each point that is not the same on the other side."""
    yield f"<h2>Compared with {escaped(comparison.against)}</h2>"
    yield f"<p>{comparison.summary}; what is the same is not listed.</p>"
    if comparison.failed:
        opened = " open" if len(comparison.failed) <= 20 else ""
        yield f"<details{opened}><summary class=worse>{len(comparison.failed)} past the thresholds</summary><ul>"
        yield "".join(f"<li>{escaped(text)}" for text in comparison.failed) + "</ul></details>"
    yield "<div class=scroll><table class=beside><thead><tr><th>answer<th>point"
    yield from (
        f"<th>{_SHORT.get(name, name)} <small>{metrics()[name].unit}</small>" for name in comparison.shown_metrics
    )
    yield "<th>what else differs<tbody>"
    for point in comparison.points:
        if point.answer == "same":
            continue
        link = f"<a href=#{point.id}>{escaped(point.point)}</a>" if point.id else escaped(point.point)
        samples = f"<small>{samples_text(point)}</small>" if point.changes else ""
        yield f"<tr><td class='{point.answer}'>{point.answer}{samples}<td class=why>{link}"
        if point.reason:
            yield f"<td class=why colspan={len(comparison.shown_metrics) + 1}>{escaped(point.reason)}"
            continue
        by_metric = {change.metric: change for change in point.changes}
        for name in comparison.shown_metrics:
            change = by_metric.get(name)
            kind = f" class='{change.answer}'" if change and change.answer in ("better", "worse") else ""
            yield f"<td{kind}>{change_text(change)}"
        yield f"<td class=why>{escaped(shorten_digests('; '.join(point.differs)))}"
    yield "</table></div>"


def _panels(document: Document) -> Iterator[str]:
    entries = {entry.id: entry for entry in document.points}
    if not document.panels:
        yield "<p class=soft>No picture: no point has both coordinates.</p>"
        return
    symbols = "".join(f'<path id=s{number} d="{path}"/>' for number, path in enumerate(SYMBOLS))
    yield f"<h2>Frontiers</h2><svg class=symbols aria-hidden=true><defs>{symbols}</defs></svg>"
    yield f'<div class="panels{" one" if len(document.panels) == 1 else ""}">'
    for panel in document.panels:
        yield f"<figure><h3>{escaped(panel.title)}</h3>{panel_svg(panel, entries)}{_legend(panel)}</figure>"
    yield "</div><p class=soft>Full marks are on a frontier, faint ones are ok and behind it, hollow ones are reused or"
    yield " rehearsed. Each mark leads to its row.</p>"


def _legend(panel: Panel) -> str:
    lines = (
        f'<li class="{classes(index)}"><svg viewBox="0 0 34 14" aria-hidden=true><path class=front d="M0 7H34"/>'
        f"<use href=#s{symbol(index)} x=17 y=7 /></svg>{escaped(curve.name)}"
        for index, curve in enumerate(panel.curves)
    )
    return f"<ul class=legend>{''.join(lines)}</ul>"


def _points(document: Document, links: dict[str, str]) -> Iterator[str]:
    """The tables of points and of evaluations. Consecutive rows of one configuration share its cell; the page's script
    gives each row its own, so that it can sort them."""
    several = len({entry.model for entry in document.points}) > 1
    across = {key: panel.x.metric for panel in document.panels for curve in panel.curves for key in curve.points}
    tools = "<div class=tools id=tools></div>"
    kinds = (("Points", document.measured, COLUMNS), ("Evaluations", document.evaluations, ("task", *SCORES)))
    for title, entries, columns in kinds:
        if not entries:
            continue
        yield f"<h2>{title}</h2>{tools}<div class={_scroll(entries)}><table class='n points'><thead><tr><th>state<th>"
        tools = ""
        yield f"{'model, ' if several else ''}ISL/OSL<th>configuration<th>topology<th>conc"
        yield from (_heading(name) for name in columns)
        yield "<th>job<tbody>"
        for shared, group in groupby(entries, key=lambda entry: _shared(entry, several)):
            members = list(group)
            span = f" rowspan={len(members)}" if len(members) > 1 else ""
            shared_cells = "".join(f"<td{span}>{escaped(text)}" for text in shared)
            for entry in members:
                x = across.get(entry.id, "median_intvty")
                cells = [metric_text(x if name == "{x}" else name, entry.metrics) for name in columns if name != "task"]
                cells = [escaped(entry.task), *cells] if "task" in columns else cells
                kind = "" if entry.state == "ok" else f" class={entry.state}"
                yield f"<tr id={entry.id}><td{kind}>{entry.state}{shared_cells}<td>{escaped(entry.topology)}"
                yield f"<td>{entry.concurrency}<td>{'<td>'.join(cells)}<td>{links.get(entry.run, '')}"
                shared_cells = ""
        yield "</table></div>"


def _scroll(rows: Sequence[object]) -> str:
    """The classes of a table's frame. The browser lays out a long table only when it becomes visible."""
    return "'scroll long'" if len(rows) > 200 else "scroll"


def _shared(entry: Entry, several: bool) -> tuple[str, str]:
    """The cells that rows can share: the lengths, with the model if there are several; and the configuration."""
    offload = f" {entry.kv_offload}" if entry.kv_offload != "none" else ""
    return f"{entry.model} {entry.lengths}" if several else entry.lengths, entry.configuration + offload


def _heading(name: str) -> str:
    if name == "task":
        return "<th>task"
    metric = metrics()["median_intvty" if name == "{x}" else name]
    arrow = {"more": "↑", "less": "↓", None: ""}[metric.better]
    return f"<th>{_SHORT.get(name, metric.short or metric.title)} <small>{escaped(metric.unit)} {arrow}</small>"


def _runs(document: Document, numbers: dict[str, int]) -> Iterator[str]:
    """The time line, then the runs, grouped by the inputs that they share (`Run.provenance`)."""
    if picture := timeline_svg(document.runs, numbers):
        lines = "".join(
            f'<li><svg class=time viewBox="0 0 34 14" aria-hidden=true><path class={name} d="M2 7H32"/></svg>{text}'
            for name, text in PHASES.items()
        )
        yield f"<h2>Time line</h2><figure><div class=scroll>{picture}</div><ul class=legend>{lines}</ul></figure>"
    if not document.runs:
        return
    yield f"<h2>Runs, and what they ran</h2><div class={_scroll(document.runs)}><table><thead><tr><th>run<th>job"
    yield "<th>nodes<th>queue<th>start-up<th>measuring<th>began<th>ended as</thead>"
    ordered = sorted(document.runs, key=lambda run: run.provenance)
    for provenance, group in groupby(ordered, key=lambda run: run.provenance):
        shared = "".join(f"<div><b>{name}</b> {escaped(text)}</div>" for name, text in provenance)
        yield f"<tbody><tr><td class=set colspan=8>{shared or 'nothing is known of what these ran'}"
        yield from (_run(run, numbers[run.id]) for run in group)
    yield "</table></div>"


def _run(run: Run, number: int) -> str:
    seconds: dict[str, float] = {}
    for name, begin, end in phases(run):
        seconds[name] = seconds.get(name, 0.0) + end - begin
    ended = escaped(run.layer or ("" if run.state == "succeeded" else run.state))
    cells: Sequence[str] = (
        escaped(run.job),
        escaped(run.nodes),
        *(duration_text(seconds.get(name)) for name in ("queue", "start", "measure")),
        local_time(run.created)[5:16],
    )
    ended += f": {escaped(run.verdict)}" if run.layer and run.verdict else ""
    last_cell = f"<td class=why>{ended}" if ended else "<td>"
    facts = (
        f"<td>{'<td>'.join(cells)}{last_cell}" if any(cells) or ended else ""
    )  # only the name of an artifact is known
    return f"<tr id=r{number}><td>{escaped(run.id)}{facts}"
