"""The papers' tables, each as CSV and Markdown."""

from pathlib import Path

import pandas as pd

from analysis.names import escaped
from analysis.views import most_common
from lorasweep.errors import RecordError

_SCORES = {
    "precision": "eval/precision_macro",
    "recall": "eval/recall_macro",
    "F1": "eval/f1_macro",
    "accuracy": "eval/accuracy",
}
_PAPER_TABLE5 = {
    "model": "LLaMA3-8B (Patil et al. 2025, as printed)",
    "task": "Yelp, 5 classes",
    "precision": 0.203,
    "recall": 0.2191,
    "F1": 0.181,
    "accuracy": 0.2191,
    "seeds": 1,
}


def table5(table: pd.DataFrame) -> pd.DataFrame:
    """Table 5: the base model without training, ours beside the paper's.

    Returns:
        One row a model and task, and the paper's last: macro precision, recall and F1,
        accuracy (mean over seeds of the head, 0 to 1) and the number of ``seeds``.
    """
    base = table[(table["method"] == "base") & (table["state"] == "done")]
    rows = []
    for (model, task), trials in base.groupby(["model", "task"]):
        settings = ["eval_size", "max_length", "precision", "quant", "settings", "variant"]
        kept, _, _ = most_common(trials, settings)
        means = {name: float(kept[metric].mean()) for name, metric in _SCORES.items()}
        rows.append({"model": model, "task": task, **means, "seeds": len(kept)})
    return pd.DataFrame([*rows, _PAPER_TABLE5])


def write_all(table: pd.DataFrame, folder: Path) -> list[Path]:
    """Write every table as CSV and Markdown into a folder; return the files.

    Raises:
        RecordError: the disk refused.
    """
    made = {"table5": table5(table)}
    written = []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, frame in made.items():
            for suffix, text in ((".csv", frame.to_csv(index=False)), (".md", markdown(frame))):
                path = folder / f"{name}{suffix}"
                path.write_text(text, encoding="utf-8")
                written.append(path)
    except OSError as error:
        raise RecordError(f"The tables could not be written to {folder}: {error}.") from error
    return written


def markdown(frame: pd.DataFrame) -> str:
    """Render a frame as a Markdown table; numbers with four digits, gaps as a dash.

    Text is shown as it is, but for ``**word**``.
    """

    def cell(value: object) -> str:
        if value is None or value != value:
            return "–"
        return f"{value:.4g}" if isinstance(value, float) else escaped(str(value))

    head = [str(column) for column in frame.columns]
    lines = [head, ["---"] * len(head)]
    lines += [[cell(value) for value in row] for row in frame.itertuples(index=False)]
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)
