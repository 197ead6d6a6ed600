"""Pictures: each function takes data and an optional `ax`, and returns the `Axes`. No global state, no `plt.show()`.

Colours are Okabe and Ito's (2008), told apart with any colour vision. matplotlib shapes Arabic by itself: pass raw
text, and no `$…$` beside it, which would draw the letters apart and backwards.
"""

import itertools
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from gate_lessons.metrics import Interval

if TYPE_CHECKING:
    from matplotlib.axes import Axes

BLUE, ORANGE, GREEN, PURPLE, SKY, VERMILION, YELLOW, BLACK = COLORS = (
    "#0072B2",
    "#E69F00",
    "#009E73",
    "#CC79A7",
    "#56B4E9",
    "#D55E00",
    "#F0E442",
    "#000000",
)
MARKERS = "osD^vPX*"


def _axes(ax: "Axes | None", size: tuple[float, float] = (6, 4)) -> "Axes":
    if ax is not None:
        return ax
    import matplotlib.pyplot as plt

    ax = plt.subplots(figsize=size, layout="constrained")[1]
    ax.spines[["top", "right"]].set_visible(False)
    return ax


def intervals(
    values: Mapping[str, Interval], label: str, reference: float | None = None, ax: "Axes | None" = None
) -> "Axes":
    """One dot and bar for each name: estimates with 95 % intervals, and a dashed line at `reference`.

    Args:
        values: name → interval, drawn from top to bottom.
        label: what is measured, with its unit.
        reference: a value to compare with: 0 for differences, the baseline's score for scores.
    """
    ax = _axes(ax, (6, 0.9 + 0.45 * len(values)))
    for row, value in enumerate(reversed(values.values())):
        ax.plot([value.low, value.high], [row, row], color=BLUE, linewidth=2)
        ax.plot(value.estimate, row, "o", color=BLUE)
        ax.annotate(
            f"{value.estimate:.3f}", (value.estimate, row), (0, 6), textcoords="offset points", ha="center", fontsize=8
        )
    ax.set_yticks(range(len(values)), list(reversed(values)))
    ax.set_ylim(-0.6, len(values) - 0.3)
    if reference is not None:
        ax.axvline(reference, color=BLACK, linestyle="--", linewidth=1)
    ax.set_xlabel(f"{label}, with 95 % interval")
    ax.locator_params(axis="x", nbins=5)  # long names leave little width, and numbers with three decimals need it
    return ax


def difficulty_by_strategy(difficulty: Mapping[str, Sequence[float]], ax: "Axes | None" = None) -> "Axes":
    """The tutorial's first panel: how hard the triplets of each mining strategy are; 1 is a tie."""
    ax = _axes(ax)
    data = [np.asarray(values) for values in difficulty.values()]
    boxes = ax.boxplot(data, tick_labels=list(difficulty), patch_artist=True, medianprops={"color": BLACK})
    for box, color in zip(boxes["boxes"], itertools.cycle(COLORS[:-1]), strict=False):  # medians are black
        box.set_facecolor(color)
    ax.axhline(1, color=BLACK, linestyle="--", linewidth=1)
    ax.set_ylabel("difficulty s(a,n) − s(a,p) + 1")
    ax.set_title("Difficulty by strategy (above 1 the negative is nearer)")
    return ax


def loss_curves(gap: Sequence[float], curves: Mapping[str, Sequence[float]], ax: "Axes | None" = None) -> "Axes":
    """The tutorial's second panel, made honest: each loss as the gap s(a,p) − s(a,n) grows.

    Args:
        gap: [P] similarity gaps.
        curves: loss name → [P] values.
    """
    ax = _axes(ax)
    for (name, values), color in zip(curves.items(), COLORS, strict=False):
        ax.plot(gap, values, color=color, label=name)
    ax.set_xlabel("similarity gap s(a,p) − s(a,n)")
    ax.set_ylabel("loss (each in its own unit)")
    ax.set_title("What each loss asks for")
    ax.legend()
    return ax


def training_curves(
    histories: Mapping[str, pd.DataFrame], column: str = "loss", label: str | None = None, ax: "Axes | None" = None
) -> "Axes":
    """A column of the history over the epochs, one line for each run; the tutorial's third panel.

    Args:
        histories: run name → what `trainer.train` returned.
        column: of the history, for example loss, violation_rate, triplet_accuracy.
        label: of the vertical axis; the column's name when not given.
    """
    ax = _axes(ax)
    for number, (name, history) in enumerate(histories.items()):
        color, marker = COLORS[number % len(COLORS)], MARKERS[number % len(MARKERS)]
        ax.plot(history["epoch"] + 1, history[column], color=color, marker=marker, markersize=4, label=name)
    ax.xaxis.get_major_locator().set_params(integer=True)
    ax.set_xlabel("epoch")
    ax.set_ylabel(label or column.replace("_", " "))
    ax.set_title("Training by strategy")
    ax.legend()
    return ax


def similarity_gap(histories: Mapping[str, pd.DataFrame], ax: "Axes | None" = None) -> "Axes":
    """The tutorial's fourth panel: mean s(a,p) − s(a,n) of the last epoch for each run, as seen in training."""
    ax = _axes(ax)
    gaps = [history["similarity_gap"].iloc[-1] for history in histories.values()]
    bars = ax.bar(list(histories), gaps, color=COLORS[: len(gaps)])
    ax.bar_label(bars, fmt="%.2f", padding=2)
    ax.margins(y=0.12)
    ax.axhline(0, color=BLACK, linewidth=1)
    ax.set_ylabel("similarity gap, last epoch")
    ax.set_title("Positive–negative similarity gap")
    return ax


def temperature_softmax(
    similarities: Sequence[float], temperatures: Sequence[float], ax: "Axes | None" = None
) -> "Axes":
    """The tutorial's fifth panel: the softmax share of each similarity rank, at several temperatures."""
    ax = _axes(ax)
    ranks = np.arange(1, len(similarities) + 1)
    for number, temperature in enumerate(temperatures):
        share = torch.softmax(torch.as_tensor(similarities, dtype=torch.float64) / temperature, dim=0)
        ax.plot(ranks, share, color=COLORS[number], marker=MARKERS[number], label=f"τ = {temperature}")
    ax.set_xticks(ranks)
    ax.set_xlabel("similarity rank (1 is the most similar)")
    ax.set_ylabel("softmax share")
    ax.set_title("Temperature and the softmax")
    ax.legend()
    return ax


def stability_violations(dynamics: Mapping[str, Mapping[str, float]], ax: "Axes | None" = None) -> "Axes":
    """The tutorial's sixth panel: training stability against violation rate, a point for each run.

    Args:
        dynamics: run name → what `diagnostics.dynamics` returned.
    """
    ax = _axes(ax)
    for number, (name, found) in enumerate(dynamics.items()):
        color, marker = COLORS[number % len(COLORS)], MARKERS[number % len(MARKERS)]
        ax.scatter(found["violation_rate"], found["stability"], s=70, color=color, marker=marker, label=name)
    ax.set_xlabel("violation rate, last epoch")
    ax.set_ylabel("stability 1 / (1 + std of last 5 losses)")
    ax.set_title("Stability and violations")
    ax.legend()
    return ax


def similarity_histogram(similarities: Mapping[str, Sequence[float]], ax: "Axes | None" = None) -> "Axes":
    """Distributions of cosine similarity, such as positives and negatives, over one another.

    Bins are 0.05 wide on one grid, so that any two of these pictures can be compared.
    """
    ax = _axes(ax)
    values = np.concatenate([np.asarray(values) for values in similarities.values()])
    low, high = (20 * values.min()).round(6), (20 * values.max()).round(6)  # a cosine of 1 + 1e-8 is 1
    bins = np.arange(np.floor(low), max(np.ceil(high), np.floor(low) + 1) + 1) / 20
    for (name, values), color in zip(similarities.items(), COLORS, strict=False):
        ax.hist(values, bins=bins, color=color, alpha=0.55, label=f"{name} (mean {np.mean(values):.2f})")
    ax.set_xlabel("cosine similarity")
    ax.set_ylabel("pairs")
    ax.legend(fontsize=8, loc="lower left", bbox_to_anchor=(0, 1), frameon=False)
    return ax


def embedding_map(
    points: Tensor | np.ndarray,
    colors: Sequence[str],
    texts: Sequence[str] | None = None,
    ax: "Axes | None" = None,
) -> "Axes":
    """A 2-D map of embeddings, with Arabic labels where given.

    Args:
        points: [n, 2]; see `project` for getting there.
        colors: [n] a name for each point (topic, role); points of one name share colour and marker.
        texts: [n] labels, "" for none. Write them beside few points only, or they lie over each other.
    """
    ax = _axes(ax, (7, 5.5))
    points, colors = np.asarray(points), np.asarray(colors)
    for number, name in enumerate(dict.fromkeys(colors.tolist())):
        chosen = points[colors == name]
        color, marker = COLORS[number % len(COLORS)], MARKERS[number % len(MARKERS)]
        ax.scatter(chosen[:, 0], chosen[:, 1], s=28, color=color, marker=marker, label=name)
    middle = points[:, 0].mean()
    for (x, y), text in zip(points, texts if texts is not None else [], strict=False):
        side, offset = ("left", 6) if x < middle else ("right", -6)
        ax.annotate(text, (x, y), (offset, 0), textcoords="offset points", ha=side, va="center", fontsize=9)
    ax.set_xticks([])
    ax.set_yticks([])
    ax.set_xlabel("first direction of the map")
    ax.set_ylabel("second direction of the map")
    ax.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1, 1), frameon=False)
    return ax


def project(embeddings: Tensor, method: str = "pca", seed: int = 0) -> np.ndarray:
    """[n, d] → [n, 2], on the unit sphere's points: `pca` keeps large distances, `tsne` keeps neighbours."""
    rows = torch.nn.functional.normalize(embeddings.detach().float().cpu(), dim=1).numpy()
    if method == "pca":
        from sklearn.decomposition import PCA

        return PCA(2, random_state=seed).fit_transform(rows)
    if method == "tsne":
        from sklearn.manifold import TSNE

        return TSNE(2, perplexity=min(30, (len(rows) - 1) / 3), random_state=seed, init="pca").fit_transform(rows)
    raise ValueError(f"unknown method {method!r}; choose pca or tsne")


def similarity_heatmap(similarity: Tensor | np.ndarray, texts: Sequence[str], ax: "Axes | None" = None) -> "Axes":
    """Every sentence against every sentence: cosine similarities in cells, Arabic on both axes.

    Args:
        similarity: [n, n] cosine similarities.
        texts: [n] sentences, short enough to read.
    """
    import seaborn as sns

    ax = _axes(ax, (3 + 0.7 * len(texts), 2 + 0.6 * len(texts)))
    sns.heatmap(
        np.asarray(similarity),
        ax=ax,
        vmin=-1,
        vmax=1,
        cmap="vlag",
        annot=True,
        fmt=".2f",
        xticklabels=list(texts),
        yticklabels=list(texts),
        cbar_kws={"label": "cosine similarity"},
    )
    ax.tick_params(axis="x", rotation=30)
    for label in ax.get_xticklabels():
        label.set_ha("right")
    ax.tick_params(axis="y", rotation=0)
    return ax


def on_circle(angles: Mapping[str, float], margin: float | None = None, ax: "Axes | None" = None) -> "Axes":
    """Embeddings placed by angle on the unit circle, with the anchor at 0°: cosine similarity is the horizontal axis.

    Args:
        angles: name → degrees; the names `anchor` and `positive` are marked.
        margin: shade the semi-hard band, s(a,p) − margin to s(a,p), where `positive` is given.
    """
    ax = _axes(ax, (5, 5))
    turn = np.linspace(0, 2 * np.pi, 200)
    ax.plot(np.cos(turn), np.sin(turn), color="0.8", zorder=0)
    if margin is not None and "positive" in angles:
        s_p = np.cos(np.radians(angles["positive"]))
        ax.axvspan(s_p - margin, s_p, color=YELLOW, alpha=0.5, label="semi-hard band")
        ax.legend(loc="lower left", fontsize=8)
    for name, degrees in angles.items():
        x, y = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
        color = {"anchor": BLACK, "positive": GREEN}.get(name, VERMILION)
        ax.annotate("", (x, y), (0, 0), arrowprops={"arrowstyle": "->", "color": color})
        side = "left" if x > 0.3 else "right" if x < -0.3 else "center"  # away from the arrow's head
        ax.annotate(name, (x, y), (1.08 * x, 1.12 * y), ha=side, va="center", color=color)
    ax.set_xlim(-1.7, 1.7)
    ax.set_ylim(-1.35, 1.35)
    ax.set_aspect("equal")
    ax.set_xlabel("cosine similarity to the anchor")
    ax.set_yticks([])
    return ax
