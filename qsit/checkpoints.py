"""From the name of a model to a pinned revision and the folder that holds it."""

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path

from qsit.errors import CheckpointError

DEMO = "demo"
DEFAULT = "zhangzicheng/q-sit-mini"
USED = (".json", ".safetensors", ".jinja", ".txt", ".model")
"""Endings of the files that loading reads; others, a README say, may differ without another revision."""


def full_name(model: str) -> str:
    """What a model is called in the ledger: "demo", the absolute path of a folder, or the Hub id as it is."""
    if model == DEMO or not _is_folder(model):
        return model
    return str(_path(model).resolve())


def resolve(model: str, revision: str | None = None) -> str:
    """
    The revision that `model` has now: a commit of the Hub (from the local cache when the Hub is out of reach), or
    the hash of the folder's files.

    Raises:
        CheckpointError: when there is no such model or revision, or the Hub is needed and cannot be reached.
    """
    if model == DEMO or _is_folder(model):
        found = _hash(_folder(model))
        if revision is not None and revision != found:
            raise CheckpointError(f"the model {model} has revision {found}, not {revision}; leave --revision out")
        return found
    return _commit(model, revision)


def fetch(model: str, revision: str) -> Path:
    """
    The folder of exactly that revision, downloaded if need be.

    Raises:
        CheckpointError: when it is not to be had, or the folder's files are no longer those of the revision.
    """
    if model == DEMO or _is_folder(model):
        folder = _folder(model)
        found = _hash(folder)
        if found != revision:
            raise CheckpointError(
                f"the files in {folder} have changed (now {found}, asked for {revision}); submit again"
            )
        return folder
    from huggingface_hub import snapshot_download

    with _hub_errors(model):
        return Path(snapshot_download(model, revision=revision, allow_patterns=[f"*{ending}" for ending in USED]))


def _path(model: str) -> Path:
    return Path(os.path.expanduser(model))  # which leaves ~nobody as it is


def _is_folder(model: str) -> bool:
    """A path is one when it exists or can be nothing else; `name/name` that is no folder is a Hub id."""
    return _path(model).is_dir() or model.startswith((".", "/", "~")) or model.count("/") != 1


def _folder(model: str) -> Path:
    folder = Path(str(files("qsit.demo"))) if model == DEMO else _path(model).resolve()
    if not folder.is_dir():
        raise CheckpointError(
            f"there is no model folder {model}; --model takes a folder, a Hub id (owner/name) or demo"
        )
    if not (folder / "config.json").is_file():
        raise CheckpointError(f"{folder} is no checkpoint: it has no config.json")
    return folder


def _hash(folder: Path) -> str:
    digest = hashlib.sha256()
    try:
        _check_shards(folder)
        for path in sorted(folder.iterdir()):
            if path.suffix in USED and path.is_file():
                with path.open("rb") as file:
                    content = hashlib.file_digest(file, "sha256").hexdigest()
                digest.update(f"{path.name} {content}\n".encode())
    except OSError as error:
        raise CheckpointError(f"cannot read {error.filename}: {error.strerror}") from error
    return f"sha256-{digest.hexdigest()[:40]}"


def _check_shards(folder: Path) -> None:
    """The index of a sharded checkpoint may name files of its own folder only: no others are hashed."""
    for index in folder.glob("*.safetensors.index.json"):
        try:
            names = set(json.loads(index.read_bytes())["weight_map"].values())
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise CheckpointError(f"{index} is no index of weights: {type(error).__name__}: {error}") from error
        for name in names:
            if not isinstance(name, str) or name != Path(name).name:
                raise CheckpointError(f"{index} names weights outside its folder: {name}")


def _commit(model: str, revision: str | None) -> str:
    from huggingface_hub import resolve_revision

    with _hub_errors(model):
        return str(resolve_revision(model, revision=revision).resolved)


@contextmanager
def _hub_errors(model: str) -> Iterator[None]:
    from httpx2 import HTTPError
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
        RevisionResolutionError,
    )

    try:
        yield
    except GatedRepoError as error:
        raise CheckpointError(f"the Hub wants you to accept the terms of {model} first, then set HF_TOKEN") from error
    except RepositoryNotFoundError as error:
        raise CheckpointError(f"the Hub has no model {model} (or it is private: set HF_TOKEN)") from error
    except RevisionNotFoundError as error:
        raise CheckpointError(f"the model {model} has no such revision; leave --revision out for the newest") from error
    except HFValidationError as error:
        raise CheckpointError(f"{model} is neither a model folder nor a Hub id (owner/name) nor demo") from error
    except (RevisionResolutionError, LocalEntryNotFoundError, OfflineModeIsEnabled) as error:
        raise CheckpointError(
            f"{model} is not in the local cache and the Hub cannot be reached; "
            "connect once to download it, or give --model a folder (or demo, to try qsit out)"
        ) from error
    except (HfHubHTTPError, HTTPError, OSError) as error:
        raise CheckpointError(f"downloading {model} from the Hub failed: {' '.join(str(error).split())}") from error
