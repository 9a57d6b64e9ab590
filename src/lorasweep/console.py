"""The screen: a console that stays readable in a file, and waits that say how far they are."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext

from rich.console import Console
from rich.markup import escape

PLAIN_WIDTH = 150  # columns when the output is no terminal: no line is cut at 80
PLAIN_EVERY_S = 10.0  # and then a line so often tells that a long trial is alive


def console(*, stderr: bool = False) -> Console:
    """Return a console that stays readable in a file."""
    terminal = (sys.stderr if stderr else sys.stdout).isatty()
    width = None if terminal else PLAIN_WIDTH
    # A notebook would get a display of its own for every line.
    return Console(stderr=stderr, width=width, highlight=False, force_jupyter=False)


@contextmanager
def waiting(what: str) -> Iterator[Callable[[str], None]]:
    """Show that something takes a while; what the caller says of how far it is goes beside it.

    On a terminal the line changes in place and goes away; in a file there are few lines.
    """
    screen, began, detail = console(), time.monotonic(), ""
    said = began
    with screen.status(what) if screen.is_terminal else nullcontext() as line:

        def tell(news: str) -> None:
            nonlocal said, detail
            detail = news
            text = f"{what}: {detail}, {clock(time.monotonic() - began)}"
            if line is not None:
                line.update(escape(text))
            elif time.monotonic() - said > PLAIN_EVERY_S:
                said = time.monotonic()
                screen.print(text, markup=False)

        if line is None:
            screen.print(f"{what} …", markup=False)
        yield tell
    spent = f"{time.monotonic() - began:.1f} s"
    screen.print(f"{what}: {', '.join(filter(None, (detail, spent)))}", markup=False)


def clock(seconds: float) -> str:
    """Write a duration as 0:59 or 1:02:03."""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
