"""Pictures hold the data they were given, go where they are told, and draw Arabic joined and from right to left."""

import inspect
from itertools import pairwise

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb

from gate_lessons import plots
from gate_lessons.metrics import Interval

HISTORY = pd.DataFrame({"epoch": [0, 1], "loss": [2.0, 1.0], "similarity_gap": [0.1, 0.4]})
INTERVALS = {"hard": Interval(0.4, 0.3, 0.5), "random": Interval(0.1, 0.0, 0.2)}
CALLS = {
    "intervals": (INTERVALS, "accuracy", 0.2),
    "difficulty_by_strategy": ({"random": [0.5, 0.6], "hard": [0.9, 1.1, 1.2]},),
    "loss_curves": ([-1, 0, 1], {"triplet": [1.3, 0.3, 0], "InfoNCE": [2, 0.7, 0.1]}),
    "training_curves": ({"hard": HISTORY, "random": HISTORY},),
    "similarity_gap": ({"hard": HISTORY, "random": HISTORY},),
    "temperature_softmax": ([0.9, 0.5, -0.1], [0.01, 0.1, 1.0]),
    "stability_violations": ({"hard": {"stability": 0.9, "violation_rate": 0.4}},),
    "similarity_histogram": ({"positive": [0.7, 0.8, 0.9], "negative": [0.1, 0.2, 0.3]},),
    "embedding_map": (np.arange(8.0).reshape(4, 2), ["أهل", "أهل", "سفر", "سفر"], ["بيت", "دار", "", "قطار"]),
    "similarity_heatmap": (torch.eye(2), ["البيت كبير", "الدار واسعة"]),
    "on_circle": ({"anchor": 0, "positive": 30, "n": 50}, 0.3),
}


@pytest.fixture(autouse=True)
def close_figures():
    yield
    plt.close("all")


def test_every_public_plot_is_tried():
    functions = {n for n, f in inspect.getmembers(plots, inspect.isfunction) if f.__module__ == plots.__name__}
    assert {n for n in functions if not n.startswith("_")} == CALLS.keys() | {"project"}


@pytest.mark.parametrize("name", CALLS)
def test_a_plot_draws_into_the_axes_it_is_given_and_makes_no_other_figure(name):
    figure, ax = plt.subplots()
    assert getattr(plots, name)(*CALLS[name], ax=ax) is ax
    assert plt.get_fignums() == [figure.number]
    figure.canvas.draw()


@pytest.mark.parametrize("name", CALLS)
def test_a_plot_without_axes_makes_its_own_and_labels_it(name):
    ax = getattr(plots, name)(*CALLS[name])
    assert isinstance(ax, Axes)
    ax.figure.canvas.draw()
    assert ax.get_xlabel() or name in ("difficulty_by_strategy", "similarity_gap", "similarity_heatmap")


def test_colours_can_be_told_apart_in_grey():
    """Neighbours in the order of use differ in luminance, so that no pair depends on hue alone."""
    light = [np.dot(to_rgb(color), (0.2126, 0.7152, 0.0722)) for color in plots.COLORS]
    assert all(abs(a - b) > 0.03 for a, b in pairwise(light))


def test_an_interval_reaches_from_its_low_to_its_high_end():
    ax = plots.intervals(INTERVALS, "accuracy")
    bars = [line.get_xdata() for line in ax.lines if len(line.get_xdata()) == 2]
    assert sorted(map(list, bars)) == [[0.0, 0.2], [0.3, 0.5]]
    assert [label.get_text() for label in ax.get_yticklabels()] == ["random", "hard"]  # drawn upwards: hard on top


def test_softmax_shares_sum_to_one_and_sharpen_as_the_temperature_falls():
    ax = plots.temperature_softmax([0.9, 0.5, -0.1], [0.05, 1.0])
    cold, warm = (np.asarray(line.get_ydata()) for line in ax.lines)
    assert np.allclose([cold.sum(), warm.sum()], 1)
    assert cold[0] > warm[0]


def test_similarity_gap_is_that_of_the_last_epoch():
    ax = plots.similarity_gap({"hard": HISTORY})
    assert [bar.get_height() for bar in ax.patches] == [0.4]


def test_the_circle_puts_similarity_on_the_horizontal_axis():
    ax = plots.on_circle({"anchor": 0, "positive": 60}, margin=0.2)
    span = ax.patches[0].get_extents().transformed(ax.transData.inverted())
    assert span.x0 == pytest.approx(0.3)
    assert span.x1 == pytest.approx(0.5)


def test_pca_keeps_the_distances_of_points_that_lie_in_a_plane():
    angles = torch.linspace(0, 6, 20)
    circle = torch.stack([angles.cos(), angles.sin(), torch.zeros(20)], dim=1)
    found = torch.pdist(torch.tensor(plots.project(circle)))
    assert torch.allclose(found, torch.pdist(circle), atol=1e-5)


def test_tsne_keeps_two_far_groups_apart():
    rows = torch.randn(30, 16, generator=torch.Generator().manual_seed(0)) * 0.05
    rows[:15, 0] += 1
    rows[15:, 1] += 1
    found = plots.project(rows, "tsne")
    gap = np.linalg.norm(found[:15].mean(0) - found[15:].mean(0))
    assert gap > found[:15].std() + found[15:].std()


def test_an_unknown_projection_is_refused():
    with pytest.raises(ValueError, match="unknown method 'umap'; choose pca or tsne"):
        plots.project(torch.eye(4), "umap")


def _width(text: str) -> float:
    figure = plt.figure()
    return figure.text(0, 0.5, text, fontsize=40).get_window_extent(figure.canvas.get_renderer()).width


def test_arabic_letters_are_joined():
    """Joined letters take less room than the same letters kept apart by U+200C."""
    word = "مستقبل"
    assert _width(word) < 0.9 * _width("\u200c".join(word))


def test_arabic_runs_from_right_to_left():
    """In «ا…م» the narrow alef must stand on the right: ink is counted in the outer quarters of the picture."""
    figure = plt.figure(figsize=(4, 1), dpi=100)
    figure.text(0.5, 0.5, "ا" + " " * 8 + "ممم", fontsize=40, ha="center", va="center")
    figure.canvas.draw()
    ink = (np.asarray(figure.canvas.buffer_rgba())[:, :, 0] < 128).sum(axis=0)
    filled = np.flatnonzero(ink)
    middle = (filled[0] + filled[-1]) // 2
    assert ink[:middle].sum() > 2 * ink[middle:].sum()


def test_the_numbers_under_an_interval_plot_do_not_run_into_each_other():
    figure, ax = plt.subplots(figsize=(4.5, 2), layout="constrained")
    long = {f"{name}, triplet_accuracy of all": Interval(0.0, -0.08, 0.12) for name in ("semi_hard", "category")}
    plots.intervals(long, "minus random", 0, ax)
    figure.canvas.draw()
    low, high = ax.get_xlim()
    shown = [t for t in ax.get_xticklabels() if low <= t.get_position()[0] <= high]
    boxes = [t.get_window_extent() for t in shown]
    assert len(boxes) >= 3
    assert all(left.x1 < right.x0 for left, right in pairwise(boxes))
