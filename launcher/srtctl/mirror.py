"""One bare mirror per git repository, shared by all runs: git fetches only when a commit is missing."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from launcher.core.errors import CheckoutError
from launcher.core.lease import Lock
from launcher.core.process import CommandRunner, Completed, run
from launcher.core.publish import publishing_directory, require_writable
from launcher.core.rights import make_directories, path_for_own_use
from launcher.core.waiting import retry_until

NETWORK_TIMEOUT = 900.0
"""Seconds for one clone or fetch; srt-slurm with all its refs is 16 MB."""

LOCAL_TIMEOUT = 120.0
"""Seconds for a git command that needs no network."""

_SHA = re.compile(r"[0-9a-f]{40}")
_DUBIOUS = "dubious ownership"
_PERMANENT = re.compile(
    rf"{_DUBIOUS}|not found|does not appear to be a git repository|does not exist|could not read Username"
    r"|Authentication failed|Permission denied|not our ref|couldn't find remote ref",
    re.IGNORECASE,
)

_REPOSITORY_VARIABLES = re.compile(
    "GIT_(DIR|WORK_TREE|INDEX_FILE|OBJECT_DIRECTORY|ALTERNATE_OBJECT_DIRECTORIES|COMMON_DIR|NAMESPACE|PREFIX)"
)
"""Variables that git sets for hooks. If inherited, they would direct our commands to another repository."""


class Git:
    """Runs git without prompts, in English, and without variables that name another repository."""

    def __init__(self, runner: CommandRunner = run, environ: Mapping[str, str] | None = None) -> None:
        inherited = os.environ if environ is None else environ
        kept = {k: v for k, v in inherited.items() if not _REPOSITORY_VARIABLES.fullmatch(k)}
        self.environ = {**kept, "GIT_TERMINAL_PROMPT": "0", "LC_ALL": "C"}
        self._run = runner

    def __call__(
        self, *words: str | Path, cwd: Path, timeout: float = LOCAL_TIMEOUT, input: str | None = None
    ) -> Completed:
        return self._run(["git", *map(str, words)], timeout=timeout, cwd=cwd, env=self.environ, input=input)

    def text(self, *words: str | Path, cwd: Path, input: str | None = None) -> str:
        """The output of a local git command. Raises CheckoutError when it fails."""
        done = self(*words, cwd=cwd, input=input)
        if not done.ok:
            raise CheckoutError(f"git {words[0]} failed: {done}", where=str(cwd))
        return done.stdout


class Mirror:
    """The mirror of one repository (a URL or a path) below ``cache``.

    Nothing is ever pruned or garbage-collected in it: work trees borrow its objects, and a pinned commit must stay
    available after a force-push upstream. If another user owns the mirror, this user gets a separate one beside it,
    because git refuses to work in other users' repositories. ``notes`` collects messages for the user.
    """

    def __init__(self, cache: Path, repository: str, git: Git, *, sleep: Callable[[float], None] = time.sleep) -> None:
        self.repository = re.sub(r"://[^/@\s]+@", "://", repository)  # for messages and names: without credentials
        self.notes: list[str] = []
        stem = re.sub(r"[^A-Za-z0-9._-]+", "-", self.repository.rstrip("/").removesuffix(".git").rpartition("/")[2])
        self._path = cache / "mirrors" / f"{stem}-{hashlib.sha256(self.repository.encode()).hexdigest()[:12]}.git"
        self._url = repository
        self._git = git
        self._sleep = sleep

    @property
    def path(self) -> Path:
        """The bare repository; it may not exist yet."""
        return path_for_own_use(self._path)

    def commit(self, sha: str) -> str:
        """The full sha of a commit, which is fetched if the mirror lacks it.

        Raises CheckoutError when the repository does not have it.
        """
        if not _SHA.fullmatch(sha):
            raise CheckoutError(f"{sha!r} is not a commit's full sha", where=self.repository)
        self._clone_once()
        commit = self._rev_parse(sha)
        if commit is None:
            with self._fetching():
                self._network("fetch", "--quiet", "origin", cwd=self.path)
                commit = self._rev_parse(sha)
                if commit is None:
                    # GitHub serves a commit by its full sha even when no ref reaches it any more.
                    reference = f"{sha}:refs/launcher/{sha}"
                    self._git("fetch", "--quiet", "origin", reference, cwd=self.path, timeout=NETWORK_TIMEOUT)
                    commit = self._rev_parse(sha)
        if commit is None:
            raise CheckoutError(
                f"the repository has no commit {sha}",
                where=self.repository,
                hint="it belongs to another fork, or was force-pushed away: correct the lane's repository or sha",
            )
        return commit

    def tip(self, ref: str, *, fresh: bool = False) -> str | None:
        """The commit of a branch or tag (as of the last fetch, or now with ``fresh``); None for an unknown ref."""
        self._clone_once()
        if fresh:
            with self._fetching():
                self._network("fetch", "--quiet", "origin", cwd=self.path)
        return self._rev_parse(f"refs/tags/{ref}") or self._rev_parse(f"refs/heads/{ref}")

    def patch_of(self, commit: str, path: str) -> str:
        """One commit's change of one file, as a patch. Raises CheckoutError when the commit does not change it."""
        sha = self.commit(commit)
        text = self._git.text("show", "--format=", "--binary", sha, "--", path, cwd=self.path)
        if not text.strip():
            raise CheckoutError(f"commit {sha} does not change {path}", where=self.repository)
        return text

    def work_tree(self, directory: Path, sha: str, patches: Sequence[str] = ()) -> None:
        """Check ``sha`` out into the new ``directory``, detached, and apply ``patches``; HEAD stays at ``sha``.

        The tree has no git objects: it borrows the mirror's.
        """
        directory.mkdir(parents=True)
        self._git.text("init", "--quiet", "--template=", ".", cwd=directory)
        alternates = directory / ".git/objects/info/alternates"
        alternates.parent.mkdir(parents=True, exist_ok=True)
        alternates.write_text(f"{(self.path / 'objects').resolve()}\n")
        self._git.text("checkout", "--quiet", "--detach", sha, cwd=directory)
        for patch in patches:
            self._git.text("apply", "--whitespace=nowarn", "-", cwd=directory, input=patch)

    def _rev_parse(self, name: str) -> str | None:
        done = self._git("rev-parse", "--verify", "--quiet", f"{name}^{{commit}}", cwd=self.path)
        return done.stdout.strip() if done.ok else None

    def _clone_once(self) -> None:
        # `path` changes when another user publishes a mirror first; then the loop clones a separate one.
        while not os.access(self.path, os.X_OK):
            make_directories(self.path.parent)
            require_writable(self.path.parent)
            with self._fetching():
                if os.access(self.path, os.X_OK):
                    return
                with publishing_directory(self.path) as temporary:
                    self._network("clone", "--quiet", "--mirror", self._url, temporary, cwd=self.path.parent)
                    self._git.text("config", "gc.auto", "0", cwd=temporary)

    def _fetching(self) -> contextlib.AbstractContextManager[None]:
        return self.lock(self.path, f"fetching {self.repository}", NETWORK_TIMEOUT)

    @contextlib.contextmanager
    def lock(self, path: Path, work: str, wait: float) -> Iterator[None]:
        """Hold the lock of ``path`` in the block, so that ``work`` is not done twice; after ``wait`` seconds the block
        runs without it. The block must publish its result as a whole, so that doing the work twice does no harm."""
        with Lock(path.with_suffix(".lock"), what=work, wait=wait) as lock:
            self.notes.extend(lock.facts)
            if not lock.acquired and lock.owner:
                self.notes.append(f"{work}: done at the same time as {lock.owner}, which has not ended in {wait:.0f} s")
            yield

    def _network(self, *words: str | Path, cwd: Path) -> None:
        """Run a git command that needs the network, up to three times. Raises CheckoutError."""
        done = retry_until(
            lambda done: done.ok or done.timed_out or _PERMANENT.search(done.stderr) is not None,
            lambda: self._git(*words, cwd=cwd, timeout=NETWORK_TIMEOUT),
            [2.0, 4.0],
            sleep=self._sleep,
        )
        if not done.ok:
            hint = "is the repository's address right, and can this machine reach it (proxy, credentials)?"
            if _DUBIOUS in done.stderr:
                hint = (
                    "git reads a repository of another user only where `safe.directory` of your git config has its path"
                )
            message = f"git {words[0]} failed: {done}".replace(self._url, self.repository)
            raise CheckoutError(message, where=self.repository, hint=hint)


class Commits:
    """Looks commits up in the mirrors below some cache directories, without the network."""

    def __init__(self, caches: Sequence[Path]) -> None:
        self._caches = caches
        self._git = Git()
        self._known: dict[tuple[str, str], bool | None] = {}

    def __call__(self, repository: str, sha: str) -> bool | None:
        """Whether a mirror of ``repository`` (a URL) has the commit; None when there is no mirror of it."""
        if (repository, sha) not in self._known:
            mirrors = [m for c in self._caches if os.access(m := Mirror(c, repository, self._git).path, os.X_OK)]
            exists = (self._git("cat-file", "-e", f"{sha}^{{commit}}", cwd=mirror).ok for mirror in mirrors)
            self._known[repository, sha] = any(exists) if mirrors else None
        return self._known[repository, sha]
