"""One bare mirror per git repository, shared by all runs: the network is asked only for a commit that is missing."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from launcher.core.errors import SubmissionError
from launcher.core.lease import Lock
from launcher.core.process import CommandRunner, Completed, run
from launcher.core.publish import fsync_directory, temporary_name

NETWORK_TIMEOUT = 900.0
"""Seconds for one clone or fetch; srt-slurm with all its refs is 16 MB."""

LOCAL_TIMEOUT = 120.0
"""Seconds for a git command that stays on this machine's file systems."""

FULL_SHA = re.compile(r"[0-9a-f]{40}")
_SHORT_SHA = re.compile(r"[0-9a-f]{4,39}")
_PERMANENT = re.compile(
    r"not found|does not appear to be a git repository|does not exist|could not read Username|Authentication failed"
    r"|Permission denied|not our ref|couldn't find remote ref",
    re.IGNORECASE,
)


_OF_A_REPOSITORY = frozenset(
    {
        "GIT_DIR",
        "GIT_WORK_TREE",
        "GIT_INDEX_FILE",
        "GIT_OBJECT_DIRECTORY",
        "GIT_ALTERNATE_OBJECT_DIRECTORIES",
        "GIT_COMMON_DIR",
        "GIT_NAMESPACE",
        "GIT_PREFIX",
    }
)
"""Variables that git sets for hooks; inherited, they would send our commands to another repository."""


class Git:
    """Runs git without prompting, in English, and blind to the repository that the caller stands in."""

    def __init__(self, runner: CommandRunner = run, environ: Mapping[str, str] | None = None) -> None:
        inherited = os.environ if environ is None else environ
        kept = {k: v for k, v in inherited.items() if k not in _OF_A_REPOSITORY}
        self.environ = {**kept, "GIT_TERMINAL_PROMPT": "0", "LC_ALL": "C"}
        self._run = runner

    def __call__(
        self, *words: str | Path, cwd: Path, timeout: float = LOCAL_TIMEOUT, input: str | None = None
    ) -> Completed:
        return self._run(["git", *map(str, words)], timeout=timeout, cwd=cwd, env=self.environ, input=input)

    def text(self, *words: str | Path, cwd: Path, input: str | None = None) -> str:
        """The output of a local git command. Raises SubmissionError when it fails."""
        done = self(*words, cwd=cwd, input=input)
        if not done.ok:
            raise SubmissionError(f"git {words[0]} failed: {done}", where=str(cwd))
        return done.stdout


@contextlib.contextmanager
def saving_work(path: Path, *, what: str, wait: float, notes: list[str]) -> Iterator[None]:
    """Hold the lock at ``path`` in the block, so that work is not done twice; go on without it after ``wait`` seconds.

    What is done in the block is published whole, so that doing it twice harms nobody. That is stated in ``notes``.
    """
    with Lock(path, what=what, wait=wait) as held:
        notes.extend(held.facts)
        if not held.acquired and held.owner:
            notes.append(f"{what}: done beside {held.owner}, who did not end within {wait:.0f} s")
        yield


class Mirror:
    """The mirror of one repository (a URL or a path) below ``cache``.

    Nothing is ever pruned or garbage-collected in it: work trees borrow its objects, and a pinned commit that was
    force-pushed away upstream must stay. ``notes`` collects what the user should know.
    """

    def __init__(self, cache: Path, repository: str, git: Git, *, sleep: Callable[[float], None] = time.sleep) -> None:
        self.repository = re.sub(r"://[^/@\s]+@", "://", repository)  # for messages and names: without credentials
        self.notes: list[str] = []
        stem = re.sub(r"[^A-Za-z0-9._-]+", "-", self.repository.rstrip("/").removesuffix(".git").rpartition("/")[2])
        self.path = cache / "mirrors" / f"{stem}-{hashlib.sha256(self.repository.encode()).hexdigest()[:12]}.git"
        self._url = repository
        self._git = git
        self._sleep = sleep

    def commit(self, wanted: str) -> str:
        """The full sha of a commit given by its full or short sha; fetched when the mirror lacks it.

        Raises SubmissionError when the repository does not have it, or has several that begin like this.
        """
        if not FULL_SHA.fullmatch(wanted) and not _SHORT_SHA.fullmatch(wanted):
            raise SubmissionError(f"{wanted!r} is not a commit's sha", where=self.repository)
        self._ensure_cloned()
        found = self._known(wanted)
        if not found:
            self._fetch(exactly=wanted if FULL_SHA.fullmatch(wanted) else None)
            found = self._known(wanted)
        if len(found) > 1:
            raise SubmissionError(
                f"{wanted} is ambiguous: {', '.join(found)}", where=self.repository, hint="pin the full 40 digits"
            )
        if not found:
            raise SubmissionError(
                f"the repository has no commit {wanted}",
                where=self.repository,
                hint="a sha of another fork, or one that was force-pushed away: correct the lane's repository or sha",
            )
        return found[0]

    def tip(self, ref: str, *, fresh: bool = False) -> str | None:
        """The commit that a branch or tag names (as of the last fetch, or now with ``fresh``); None when unknown."""
        self._ensure_cloned()
        if fresh:
            self._fetch()
        for name in (f"refs/tags/{ref}", f"refs/heads/{ref}"):
            done = self._git("rev-parse", "--verify", "--quiet", f"{name}^{{commit}}", cwd=self.path)
            if done.ok:
                return done.stdout.strip()
        return None

    def change(self, commit: str, path: str) -> str:
        """What one commit changed in one file, as a patch. Raises SubmissionError when it changed nothing there."""
        sha = self.commit(commit)
        text = self._git.text("show", "--format=", "--binary", sha, "--", path, cwd=self.path)
        if not text.strip():
            raise SubmissionError(f"commit {sha} does not change {path}", where=self.repository)
        return text

    def work_tree(self, directory: Path, sha: str) -> None:
        """Check ``sha`` out into ``directory`` (made here), detached, its objects borrowed from the mirror."""
        directory.mkdir(parents=True)
        self._git.text("init", "--quiet", "--template=", ".", cwd=directory)
        alternates = directory / ".git/objects/info/alternates"
        alternates.parent.mkdir(parents=True, exist_ok=True)
        alternates.write_text(f"{(self.path / 'objects').resolve()}\n")
        self._git.text("checkout", "--quiet", "--detach", sha, cwd=directory)

    def _known(self, wanted: str) -> list[str]:
        """The commits of the mirror whose sha begins with ``wanted``. A tree or blob may begin so too."""
        if not self.path.is_dir():
            return []
        names = self._git("rev-parse", f"--disambiguate={wanted}", cwd=self.path).stdout
        kinds = self._git("cat-file", "--batch-check=%(objectname) %(objecttype)", cwd=self.path, input=names).stdout
        return [line.split()[0] for line in kinds.splitlines() if line.endswith(" commit")]

    def _ensure_cloned(self) -> None:
        if self.path.is_dir():
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self._lock():
            if self.path.is_dir():
                return
            temporary = temporary_name(self.path)
            try:
                self._network(self.path.parent, "clone", "--quiet", "--mirror", self._url, temporary)
                self._git.text("config", "gc.auto", "0", cwd=temporary)
                self._publish(temporary)
            finally:
                shutil.rmtree(temporary, ignore_errors=True)

    def _publish(self, temporary: Path) -> None:
        try:
            temporary.rename(self.path)
        except OSError:
            if not self.path.is_dir():  # else another process was first, and its mirror is as good
                raise
        fsync_directory(self.path.parent)

    def _fetch(self, exactly: str | None = None) -> None:
        """Fetch every ref; then one commit by its sha, which GitHub also gives when no ref reaches it any more."""
        with self._lock():
            self._network(self.path, "fetch", "--quiet", "origin")
            if exactly and not self._known(exactly):
                keep = f"{exactly}:refs/launcher/{exactly}"
                self._git("fetch", "--quiet", "origin", keep, cwd=self.path, timeout=NETWORK_TIMEOUT)

    def _lock(self) -> contextlib.AbstractContextManager[None]:
        what = f"fetching {self.repository}"
        return saving_work(self.path.with_suffix(".lock"), what=what, wait=NETWORK_TIMEOUT, notes=self.notes)

    def _network(self, cwd: Path, *words: str | Path) -> None:
        """Run a git command that needs the network, up to three times. Raises SubmissionError."""
        from tenacity import RetryCallState, Retrying, retry_if_result, stop_after_attempt, wait_exponential

        def transient(done: Completed) -> bool:
            return not done.ok and not done.timed_out and not _PERMANENT.search(done.stderr)

        def last(state: RetryCallState) -> Completed:
            assert state.outcome is not None
            result: Completed = state.outcome.result()
            return result

        attempts = Retrying(
            stop=stop_after_attempt(3),
            wait=wait_exponential(multiplier=2, max=30),
            retry=retry_if_result(transient),
            retry_error_callback=last,
            sleep=self._sleep,
        )
        done: Completed = attempts(self._git, *words, cwd=cwd, timeout=NETWORK_TIMEOUT)
        if not done.ok:
            raise SubmissionError(
                f"git {words[0]} failed: {done}".replace(self._url, self.repository),
                where=self.repository,
                hint="is the repository's address right, and can this machine reach it (proxy, credentials)?",
            )
