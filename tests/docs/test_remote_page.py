"""The block of docs/guides/remote.md is typed at a real sshd, in its order; tests/remote installs there."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from launcher.cli import main
from tests.cli.test_on import go_there
from tests.docs.test_commands import ALL
from tests.remote.servers import site as a_site
from tests.run.driving import ONE

PAGE = [command for command in ALL if command.page == "docs/guides/remote.md" and command.session]
WORDS = {"gb200-nv": "local", "KEY": shlex.join([*ONE[1:], "--conc", "4", "--runner", "local"])}


def test_the_page_about_ssh_can_be_typed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    typed = [c for c in PAGE if "install" not in c.words]
    assert len(typed) == len(PAGE) - 1 > 5
    with a_site(tmp_path) as site:
        go_there(site, monkeypatch)
        for command in typed:
            words = {**WORDS, "RUN": next((path.name for path in (site.far / "runs").glob("[!.]*")), "RUN")}
            argv = [word for given in command.words for word in shlex.split(words.get(given, shlex.quote(given)))]
            assert main(argv) == command.code, command
        assert list((site.root / "there").glob("sweeps/*/sweep.json"))
