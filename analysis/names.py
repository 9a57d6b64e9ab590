"""Names that users chose (models, tasks), put into Markdown and into the names of files."""

import re
from urllib.parse import quote

# A character with a meaning in Markdown; an underscore within a word has none.
_MEANS = re.compile(r"([\\`*\[\]<>|&]|(?<!\w)_|_(?!\w))")
_BOLD = re.compile(r"\*\*(\w+)\*\*")


def escaped(text: str) -> str:
    """Return text that Markdown shows as it is, on one line; ``**word**`` alone stays bold."""
    return text if _BOLD.fullmatch(text) else _MEANS.sub(r"\\\1", text).replace("\n", " ")


def stem(*parts: str) -> str:
    """Join names to the name of a file or folder; empty ones are left out."""
    return re.sub(r"[/\\]", "-", "_".join(filter(None, parts)))


def image(about: str, path: str) -> str:
    """Show a picture in Markdown.

    Args:
        about: what it shows, in Markdown.
        path: relative to the page.
    """
    return f"![{about}]({quote(path)})"
