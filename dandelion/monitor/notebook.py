"""What a notebook shows: a line that changes in place, without widgets, and figures."""

import sys
import time
from html import escape
from importlib import import_module
from typing import Any

EVERY_S = 0.2  # between two changes


class NotebookLine:
    """One output of the cell that runs; ``rich`` would need ipywidgets for a moving line."""

    def __init__(self) -> None:
        self._handle: Any = None
        self._shown_at = 0.0

    def show(self, text: str, is_last: bool = False) -> None:
        """Show a text in place of the one before, unless that is very new and another will follow.

        Args:
            text: plain; characters that HTML would obey are escaped.
            is_last: whether no other text will follow.
        """
        tools: Any = import_module("IPython.display")
        now = time.monotonic()
        if self._handle is not None and not is_last and now - self._shown_at < EVERY_S:
            return
        self._shown_at = now
        line = tools.HTML(f"<pre style='margin:0'>{escape(text)}</pre>")
        if self._handle is None:
            self._handle = tools.display(line, display_id=True)
        else:
            self._handle.update(line)


def show_figures_as_pictures() -> None:
    """Have the notebook show a matplotlib figure as a picture, also if pyplot is not imported.

    Does nothing outside of IPython.
    """
    if "IPython" not in sys.modules:
        return
    shell = import_module("IPython.core.getipython").get_ipython()
    if shell is not None:
        import_module("IPython.core.pylabtools").select_figure_formats(shell, {"png"})
