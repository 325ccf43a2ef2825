"""`fisher_embed` with targets that are not one class an image."""

import pytest
import torch
from cases import assert_near
from PIL import Image
from small import Blobs, assert_untouched, small_probe, small_resnet, state_of

from task2vec_ext import Embedding, EmbedSettings, HeadSettings, distance_matrix, fisher_embed, load_probe
from task2vec_ext.data import Batch
from task2vec_ext.demo.tasks import demo_tasks
from task2vec_ext.fisher.head import fit_head
from task2vec_ext.fisher.per_sample import per_sample_fisher
from task2vec_ext.losses import CrossEntropy, Dense, MultiLabel, PseudoLabels, Regression
from task2vec_ext.probe.folding import FoldedProbe, fold

N = 24


class With(torch.utils.data.Dataset):
    """The images of `Blobs` with other targets."""

    def __init__(self, targets, side=12):
        self.images = Blobs(N, side=side).images
        self.given = targets

    def __len__(self):
        return N

    def __getitem__(self, index):
        return self.images[index], self.given[index]


def generator():
    return torch.Generator().manual_seed(0)


def masks(side=12):
    """Two classes divided by a line, and a corner that nobody has labelled."""
    mask = torch.arange(side).repeat(side, 1) < torch.arange(N)[:, None, None] % side
    mask = mask.long()
    mask[:, : side // 2, : side // 2] = 255
    return mask


def multi_hot():
    hot = (torch.rand(N, 4, generator=generator()) < 0.4).float()
    hot[3, 1] = -1
    return hot


TASKS = {
    "multilabel": (With(multi_hot()), "multilabel", 4),
    "regression": (With(torch.randn(N, 2, generator=generator()).numpy()), Regression(noise="residual"), 2),
    "dense": (With(masks()), Dense(), 2),
    "pseudo_labels": (With(["?"] * N), PseudoLabels(num_clusters=3), 3),
}


def embed(task, loss, probe=None, *, layers=None, head=None, **options) -> Embedding:
    settings = EmbedSettings(layers=layers, head=HeadSettings(**(head or {})))
    return fisher_embed(task, probe or small_probe(), settings=settings, loss=loss, progress=False, **options)


@pytest.fixture(params=TASKS)
def case(request):
    if request.param == "pseudo_labels":
        pytest.importorskip("sklearn")
    return TASKS[request.param]


def test_the_embedding_is_the_mean_of_the_per_sample_fisher_at_the_fitted_head(case):
    task, loss, outputs = case
    result = embed(task, loss, batch_size=7, head={"cross_fit": None})
    loss = MultiLabel() if loss == "multilabel" else loss
    probe = loss.tap(small_probe())
    z = probe.features(task.images).detach()
    read = torch.stack([torch.as_tensor(loss.target.read(t, who="", where="")) for t in task.given])
    order = torch.randperm(N, generator=torch.Generator().manual_seed(~0))  # that in which they are read: k-means minds
    targets = torch.empty_like(prepared := loss.prepare(loss.align(read, z)[order], z[order], 0)[0])
    targets[order] = prepared
    head = fit_head(z, targets, outputs, loss=loss)
    rows = per_sample_fisher(probe, probe.layers(), head, Batch(torch.arange(N), task.images, targets))
    assert_near(result.fisher, rows.mean(0), 1e-5)
    assert (result.head.num_outputs, result.head.metric) == (outputs, loss.metric)
    assert result.head.score == pytest.approx(head.score)
    assert result.fisher.min() >= 0 < result.norm


def test_the_same_seed_gives_the_same_bits_whatever_the_workers_and_nearly_so_whatever_the_batch(case):
    task, loss, _ = case
    one, again = (embed(task, loss, num_workers=workers, batch_size=6) for workers in (0, 2))
    assert torch.equal(one.fisher, again.fisher)
    assert_near(embed(task, loss, batch_size=24).fisher, one.fisher, 1e-5)


@pytest.mark.parametrize("name", ["multilabel", "regression", "dense"])  # another seed, other clusters
def test_the_norm_of_signed_is_that_of_exact_within_4_standard_errors(name):
    task, loss, _ = TASKS[name]
    exact = embed(task, loss, estimator="exact").norm
    norms = torch.tensor([embed(task, loss, seed=seed).norm for seed in range(10)])
    assert (norms.mean() - exact).abs() <= 4 * norms.std() / 10**0.5


def test_a_part_of_the_images_is_drawn_at_random_and_the_probe_comes_back(case, tmp_path):
    task, loss, _ = case
    probe = small_probe()
    before = state_of(probe.module)
    result = embed(task, loss, probe, num_samples=20, seed=1)
    assert_untouched(probe.module, before)
    assert result.num_samples == 20
    result.save(tmp_path / "x.safetensors")
    loaded = Embedding.load(tmp_path / "x.safetensors")
    assert loaded.head == result.head
    assert loaded.settings == result.settings


def test_embeddings_of_different_losses_refuse_to_be_compared():
    pytest.importorskip("sklearn")
    plain = embed(Blobs(N), "cross_entropy")
    for name in ("regression", "dense", "pseudo_labels"):
        with pytest.raises(ValueError, match=f"differ in loss: cross_entropy against {name}"):
            distance_matrix([plain, embed(*TASKS[name][:2])])
    task = TASKS["regression"][0]
    with pytest.raises(ValueError, match="loss noise: None against residual"):
        distance_matrix([embed(task, Regression()), embed(task, Regression(noise="residual"))])
    with pytest.raises(ValueError, match=r"loss label_smoothing: None against 0\.1"):
        distance_matrix([plain, embed(Blobs(N), CrossEntropy(label_smoothing=0.1))])
    other = embed(Blobs(N), CrossEntropy(class_weights=(1, 2, 3)))  # belongs to this task's classes
    assert distance_matrix([plain, other])[0, 1] < 0.1


def test_a_task_is_near_itself_as_a_multilabel_task_and_far_from_another():
    pytest.importorskip("sklearn")  # the demo's handwriting comes from there
    embeddings = []
    for wanted, classes in (("polygons", 4), ("stars", 3)):
        task = next(task for task in demo_tasks() if task.name == wanted)
        items = [task[i] for i in range(0, len(task), 4)]
        hot = [(image, torch.eye(classes)[label]) for image, label in items]
        for pairs, loss in ((items, "cross_entropy"), (hot, "multilabel")):
            embeddings.append(embed(pairs, loss, load_probe("tiny"), estimator="exact"))
    distances = distance_matrix(embeddings)
    assert max(distances[0, 1], distances[2, 3]) < 0.1  # measured 0.02
    assert distances[:2, 2:].min() > 0.2  # measured 0.28


def test_pseudo_labels_are_the_labels_of_the_clusters_and_bear_no_class_names():
    cluster = pytest.importorskip("sklearn.cluster")
    blobs = Blobs(N)
    blobs.classes = ["red", "green", "blue"]
    z = small_probe().features(blobs.images).detach()
    labels = cluster.KMeans(3, n_init=10, random_state=5).fit_predict(z.double().numpy())
    seed = 2**40 + 5  # scikit-learn takes 32 bits of it
    pseudo = embed(blobs, PseudoLabels(num_clusters=3), estimator="empirical", seed=seed)
    blobs.targets = torch.from_numpy(labels).long()
    assert_near(pseudo.fisher, embed(blobs, "cross_entropy", estimator="empirical", seed=seed).fisher, 1e-6)
    assert pseudo.classes is None
    assert pseudo.settings.loss == PseudoLabels(num_clusters=3)


def test_one_binary_label_is_a_task_of_two_classes():
    """σ(f) is softmax(0, f); the penalty of two tied rows is half that of one."""
    blobs = Blobs(N, classes=2)
    two = embed(blobs, "cross_entropy", estimator="exact", head={"l2": 2e-2})
    labels = With(blobs.targets[:, None])
    labels.images = blobs.images
    one = embed(labels, "multilabel", estimator="exact", head={"l2": 1e-2})
    assert_near(one.fisher, two.fisher, 1e-4)


def test_dense_masks_follow_the_images_through_the_preprocessing(tmp_path):
    tiny, pairs = load_probe("tiny"), []
    for i in range(6):
        image = torch.full((60, 80, 3), 40 * i, dtype=torch.uint8)
        image[:, : 20 + 8 * i] = 255
        path = tmp_path / f"{i}.png"
        Image.fromarray(image.numpy()).save(path)
        pairs.append((path, (image[..., 0] == 255).to(torch.uint8).numpy()))
    result = embed(pairs, "dense", tiny)
    assert result.head.num_outputs == 2
    assert result.head.score > 0.9
    assert len(result) == 1080


def test_an_earlier_feature_map_leaves_out_what_comes_after_it_and_is_folded():
    loss, probe = Dense(pool="layer4"), small_probe()
    tapped = loss.tap(probe)
    names = [layer.name for layer in tapped.layers()]
    assert names
    assert not any(name.startswith("layer4") for name in names)
    images = Blobs(2).images
    assert tapped.features(images).shape == (2, 3, 3, 8)
    faster = fold(tapped, tapped.layers(), images)
    assert isinstance(faster, FoldedProbe)
    assert_near(faster.features(images), tapped.features(images), 1e-5)
    assert embed(With(masks()), loss, probe).layers == tuple(tapped.layers())


@pytest.mark.parametrize(
    ("task", "loss", "options", "message"),
    [
        (
            With(masks(48), side=48),
            Dense(pool="layer2"),
            {"estimator": "exact", "layers": ["conv1", "layer1"]},
            "at most 1024 backward passes .*4,608",
        ),
        (With(masks()), Dense(pool="neck"), {}, "a module named 'neck'"),
        (With(masks()), Dense(pool="fc"), {}, r"a feature map \[B, D, h, w\] at 'fc'"),
        (Blobs(), "multilabel", {}, "multi-hot tensor"),
        (Blobs(), "regresion", {}, "loss to be one of"),
        (Blobs(), "regression", {"head": {"class_balanced": True}}, "class_balanced with classes"),
        (With(torch.ones(N, 3)), "multilabel", {}, "label 0 is 1 for every image"),
    ],
)
def test_what_is_no_task_of_the_loss_is_refused(task, loss, options, message):
    with pytest.raises((ValueError, TypeError), match=message):
        embed(task, loss, **options)


def test_a_network_without_global_pooling_says_what_to_name():
    net = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.Flatten(), torch.nn.Linear(4 * 100, 2)).eval()
    with pytest.raises(ValueError, match=r"loss=Dense\(pool="):
        embed(With(masks()), "dense", small_probe(net, "2"))


def test_float64_networks_too():
    task, loss, _ = TASKS["dense"]
    wide = embed(task, loss, small_probe(small_resnet().double()))
    assert_near(wide.fisher, embed(task, loss).fisher, 1e-4)
