import numpy as np
import pytest
from families import embedding, families

from task2vec_ext import norm_with_error
from task2vec_ext.plot import plot_norms


def points(ax):
    return np.concatenate(
        [one.get_offsets() for one in ax.collections if len(one.get_offsets()) and one.get_label()[0] != "_"]
    )


def test_points_are_norm_and_loss_with_the_interval_of_the_norm():
    tasks = families(3, 2)
    ax = plot_norms(tasks, groups=[e.metadata["domain"] for e in tasks])
    np.testing.assert_allclose(points(ax), [[e.norm, e.head.nll] for e in tasks])
    bars = np.array([segment for segment in ax.collections[0].get_segments()])
    for task, bar in zip(tasks, bars, strict=True):
        low, high = norm_with_error(task).interval()
        np.testing.assert_allclose(bar, [[low, task.head.nll], [high, task.head.nll]])
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["family 0", "family 1"]
    assert (ax.get_xscale(), ax.get_yscale()) == ("log", "log")
    assert "Spearman" in ax.get_title()
    assert {text.get_text() for text in ax.texts} <= {e.name for e in tasks}


def test_errors_of_another_measure_and_embeddings_without_error_bars():
    tasks = families(2, 2, groups=False)
    errors = [0.0, 0.1, 0.2, 0.4]
    ax = plot_norms(iter(tasks), errors, title="test error")
    np.testing.assert_allclose([y for _, y in ax.collections[1].get_offsets()], errors)
    assert ax.get_yscale() == "linear"  # one of them is zero
    assert all(segment[0, 0] == segment[1, 0] for segment in ax.collections[0].get_segments())
    assert ax.get_title() == "test error"


@pytest.mark.parametrize("count", [1, 2])
def test_one_and_two_tasks_are_drawn(count):
    ax = plot_norms(families(count))
    ax.figure.canvas.draw()
    assert len(ax.texts) == count


def test_plot_norms_refuses():
    with pytest.raises(ValueError, match="got 0 embeddings"):
        plot_norms([])
    with pytest.raises(ValueError, match="as many groups, got 1 embeddings and 2 groups"):
        plot_norms([embedding(0)], groups=["a", "b"])
    with pytest.raises(ValueError, match="as many errors, got 1 embeddings and 3 errors"):
        plot_norms([embedding(0)], [1, 2, 3])
