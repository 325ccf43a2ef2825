import numpy as np
import pytest
import torch
from families import LAYERS, embedding, families

from task2vec_ext import with_error
from task2vec_ext.plot import plot_layers


def test_each_task_is_a_line_of_its_layers_means_with_intervals():
    tasks = families(1, 1)
    ax = plot_layers(tasks, title="two")
    assert [label.get_text() for label in ax.get_xticklabels()] == [layer.name for layer in LAYERS]
    assert ax.get_yscale() == "log"
    for task, line, bars in zip(tasks, ax.get_lines(), ax.collections, strict=True):
        assert line.get_label() == task.name
        np.testing.assert_allclose(line.get_ydata(), [task.layer(layer.name).mean() for layer in LAYERS])
        low, high = with_error(lambda fisher: fisher[: LAYERS[0].stop].mean(), task, log=True).interval()
        np.testing.assert_allclose(bars.get_segments()[0][:, 1], [low, high], rtol=1e-6)
    first, second = (line.get_xdata() for line in ax.get_lines())
    assert (first < second).all()  # beside each other
    assert len({line.get_color() for line in ax.get_lines()}) == 2
    assert [text.get_text() for text in ax.get_legend().get_texts()] == [task.name for task in tasks]


def test_a_dead_layer_has_no_point_and_no_error_bars_are_no_bars():
    import dataclasses

    task = embedding(0, groups=False)
    dead = dataclasses.replace(task, fisher=torch.cat([torch.zeros(8).double(), task.fisher[8:]]))
    ax = plot_layers([dead])
    assert np.isnan(ax.get_lines()[0].get_ydata()).tolist() == [True, False]
    assert len(ax.collections) == 0


def test_plot_layers_refuses():
    with pytest.raises(ValueError, match="one to 8 embeddings, got 0"):
        plot_layers([])
    with pytest.raises(ValueError, match="one to 8 embeddings, got 9"):
        plot_layers([embedding(0)] * 9)
