"""What a notebook shows: tables that read from right to left, pictures with sliders, claims with their verdicts."""

from collections.abc import Callable
from functools import cached_property
from typing import TYPE_CHECKING, Any

import pandas as pd

if TYPE_CHECKING:
    from IPython.display import HTML
    from ipywidgets import VBox


def rtl_table(table: pd.DataFrame, rows: int = 5) -> "HTML":
    """The first rows of a table with Arabic text: columns from right to left, cells aligned to the right.

    Args:
        table: any columns; numbers are rounded to three places.
        rows: how many to show.
    """
    from IPython.display import HTML

    body = table.head(rows).to_html(index=False, border=0, float_format="{:.3f}".format)
    style = "text-align:right; unicode-bidi:plaintext; vertical-align:top; padding:0.3em 0.7em"
    body = body.replace("<td>", f'<td style="{style}">').replace("<th>", f'<th style="{style}">')
    return HTML(f'<div dir="rtl" style="overflow-x:auto">{body}</div>')


def claims(verdicts: dict[str, bool], strict: bool) -> None:
    """Print what a lesson claims, one line each, with its verdict.

    Args:
        verdicts: the claim, an inequality in words → whether it held in this run.
        strict: raise where a claim failed. A lesson is strict at its default parameters; at others it only prints.

    Raises:
        AssertionError: a claim failed although `strict`.
    """
    for claim, holds in verdicts.items():
        print(f"{'holds' if holds else 'does not hold'}: {claim}")
    failed = [claim for claim, holds in verdicts.items() if not holds]
    if strict and failed:
        raise AssertionError(f"at the default parameters this must hold: {'; '.join(failed)}")


def sliders(draw: Callable[..., Any], **ranges: tuple[float, float, float, float]) -> "Sliders":
    """A picture with a slider for each of its values: `sliders(picture, margin=(0, 1, 0.1, 0.3))` ends a cell.

    In JupyterLab the sliders redraw it. Where a notebook is only executed or read (a page, a preview, the stored file),
    the same cell shows the picture at the starting values.

    Args:
        draw: called with every value by name; returns a matplotlib figure, or draws the current one. A slider calls it
            long after its cell, so it should lean on no name that a later cell binds anew.
        ranges: name → low, high, step, start.

    Raises:
        ValueError: a start outside its range, or a `draw` that draws nothing.
    """
    for name, (low, high, _, start) in ranges.items():
        if not low <= start <= high:
            raise ValueError(f"the slider {name} goes from {low:g} to {high:g}, so it cannot start at {start:g}")
    return Sliders(draw, ranges)


class Sliders:
    """What `sliders` returns: IPython shows it as one bundle, the widget where somebody can move it, and its picture.

    nbclient stores the state of every widget that a kernel opens, and a page made from a notebook with such a state
    loads a script from the web. So where nobody sits before the notebook no widget is opened.
    """

    def __init__(self, draw: Callable[..., Any], ranges: dict[str, tuple[float, float, float, float]]) -> None:
        self.draw, self.ranges = draw, ranges
        self.start = {name: start for name, (*_, start) in ranges.items()}
        self.picture = _png(draw, self.start)  # here, where what `draw` raises fails the cell

    @cached_property
    def box(self) -> "VBox":
        """The sliders in the order of `ranges`, then the picture, then whatever `draw` prints or raises."""
        import ipywidgets

        look = {"readout_format": ".3g", "continuous_update": False, "style": {"description_width": "7em"}}
        moved = [
            ipywidgets.FloatSlider(min=low, max=high, step=step, value=start, description=name, **look)
            for name, (low, high, step, start) in self.ranges.items()
        ]
        picture, words = ipywidgets.Image(value=self.picture, format="png"), ipywidgets.Output()

        @words.capture(clear_output=True)
        def redraw(_: object) -> None:
            picture.value = _png(self.draw, {slider.description: slider.value for slider in moved})

        for slider in moved:
            slider.observe(redraw, "value")
        return ipywidgets.VBox([*moved, picture, words])

    def _repr_mimebundle_(self, **_: object) -> dict[str, Any]:
        values = ", ".join(f"{name} = {value:g}" for name, value in self.start.items())
        bundle = {"text/plain": f"picture at {values}; JupyterLab shows sliders", "image/png": self.picture}
        if _somebody_is_there():
            bundle["application/vnd.jupyter.widget-view+json"] = self.box.get_view_spec()
        return bundle


def _png(draw: Callable[..., Any], values: dict[str, float]) -> bytes:
    import matplotlib.pyplot as plt
    from IPython.core.pylabtools import print_figure
    from matplotlib.figure import Figure

    drawn = draw(**values)
    figure = drawn if isinstance(drawn, Figure) else plt.gcf()
    png = print_figure(figure, "png")
    plt.close(figure)
    if png is None:
        raise ValueError("draw made no picture: it must return a figure, or draw one with pyplot")
    return png


def _somebody_is_there() -> bool:
    """Whether the cell came from a front end that can ask its reader for input; nbclient, papermill, nbval cannot."""
    from IPython import get_ipython

    kernel = getattr(get_ipython(), "kernel", None)
    return kernel is not None and kernel.get_parent().get("content", {}).get("allow_stdin", False)
