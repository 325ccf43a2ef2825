"""The robust Fisher as `fisher_embed` and the command line give it."""

import pytest
import torch
from PIL import Image
from small import TRAINABLE, Blobs, small_probe, small_resnet
from torch import nn

from task2vec_ext import EmbedSettings, distance_matrix, fisher_embed
from task2vec_ext.distance.comparable import check_comparable
from task2vec_ext.fisher.variational import VariationalSettings
from task2vec_ext.losses import PseudoLabels


def trainable():
    return small_probe(small_resnet(widths=TRAINABLE))


def embed(task=None, probe=None, *, loss="cross_entropy", seed=0, layers=None, **options):
    variational = VariationalSettings(**{"epochs": 2, "epoch_samples": 24} | options)
    settings = EmbedSettings(loss, "variational", seed=seed, layers=layers, variational=variational)
    return fisher_embed(task or Blobs(), probe or trainable(), settings=settings, progress=False)


def test_fisher_embed_gives_a_comparable_embedding_with_its_prior():
    result = embed(beta=1e-3, objective="authors", noise="weights")
    assert torch.equal(result.precision, result.fisher + result.prior)
    assert result.settings.estimator == "variational"
    assert result.settings.variational.beta == 1e-3
    assert len(result.epoch_nll) == 2
    assert result.prior_scale == pytest.approx(2e-3)
    assert (result.prior > 0).all()
    assert result.num_samples == 24
    assert torch.equal(embed(beta=1e-3, objective="authors", noise="weights").fisher, result.fisher)
    other = embed(beta=1e-3, objective="authors", noise="weights", seed=1)
    assert torch.isfinite(distance_matrix([result, other], "asym")).all()
    with pytest.raises(ValueError, match="variational epochs: 2 against 1"):
        check_comparable([result, embed(beta=1e-3, objective="authors", noise="weights", epochs=1)])
    with pytest.raises(ValueError, match="estimator: variational against signed"):
        check_comparable([result, fisher_embed(Blobs(), trainable(), progress=False)])


def test_the_command_line_embeds_and_keeps(tmp_path):
    from typer.testing import CliRunner

    from task2vec_ext import Library
    from task2vec_ext.cli import app

    for name in ("a", "b"):
        (tmp_path / "task" / name).mkdir(parents=True)
        for i in range(3):
            pixels = torch.randint(
                256, (20, 20, 3), generator=torch.Generator().manual_seed(i + 3 * (name == "b")), dtype=torch.uint8
            )
            Image.fromarray(pixels.numpy()).save(tmp_path / "task" / name / f"{i}.png")
    command = ["embed", str(tmp_path / "task"), "-o", str(tmp_path / "out"), "--probe", "tiny", "--estimator"]
    robust = [*command, "variational", "--epochs", "1", "--beta", "1e-3", "--noise", "weights"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            VariationalSettings, "epochs_of", lambda self, labels, seed: [torch.arange(len(labels))] * self.epochs
        )
        done = CliRunner().invoke(app, robust)
        assert done.exit_code == 0, done.output
    saved = Library(tmp_path / "out").embedding("task")
    assert saved.settings.variational == VariationalSettings(noise="weights", epochs=1, beta=1e-3)
    assert CliRunner().invoke(app, robust).exit_code == 0  # kept: ten thousand images would take a while
    other = CliRunner().invoke(app, [*robust[:-1], "activations"])
    assert "variational noise: weights against activations" in str(other.exception)
    refused = CliRunner().invoke(app, [*command, "signed", "--epochs", "2"])
    assert "expected --epochs with --estimator variational" in str(refused.exception)


def test_the_default_prior_is_that_of_every_estimator():
    torch.testing.assert_close(
        embed().prior, fisher_embed(Blobs(), trainable(), progress=False).prior, rtol=1e-6, atol=0
    )


def test_pseudo_labels_have_a_robust_fisher_and_several_labels_an_image_have_none():
    class Unlabelled(Blobs):
        def __getitem__(self, index):
            return self.images[index]

    result = embed(Unlabelled(), loss=PseudoLabels(num_clusters=2), epochs=1, epoch_samples=16)
    assert result.head.num_outputs == 2
    assert torch.isfinite(result.fisher).all()
    with pytest.raises(NotImplementedError, match="one class an image for 'variational', got 'multilabel'"):
        embed(loss="multilabel")


def test_what_does_not_go_together_is_refused_before_any_image_is_read():
    class Unread(Blobs):
        def __getitem__(self, index):
            raise AssertionError("read")

    with pytest.raises(ValueError, match="expected variational with estimator='variational' alone"):
        EmbedSettings(variational=VariationalSettings(epochs=2))
    with pytest.raises(ValueError, match="expected rel_error with a per-sample estimator"):
        EmbedSettings(estimator="variational", rel_error=0.1)
    settings = EmbedSettings(estimator="variational", include_batchnorm=True)
    with pytest.raises(ValueError, match="leave include_batchnorm off"):
        fisher_embed(Unread(), trainable(), settings=settings, progress=False)


def test_a_layer_of_one_weight_is_refused():
    net = nn.Sequential(nn.Conv2d(3, 3, 1, groups=3), nn.Conv2d(3, 2, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    net.append(nn.Linear(2, 2))
    probe = small_probe(net.eval(), "4")
    with pytest.raises(ValueError, match="those of '0' have 1 and no variance"):
        embed(probe=probe)
    embed(probe=probe, layers=["1"], epochs=1, epoch_samples=8)
