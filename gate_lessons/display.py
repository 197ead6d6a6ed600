"""Tables in notebooks that read from right to left where their text does."""

from typing import TYPE_CHECKING

import pandas as pd

if TYPE_CHECKING:
    from IPython.display import HTML


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
