"""The documentation site: it builds without a warning, every link leads somewhere, nothing is loaded from elsewhere."""

from __future__ import annotations

import re
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [str(ROOT / "scripts/site"), "--site-dir", str(directory)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return directory


class _Page(HTMLParser):
    """What a page loads, where it leads, and which places it has."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.leads: list[str] = []
        self.places: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attributes}
        self.places.add(given.get("id", ""))
        if tag == "a":
            self.leads.append(given.get("href", ""))
        elif tag == "link" and given.get("rel") not in ("canonical", "prev", "next"):
            self.loads.append(given.get("href", ""))
        elif "src" in given:
            self.loads.append(given["src"])


def test_every_link_leads_somewhere_and_nothing_is_loaded_from_elsewhere(site: Path) -> None:
    pages = {path: _Page(path.read_text(encoding="utf-8")) for path in site.rglob("*.html") if path.name != "404.html"}
    links, wrong = 0, []
    for path, page in pages.items():
        for url in page.loads:
            if urlsplit(url).scheme not in ("", "data") or url.startswith("//"):
                wrong.append(f"{path.name} loads {url}")
        for url in (*page.leads, *page.loads):
            parts = urlsplit(url)
            if parts.scheme or not url:
                continue
            links += 1
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            if target.is_dir():
                target /= "index.html"
            if not target.is_file():
                wrong.append(f"{path.relative_to(site)} leads to {url}")
            elif parts.fragment and target in pages and unquote(parts.fragment) not in pages[target].places:
                wrong.append(f"{path.relative_to(site)}: {url} has no such place")
    style = "\n".join(path.read_text(encoding="utf-8") for path in site.rglob("*.css"))
    wrong += [f"a style loads {url}" for url in re.findall(r"url\([\"']?(https?:[^)]*)", style)]
    assert links > 1000
    assert wrong == []


def test_every_page_is_reached_from_an_index(site: Path) -> None:
    for directory in ("tutorial", "guides", "reference"):
        index = _Page((site / directory / "index.html").read_text(encoding="utf-8"))
        led = {urlsplit(url).path for url in index.leads}
        assert [p.name for p in (site / directory).glob("*.html") if p.name != "index.html" and p.name not in led] == []


def test_the_links_of_the_readme_lead_somewhere() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    links = re.findall(r"\]\(([^)#]+?)\)", text)
    assert links
    assert [link for link in links if "://" not in link and not (ROOT / link).exists()] == []


def test_every_variable_of_ours_is_on_the_page_about_the_environment() -> None:
    page = (ROOT / "docs/reference/environment.md").read_text(encoding="utf-8")
    code = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "launcher").rglob("*.py"))
    told, used = (set(re.findall(r"LAUNCHER_[A-Z_]*[A-Z]", text)) for text in (page, code))
    assert told - used == set()
    assert used - told == {"LAUNCHER_REHEARSAL"}


def test_messages_that_a_page_quotes_are_said() -> None:
    """Of docs/troubleshooting.md and the table of docs/guides/remote.md: what a reader searches for is what is said."""
    code = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "launcher").rglob("*.py"))
    code = re.sub(r'"\s*\n\s*f?"', "", code)
    troubles = (ROOT / "docs/troubleshooting.md").read_text(encoding="utf-8")
    told = [
        one for group in re.findall(r"^\*\*(`.*?`)\.?\*\*", troubles, re.MULTILINE) for one in group.split("`")[1::2]
    ]
    remote = (
        (ROOT / "docs/guides/remote.md")
        .read_text(encoding="utf-8")
        .partition("| said | means |")[2]
        .partition("\n\n")[0]
    )
    told += [one for line in remote.splitlines() for one in line.partition(" | ")[0].split("`")[1::2]]
    assert len(told) > 8
    parts = {one: re.split(r"…|\d[\d.]*|: | models| lanes|python3", one.strip("…")) for one in told}
    assert [one for one, words in parts.items() if not all(word.strip() in code for word in words)] == []
