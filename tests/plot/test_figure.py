"""What plots share: the file, short names, fonts, the looks of groups."""

import os
import warnings

import pytest
import torch
from synthetic import blocks

from task2vec_ext.plot import figure, plot_matrix, save_figure
from task2vec_ext.plot.figure import MOST_GROUPS, looks, shorten


@pytest.mark.parametrize(
    ("name", "length", "expected"),
    [
        ("short", 5, "short"),
        ("abcdefghij", 7, "abc…hij"),
        ("abcdefghij", 6, "abc…ij"),
        ("Käferöl-鳥-1", 5, "Kä…-1"),
        ("ab", 1, "…"),
    ],
)
def test_shorten_keeps_both_ends(name, length, expected):
    assert shorten(name, length) == expected
    assert len(shorten(name, length)) <= length


@pytest.mark.parametrize(("suffix", "magic"), [("png", b"\x89PNG"), ("svg", b"<?xml"), ("PDF", b"%PDF")])
def test_save_figure_writes_the_format_of_the_suffix_with_the_same_bytes_each_time(tmp_path, suffix, magic):
    files = [tmp_path / f"{name}.{suffix}" for name in "ab"]
    for file in files:
        distances, names, groups = blocks([2, 2])
        save_figure(plot_matrix(distances, names, groups=groups), file)
    first, second = (file.read_bytes() for file in files)
    assert first.startswith(magic)
    assert first == second
    assert b"CreationDate" not in first  # two files of one second would not show it
    assert len(os.listdir(tmp_path)) == 2


def test_save_figure_refuses_other_suffixes_and_missing_folders(tmp_path):
    ax = plot_matrix(torch.zeros(2, 2), ["a", "b"])
    with pytest.raises(ValueError, match=r"\.png, \.svg or \.pdf, got .*matrix\.jpg"):
        save_figure(ax, tmp_path / "matrix.jpg")
    with pytest.raises(FileNotFoundError, match="nothing was written"):
        save_figure(ax, tmp_path / "none" / "matrix.png")
    assert os.listdir(tmp_path) == []


def test_groups_look_the_same_whatever_order_they_come_in_and_rare_ones_beyond_32_share_a_look():
    few = looks(["b", "a", "b"])
    assert few[0] == ["b", "a", "b"]
    assert list(few[1]) == ["a", "b"]
    assert few[1] == looks(["a", "b"])[1]
    many = [f"g{i:02}" for i in range(40)]
    groups, styles = looks([*many, *many[9:]])  # g00 … g08 are rare
    assert len(styles) == MOST_GROUPS == len(set(styles.values()))
    assert list(styles)[-1] == "9 others"
    assert groups[:9] == ["9 others"] * 9
    assert groups[9:40] == many[9:]


def test_what_no_font_has_is_one_warning_and_the_rest_is_drawn(tmp_path, monkeypatch):
    monkeypatch.setattr(figure, "_FALLBACK_FONTS", ())
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # no warning before the plot is saved
        ax = plot_matrix(torch.rand(3, 3), ["鳥 one", "魚 two", "fish"])
    with pytest.warns(UserWarning, match="expected a font with 魚鳥, found none") as caught:
        save_figure(ax, tmp_path / "matrix.png")
    assert len(caught) == 1
    assert (tmp_path / "matrix.png").stat().st_size > 1000


def test_fonts_of_other_scripts_are_asked_after_the_user_s_own(monkeypatch):
    import matplotlib

    monkeypatch.setattr(figure, "_FALLBACK_FONTS", ("No Such Font", "DejaVu Sans Mono"))
    with matplotlib.rc_context({"font.family": ["DejaVu Serif"]}):
        ax = plot_matrix(torch.rand(2, 2), ["a", "b"])
    assert ax.get_yticklabels()[0].get_fontfamily() == ["DejaVu Serif", "DejaVu Sans Mono"]
