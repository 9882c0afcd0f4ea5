"""The whole cluster: what runs, in which order it starts and ends, and when it is ready."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import signal
import socket
import subprocess
from collections.abc import Callable, Iterator

from . import configuration, daemons
from .daemons import Daemon, wait_until
from .settings import (
    ACCOUNT,
    CLUSTER,
    PARTITION,
    ClusterError,
    NodesCannotRun,
    Settings,
    find_program,
    own_address,
    require_programs,
    user_name,
)

_PARTS = ("dev", "etc", "log", "pids", "run", "spool", "state")
_PATIENCE = 60.0
"""Seconds that one daemon may take to answer: a loaded machine of two cores needed up to 20 for the whole cluster."""


class Cluster:
    """One cluster, by its settings. `up` and `down` may be called at any time, and repeated."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        directory, conf = settings.directory, str(settings.slurm_conf)
        self._munged = Daemon(
            "munged",
            (
                "munged",
                "--foreground",
                "--force",  # it warns, and refuses without this, where other users cannot reach its socket
                f"--key-file={directory}/etc/munge.key",
                f"--socket={settings.munge_socket}",
                f"--pid-file={directory}/run/munged.pid",
                f"--seed-file={directory}/run/munge.seed",
            ),
            directory,
        )
        self._database = Daemon(
            "mariadbd",
            (
                "mariadbd",
                "--no-defaults",
                f"--datadir={settings.database}",
                f"--user={user_name()}",
                "--skip-networking",
                "--skip-grant-tables",
                f"--socket={settings.database_socket}",
                f"--pid-file={directory}/run/mariadbd.pid",
                "--innodb-lock-wait-timeout=900",  # what slurmdbd asks for
                "--innodb-flush-log-at-trx-commit=0",
                "--innodb-doublewrite=0",
                "--skip-log-bin",
            ),
            directory,
        )
        self._slurmdbd = Daemon("slurmdbd", ("slurmdbd", "-D"), directory)
        self._slurmctld = Daemon("slurmctld", ("slurmctld", "-D", "-f", conf), directory)
        self._slurmds = [Daemon(n, ("slurmd", "-D", "-f", conf, "-N", n), directory) for n in settings.node_names]

    @property
    def daemons(self) -> list[Daemon]:
        """Every daemon of this cluster, in the order of starting."""
        accounting = [self._database, self._slurmdbd] if self.settings.accounting else []
        return [self._munged, *accounting, self._slurmctld, *self._slurmds]

    @property
    def environment(self) -> dict[str, str]:
        """Our own environment, made to mean this cluster: no option of another one, and no job that we may be in."""
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM", "SBATCH_", "SALLOC_", "SRUN_"))}
        return {**kept, **self.exports}

    @property
    def exports(self) -> dict[str, str]:
        """What a client needs in its environment."""
        return {"SLURM_CONF": str(self.settings.slurm_conf)}

    def up(self) -> None:
        """Start what does not run, and return when every node can take a job. Jobs and accounting are kept.

        Raises `NotInstalled`, and `ClusterError` (`NodesCannotRun` is one) after ending whatever this call started.
        """
        require_programs(self.settings.accounting)
        host, address = own_address()
        with self._locked():
            saved = Settings.load(self.settings.directory) or self.settings
            running = [d for d in Cluster(saved).daemons if d.pid() is not None]
            if running and saved != self.settings:
                raise ClusterError(f"the cluster in {self.settings.directory} runs with other settings: {saved}")
            if not running:
                self._require_free_ports(address)
                self._prepare(host, address)
            try:
                self._start()
            except BaseException:
                daemons.stop([d for d in reversed(self.daemons) if d not in running])
                raise

    def down(self) -> None:
        """End jobs, then daemons, each by its pid file. Files stay: `up` in the same directory goes on from there."""
        with self._locked():
            if self._slurmctld.pid() is not None:
                self._ask("scancel", "-Q", f"--partition={PARTITION}")
            # A slurmd that is asked to end first waits for its jobs; there is nothing in it worth that.
            daemons.stop(self._slurmds, signal.SIGKILL)
            daemons.kill_jobs(self.settings.slurm_conf)
            daemons.stop([self._slurmctld])
            daemons.stop([self._slurmdbd])
            daemons.stop([self._database, self._munged])

    def ready_nodes(self) -> int:
        """How many nodes are registered and answer."""
        if self._slurmctld.pid() is None:
            return 0  # sinfo would look for it for nine seconds
        listing = self._ask("sinfo", "-h", "-N", "-o", "%N %T") or ""
        states = dict(line.split() for line in listing.splitlines())
        return sum(not s.startswith(("unknown", "down")) and not s.endswith("*") for s in states.values())

    def _start(self) -> None:
        environment = self.environment
        self._munged.start(environment)
        self._await(self._munged, self.settings.munge_socket.is_socket)
        if self.settings.accounting:
            self._install_database()
            self._database.start(environment)
            self._await(self._database, self._database_answers)
            # libmariadb connects to `localhost` by the socket that this variable names.
            self._slurmdbd.start({**environment, "MYSQL_UNIX_PORT": str(self.settings.database_socket)})
            self._await(self._slurmdbd, lambda: self._ask("sacctmgr", "-n", "show", "cluster") is not None)
            self._add_account()
        self._slurmctld.start(environment)
        for slurmd in self._slurmds:
            slurmd.start(environment)
        self._await(self._slurmctld, lambda: "UP" in (self._ask("scontrol", "ping") or ""))
        self._await_nodes()

    def _prepare(self, host: str, address: str) -> None:
        for part in _PARTS:
            (self.settings.directory / part).mkdir(mode=0o700, exist_ok=True)
        self.settings.munge_socket.unlink(missing_ok=True)
        self.settings.save()
        configuration.write(self.settings, host, address)

    def _require_free_ports(self, address: str) -> None:
        for port in range(self.settings.port, self.settings.last_port + 1):
            with socket.socket() as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                try:
                    probe.bind((address, port))
                except OSError as error:
                    raise ClusterError(f"port {port} cannot be had ({error.strerror}); give another --port") from None

    def _await_nodes(self) -> None:
        """Wait until every node is ready. Raises `NodesCannotRun` when a slurmd has ended, and `ClusterError`."""

        def ended() -> Daemon | None:
            return next((slurmd for slurmd in self._slurmds if slurmd.pid() is None), None)

        settled = wait_until(lambda: ended() is not None or self.ready_nodes() == self.settings.nodes, _PATIENCE)
        if (slurmd := ended()) is not None:
            raise NodesCannotRun(f"slurmd of {slurmd.name} ended; it said: {slurmd.last_words()}")
        if not settled:
            raise ClusterError(
                f"{self.ready_nodes()} of {self.settings.nodes} nodes are ready after {_PATIENCE:.0f} s; "
                f"slurmctld said: {self._slurmctld.last_words()}\n"
                f"slurmd of {self._slurmds[0].name} said: {self._slurmds[0].last_words()}"
            )

    def _install_database(self) -> None:
        if self.settings.database.exists():
            return
        directory, half_made = self.settings.directory, self.settings.database.with_suffix(".part")
        shutil.rmtree(half_made, ignore_errors=True)
        answer = self._run(
            "mariadb-install-db",
            "--no-defaults",
            f"--datadir={half_made}",
            f"--user={user_name()}",
            "--auth-root-authentication-method=normal",
            "--skip-test-db",
            f"--tmpdir={directory}",  # in /tmp two of them that start at once were seen to fail on their tables
        )
        if answer.returncode != 0:
            raise ClusterError(f"mariadb-install-db: {(answer.stderr or answer.stdout).strip()[-500:]}")
        half_made.rename(self.settings.database)

    def _database_answers(self) -> bool:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(1.0)
            try:
                connection.connect(str(self.settings.database_socket))
                return bool(connection.recv(1))
            except OSError:
                return False

    def _add_account(self) -> None:
        user, account = user_name(), f"account={ACCOUNT}"
        if self._ask("sacctmgr", "-nP", "show", "association", f"user={user}", account, f"cluster={CLUSTER}"):
            return
        for words in (
            ["cluster", CLUSTER],
            ["account", ACCOUNT, f"cluster={CLUSTER}"],
            ["user", user, account, f"defaultaccount={ACCOUNT}"],
        ):
            answer = self._run("sacctmgr", "-iQ", "add", *words)
            if answer.returncode != 0:
                raise ClusterError(f"sacctmgr add {words[0]}: {answer.stderr.strip() or answer.stdout.strip()}")

    def _await(self, daemon: Daemon, answers: Callable[[], bool]) -> None:
        """Wait until a daemon answers. Raises `ClusterError` with its last words when it ends, or stays silent."""
        settled = wait_until(lambda: daemon.pid() is None or answers(), _PATIENCE)
        if daemon.pid() is None:
            raise ClusterError(f"{daemon.name} ended; it said: {daemon.last_words()}")
        if not settled:
            raise ClusterError(f"{daemon.name} did not answer within {_PATIENCE:.0f} s: {daemon.last_words()}")

    def _run(self, program: str, *arguments: str, seconds: float = _PATIENCE) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [find_program(program), *arguments],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            env=self.environment,
            timeout=seconds,
        )

    def _ask(self, program: str, *arguments: str) -> str | None:
        """What a client program answers; None when it fails or takes longer than a sound cluster would need."""
        try:
            answer = self._run(program, *arguments, seconds=10.0)
        except subprocess.TimeoutExpired:
            return None
        return answer.stdout if answer.returncode == 0 else None

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """Hold the directory, so that no two calls change the cluster in it at once."""
        directory = self.settings.directory
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        if directory.stat().st_uid != os.getuid():
            raise ClusterError(f"{directory} belongs to another user")
        with (directory / "lock").open("a", encoding="ascii") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield
