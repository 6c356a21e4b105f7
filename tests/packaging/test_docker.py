"""The Docker files, as far as they can be tested without Docker. `make lint` checks their syntax."""

import json
import os
import re
import subprocess
import tomllib
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest
import yaml
from psycopg import sql
from sqlalchemy import make_url

from qsit.settings import Settings
from tests.support.paths import EXAMPLES, ROOT
from tests.support.programs import BIN, QSIT, run, started, until
from tests.support.servers import Valkey
from worker.launch import ENVIRONMENT

DOCKERFILE = (ROOT / "docker/Dockerfile").read_text()
PASSWORD = "p@ss/w:rd%41 'quoted' $x"  # URLs, shells and templates would each change it
VARIABLES = {"QSIT_DATABASE_PASSWORD": PASSWORD, "QSIT_PHOTOS": str(EXAMPLES), "QSIT_MODEL": "demo"}

Service = dict[str, Any]


def services() -> dict[str, Service]:
    """Return the services of the Compose file with VARIABLES filled in. A variable without a value is left out."""

    def value(match: re.Match[str]) -> str:
        return json.dumps(VARIABLES.get(match[1]) or match[2])  # a JSON string is a YAML string, too

    text = re.sub(r"\$\{(\w+):[-?]([^}]*)\}", value, (ROOT / "docker/compose.yaml").read_text())
    found: dict[str, Service] = yaml.safe_load(text)["services"]
    for service in found.values():
        named = service.get("environment", {})
        values = {name: VARIABLES.get(name) if value is None else value for name, value in named.items()}
        service["environment"] = {name: value for name, value in values.items() if value is not None}
    return found


def stage(name: str) -> str:
    """Return the instructions of a stage of the Dockerfile."""
    return DOCKERFILE.split(f" AS {name}\n")[1].split("\nFROM ")[0]


@pytest.mark.parametrize("target", ["qsit", "worker"])
def test_an_image_runs_the_program_itself_and_not_as_root(target: str) -> None:
    assert "\nUSER 1000:1000\n" in stage(target)
    assert '\nENTRYPOINT ["qsit"]\n' in stage(target), "without a shell, signals reach the program"


def test_the_dockerfile_installs_what_the_project_requires(tmp_path: Path) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    (tmp_path / "pyproject.toml").symlink_to(ROOT / "pyproject.toml")
    (tmp_path / "needs").mkdir()
    command = stage("requirements").partition("\nRUN ")[2].replace("\\\n", "")

    subprocess.run(["sh", "-c", command], cwd=tmp_path, env={"PATH": f"{BIN}:{os.environ['PATH']}"}, check=True)

    assert (tmp_path / "needs/qsit.txt").read_text().splitlines() == project["dependencies"] + extras["postgres"]
    assert (tmp_path / "needs/worker.txt").read_text().splitlines() == extras["worker"] + extras["heif"]
    assert "needs/qsit.txt" in stage("qsit-needs")
    assert "needs/worker.txt" in stage("worker-needs")


def test_the_password_is_in_no_url_and_no_command() -> None:
    found = services().values()

    values = [(name, value) for service in found for name, value in service["environment"].items()]
    assert {name for name, value in values if PASSWORD in value} == {"PGPASSWORD", "POSTGRES_PASSWORD"}
    assert all(PASSWORD not in str(service.get("command")) for service in found)


def test_photos_are_read_only_and_have_the_same_path_for_listing_and_reading() -> None:
    found = services()

    mounts = {name: service.get("volumes", []) for name, service in found.items()}
    photos = {name: [mount for mount in volumes if mount["target"] == "/photos"] for name, volumes in mounts.items()}
    assert {name for name, volumes in photos.items() if volumes} == {"worker", "qsit"}
    assert photos["worker"] == photos["qsit"]
    assert photos["worker"][0]["read_only"] is True
    assert found["worker"]["environment"]["QSIT_ROOTS"] == "/photos"


def test_commands_and_workers_have_the_same_settings() -> None:
    found = services()

    assert found["qsit"]["environment"].items() <= found["worker"]["environment"].items()
    assert found["qsit"]["environment"]["QSIT_MODEL"] == "demo"


def test_the_broker_keeps_its_messages_and_evicts_none() -> None:
    broker = services()["broker"]

    flags = broker_flags(broker)
    assert flags["--appendonly"] == "yes"
    assert flags["--maxmemory-policy"] == "noeviction"
    assert flags["--dir"] in [mount["target"] for mount in broker["volumes"]]


def test_nothing_is_published_to_the_host() -> None:
    assert not any(service.keys() & {"ports", "network_mode"} for service in services().values())


@pytest.mark.parametrize("name", ["worker", "qsit"])
def test_a_service_waits_for_its_database_and_broker(name: str) -> None:
    found = services()

    conditions = {other: wait["condition"] for other, wait in found[name]["depends_on"].items()}
    assert conditions == {"migrate": "service_completed_successfully", "broker": "service_healthy"}
    assert found["migrate"]["depends_on"]["database"]["condition"] == "service_healthy"
    assert all("healthcheck" in found[server] for server in ("broker", "database"))


def test_docker_lets_a_worker_finish_its_turn() -> None:
    assert float(services()["worker"]["stop_grace_period"].removesuffix("s")) > Settings().turn_s


def test_a_worker_keeps_freed_memory_as_it_does_without_docker() -> None:
    settings = {name: value for name, value in ENVIRONMENT.items() if name.startswith("MALLOC_")}

    assert settings
    assert all(f"{name}={value}" in stage("worker") for name, value in settings.items())


def broker_flags(broker: Service) -> dict[str, str]:
    program, *words = broker["command"]
    assert program == "valkey-server"
    return dict(zip(words[::2], words[1::2], strict=True))


@contextmanager
def database_of(service: Service, url: str, server: str) -> Iterator[str]:
    """Create the user and the database that the image would create, on a server that asks for the password."""
    values = service["environment"]
    user, database = sql.Identifier(values["POSTGRES_USER"]), sql.Identifier(values["POSTGRES_DB"])
    assert "@database/" in url
    address = f"{url.replace('@database/', '@/')}?host={make_url(server).query['host']}"
    with psycopg.connect(server, autocommit=True) as connection:
        [hba_file] = connection.execute("SHOW hba_file").fetchone() or [""]
        rules = Path(hba_file)
        before = rules.read_text()
        try:
            rules.write_text(f"local all {values['POSTGRES_USER']} scram-sha-256\n{before}")
            connection.execute("SELECT pg_reload_conf()")
            password = sql.Literal(values["POSTGRES_PASSWORD"])
            connection.execute(sql.SQL("CREATE ROLE {} LOGIN PASSWORD {}").format(user, password))
            connection.execute(sql.SQL("CREATE DATABASE {} OWNER {}").format(database, user))
            until(lambda: asks_for_a_password(address))
            yield address
        finally:
            rules.write_text(before)
            connection.execute("SELECT pg_reload_conf()")
            connection.execute(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(database))
            connection.execute(sql.SQL("DROP ROLE IF EXISTS {}").format(user))


def asks_for_a_password(url: str) -> bool:
    try:
        psycopg.connect(url).close()
    except psycopg.OperationalError as error:
        return "no password supplied" in str(error)
    return False


def test_the_commands_of_compose_score_a_folder_and_end_in_order(postgres: str, tmp_path: Path) -> None:
    """Run them as plain processes with their own environment, except for addresses and folders."""
    found = services()
    command = json.loads(stage("worker").partition("\nCMD ")[2])
    flags = {name: value for name, value in broker_flags(found["broker"]).items() if name not in ("--dir", "--save")}
    options = found["worker"]["environment"] | {"QSIT_DEVICE": "cpu"}
    database_url = options.pop("QSIT_DATABASE_URL")
    log = tmp_path / "worker.log"
    with (
        closing(Valkey(*(word for flag in flags.items() for word in flag))) as broker,
        database_of(found["database"], database_url, postgres) as database_here,
    ):
        options |= {"QSIT_BROKER_URL": broker.url, "QSIT_ROOTS": str(EXAMPLES)}
        migrated = run(*found["migrate"]["command"], database_url=database_here, **options)
        with started(QSIT, *command, database_url=database_here, log=log, **options) as worker:
            submitted = run("submit", str(EXAMPLES), "--wait", database_url=database_here, **options)
            worker.terminate()
            assert worker.wait() == 0, log.read_text()
        results = run("results", "--format", "jsonl", database_url=database_here, **options).stdout
        assert (broker.folder / "appendonlydir").is_dir()

    photos = [path.as_uri() for path in EXAMPLES.rglob("*") if path.is_file()]
    assert sorted(json.loads(line)["uri"] for line in results.splitlines()) == sorted(photos)
    assert PASSWORD not in log.read_text() + submitted.stderr + migrated.stderr
