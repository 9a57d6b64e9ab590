"""Words as people type them, put so that Hydra's grammar can read them."""

import re
from collections.abc import Iterable
from pathlib import Path

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Quote, QuotedString
from hydra.errors import HydraException

from lorasweep.space import schema


def readable(words: Iterable[str]) -> list[str]:
    """Quote values of text settings that Hydra's grammar refuses: names of files and folders.

    ``task.train_file=train (1).csv`` and ``output_dir=~/déjà vu`` need no quotes but the shell's.
    A comma still separates the values of a list, and ``~/`` is the home folder. All that is not
    such a value stays as it is, so that what is wrong with it is said.
    """
    parser = OverridesParser.create()

    def read(word: str) -> bool:
        try:
            parser.parse_override(word)
        except HydraException:
            return False
        return True

    def put(word: str) -> str:
        name, equals, value = word.partition("=")
        if not equals or name not in schema.text_settings() or read(word):
            return word
        quoted = f"{name}={','.join(map(_quoted, value.split(',')))}"
        return quoted if read(quoted) else word

    return [put(word) for word in words]


def _quoted(text: str) -> str:
    if re.fullmatch(r"'.*'|\".*\"", text):
        return text
    if text.startswith("~/"):
        text = str(Path(text).expanduser())
    return str(QuotedString(text, Quote.single).with_quotes())
