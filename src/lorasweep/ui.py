"""``python -m lorasweep.ui RECORD PORT``, which ``make ui`` runs: MLflow over a record."""

import os
import sys

from lorasweep import addresses
from lorasweep.errors import LorasweepError, RecordError, RequestError
from lorasweep.record.record import Record


def ready(named: str) -> str:
    """Return the address of a local record that is given by its address, its file or its folder.

    One that was copied or moved is told where its artefacts lie now.

    Raises:
        RecordError: there is no such record, or it cannot be used.
        RequestError: it is on a server.
    """
    uri = addresses.record_named(named)
    file = addresses.record_file(uri)
    if file is None:
        raise RequestError([f"the record at {uri} has a server of its own: look there"])
    if not file.is_file():  # MLflow would make an empty one
        raise RecordError(f"no record at {file}; run a sweep first (make sweep)")
    Record(uri, file.parent / addresses.ARTIFACTS).relocate()
    return uri


def main(named: str, port: str) -> None:
    """Serve a record on localhost, in place of this process."""
    try:
        uri = ready(named)
    except LorasweepError as error:
        print(error, file=sys.stderr)
        sys.exit(error.exit_code)
    print(f"MLflow at http://127.0.0.1:{port} (Ctrl-C ends it)", flush=True)
    os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
    where = ["--backend-store-uri", uri, "--host", "127.0.0.1", "--port", port, "--workers", "1"]
    os.execv(sys.executable, [sys.executable, "-m", "mlflow", "ui", *where])


if __name__ == "__main__":
    main(*sys.argv[1:])
