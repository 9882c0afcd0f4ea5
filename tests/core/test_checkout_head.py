"""The commit of a checkout by its files, beside what git itself says."""

from __future__ import annotations

import subprocess
from pathlib import Path

from launcher.core.checkout_head import head_commit


def git(where: Path, *arguments: str) -> str:
    identity = ("-c", "user.name=n", "-c", "user.email=e@example.org")
    done = subprocess.run(["git", *identity, *arguments], cwd=where, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_it_is_what_git_says(tmp_path: Path) -> None:
    assert head_commit(tmp_path / "none") == ""
    tree = tmp_path / "tree"
    tree.mkdir()
    git(tree, "init", "-q", "-b", "main")
    assert head_commit(tree) == ""  # HEAD is not born yet
    for number in range(2):
        git(tree, "commit", "-q", "--allow-empty", "-m", str(number))
        assert head_commit(tree) == git(tree, "rev-parse", "HEAD")
    git(tree, "pack-refs", "--all")
    assert head_commit(tree) == git(tree, "rev-parse", "HEAD")
    git(tree, "worktree", "add", "-q", "../beside", "-b", "feature/x")
    git(tree, "commit", "-q", "--allow-empty", "-m", "more")
    assert head_commit(tmp_path / "beside") == git(tmp_path / "beside", "rev-parse", "HEAD") != head_commit(tree)
    git(tree, "checkout", "-q", "HEAD~1")
    assert head_commit(tree) == git(tree, "rev-parse", "HEAD")
    (tree / ".git/HEAD").write_text("ref: ../../../etc/passwd\n")
    assert head_commit(tree) == ""
