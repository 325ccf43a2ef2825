import re

import pytest
from command import run
from safetensors.torch import save_file

from task2vec_ext import fisher_embed, load_probe
from task2vec_ext.experts import recipe
from task2vec_ext.experts.errors import ErrorMatrix
from task2vec_ext.experts.expert import experts_in


@pytest.fixture
def quick(monkeypatch):
    """The quick recipe, quicker."""
    monkeypatch.setitem(recipe.RECIPES, "quick", recipe.Recipe("lbfgs", 2, 1e-2, "cosine", batch_size=4))


def test_train_ls_register_transfer(capsys, folders, tmp_path, quick):
    experts, tiny = tmp_path / "experts", ("--probe", "tiny")
    train = ("expert", "train", *folders[:2], "-o", experts, *tiny, "--recipe", "quick")
    code, out, _ = run(capsys, *train)
    assert code == 0
    assert re.search(r"^task0: held-out error \d+\.\d% after epoch [12]\ntask1: ", out)
    assert experts_in(experts)[0].embedding.fisher.shape == (1080,)
    assert run(capsys, *train)[1] == out  # there already

    save_file(load_probe("tiny").module.state_dict(), tmp_path / "kinds.safetensors")
    fisher_embed(folders[2], "tiny", progress=False).save(tmp_path / "embedding.safetensors")
    weights = tmp_path / "kinds.safetensors"
    code, _, error = run(capsys, "expert", "register", "kinds", weights, "-o", experts, "--probe", "resnet18")
    assert code == 1
    assert error.startswith("task2vec: error: load_probe: expected a checkpoint that fits resnet18")

    code, out, _ = run(capsys, "expert", "ls", experts)
    assert code == 0
    assert re.search(r"task0 +tiny +2 +10 +\d+\.\d% +yes", out)

    errors = tmp_path / "errors.csv"
    code, out, _ = run(capsys, "expert", "transfer", folders[2], "--experts", experts, "-o", errors, *tiny)
    assert code == 0
    found = ErrorMatrix.read_csv(errors)
    assert (found.experts, found.tasks) == (("task0", "task1", "imagenet"), ("task2",))
    assert f"{float(found.errors.min()):.1%}" in out


def test_any_checkpoint_is_registered_with_its_embedding(capsys, folders, tmp_path):
    from torchvision.models import resnet18

    save_file(resnet18(num_classes=4).state_dict(), tmp_path / "mine.safetensors")
    fisher_embed(folders[2], "tiny", progress=False).save(tmp_path / "embedding.safetensors")
    code, out, _ = run(
        *(capsys, "expert", "register", "mine", tmp_path / "mine.safetensors", "-o", tmp_path / "experts"),
        *("--probe", "resnet18", "--image-size", 64, "--embedding", tmp_path / "embedding.safetensors"),
    )
    assert code == 0
    assert out.startswith("mine: 4 classes")
    (expert,) = experts_in(tmp_path / "experts")
    assert expert.probe().preprocess.crop == 64
    assert expert.embedding.name == "task2"


def test_mistakes_are_one_line(capsys, folders, tmp_path):
    for arguments, message in (
        (["ls", tmp_path / "none"], "expected a folder of experts, found none"),
        (["transfer", folders[0], "--experts", tmp_path, "-o", tmp_path / "e.csv"], "at least one expert"),
        (["train", tmp_path / "none", "-o", tmp_path / "x", "--probe", "tiny"], "nothing there"),
    ):
        code, out, error = run(capsys, "expert", *arguments)
        assert (code, out) == (1, "")
        assert error.startswith("task2vec: error: ")
        assert error.count("\n") == 1
        assert message in error
    assert list(tmp_path.iterdir()) == []
