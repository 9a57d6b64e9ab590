"""Paths, and the addresses that MLflow knows them by: turned into each other here alone.

An address is percent-encoded and a path is not. Where the two are mixed up, a folder named
``my study`` has its artefacts in one named ``my%20study``.
"""

from pathlib import Path
from urllib.parse import quote, unquote, urlsplit

_SQLITE = "sqlite:///"
_FILE = "file:"
NAME = "mlflow.db"  # of the record's file in its folder, unless tracking.uri says otherwise
ARTIFACTS = "artifacts"  # folder beside it


def record_at(file: Path) -> str:
    """Return the address of the SQLite record in a file.

    Blanks, accents and ``#`` stand as they are, as people type them. A path with ``%`` or ``?``
    is encoded whole, slashes too: MLflow would make folders by the encoded names.
    """
    path = str(file)
    return _SQLITE + (quote(path, safe="") if {"%", "?"} & set(path) else path)


def record_file(uri: str) -> Path | None:
    """Return the file of a SQLite record; None for any other kind of record."""
    if not uri.startswith(_SQLITE):
        return None
    return Path(unquote(uri.removeprefix(_SQLITE).split("?")[0]))


def record_named(text: str) -> str:
    """Return the address of a record that is given by its address, its file or its folder."""
    if "://" in text:
        return absolute(text)
    path = Path(text).expanduser()
    return absolute(record_at(path / NAME if path.is_dir() else path))


def absolute(uri: str) -> str:
    """Make a SQLite address independent of the folder it is used from."""
    file = record_file(uri)
    return uri if file is None else record_at(file.resolve())


def artifacts_at(folder: Path) -> str:
    """Return the address of a folder of artefacts, which is made absolute."""
    return folder.absolute().as_uri()


def artifacts_folder(uri: str) -> Path | None:
    """Return the folder that artefacts lie in; None where they are not on this file system."""
    return Path(unquote(urlsplit(uri).path)) if uri.startswith(_FILE) else None
