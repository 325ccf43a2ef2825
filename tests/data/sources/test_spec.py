import pytest
from layouts import cub, image

from task2vec_ext import Embedding, Task, as_task, fisher_embed
from task2vec_ext.data import Unlabelled
from task2vec_ext.data.sources import Tasks, tasks_from


def pets(folder):
    for i, name in enumerate(("cats/a.png", "dogs/b.png")):
        image(folder / name, i)
    return folder


def test_a_folder_needs_no_source(tmp_path):
    for spec in (str(pets(tmp_path / "pets")), f"folder:{tmp_path / 'pets'}"):
        (task,) = tasks_from(spec)
        assert (task.name, task.classes) == ("pets", ("cats", "dogs"))
        assert task.digest() == as_task(tmp_path / "pets").digest()


def test_a_folders_name_may_hold_anything(tmp_path):
    assert tasks_from(str(pets(tmp_path / "cub:x?y=[1]"))).names == ("cub:x?y=[1]",)


def test_a_pattern_gives_every_folder(tmp_path):
    for name in ("b", "a"):
        pets(tmp_path / name)
    (tmp_path / "notes.txt").touch()
    assert tasks_from(f"folder:{tmp_path}/*").names == ("a", "b")
    with pytest.raises(ValueError, match=r"folder: expected folders that match .*/z\*, got none"):
        tasks_from(f"{tmp_path}/z*")


def test_specs_are_joined_in_order(tmp_path):
    tasks = tasks_from(str(pets(tmp_path / "pets")), f"cub:{cub(tmp_path / 'cub', [1, 2, 9, 10])}")
    assert [task.name for task in tasks] == list(tasks.names)
    assert tasks.names == ("pets", "cub order Procellariiformes", "cub family Icteridae")
    assert tasks[-1].name == tasks[2].name == tasks.names[2]
    assert tasks[1:].names == tasks.names[1:]
    assert tasks[1:][1].name == tasks.names[2]
    with pytest.raises(IndexError):
        tasks[3]


def test_tasks_are_made_when_asked_for():
    made = []

    def make(index):
        made.append(index)
        return as_task([], name=str(index))

    tasks = Tasks.joined([Tasks(["0", "1"], make), Tasks(["2", "3"], make)])
    assert (len(tasks), made) == (4, [])
    assert [tasks[i].name for i in (3, -4)] == ["1", "0"]
    assert made == [1, 0]
    assert repr(tasks) == "Tasks(4: 0, 1, 2, …)"


def test_two_tasks_of_one_name_are_refused(tmp_path):
    first, second = pets(tmp_path / "1" / "pets"), pets(tmp_path / "2" / "pets")
    with pytest.raises(ValueError, match="expected every task to have a name of its own, got 'pets' more than once"):
        tasks_from(str(first), str(second))


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("cup:x", "expected one of folder, table, inat2017, .* before the colon of 'cup:x', got 'cup'"),
        ("cub:", "expected a path or name after cub:"),
        (
            "cub:x?lvl=order",
            r"options of cub \(level, split, min_classes, min_images, max_value\) in .*, got lvl; did you mean level\?",
        ),
        ("cub:x?min_pictures=20", r"got min_pictures; did you mean min_images\?"),
        ("imat2018:x?min_pictures=20", r"got min_pictures; did you mean min_images\?"),
        ("cub:x?level=order&level=family", "got level twice"),
        ("cub:x?min_images=few", "expected a whole number for min_images in .*, got 'few'"),
        ("torchvision:CIFAR10?train=maybe", "expected train=true or train=false in .*, got 'maybe'"),
        ("inat2018:x?year=2017", r"got year\.$"),
        ("nowhere", "expected a folder of class folders at nowhere, got nothing there"),
    ],
)
def test_a_spec_that_means_nothing_says_what_would(spec, message):
    with pytest.raises(ValueError, match=message):
        tasks_from(spec)


def test_an_embedding_keeps_what_its_task_is_about(tmp_path):
    (task,) = tasks_from(f"cub:{cub(tmp_path, [1, 2])}")
    embedding = fisher_embed(task, "tiny", progress=False)
    embedding.save(tmp_path / "birds.safetensors")
    loaded = Embedding.load(tmp_path / "birds.safetensors")
    assert loaded.name == "cub order Procellariiformes"
    assert loaded.classes == ("Black footed Albatross", "Laysan Albatross")
    assert loaded.metadata == task.metadata
    with pytest.raises(TypeError, match="not JSON serializable"):
        Task(task.source, name="x", metadata={"classes": {1, 2}})


def test_a_spec_may_name_its_tasks(tmp_path):
    first, second = pets(tmp_path / "1" / "train"), pets(tmp_path / "2" / "train")
    assert tasks_from(f"one={first}", f"my own={second}").names == ("one", "my own")
    tasks = tasks_from(f"one={tmp_path}/1/*", f"birds=cub:{cub(tmp_path, [1, 2])}?min_images=1")
    assert [task.name for task in tasks] == ["one", "birds"]
    pets(tmp_path / "1" / "other")
    assert tasks_from(f"one={tmp_path}/1/*").names == ("one other", "one train")
    assert tasks_from(str(pets(tmp_path / "a=b"))).names == ("a=b",)  # an existing folder is a folder
    with pytest.raises(ValueError, match=r"got 'train' more than once; .*NAME=PATH"):
        tasks_from(str(first), str(second))
    with pytest.raises(ValueError, match="expected a folder of class folders at nowhere"):
        tasks_from("one=nowhere")


def test_specs_take_another_target(tmp_path):
    image(tmp_path / "flat" / "a.png")
    (task,) = tasks_from(f"x={tmp_path / 'flat'}", target=Unlabelled())
    assert (task.name, len(task), task.target) == ("x", 1, Unlabelled())
