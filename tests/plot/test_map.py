import numpy as np
import pytest
import torch
from matplotlib.text import Text
from synthetic import blocks

from task2vec_ext.plot import map_positions, plot_map


def pair_distances(places):
    return np.linalg.norm(places[:, None] - places, axis=-1)


@pytest.mark.parametrize("method", ["tsne", "umap"])
def test_the_nearest_on_the_map_are_of_the_same_family(method):
    if method == "umap":
        pytest.importorskip("umap")
    distances, _, groups = blocks([12, 10, 8])
    places = map_positions(distances, method)
    assert places.shape == (30, 2)
    assert np.linalg.norm(places, axis=1).max() == pytest.approx(1)
    apart = pair_distances(places) + 9 * np.eye(30)
    assert all(groups[i] == groups[j] for i, j in enumerate(apart.argmin(1)))
    assert np.array_equal(map_positions(distances, method), places)
    assert np.ptp(places[:, 0]) >= np.ptp(places[:, 1]) * 0.7  # it reaches farthest along x, or nearly


@pytest.mark.parametrize("T", [1, 2, 3, 5])
def test_few_tasks_are_as_far_apart_as_their_distances_are(T):
    true = np.random.default_rng(0).normal(size=(T, 2))
    places = map_positions(pair_distances(true))
    assert places.shape == (T, 2)
    apart = pair_distances(places)
    expected = pair_distances(true)
    np.testing.assert_allclose(apart * max(expected.max(), 1e-9), expected * max(apart.max(), 1e-9), atol=1e-9)


def test_equal_tasks_and_negative_distances_are_placed():
    assert np.isfinite(map_positions(np.zeros((9, 9)))).all()
    distances = blocks([6, 6])[0] - 0.3
    assert np.isfinite(map_positions(distances)).all()


def test_every_group_is_drawn_in_its_own_look_with_a_legend():
    distances, names, groups = blocks([5, 4, 3])
    ax = plot_map(distances, names, groups=groups, title="twelve")
    drawn = {one.get_label(): one for one in ax.collections}
    assert sorted(drawn) == sorted(set(groups))
    places = map_positions(distances)
    for group, points in drawn.items():
        own = [i for i, g in enumerate(groups) if g == group]
        np.testing.assert_allclose(points.get_offsets(), places[own])
    assert len({tuple(one.get_facecolor()[0]) for one in drawn.values()}) == 3
    assert [text.get_text() for text in ax.get_legend().get_texts()] == sorted(set(groups))
    assert ax.get_title() == "twelve"
    limits = np.array([ax.get_xlim(), ax.get_ylim()])
    rims = np.stack([places.min(0) - limits[:, 0], limits[:, 1] - places.max(0)])
    assert (rims > 0.1).all()
    np.testing.assert_allclose(rims[0], rims[1])


@pytest.mark.parametrize("sizes", [[1], [1, 1], [5, 4, 3], [60, 40, 50]], ids=sum)
def test_names_cover_neither_each_other_nor_points_and_stay_inside(sizes):
    distances, names, groups = blocks(sizes)
    ax = plot_map(distances, [f"{name} of a longer name" for name in names], groups=groups)
    ax.figure.canvas.draw()
    # Text alone: an annotation's own extent has its arrow in it.
    boxes = [Text.get_window_extent(text) for text in ax.texts]
    assert min(sum(sizes), 12) <= len(boxes)
    assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])
    points = ax.transData.transform(map_positions(distances))
    assert not any(box.contains(*point) for box in boxes for point in points)
    frame = ax.get_window_extent()
    assert all(frame.x0 <= box.x0 and box.x1 <= frame.x1 and frame.y0 <= box.y0 and box.y1 <= frame.y1 for box in boxes)


def test_plot_map_refuses():
    with pytest.raises(ValueError, match=r"plot_map: expected 2 names, one per task, got 1"):
        plot_map(torch.zeros(2, 2), ["a"])
    with pytest.raises(ValueError, match="one of tsne, umap; got 'pca'"):
        map_positions(torch.zeros(2, 2), "pca")
