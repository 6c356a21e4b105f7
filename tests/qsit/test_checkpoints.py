"""Names of models, their revisions, and what is said when there is no such thing."""

import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

import qsit.demo
from qsit import checkpoints
from qsit.errors import CheckpointError

DEMO = Path(qsit.demo.__file__).parent
COMMIT = "0123456789abcdef0123456789abcdef01234567"
OLDER = "89abcdef0123456789abcdef0123456789abcdef"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder that looks like a checkpoint."""
    folder = tmp_path / "my model"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(b"weights")
    return folder


def refused(function: str, *arguments: str) -> str:
    with pytest.raises(CheckpointError) as error:
        getattr(checkpoints, function)(*arguments)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_the_revision_of_a_folder_is_a_hash_that_stays() -> None:
    revision = checkpoints.resolve("demo")

    assert revision.startswith("sha256-")
    assert len(revision) == 47
    assert checkpoints.resolve("demo") == revision
    assert checkpoints.resolve(str(DEMO)) == revision
    assert checkpoints.resolve("demo", revision) == revision


def test_a_copy_of_a_folder_has_the_same_revision(folder: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)

    assert checkpoints.resolve(str(copy)) == checkpoints.resolve(str(folder))


@pytest.mark.parametrize(
    "name", ["new.json", "new.safetensors", "chat_template.jinja", "merges.txt", "tokenizer.model"]
)
def test_another_file_that_loading_reads_is_another_revision(folder: Path, name: str) -> None:
    before = checkpoints.resolve(str(folder))

    (folder / name).write_bytes(b"")

    assert checkpoints.resolve(str(folder)) != before


def test_other_content_is_another_revision(folder: Path) -> None:
    before = checkpoints.resolve(str(folder))

    (folder / "model.safetensors").write_bytes(b"Weights")

    assert checkpoints.resolve(str(folder)) != before


def test_another_name_is_another_revision(folder: Path) -> None:
    before = checkpoints.resolve(str(folder))

    (folder / "model.safetensors").rename(folder / "model2.safetensors")

    assert checkpoints.resolve(str(folder)) != before


def test_swapped_contents_are_another_revision(folder: Path) -> None:
    (folder / "a.json").write_text("1")
    (folder / "b.json").write_text("2")
    before = checkpoints.resolve(str(folder))

    (folder / "a.json").write_text("2")
    (folder / "b.json").write_text("1")

    assert checkpoints.resolve(str(folder)) != before


def test_files_that_loading_does_not_read_do_not_change_the_revision(folder: Path) -> None:
    before = checkpoints.resolve(str(folder))

    (folder / "README.md").write_text("read me")
    (folder / ".gitattributes").write_text("")
    (folder / "logs.json").mkdir()
    os.utime(folder / "config.json", (1, 1))

    assert checkpoints.resolve(str(folder)) == before


def test_a_folder_is_fetched_as_it_is(folder: Path) -> None:
    assert checkpoints.fetch(str(folder), checkpoints.resolve(str(folder))) == folder
    assert checkpoints.fetch("demo", checkpoints.resolve("demo")) == DEMO


def test_a_folder_that_changed_since_is_not_fetched(folder: Path) -> None:
    revision = checkpoints.resolve(str(folder))
    (folder / "config.json").write_text('{"changed": true}')

    message = refused("fetch", str(folder), revision)

    assert revision in message
    assert checkpoints.resolve(str(folder)) in message
    assert "have changed" in message


def test_another_revision_of_a_folder_is_refused(folder: Path) -> None:
    assert "leave --revision out" in refused("resolve", str(folder), "main")
    assert "leave --revision out" in refused("resolve", "demo", "main")


def test_a_model_is_called_by_its_id_or_its_absolute_path(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "link").symlink_to("my model")

    assert checkpoints.full_name("demo") == "demo"
    assert checkpoints.full_name("zhangzicheng/q-sit") == "zhangzicheng/q-sit"
    for name in ("my model", "./my model", "my model/", str(folder), "~/my model", "link"):
        assert checkpoints.full_name(name) == str(folder)


def test_a_folder_beats_a_hub_id_of_the_same_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(DEMO, tmp_path / "owner/name")

    assert checkpoints.full_name("owner/name") == str(tmp_path / "owner/name")
    assert checkpoints.resolve("owner/name") == checkpoints.resolve("demo")


@pytest.mark.parametrize("model", ["/no/such/folder", "./nowhere", "nowhere", "a/b/c", "~/no such folder", ""])
def test_an_unknown_folder_is_refused_in_one_line(model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))

    for message in (refused("resolve", model), refused("fetch", model, "sha256-0")):
        assert "--model takes a folder, a Hub id (owner/name) or demo" in message or "has no config.json" in message


def test_a_home_that_does_not_exist_is_refused_in_one_line() -> None:
    assert "no-such-user-here" in refused("resolve", "~no-such-user-here/model")


def test_a_folder_without_a_configuration_is_not_a_checkpoint(tmp_path: Path) -> None:
    assert refused("resolve", str(tmp_path)) == f"{tmp_path} is not a checkpoint: it has no config.json"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything, whatever its permissions")
def test_a_file_that_cannot_be_read_is_named(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.chmod(0)

    assert refused("resolve", str(folder)) == f"cannot read {weights}: Permission denied"


ASK = """
import sys
from qsit.errors import CheckpointError
from qsit import checkpoints

try:
    print(getattr(checkpoints, sys.argv[1])(*sys.argv[2:]))
except CheckpointError as error:
    print(f"CheckpointError: {error}")
"""


def asked(*arguments: str, **environment: str) -> str:
    """What a function of qsit.checkpoints answers, in a process that has nothing but this of the Hub's settings."""
    foreign = ("HF_", "HUGGING", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY")
    own = {name: value for name, value in os.environ.items() if not name.upper().startswith(foreign)}
    program = [sys.executable, "-c", ASK, *arguments]
    done = subprocess.run(program, env=own | environment, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    [line] = done.stdout.splitlines()
    return line


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    """A folder for HF_HOME, with one model in it as the Hub's client keeps it."""
    model = tmp_path / "hf/hub/models--owner--name"
    for commit in (COMMIT, OLDER):
        snapshot = model / "snapshots" / commit
        snapshot.mkdir(parents=True)
        (snapshot / "config.json").write_text("{}")
    (model / "refs").mkdir()
    (model / "refs/main").write_text(COMMIT)
    (model / "refs/v1").write_text(OLDER)
    return tmp_path / "hf"


@pytest.mark.parametrize(("revision", "commit"), [([], COMMIT), (["main"], COMMIT), (["v1"], OLDER), ([OLDER], OLDER)])
def test_a_cached_model_is_resolved_to_its_commit_offline(cache: Path, revision: list[str], commit: str) -> None:
    assert asked("resolve", "owner/name", *revision, HF_HOME=str(cache), HF_HUB_OFFLINE="1") == commit


def test_a_cached_model_is_fetched_at_its_commit_offline(cache: Path) -> None:
    for commit in (COMMIT, OLDER):
        folder = asked("fetch", "owner/name", commit, HF_HOME=str(cache), HF_HUB_OFFLINE="1")
        assert Path(folder) == cache / "hub/models--owner--name/snapshots" / commit


@pytest.mark.parametrize("arguments", [["resolve", "owner/other"], ["fetch", "owner/other", COMMIT]])
def test_a_model_that_is_not_cached_is_refused_in_one_line_offline(cache: Path, arguments: list[str]) -> None:
    line = asked(*arguments, HF_HOME=str(cache), HF_HUB_OFFLINE="1")

    assert line.startswith("CheckpointError: owner/other is not in the local cache and the Hub cannot be reached")


def test_a_revision_that_is_not_cached_is_refused_in_one_line_offline(cache: Path) -> None:
    line = asked("fetch", "owner/name", "f" * 40, HF_HOME=str(cache), HF_HUB_OFFLINE="1")

    assert line.startswith("CheckpointError: owner/name is not in the local cache and the Hub cannot be reached")


@pytest.mark.parametrize("name", ["owner/na me", "owner/..", "-/-"])
def test_an_invalid_hub_id_is_refused_in_one_line(name: str) -> None:
    assert refused("resolve", name) == f"{name} is not a model folder, a Hub id (owner/name) or demo"


@contextmanager
def server(status: int, code: str = "") -> Iterator[str]:
    """The address of a server that answers everything with one status, as the Hub or as a proxy does."""

    class Handler(BaseHTTPRequestHandler):
        def answer(self) -> None:
            self.send_response(status)
            if code:
                self.send_header("X-Error-Code", code)
            self.send_header("Content-Length", "0")
            self.end_headers()

        do_GET = do_HEAD = do_CONNECT = answer  # noqa: N815 -- the names that http.server looks for

        def log_message(self, *_: object) -> None:
            pass

    listening = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=listening.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listening.server_port}"
    finally:
        listening.shutdown()
        listening.server_close()
        thread.join()


@pytest.mark.parametrize(
    ("status", "code", "message"),
    [
        (404, "RepoNotFound", "the Hub has no model owner/other; if it is private, set HF_TOKEN"),
        (401, "RepoNotFound", "the Hub has no model owner/other; if it is private, set HF_TOKEN"),
        (403, "GatedRepo", "the Hub requires you to accept the terms of owner/other; accept them, then set HF_TOKEN"),
        (404, "RevisionNotFound", "the model owner/other has no such revision; leave --revision out for the newest"),
        (500, "", "owner/other is not in the local cache and the Hub cannot be reached"),
        (400, "", "downloading owner/other from the Hub failed"),
    ],
)
def test_a_refusal_of_the_hub_is_reported_in_one_line(tmp_path: Path, status: int, code: str, message: str) -> None:
    with server(status, code) as hub:
        line = asked("resolve", "owner/other", HF_HOME=str(tmp_path), HF_ENDPOINT=hub)

    assert line.startswith(f"CheckpointError: {message}")


def test_a_hub_that_is_down_leaves_the_cache(cache: Path) -> None:
    with server(503) as hub:
        assert asked("resolve", "owner/name", HF_HOME=str(cache), HF_ENDPOINT=hub) == COMMIT


def test_an_unreachable_hub_is_reported_in_one_line(tmp_path: Path) -> None:
    with server(200) as hub:
        pass  # and now nobody listens there any more

    line = asked("resolve", "owner/other", HF_HOME=str(tmp_path), HF_ENDPOINT=hub)

    assert line.startswith("CheckpointError: owner/other is not in the local cache and the Hub cannot be reached")


def test_a_refusal_of_a_proxy_is_reported_in_one_line(tmp_path: Path) -> None:
    with server(403) as proxy:
        line = asked(
            "resolve", "owner/other", HF_HOME=str(tmp_path), HF_ENDPOINT="https://hub.invalid", HTTPS_PROXY=proxy
        )

    assert line.startswith("CheckpointError: ")


def test_resolving_a_name_imports_neither_torch_nor_transformers() -> None:
    program = (
        "import sys; from qsit import checkpoints; checkpoints.resolve('demo'); "
        "print([name for name in ('torch', 'transformers') if name in sys.modules])"
    )

    done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)

    assert done.stdout == "[]\n"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ('{"weight_map": {"a": "../model.safetensors"}}', "outside its folder"),
        ('{"weight_map": {"a": "/etc/model.safetensors"}}', "outside its folder"),
        ('{"weight_map": {"a": 1}}', "outside its folder"),
        ('{"weight_map": []}', "not an index"),
        ("no json", "not an index"),
    ],
)
def test_an_index_of_weights_names_files_of_its_own_folder_only(tmp_path: Path, content: str, words: str) -> None:
    (tmp_path / "config.json").write_text("{}")
    index = tmp_path / "model.safetensors.index.json"
    index.write_text('{"weight_map": {"a": "model-1.safetensors"}}')
    checkpoints.resolve(str(tmp_path))
    index.write_text(content)

    with pytest.raises(CheckpointError, match=words):
        checkpoints.resolve(str(tmp_path))
