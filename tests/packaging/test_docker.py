"""The Docker files, as far as they can be checked without an engine."""

import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import tomllib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import psycopg
import pytest
import yaml
from psycopg import sql
from sqlalchemy import make_url

from producer.private_run import broker_program
from qsit.settings import Settings
from tests.support.paths import ROOT

PHOTOS = ROOT / "examples" / "photos"
BIN = Path(sys.executable).parent
PASSWORD = "p@ss/w:rd%41 'quoted' $x"  # what a URL, a shell and a template would each change
VARIABLES = {
    "QSIT_DATABASE_PASSWORD": PASSWORD,
    "QSIT_PHOTOS": str(PHOTOS),
    "QSIT_MODEL": "demo",
    "QSIT_DEVICE": "cpu",
}
STUCK_S = 180
"""After so long a program is taken for stuck."""
DYING_WITH_US = "import os, sys; from celery.platforms import set_pdeathsig; set_pdeathsig('SIGKILL'); "
DYING_WITH_US += "os.execv(sys.argv[1], sys.argv[1:])"
"""A program of Python that becomes another one, which on Linux ends even when these tests are killed."""

Service = dict[str, Any]


# Reading the files as Docker does


def substituted(node: Any, variables: Mapping[str, str]) -> Any:
    """A part of the compose file with ${NAME}, ${NAME:-default} and ${NAME:?message} replaced, and $$ by $."""

    def value(found: re.Match[str]) -> str:
        name, kind, rest = found.groups()
        if name is None:
            return "$"
        if kind == "?" and not variables.get(name):
            raise LookupError(f"{name}: {rest}")
        return variables.get(name) or rest or ""

    if isinstance(node, dict):
        return {key: substituted(inner, variables) for key, inner in node.items()}
    if isinstance(node, list):
        return [substituted(inner, variables) for inner in node]
    if isinstance(node, str):
        return re.sub(r"\$(?:\$|\{(\w+)(?::([-?])([^}]*))?\})", value, node)
    return node


def compose(variables: Mapping[str, str] = VARIABLES) -> dict[str, Service]:
    """The services of the compose file; a variable of theirs that has no value is handed on if it is set."""
    file = substituted(yaml.safe_load((ROOT / "docker/compose.yaml").read_text()), variables)
    services: dict[str, Service] = file["services"]
    for service in services.values():
        told = service.get("environment", {})
        values = {name: variables.get(name) if value is None else value for name, value in told.items()}
        service["environment"] = {name: value for name, value in values.items() if value is not None}
    return services


def instructions(target: str) -> list[tuple[str, str]]:
    """The Dockerfile's instructions that make a target, those of the stages it begins from first."""
    stages: dict[str, list[tuple[str, str]]] = {}
    name = ""
    for line in (ROOT / "docker/Dockerfile").read_text().replace("\\\n", "").splitlines():
        if not line or line.startswith("#"):
            continue
        word, rest = line.split(maxsplit=1)
        if word == "FROM":
            base, _, name = rest.split()
            stages[name] = list(stages.get(base, []))
        else:
            stages[name].append((word, rest))
    return stages[target]


def of_kind(target: str, word: str) -> list[str]:
    return [rest for found, rest in instructions(target) if found == word]


# What the files promise


def test_hadolint_finds_nothing_in_the_dockerfile() -> None:
    done = subprocess.run([BIN / "hadolint", "docker/Dockerfile"], cwd=ROOT, capture_output=True, text=True)

    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_the_compose_file_follows_the_schema_of_compose() -> None:
    command = [BIN / "check-jsonschema", "--builtin-schema", "vendor.compose-spec", "docker/compose.yaml"]

    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)

    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("target", ["qsit", "worker"])
def test_no_image_runs_as_root(target: str) -> None:
    user = of_kind(target, "USER")[-1]

    assert all(int(part) > 0 for part in user.split(":"))


@pytest.mark.parametrize("target", ["qsit", "worker"])
def test_signals_reach_the_program(target: str) -> None:
    entrypoint = of_kind(target, "ENTRYPOINT")[-1]

    assert json.loads(entrypoint) == ["qsit"]  # no shell between it and Docker


def test_the_dockerfile_installs_what_the_project_requires(tmp_path: Path) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    (tmp_path / "pyproject.toml").write_bytes((ROOT / "pyproject.toml").read_bytes())
    (tmp_path / "needs").mkdir()
    (extraction,) = (run for run in of_kind("requirements", "RUN") if run.startswith("python"))

    subprocess.run(["sh", "-c", extraction], cwd=tmp_path, env={"PATH": f"{BIN}:{os.environ['PATH']}"}, check=True)

    assert (tmp_path / "needs/qsit.txt").read_text().splitlines() == project["dependencies"] + extras["postgres"]
    assert (tmp_path / "needs/worker.txt").read_text().splitlines() == extras["worker"] + extras["heif"]
    assert not any("worker.txt" in run for run in of_kind("qsit", "RUN"))
    assert any("worker.txt" in run for run in of_kind("worker", "RUN"))


def test_the_build_gets_what_the_package_is_made_of() -> None:
    pyproject = tomllib.loads((ROOT / "pyproject.toml").read_text())
    packages = {name.split(".")[0] for name in pyproject["tool"]["setuptools"]["packages"]}
    project = pyproject["project"]
    files = {"pyproject.toml", "constraints.txt", project["readme"], *project["license-files"]}

    lines = (ROOT / ".dockerignore").read_text().splitlines()

    assert "*" in lines
    assert {line.removeprefix("!") for line in lines if line.startswith("!")} == packages | files


@pytest.mark.parametrize("name", ["QSIT_DATABASE_PASSWORD", "QSIT_PHOTOS"])
def test_nothing_starts_without(name: str) -> None:
    others = {other: value for other, value in VARIABLES.items() if other != name}

    with pytest.raises(LookupError, match=name):
        compose(others)


def test_the_password_is_in_no_url_and_no_command() -> None:
    services = compose()

    told = [(name, value) for service in services.values() for name, value in service["environment"].items()]
    assert {name for name, value in told if PASSWORD in value} == {"PGPASSWORD", "POSTGRES_PASSWORD"}
    assert all(PASSWORD not in str(service.get("command")) for service in services.values())


def test_photos_are_mounted_read_only_and_alike_for_who_lists_and_who_opens() -> None:
    services = compose()

    mounts = {name: service.get("volumes", []) for name, service in services.items()}
    photos = {name: [mount for mount in found if mount["target"] == "/photos"] for name, found in mounts.items()}
    assert {name for name, found in photos.items() if found} == {"worker", "qsit"}
    assert photos["worker"] == photos["qsit"]
    assert photos["worker"][0]["read_only"] is True
    assert services["worker"]["environment"]["QSIT_ROOTS"] == "/photos"


def test_buckets_are_roots_too() -> None:
    worker = compose({**VARIABLES, "QSIT_ROOTS": "/photos:s3://one"})["worker"]

    assert worker["environment"]["QSIT_ROOTS"] == "/photos:s3://one"


def test_who_lists_and_who_scores_are_told_the_same() -> None:
    services = compose({**VARIABLES, "QSIT_REVISION": "r1"})

    told = services["qsit"]["environment"]
    assert told.items() <= services["worker"]["environment"].items()
    assert (told["QSIT_MODEL"], told["QSIT_REVISION"]) == ("demo", "r1")


def test_the_broker_keeps_its_messages_and_evicts_none() -> None:
    broker = compose()["broker"]

    command = broker["command"]
    flags = dict(zip(command[1::2], command[2::2], strict=True))
    assert flags["--appendonly"] == "yes"
    assert flags["--maxmemory-policy"] == "noeviction"
    assert flags["--dir"] in [mount["target"] for mount in broker["volumes"]]


def test_nothing_is_published_to_the_host() -> None:
    services = compose().values()

    assert not any(service.keys() & {"ports", "network_mode"} for service in services)


def test_the_worker_reserves_the_gpus() -> None:
    (device,) = compose()["worker"]["deploy"]["resources"]["reservations"]["devices"]

    assert device == {"driver": "nvidia", "count": "all", "capabilities": ["gpu"]}


@pytest.mark.parametrize("name", ["worker", "qsit"])
def test_who_uses_database_and_broker_waits_for_them(name: str) -> None:
    services = compose()

    waits = {other: condition["condition"] for other, condition in services[name]["depends_on"].items()}

    assert waits == {"migrate": "service_completed_successfully", "broker": "service_healthy"}
    assert services["migrate"]["depends_on"]["database"]["condition"] == "service_healthy"
    assert all("healthcheck" in services[server] for server in ("broker", "database"))


def test_a_worker_that_is_told_to_end_has_time_for_its_turn() -> None:
    worker = compose()["worker"]

    assert float(worker["stop_grace_period"].removesuffix("s")) > Settings().turn_s


def test_the_data_of_the_database_are_in_its_volume() -> None:
    database = compose()["database"]

    assert database["image"].startswith("postgres:18")
    assert [mount["target"] for mount in database["volumes"]] == ["/var/lib/postgresql"]  # not .../data, as before 18


# Running what Compose would run, as plain processes


@dataclass(frozen=True)
class Plain:
    """The services as plain processes, with what they reach here for what they would reach in their containers."""

    services: dict[str, Service]
    here: dict[str, str]  # URLs and folders by those of the containers
    folder: Path

    def command(self, name: str, *arguments: str) -> list[str]:
        service = self.services[name]
        target = service["build"]["target"]
        program, *rest = json.loads(of_kind(target, "ENTRYPOINT")[-1])
        rest += arguments or service.get("command") or json.loads(of_kind(target, "CMD")[-1])
        return [str(BIN / program), *(self.here.get(word, word) for word in rest)]

    def environment(self, name: str) -> dict[str, str]:
        service = self.services[name]
        image = [word for line in of_kind(service["build"]["target"], "ENV") for word in shlex.split(line)]
        values = dict(word.split("=", 1) for word in image) | service["environment"]
        told = {variable: self.here.get(value, value) for variable, value in values.items()}
        return {"PATH": os.environ["PATH"], "HOME": str(self.folder)} | told

    def run(self, name: str, *arguments: str) -> "subprocess.CompletedProcess[str]":
        command, environment = self.command(name, *arguments), self.environment(name)
        with running(command, env=environment, stderr=subprocess.PIPE) as process:
            output, talk = process.communicate(timeout=STUCK_S)
        return subprocess.CompletedProcess(command, process.returncode, output, talk)


@contextmanager
def running(command: list[str], **options: Any) -> Iterator["subprocess.Popen[str]"]:
    """A program, ended in the end with whatever it has started; what nobody has read of its output is shown."""
    command = [sys.executable, "-c", DYING_WITH_US, *command]
    with subprocess.Popen(command, start_new_session=True, text=True, stdout=subprocess.PIPE, **options) as process:
        try:
            yield process
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            if not process.stdout.closed:
                sys.stdout.write(process.stdout.read())


@contextmanager
def broker_of(service: Service, url: str, folder: Path) -> Iterator[str]:
    """The broker of the compose file, with another program, folder and port; `url` there."""
    assert "//broker:6379/" in url
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    folder.mkdir()
    (target,) = (mount["target"] for mount in service["volumes"])
    words = [str(folder) if word == target else word for word in service["command"]]
    assert words[0] == "valkey-server"
    command = [broker_program(), *words[1:], "--bind", "127.0.0.1", "--port", str(port)]
    with running(command) as process:
        said = ""
        while "Ready to accept connections" not in said:
            line = process.stdout.readline()
            assert line, said
            said += line
        yield url.replace("//broker:6379/", f"//127.0.0.1:{port}/")


@contextmanager
def database_of(service: Service, url: str, server: str) -> Iterator[str]:
    """The user and database that the image would make, at a server that asks for the password; `url` there."""
    told = service["environment"]
    user, database = sql.Identifier(told["POSTGRES_USER"]), sql.Identifier(told["POSTGRES_DB"])
    assert "@database/" in url
    address = f"{url.replace('@database/', '@/')}?host={make_url(server).query['host']}"
    with psycopg.connect(server, autocommit=True) as connection:
        rules = Path(connection.execute("SHOW hba_file").fetchone()[0])
        before = rules.read_text()
        try:
            rules.write_text(f"local all {told['POSTGRES_USER']} scram-sha-256\n{before}")
            connection.execute("SELECT pg_reload_conf()")
            password = sql.Literal(told["POSTGRES_PASSWORD"])
            connection.execute(sql.SQL("CREATE ROLE {} LOGIN PASSWORD {}").format(user, password))
            connection.execute(sql.SQL("CREATE DATABASE {} OWNER {}").format(database, user))
            wait_until_refused(address)
            yield address
        finally:
            rules.write_text(before)
            connection.execute("SELECT pg_reload_conf()")
            connection.execute(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(database))
            connection.execute(sql.SQL("DROP ROLE IF EXISTS {}").format(user))


def wait_until_refused(url: str) -> None:
    for _ in range(10_000):
        try:
            psycopg.connect(url).close()
        except psycopg.OperationalError as error:
            if "no password supplied" not in str(error):
                raise
            return
    pytest.fail("the server asks for no password")


@pytest.fixture
def plain(tmp_path: Path, postgres: str) -> Iterator[Plain]:
    """The services, with their broker and database at work."""
    services = compose()
    mounts = services["worker"]["volumes"]
    folders = {mount["target"]: mount["source"] for mount in mounts if mount["type"] == "bind"}
    folders |= {mount["target"]: str(tmp_path / mount["source"]) for mount in mounts if mount["type"] == "volume"}
    told = services["worker"]["environment"]
    broker_url, database_url = told["QSIT_BROKER_URL"], told["QSIT_DATABASE_URL"]
    with (
        broker_of(services["broker"], broker_url, tmp_path / "broker") as broker_here,
        database_of(services["database"], database_url, postgres) as database_here,
    ):
        yield Plain(services, folders | {broker_url: broker_here, database_url: database_here}, tmp_path)


def test_what_compose_runs_scores_a_folder_and_ends_in_order(plain: Plain, tmp_path: Path) -> None:
    migrated = plain.run("migrate")
    assert migrated.returncode == 0, migrated.stderr

    with running(plain.command("worker"), env=plain.environment("worker"), stderr=subprocess.STDOUT) as worker:
        submitted = plain.run("qsit", "submit", "/photos", "--model", "demo", "--wait")
        processes = psutil.Process(worker.pid).children()
        worker.send_signal(signal.SIGTERM)
        log, _ = worker.communicate(timeout=STUCK_S)  # until the last process that can write to it has ended
    results = plain.run("qsit", "results", "--format", "jsonl")

    photos = [path.as_uri() for path in PHOTOS.rglob("*") if path.is_file()]
    assert submitted.returncode == 0, submitted.stderr + log
    assert results.returncode == 0, results.stderr
    assert sorted(json.loads(line)["uri"] for line in results.stdout.splitlines()) == sorted(photos)
    assert processes, log
    assert worker.returncode == 0, log
    assert PASSWORD not in log + submitted.stderr + migrated.stderr
    assert (tmp_path / "broker" / "appendonlydir").is_dir()
