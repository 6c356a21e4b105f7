"""Models by name: their pinned revision, and the folder with their files."""

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path

from qsit.errors import CheckpointError, one_line

DEMO = "demo"
DEFAULT = "zhangzicheng/q-sit-mini"
MODEL_FILES = (".json", ".safetensors", ".jinja", ".txt", ".model")
"""Endings of the files that loading reads. A change to other files, such as a README, makes no new revision."""


def full_name(model: str) -> str:
    """Return a model's name in the ledger: "demo", the absolute path of a folder, or the Hub id."""
    if model == DEMO or not _is_folder(model):
        return model
    return str(_expand(model).resolve())


def resolve(model: str, revision: str | None = None) -> str:
    """
    Return the current revision of a model: a commit of the Hub, or a hash of the folder's files. When the Hub cannot
    be reached, the commit comes from the local cache.

    Raises CheckpointError when the model or revision does not exist, or the Hub is needed and cannot be reached.
    """
    if model == DEMO or _is_folder(model):
        found = _hash_folder(_find_folder(model))
        if revision is not None and revision != found:
            raise CheckpointError(f"the model {model} has revision {found}, not {revision}; leave --revision out")
        return found
    return _resolve_commit(model, revision)


def fetch(model: str, revision: str) -> Path:
    """
    Return the folder of exactly this revision. Download it if necessary.

    Raises CheckpointError when it cannot be downloaded, or the folder's files no longer have the revision.
    """
    if model == DEMO or _is_folder(model):
        folder = _find_folder(model)
        found = _hash_folder(folder)
        if found != revision:
            raise CheckpointError(f"the files in {folder} have changed (from {revision} to {found}); submit again")
        return folder
    from huggingface_hub import snapshot_download

    with _translate_hub_errors(model):
        return Path(
            snapshot_download(model, revision=revision, allow_patterns=[f"*{ending}" for ending in MODEL_FILES])
        )


def _expand(model: str) -> Path:
    return Path(os.path.expanduser(model))  # leaves ~nobody unchanged


def _is_folder(model: str) -> bool:
    """Return whether a model is a folder. `owner/name` is a Hub id unless such a folder exists."""
    return _expand(model).is_dir() or model.startswith((".", "/", "~")) or model.count("/") != 1


def _find_folder(model: str) -> Path:
    folder = Path(str(files("qsit.demo"))) if model == DEMO else _expand(model).resolve()
    if not folder.is_dir():
        raise CheckpointError(
            f"there is no model folder {model}; --model takes a folder, a Hub id (owner/name) or demo"
        )
    if not (folder / "config.json").is_file():
        raise CheckpointError(f"{folder} is not a checkpoint: it has no config.json")
    return folder


def _hash_folder(folder: Path) -> str:
    digest = hashlib.sha256()
    try:
        _check_shards(folder)
        for path in sorted(folder.iterdir()):
            if path.suffix in MODEL_FILES and path.is_file():
                with path.open("rb") as file:
                    content = hashlib.file_digest(file, "sha256").hexdigest()
                digest.update(f"{path.name} {content}\n".encode())
    except OSError as error:
        raise CheckpointError(f"cannot read {error.filename}: {error.strerror}") from error
    return f"sha256-{digest.hexdigest()[:40]}"


def _check_shards(folder: Path) -> None:
    """Check that the index of a sharded checkpoint names only files of its own folder: no others are hashed."""
    for index in folder.glob("*.safetensors.index.json"):
        try:
            names = set(json.loads(index.read_bytes())["weight_map"].values())
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise CheckpointError(f"{index} is not an index of weights: {type(error).__name__}: {error}") from error
        for name in names:
            if not isinstance(name, str) or name != Path(name).name:
                raise CheckpointError(f"{index} names weights outside its folder: {name}")


def _resolve_commit(model: str, revision: str | None) -> str:
    from huggingface_hub import resolve_revision

    with _translate_hub_errors(model):
        return str(resolve_revision(model, revision=revision).resolved)


@contextmanager
def _translate_hub_errors(model: str) -> Iterator[None]:
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
        raise CheckpointError(
            f"the Hub requires you to accept the terms of {model}; accept them, then set HF_TOKEN"
        ) from error
    except RepositoryNotFoundError as error:
        raise CheckpointError(f"the Hub has no model {model}; if it is private, set HF_TOKEN") from error
    except RevisionNotFoundError as error:
        raise CheckpointError(f"the model {model} has no such revision; leave --revision out for the newest") from error
    except HFValidationError as error:
        raise CheckpointError(f"{model} is not a model folder, a Hub id (owner/name) or demo") from error
    except (RevisionResolutionError, LocalEntryNotFoundError, OfflineModeIsEnabled) as error:
        raise CheckpointError(
            f"{model} is not in the local cache and the Hub cannot be reached; "
            "connect once to download it, or use --model with a folder, or with demo to try qsit out"
        ) from error
    except (HfHubHTTPError, HTTPError, OSError) as error:
        raise CheckpointError(f"downloading {model} from the Hub failed: {one_line(error)}") from error
