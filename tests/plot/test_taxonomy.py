import itertools

import numpy as np
import pytest

from task2vec_ext.plot import plot_taxonomy, read_taxonomy, taxonomic_distances

RANKS = ("kingdom", "class", "order", "family")


def lineage(text):
    return dict(zip(RANKS, text.split(), strict=False))


TREE = [
    [lineage("Animalia Aves Passeriformes Corvidae")],
    [lineage("Animalia Aves Passeriformes Paridae")],
    [lineage("Animalia Aves Piciformes Picidae")],
    [lineage("Animalia Mammalia Carnivora Felidae")],
    [lineage("Plantae Magnoliopsida Rosales Rosaceae")],
]


def test_taxonomic_distances_count_the_ranks_up_to_where_tasks_join():
    assert taxonomic_distances(TREE, RANKS)[0].tolist() == [0, 1, 2, 3, 4]


def test_the_nearest_classes_count_and_names_alone_do_not():
    mixed = [*TREE[0], *TREE[3]]
    found = taxonomic_distances([mixed, TREE[3], TREE[4]], RANKS)
    assert found[0].tolist() == [0, 0, 4]
    homonyms = [[lineage("Animalia Aves Oenanthe")], [lineage("Plantae Aves Oenanthe")]]
    assert taxonomic_distances(homonyms, RANKS)[0, 1] == 4
    with pytest.raises(ValueError, match="for every task, got none for task 1; leave it out"):
        taxonomic_distances([TREE[0], [{"tribe": "Corvini"}]], RANKS)


def test_a_rank_that_is_not_known_joins_nobody():
    placed = [[lineage("Animalia Aves")], [{"kingdom": "Animalia", "class": "Aves", "family": "Corvidae"}], TREE[0]]
    assert taxonomic_distances(placed, RANKS)[0].tolist() == [0, 2, 2]
    assert taxonomic_distances(placed, RANKS)[1, 2] == 2  # the same family, but placed in no order


def test_the_table_is_read_by_its_columns(tmp_path):
    file = tmp_path / "taxonomy.csv"
    file.write_text("task,class,order\nbirds,Aves,Passeriformes\nbirds,Aves,NA\nplants,,\n", encoding="utf-8")
    ranks, lineages = read_taxonomy(file)
    assert ranks == ("class", "order")
    assert lineages == {"birds": [{"class": "Aves", "order": "Passeriformes"}, {"class": "Aves"}]}
    file.write_text("name,order\nbirds,Aves\n")
    with pytest.raises(ValueError, match=r"expected columns task and ranks, highest first, .* got name, order"):
        read_taxonomy(file)
    with pytest.raises(ValueError, match="which does not exist"):
        read_taxonomy(tmp_path / "none.csv")


def lines(ax):
    return {line.get_label(): np.asarray(line.get_ydata()) for line in ax.get_lines()}


def test_the_curve_is_the_mean_over_tasks_of_their_k_nearest():
    steps = taxonomic_distances(TREE, RANKS)
    distances = np.random.default_rng(0).random((5, 5))
    found = lines(plot_taxonomy(distances, steps))
    for k in range(1, 5):
        means = []
        for j in range(5):
            near = sorted((i for i in range(5) if i != j), key=lambda i: distances[i, j])[:k]
            means.append(np.mean([steps[i, j] for i in near]))
        assert found["k nearest"][k - 1] == pytest.approx(np.mean(means))
    others = [steps[i, j] for i, j in itertools.permutations(range(5), 2)]
    assert found["chance"][0] == pytest.approx(np.mean(others))
    assert found["k nearest"][-1] == pytest.approx(np.mean(others))


def test_no_order_is_below_the_taxonomy_s_own_and_that_one_is_on_it():
    steps = taxonomic_distances(TREE, RANKS)
    found = lines(plot_taxonomy(np.random.default_rng(1).random((5, 5)), steps))
    assert (found["taxonomy's own order"] <= found["k nearest"] + 1e-12).all()
    own = lines(plot_taxonomy(steps + 0.1, steps))
    np.testing.assert_allclose(own["k nearest"], own["taxonomy's own order"])


def test_ranks_name_the_distances():
    steps = taxonomic_distances(TREE, RANKS)
    ax = plot_taxonomy(steps, steps, ranks=RANKS, title="birds and others")
    texts = [label.get_text() for label in ax.get_yticklabels()]
    assert texts[:2] == ["0: same family", "1: same order"]
    assert ax.get_xlim() == (1, 4)
    assert ax.get_title() == "birds and others"


def test_plot_taxonomy_takes_two_tasks_and_refuses_one():
    assert len(lines(plot_taxonomy(np.ones((2, 2)), np.ones((2, 2))))["k nearest"]) == 1
    with pytest.raises(ValueError, match="two or more tasks"):
        plot_taxonomy(np.zeros((1, 1)), np.zeros((1, 1)))
    with pytest.raises(ValueError, match="expected 3 rows of taxonomic distances"):
        plot_taxonomy(np.zeros((3, 3)), np.zeros((2, 2)))
