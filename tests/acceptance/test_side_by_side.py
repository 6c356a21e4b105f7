"""Several models in one fleet: each job is scored by its model, and one without a worker delays no other."""

import json
import shutil
from pathlib import Path

import psutil
from safetensors.numpy import load_file, save_file

import qsit.demo
from tests.support.programs import QSIT, family, make_photos, run, started, until
from worker.launch import ENVIRONMENT

PHOTOS = 24


def copy_of_the_demo(folder: Path, factor: float) -> Path:
    """Copy the demo's checkpoint, and scale the weights of its last layer."""
    shutil.copytree(Path(qsit.demo.__file__ or "").parent, folder, ignore=shutil.ignore_patterns("__pycache__"))
    weights = folder / "model.safetensors"
    tensors = load_file(weights)
    [last] = [name for name in tensors if name.endswith(("lm_head.weight", "embed_tokens.weight"))]
    save_file(tensors | {last: (tensors[last] * factor).astype(tensors[last].dtype)}, weights, {"format": "pt"})
    return folder


def test_two_jobs_of_two_models_run_at_once_and_a_third_waits(broker_url: str, tmp_path: Path) -> None:
    database_url = f"sqlite:///{tmp_path}/qsit.db"
    folder = make_photos(tmp_path / "photos", PHOTOS)
    own = str(copy_of_the_demo(tmp_path / "own", 1.5))
    unserved = str(copy_of_the_demo(tmp_path / "unserved", 0.5))
    variables = {"QSIT_BROKER_URL": broker_url, "QSIT_ROOTS": str(folder), "OMP_NUM_THREADS": "1"}
    logs = {model: tmp_path / f"{Path(model).name}.log" for model in ("demo", own)}
    run("db", "upgrade", database_url=database_url)

    with (
        started(QSIT, "worker", "--model", "demo", database_url=database_url, log=logs["demo"], **variables) as one,
        started(QSIT, "worker", "--model", own, database_url=database_url, log=logs[own], **variables) as other,
    ):
        until(lambda: all("loaded on cpu" in log.read_text() for log in logs.values()))
        for parent in (psutil.Process(one.pid), psutil.Process(other.pid)):
            assert all(process.environ().items() >= ENVIRONMENT.items() for process in (parent, *parent.children()))
        for model in (unserved, "demo", own):
            run("submit", str(folder), "--model", model, "--name", model, database_url=database_url, **variables)
        for model in ("demo", own):
            run("wait", model, database_url=database_url)

    scores = {}
    for model, log in logs.items():
        lines = run("results", "--job", model, "--format", "jsonl", database_url=database_url).stdout.splitlines()
        rows = [json.loads(line) for line in lines]
        assert {row["model"] for row in rows} == {model}
        assert {row["revision"] for row in rows} <= {line for line in log.read_text().split() if "sha256-" in line}
        scores[model] = {row["uri"]: row["score"] for row in rows}
        assert len(scores[model]) == PHOTOS
    assert all(abs(scores["demo"][uri] - scores[own][uri]) > 1e-6 for uri in scores[own])
    waiting = json.loads(run("status", unserved, "--format", "json", database_url=database_url).stdout)
    assert (waiting["state"], waiting["queued"], waiting["scored"]) == ("active", PHOTOS, 0)
    assert family(database_url) == []
