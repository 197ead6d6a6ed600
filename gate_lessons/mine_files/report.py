"""What was mined, in numbers (.report.json) and on a page that a browser opens (.report.html)."""

import base64
import io
import json
from collections import Counter
from dataclasses import asdict
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch

from gate_lessons.display import rtl_table
from gate_lessons.mine_files.inputs import Inputs
from gate_lessons.mine_files.result import Result
from gate_lessons.mine_files.work import whole
from gate_lessons.miner import difficulty, hardness

if TYPE_CHECKING:
    from gate_lessons.mine_files.job import Mining

QUANTILES = (0, 0.05, 0.25, 0.5, 0.75, 0.95, 1)
SAMPLES = 20
SHOWN = 20  # anchors that fell short, on the page; the JSON lists all
HARDNESS = ("easy", "semi_hard", "hard")

STYLE = """
body { font-family: system-ui, sans-serif; line-height: 1.5; max-width: 70rem; margin: 2rem auto; padding: 0 1rem }
table { border-collapse: collapse; margin: 0.5rem 0 }
th, td { padding: 0.3em 0.7em; border-bottom: 1px solid #ccc; text-align: left; vertical-align: top }
img { max-width: 100% }
.sentence { font-size: 1.1em }
"""


def write_report(out: Path, inputs: Inputs, result: Result, mining: "Mining") -> list[Path]:
    """NAME.report.json and NAME.report.html beside `out`: the two files."""
    found = summary(inputs, result, mining)
    files = [out.with_suffix(f".report.{kind}") for kind in ("json", "html")]
    contents = json.dumps(found, indent=2, ensure_ascii=False) + "\n", page(out.name, found, _histogram(result))
    for file, content in zip(files, contents, strict=True):
        with whole(file) as opened:
            opened.write(content.encode())
    return files


def summary(inputs: Inputs, result: Result, mining: "Mining") -> dict[str, Any]:
    """Counts, similarities, what was skipped, what is lacking, diversity and samples: JSON values."""
    anchor, _ = result.found
    positive, negative = result.positive_similarity[anchor], result.similarities[result.found]
    wanted, got = result.indices.size, len(anchor)
    return {
        "pairs file": inputs.names[0],
        "pool file": inputs.names[1],
        "parameters": asdict(mining) | {"search": result.search},
        "counts": {
            "pairs": len(inputs.pairs),
            "sentences to mine from": inputs.sentences,
            "of these distinct after normalisation": len(inputs.pool),
            "negatives asked for": wanted,
            "triplets written": got,
            "of these filled in by the fallback": int(result.filled.sum()),
            "negatives lacking": wanted - got,
        },
        "similarity": {
            "s(a,p)": _quantiles(result.positive_similarity),
            "s(a,n)": _quantiles(negative),
            "difficulty s(a,n) − s(a,p) + 1": _quantiles(difficulty(positive, negative)),
        },
        "hardness": _hardness(positive, negative, mining.margin),
        "skipped": result.skipped,
        "fell short": _short(inputs, result),
        "diversity": _diversity(inputs, result),
        "samples": _samples(inputs, result, mining.seed),
    }


def _quantiles(values: np.ndarray) -> dict[str, float]:
    """Quantiles by name, and the mean; nothing where there are no values."""
    if not len(values):
        return {}
    found = dict(zip((f"{share:.0%}" for share in QUANTILES), np.quantile(values, QUANTILES), strict=True))
    return {name: round(float(value), 4) for name, value in (found | {"mean": values.mean()}).items()}


def _hardness(positive: np.ndarray, negative: np.ndarray, margin: float) -> dict[str, float]:
    """FaceNet's names with their shares of all triplets."""
    count = Counter(hardness(torch.from_numpy(positive), torch.from_numpy(negative), margin))
    return {name: round(count[name] / max(1, len(positive)), 4) for name in HARDNESS}


def _short(inputs: Inputs, result: Result) -> list[dict[str, Any]]:
    """The anchors that the strategy had too few for: their line, how many it lacked, how many nothing filled."""
    return [
        {
            "anchor": inputs.pairs["anchor"][row],
            "line": int(inputs.pairs["line"][row]),
            "short of": int(result.shortfall[row]),
            "lacking": int((result.indices[row] < 0).sum()),
        }
        for row in np.nonzero(result.shortfall)[0]
    ]


def _diversity(inputs: Inputs, result: Result) -> dict[str, Any]:
    rows, times = np.unique(result.negatives, return_counts=True)
    if not len(rows):
        return {"distinct negatives": 0}
    most = int(times.argmax())
    return {
        "distinct negatives": len(rows),
        "share of the pool": round(len(rows) / len(inputs.pool), 4),
        "most served": {"text": inputs.pool["text"][rows[most]], "times": int(times[most])},
    }


def _samples(inputs: Inputs, result: Result, seed: int) -> list[dict[str, Any]]:
    """Some triplets, drawn at random, in their order."""
    anchor, place = result.found
    size = min(SAMPLES, len(anchor))
    drawn = np.sort(np.random.default_rng(seed).choice(len(anchor), size, replace=False)) if size else []
    return [
        {
            "anchor": inputs.pairs["anchor"][anchor[row]],
            "positive": inputs.pairs["positive"][anchor[row]],
            "negative": inputs.pool["text"][result.negatives[row]],
            "s(a,p)": round(float(result.positive_similarity[anchor[row]]), 4),
            "s(a,n)": round(float(result.similarities[anchor[row], place[row]]), 4),
            "filled": bool(result.filled[row]),
        }
        for row in drawn
    ]


# ---------------------------------------------------------------------------------------------- the page


def page(title: str, found: dict[str, Any], picture: bytes) -> str:
    """A summary as a page of its own: nothing is fetched when it is opened."""
    short = found["fell short"]
    sections = {
        "What was mined": _pairs({name: found[name] for name in ("pairs file", "pool file")} | found["counts"]),
        "Similarities": _similarities(found, picture),
        "Taken out by the filter": _pairs(found["skipped"])
        + "<p>Candidates on the lists that were looked at, by the first reason that applied.</p>",
        "Anchors that fell short": f"<p>{len(short)} of {found['counts']['pairs']}"
        + (f"; the first {SHOWN}, the others are in the JSON file" if len(short) > SHOWN else "")
        + f"</p>{_rtl(short, SHOWN)}",
        "Diversity": _diversity_words(found["diversity"]),
        f"{len(found['samples'])} triplets drawn at random": _rtl(found["samples"], SAMPLES),
        "Parameters": _pairs({name: value for name, value in found["parameters"].items() if value is not None}),
    }
    body = "".join(f"<h2>{escape(heading)}</h2>\n{content}\n" for heading, content in sections.items())
    return (
        f'<!doctype html>\n<html lang="en">\n<head><meta charset="utf-8"><title>{escape(title)}</title>'
        f"<style>{STYLE}</style></head>\n<body>\n<h1>{escape(title)}</h1>\n{body}</body>\n</html>\n"
    )


def _similarities(found: dict[str, Any], picture: bytes) -> str:
    quantiles = _table(pd.DataFrame(found["similarity"]).T.reset_index(names=""))
    shares = _pairs({name.replace("_", "-"): f"{share:.1%}" for name, share in found["hardness"].items()})
    return (
        f'{quantiles}<img alt="histogram of the similarities" '
        f'src="data:image/png;base64,{base64.b64encode(picture).decode()}">{shares}'
        f"<p>Hard: s(a,n) ≥ s(a,p). Semi-hard: lower, by at most {found['parameters']['margin']:g}. Easy: the rest.</p>"
    )


def _diversity_words(diversity: dict[str, Any]) -> str:
    if "most served" not in diversity:
        return "<p>No negatives.</p>"
    most = diversity["most served"]
    return (
        f"<p>{diversity['distinct negatives']} distinct negatives, {diversity['share of the pool']:.1%} of the pool. "
        f'Most often served, {most["times"]} times:</p><p dir="auto" class="sentence">{escape(most["text"])}</p>'
    )


def _pairs(values: dict[str, Any]) -> str:
    return _table(pd.DataFrame(values.items(), dtype=object), header=False) if values else "<p>Nothing.</p>"


def _table(table: pd.DataFrame, header: bool = True) -> str:
    return table.to_html(index=False, header=header, border=0)


def _rtl(rows: list[dict[str, Any]], shown: int) -> str:
    return rtl_table(pd.DataFrame(rows), shown).data if rows else ""


def _histogram(result: Result) -> bytes:
    from matplotlib.figure import Figure

    from gate_lessons.plots import similarity_histogram

    sides = {"s(a,p)": result.positive_similarity, "s(a,n)": result.similarities[result.found]}
    figure, picture = Figure((7, 4), layout="constrained"), io.BytesIO()
    similarity_histogram({name: values for name, values in sides.items() if len(values)}, figure.subplots())
    figure.savefig(picture, format="png", dpi=150)
    return picture.getvalue()
