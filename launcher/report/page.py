"""``report.html``: one file that loads nothing, and that is complete without its script.

All that it shows comes from the document, escaped. Its style and script stand in it, and its policy allows these two by
their hashes and nothing else (docs/design.md says why it is drawn here and not by a library).
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
"""Metrics of the table of points; ``{x}`` is what the panel of a point has across."""

_SHORT = {
    "tput_per_gpu": "throughput",
    "median_ttft": "TTFT",
    "median_tpot": "TPOT",
    "median_e2el": "E2EL",
    **dict.fromkeys(("{x}", "median_intvty", "p90_e2e_norm_intvty"), "interactivity"),
}


def render_page(document: Document) -> str:
    """The page."""
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
    """A file of the page without indentation, comments of whole lines, and the spaces that a style does not need."""
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
    """What is not on a frontier because it is not ok, by state and reason; then what could not be read."""
    others = list(points_not_ok(document))
    if others:
        yield "<h2>Not ok, and why</h2><div class=scroll><table class=wide><thead>"
        yield "<tr><th>state<th>layer<th>why<th>points<tbody>"
    for one, group in others:
        points = ", ".join(f"<a href=#{each.id}>{escaped(each.short)}</a>" for each in group)
        check = f" <small>launcher report --explain {escaped(one.rule)}</small>" if one.rule else ""
        why = f"<td>{escaped(one.layer)}<td>{escaped(one.reason)}{check}"
        yield f"<tr><td class={one.state}>{one.state}{why}<td>{points}"
    yield "</table></div>" if others else ""
    again = [entry for entry in document.points if len(entry.attempts) > 1]
    if again:
        yield "<h2>More than one attempt</h2><div class=scroll><table class=wide>"
        yield "<thead><tr><th>point<th>attempts, the oldest first<tbody>"
        for entry in again:
            name = escaped(f"{entry.configuration} {entry.lengths} {entry.short}")
            tries = "; ".join(_attempt(one, links.get(one.run, "")) for one in entry.attempts)
            yield f"<tr><td><a href=#{entry.id}>{name}</a><td>{tries}"
        yield "</table></div>"
    notes = (f"{whose}: {note}" for whose, note in all_notes(document))
    for title, said in (("What could not be read", document.problems), ("Notes", tuple(notes))):
        if said:
            yield f"<h2>{title}</h2><ul class=notes>{''.join(f'<li>{escaped(text)}' for text in said)}</ul>"


def _attempt(one: Attempt, link: str) -> str:
    layer = f"{one.layer}: " if one.layer and one.reason else ""
    return f"{link} <span class={one.state}>{one.state}</span> {escaped(layer + one.reason)}".strip()


def _comparison(found: Comparison) -> Iterator[str]:
    """What fails, and each point that is not the same as on the other side, with what else differs."""
    yield f"<h2>Compared with {escaped(found.against)}</h2><p>{found.summary}; what is the same is not listed.</p>"
    if found.failed:
        opened = " open" if len(found.failed) <= 20 else ""
        yield f"<details{opened}><summary class=worse>{len(found.failed)} past the thresholds</summary><ul>"
        yield "".join(f"<li>{escaped(text)}" for text in found.failed) + "</ul></details>"
    yield "<div class=scroll><table class=beside><thead><tr><th>answer<th>point"
    yield from (f"<th>{_SHORT.get(name, name)} <small>{metrics()[name].unit}</small>" for name in found.told)
    yield "<th>what else differs<tbody>"
    for one in found.points:
        if one.answer == "same":
            continue
        link = f"<a href=#{one.id}>{escaped(one.point)}</a>" if one.id else escaped(one.point)
        how = f"<small>{samples_text(one)}</small>" if one.changes else ""
        yield f"<tr><td class='{one.answer}'>{one.answer}{how}<td class=why>{link}"
        if one.reason:
            yield f"<td class=why colspan={len(found.told) + 1}>{escaped(one.reason)}"
            continue
        by_metric = {change.metric: change for change in one.changes}
        for name in found.told:
            change = by_metric.get(name)
            kind = f" class='{change.answer}'" if change and change.answer in ("better", "worse") else ""
            yield f"<td{kind}>{change_text(change)}"
        yield f"<td class=why>{escaped(shorten_digests('; '.join(one.differs)))}"
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
    """The tables of points and of evaluations. What follows each other and is of one configuration says so once: the
    page's script, which sorts, gives each row its own."""
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
            once = "".join(f"<td{span}>{escaped(text)}" for text in shared)
            for entry in members:
                x = across.get(entry.id, "median_intvty")
                cells = [metric_text(x if name == "{x}" else name, entry.metrics) for name in columns if name != "task"]
                cells = [escaped(entry.task), *cells] if "task" in columns else cells
                kind = "" if entry.state == "ok" else f" class={entry.state}"
                yield f"<tr id={entry.id}><td{kind}>{entry.state}{once}<td>{escaped(entry.topology)}"
                yield f"<td>{entry.concurrency}<td>{'<td>'.join(cells)}<td>{links.get(entry.run, '')}"
                once = ""
        yield "</table></div>"


def _scroll(rows: Sequence[object]) -> str:
    """The classes of a table's frame: one of many rows is laid out when somebody looks at it."""
    return "'scroll long'" if len(rows) > 200 else "scroll"


def _shared(entry: Entry, several: bool) -> tuple[str, str]:
    """What many rows share: the model, where there are several, with the lengths; the configuration."""
    offload = f" {entry.kv_offload}" if entry.kv_offload != "none" else ""
    return f"{entry.model} {entry.lengths}" if several else entry.lengths, entry.configuration + offload


def _heading(name: str) -> str:
    if name == "task":
        return "<th>task"
    one = metrics()["median_intvty" if name == "{x}" else name]
    arrow = {"more": "↑", "less": "↓", None: ""}[one.better]
    return f"<th>{_SHORT.get(name, one.short or one.title)} <small>{escaped(one.unit)} {arrow}</small>"


def _runs(document: Document, numbers: dict[str, int]) -> Iterator[str]:
    """The time line, then the runs below what they share: images, checkpoint, srt-slurm, commit, runner."""
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
    spent: dict[str, float] = {}
    for name, begin, end in phases(run):
        spent[name] = spent.get(name, 0.0) + end - begin
    ended = escaped(run.layer or ("" if run.state == "succeeded" else run.state))
    cells: Sequence[str] = (
        escaped(run.job),
        escaped(run.nodes),
        *(duration_text(spent.get(name)) for name in ("queue", "start", "measure")),
        local_time(run.created)[5:16],
    )
    ended += f": {escaped(run.verdict)}" if run.layer and run.verdict else ""
    why = f"<td class=why>{ended}" if ended else "<td>"
    known = f"<td>{'<td>'.join(cells)}{why}" if any(cells) or ended else ""  # of an artifact only its name is known
    return f"<tr id=r{number}><td>{escaped(run.id)}{known}"
