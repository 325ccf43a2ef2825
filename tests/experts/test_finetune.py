import os
import resource
import signal
from dataclasses import replace

import pytest
import torch
from small import QUICK, TRAINABLE, Blobs, assert_untouched, small_probe, small_resnet, state_of

from task2vec_ext import Probe, Task, Task2VecWarning, as_task
from task2vec_ext.experts.finetune import fine_tune
from task2vec_ext.experts.recipe import RECIPES, as_recipe


def trainable() -> Probe:
    return small_probe(small_resnet(widths=TRAINABLE))


def blobs(n: int = 24, noise: float = 3.0, seed: int = 0) -> Task:
    return as_task(Blobs(n=n, noise=noise, seed=seed), name="blobs")


def weights(tuned) -> dict:
    return tuned.probe.module.state_dict()


def assert_equal(one: dict, other: dict) -> None:
    assert one.keys() == other.keys()
    for name in one:
        assert torch.equal(one[name], other[name]), name


def test_all_weights_are_trained_and_the_probe_stays_as_it_was():
    probe = trainable()
    before, random = state_of(probe.module), torch.get_rng_state()
    tuned = fine_tune(probe, blobs(), blobs(9), QUICK)
    assert_untouched(probe.module, before)
    assert torch.equal(torch.get_rng_state(), random)
    after = tuned.probe.module
    assert not any(module.training for module in after.modules())
    assert all(not torch.equal(a, b) for a, b in zip(probe.module.parameters(), after.parameters(), strict=True))
    assert tuned.probe.fingerprint != probe.fingerprint
    assert tuned.epochs[-1].train_nll < tuned.epochs[0].train_nll


def test_the_head_is_of_the_tasks_classes_and_fitted_before_the_first_epoch():
    task = as_task(Blobs(n=40, classes=5, noise=0.1), name="five")
    still = replace(QUICK, epochs=1, learning_rate=1e-9, batch_statistics=False)
    tuned = fine_tune(trainable(), task, task, still)
    head = tuned.probe.module.fc
    assert (head.out_features, head.bias.shape) == (5, (5,))
    assert tuned.best.error == 0  # noise 0.1: linearly separable; a random head would be wrong on 4 of 5


def test_the_head_is_fitted_by_the_recipe_s_method():
    heads = {}
    for method in ("adam", "lbfgs"):
        still = replace(QUICK, head=method, epochs=1, learning_rate=1e-9)
        heads[method] = fine_tune(trainable(), blobs(), blobs(9), still).probe.module.fc.weight
    assert not torch.equal(heads["adam"], heads["lbfgs"])


def test_the_best_epoch_is_kept():
    # Steps much too large: what is held out suffers in some epochs.
    recipe = replace(QUICK, epochs=6, learning_rate=0.3, schedule="step")
    held_out = blobs(30)
    tuned = fine_tune(trainable(), blobs(), held_out, recipe)
    assert tuned.best == min(tuned.epochs, key=lambda epoch: (epoch.error, epoch.nll))
    assert len({epoch.nll for epoch in tuned.epochs}) == 6
    images, labels = (torch.stack([held_out.source.images[i] for i in range(30)]), held_out.source.targets)
    with torch.no_grad():
        wrong = (tuned.probe.module(images).argmax(1) != labels).double().mean()
    assert float(wrong) == pytest.approx(tuned.best.error)


@pytest.mark.parametrize("follow", [True, False])
def test_batchnorm_follows_the_batches_or_keeps_its_statistics(follow):
    probe = trainable()
    tuned = fine_tune(probe, blobs(), blobs(6), replace(QUICK, epochs=1, batch_statistics=follow))
    assert torch.equal(probe.module.bn1.running_mean, tuned.probe.module.bn1.running_mean) is not follow


def test_a_last_batch_of_one_image_is_left_out():
    fine_tune(trainable(), blobs(25), blobs(6), replace(QUICK, epochs=1))  # 3 · 8 + 1


def test_a_training_killed_after_any_epoch_ends_with_the_same_weights(tmp_path):
    whole = fine_tune(trainable(), blobs(), blobs(9), QUICK)
    for epochs in range(1, 4):
        file = tmp_path / f"{epochs}.pt"
        child = os.fork()
        if child == 0:
            torch.set_num_threads(1)
            passes = []

            def kill(what, total, passes=passes, epochs=epochs):
                passes.append(what)
                if what == f"blobs: epoch {epochs + 1} of 4":
                    os.kill(os.getpid(), signal.SIGKILL)
                from contextlib import nullcontext

                return nullcontext(lambda n: None)

            fine_tune(trainable(), blobs(), blobs(9), QUICK, checkpoint=file, progress=kill)
            os._exit(0)
        assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
        done = len(torch.load(file, weights_only=True)["epochs"])
        assert done == epochs
        resumed = fine_tune(trainable(), blobs(), blobs(9), QUICK, checkpoint=file)
        assert resumed.epochs == whole.epochs
        assert_equal(weights(resumed), weights(whole))


def test_a_full_disk_is_told_with_the_file(tmp_path):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))  # as a full disk, but with another number
    try:
        with pytest.raises(OSError, match=r"could not write .*checkpoint\.pt: File too large; nothing was written"):
            fine_tune(trainable(), blobs(), blobs(9), QUICK, checkpoint=tmp_path / "checkpoint.pt")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list(tmp_path.iterdir()) == []


class Broken(Blobs):
    """Blobs of which every fifth image cannot be read."""

    def __getitem__(self, index):
        if index % 5 == 0:
            raise OSError("damaged")
        return super().__getitem__(index)


def test_unreadable_images_are_left_out_and_named(tmp_path):
    train, held_out = as_task(Broken(n=30), name="train"), as_task(Broken(n=12), name="rest")
    with pytest.raises(ValueError, match="damaged"):
        fine_tune(trainable(), train, held_out, QUICK)
    with pytest.warns(Task2VecWarning, match=r"left out (6 of 30|3 of 12) images of '\w+' .*: image 0.*damaged"):
        skipped = fine_tune(trainable(), train, held_out, QUICK, on_error="skip")
    readable = [index for index in range(30) if index % 5]
    without = as_task([Blobs(n=30)[index] for index in readable], name="train")
    rest = as_task([Blobs(n=12)[index] for index in range(12) if index % 5], name="rest")
    expected = fine_tune(trainable(), without, rest, QUICK)
    assert [e.error for e in skipped.epochs] == [e.error for e in expected.epochs]
    # Not to the bit: an image's features depend on its batch by rounding.
    assert [e.nll for e in skipped.epochs] == pytest.approx([e.nll for e in expected.epochs], rel=1e-4)


def test_another_seed_gives_other_weights():
    one, other = (fine_tune(trainable(), blobs(), blobs(9), QUICK, seed=seed) for seed in (0, 1))
    assert not torch.equal(one.probe.module.conv1.weight, other.probe.module.conv1.weight)


def test_a_checkpoint_of_another_training_and_a_damaged_one_are_refused(tmp_path):
    file = tmp_path / "checkpoint.pt"
    fine_tune(trainable(), blobs(), blobs(9), replace(QUICK, epochs=1), checkpoint=file)
    with pytest.raises(ValueError, match=r"one of another \(seed, recipe differ\)"):
        fine_tune(trainable(), blobs(), blobs(9), QUICK, seed=1, checkpoint=file)
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(ValueError, match="could not read it"):
        fine_tune(trainable(), blobs(), blobs(9), QUICK, checkpoint=file)


def test_a_loss_that_is_not_finite_is_told():
    with pytest.raises(RuntimeError, match=r"expected a finite loss, got .* lower the learning rate"):
        fine_tune(trainable(), blobs(), blobs(9), replace(QUICK, learning_rate=1e8, momentum=0.0))


def test_nothing_held_out_is_refused():
    with pytest.raises(ValueError, match="images held out of 'blobs', got none"):
        fine_tune(trainable(), blobs(), as_task([]), QUICK)


def test_the_papers_recipe_divides_its_rate_by_ten_after_epoch_40_of_60():
    paper = RECIPES["paper"]
    rates = [paper.rate(epoch / 60) for epoch in range(60)]
    assert rates == pytest.approx([1e-3] * 40 + [1e-4] * 20)
    assert (paper.head, paper.weight_decay) == ("adam", 5e-4)


def test_the_cosine_goes_to_zero():
    rates = [QUICK.rate(done / 100) for done in range(100)]
    assert rates[0] == QUICK.learning_rate
    assert rates == sorted(rates, reverse=True)
    assert rates[-1] < 1e-3 * rates[0]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("epochs", 0),
        ("learning_rate", 0.0),
        ("schedule", "linear"),
        ("momentum", 1.0),
        ("batch_size", 1),
        ("shift", 0.5),
        ("head", "sgd"),
        ("weight_decay", -1.0),
    ],
)
def test_impossible_recipes_are_refused(field, value):
    with pytest.raises(ValueError, match=f"Recipe: expected {field} as"):
        replace(QUICK, **{field: value})


def test_an_unknown_recipe_is_refused():
    with pytest.raises(ValueError, match="expected 'paper', 'quick' or a Recipe, got 'fast'"):
        as_recipe("fast")
