"""What a plot says (order, names, colours, groups), not which pixels say it."""

import itertools
import sys

import numpy as np
import pytest
import torch
from synthetic import blocks

from task2vec_ext.plot import cluster_order, plot_matrix


def tick_texts(ax) -> list[str]:
    return [label.get_text() for label in ax.get_yticklabels()]


def child(ax, label: str):
    return next(axes for axes in ax.child_axes if axes.get_label() == label)


def test_plot_matrix_puts_families_side_by_side_and_every_cell_under_its_names():
    distances, names, _ = blocks([5, 4, 3])
    ax = plot_matrix(distances, names, title="twelve")
    shown = tick_texts(ax)
    assert sorted(shown) == sorted(names)
    assert shown == [label.get_text() for label in ax.get_xticklabels()]
    families = [name[:2] for name in shown]
    assert sum(a != b for a, b in itertools.pairwise(families)) == 2
    cells = ax.images[0].get_array()
    for row, column in np.ndindex(12, 12):
        expected = distances[names.index(shown[row]), names.index(shown[column])]
        assert cells[row, column] == expected
    assert ax.get_title() == "twelve"
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("", "")


def test_plot_matrix_keeps_rows_as_sources_where_distances_are_not_symmetric():
    distances, names, _ = blocks([2, 2])
    distances = distances + 0.01 * torch.arange(4, dtype=torch.float64)[:, None] - 0.3  # negative ones, as d_asym has
    ax = plot_matrix(distances, names)
    shown = tick_texts(ax)
    for row, column in np.ndindex(4, 4):
        assert ax.images[0].get_array()[row, column] == distances[names.index(shown[row]), names.index(shown[column])]
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("target", "source")


def test_colours_span_the_distances_between_different_tasks_with_near_dark():
    distances, names, _ = blocks([3, 3])
    image = plot_matrix(distances, names).images[0]
    others = distances[~torch.eye(6, dtype=torch.bool)]
    assert image.get_clim() == (others.min().item(), others.max().item())
    near, far = (sum(image.cmap(image.norm(value))[:3]) for value in image.get_clim())
    assert sum(image.cmap(image.norm(0.0))[:3]) < near < far


def test_plot_matrix_needs_no_global_state_and_draws_into_given_axes():
    from matplotlib.figure import Figure

    figure = Figure()
    ax = figure.add_subplot()
    assert plot_matrix(torch.zeros(2, 2), ["a", "b"], ax=ax) is ax
    own = plot_matrix(torch.zeros(2, 2), ["a", "b"])
    own.figure.canvas.draw()
    assert own.figure is not figure
    pyplot = sys.modules.get("matplotlib.pyplot")
    assert pyplot is None or not pyplot.get_fignums()


def test_groups_are_a_strip_of_runs_with_a_legend_that_has_the_same_colours():
    distances, names, groups = blocks([5, 4, 3])
    ax = plot_matrix(distances, names, groups=groups)
    by_name = dict(zip(names, groups, strict=True))
    order = [by_name[name] for name in tick_texts(ax)]
    legend = ax.get_legend()
    texts = [text.get_text() for text in legend.get_texts()]
    assert texts == sorted(set(groups))
    colour = dict(zip(texts, (patch.get_facecolor() for patch in legend.get_patches()), strict=True))
    assert len(set(colour.values())) == 3
    top, right = child(ax, "groups top").patches, child(ax, "groups right").patches
    assert [patch.get_width() for patch in top] == [order.count(group) for group in dict.fromkeys(order)]
    assert [patch.get_height() for patch in right] == [patch.get_width() for patch in top]
    assert [patch.get_facecolor() for patch in top] == [colour[group] for group in dict.fromkeys(order)]
    assert top[0].get_x() == right[0].get_y() == -0.5
    assert child(ax, "groups right").get_ylim() == ax.get_ylim()  # row 0 of both is at the top


def test_thirty_groups_all_look_different_and_their_legend_leaves_room():
    T = 30
    ax = plot_matrix(torch.rand(T, T), [str(t) for t in range(T)], groups=[f"group {t:02}" for t in range(T)])
    looks = {(patch.get_facecolor(), patch.get_hatch()) for patch in ax.get_legend().get_patches()}
    assert len(looks) == T
    ax.figure.canvas.draw()
    assert not ax.get_legend().get_window_extent().overlaps(child(ax, "colour bar").get_window_extent())


@pytest.mark.parametrize("sizes", [[2, 2], [5, 4, 3], [10] * 4, [10] * 15], ids=sum)
def test_names_are_readable_and_do_not_overlap(sizes):
    distances, names, groups = blocks(sizes)
    ax = plot_matrix(distances, [name + "-with-a-name-that-goes-on" for name in names], groups=groups)
    ax.figure.canvas.draw()
    labels = ax.get_yticklabels()
    assert len(labels) == sum(sizes)
    assert labels[0].get_fontsize() >= 5
    boxes = sorted((label.get_window_extent() for label in labels), key=lambda box: box.y0)
    cell = ax.get_window_extent().height / sum(sizes)
    assert max(box.height for box in boxes) <= 1.3 * cell  # a line is higher than its letters
    legend, bar = ax.get_legend().get_window_extent(), child(ax, "colour bar").get_window_extent()
    assert not legend.overlaps(bar)
    assert legend.x0 >= child(ax, "groups right").get_window_extent().x1
    width, height = ax.figure.canvas.get_width_height()
    assert legend.x1 <= width
    assert min(box.x0 for box in boxes) >= 0
    assert max(width, height) / ax.figure.dpi < 25


def test_names_are_left_out_where_nobody_could_read_them_and_the_figure_stays_one_that_fits_a_page():
    ax = plot_matrix(torch.rand(400, 400), [str(t) for t in range(400)])
    assert tick_texts(ax) == []
    assert max(ax.figure.get_size_inches()) < 15


def test_the_tree_above_the_matrix_joins_families_at_the_mean_distance_between_them():
    distances, names, groups = blocks([5, 4, 3])
    ax = plot_matrix(distances, names, groups=groups, title="twelve")
    order = [names.index(name) for name in tick_texts(ax)]
    tree = child(ax, "tree")
    branches = tree.collections[0].get_segments()
    assert len(branches) == 11
    top = max(branches, key=lambda branch: branch[:, 1].max())
    height = top[1, 1]
    # The leaves under the highest fork's left branch are on one side of it: a family, or two.
    left = [t for place, t in enumerate(order) if place < (top[0, 0] + top[3, 0]) / 2]
    right = [t for t in order if t not in left]
    assert {groups[t] for t in left}.isdisjoint(groups[t] for t in right)
    assert height == pytest.approx(float(distances[left][:, right].mean()))
    assert tree.get_xlim() == ax.get_xlim()
    ax.figure.canvas.draw()
    strip, above = child(ax, "groups top").get_window_extent(), tree.get_window_extent()
    assert strip.y1 <= above.y0
    assert above.y1 <= ax.title.get_window_extent().y0


@pytest.mark.parametrize("T", [1, 2])
def test_one_and_two_tasks_are_drawn(T):
    ax = plot_matrix(torch.rand(T, T), list("ab")[:T], groups=["g"] * T, title="few")
    ax.figure.canvas.draw()
    assert tick_texts(ax) == list("ab")[:T]


def test_names_are_text_only():
    names = ["$x_1$ costs $5", "two\nlines", "caf\udce9", "a" * 200]
    ax = plot_matrix(torch.rand(4, 4), names)
    ax.figure.canvas.draw()
    shown = sorted(tick_texts(ax))
    assert shown[0] == r"\$x_1\$ costs \$5"
    assert len(shown[1]) < 30
    assert shown[2] == r"caf\udce9"
    assert shown[3] == "two lines"


def test_cluster_order_is_a_permutation_that_ignores_the_diagonal_and_a_shift():
    distances = blocks([6, 5, 4])[0]
    order = cluster_order(distances)
    assert sorted(order) == list(range(15))
    assert cluster_order(distances - 1.0) == order
    assert cluster_order(distances + torch.eye(15)) == order
    assert [cluster_order(torch.zeros(T, T)) for T in (1, 2)] == [[0], [0, 1]]


def test_cluster_order_uses_both_directions():
    d = torch.full((3, 3), 5.0)
    d[0, 1], d[1, 0] = 0.0, 9.5  # near one way, far the other: 4.75 on average
    d[0, 2], d[2, 0] = 4.0, 4.0
    order = cluster_order(d)
    assert order.index(0) == 1  # between 1 and 2, near to both
    d[1, 0] = 90.0
    order = cluster_order(d)
    assert abs(order.index(0) - order.index(2)) == 1
    assert order.index(1) != 1
    assert cluster_order(d.T) == order


@pytest.mark.parametrize(
    ("distances", "names", "groups", "message"),
    [
        (torch.zeros(2, 3), ["a", "b"], None, r"\[T, T\] with T >= 1, got \[2, 3\]"),
        (torch.zeros(0, 0), [], None, r"got \[0, 0\]"),
        (torch.tensor([[0.0, torch.nan], [1.0, 0.0]]), ["a", "b"], None, "finite"),
        (torch.zeros(2, 2), ["a"], None, "expected 2 names, one per task, got 1"),
        (torch.zeros(2, 2), ["a", "b"], ["g"], "expected 2 groups, one per task, got 1"),
    ],
)
def test_plot_matrix_refuses(distances, names, groups, message):
    with pytest.raises(ValueError, match=message):
        plot_matrix(distances, names, groups=groups)


@pytest.mark.parametrize(("module", "blocked"), [("matplotlib", "matplotlib"), ("scipy", "scipy.cluster.hierarchy")])
def test_a_missing_library_names_the_extra(module, blocked, monkeypatch):
    monkeypatch.setitem(sys.modules, blocked, None)  # makes the import raise
    with pytest.raises(ImportError, match=rf'expected {module} .*pip install "task2vec_ext\[plot\]"'):
        plot_matrix(torch.rand(4, 4), list("abcd"))
