import json

import pytest
import torch

from task2vec_ext.data import Preprocess


def _image(height, width):
    return torch.randint(0, 256, (3, height, width), dtype=torch.uint8, generator=torch.Generator().manual_seed(height))


PRESETS = [(256, 224), (232, 224), (40, 48), (33, 32), (31, 36), (1, 1)]


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32], ids=["u8", "f32"])
@pytest.mark.parametrize(("resize", "crop"), PRESETS, ids=str)
def test_preprocess_equals_torchvisions_preset(resize, crop, dtype, interpolation):
    from torchvision.transforms import InterpolationMode
    from torchvision.transforms._presets import ImageClassification

    preset = ImageClassification(
        crop_size=crop,
        resize_size=resize,
        interpolation=InterpolationMode(interpolation),
        std=(0.2, 0.3, 0.4),
    )
    preprocess = Preprocess.from_torchvision(preset)
    assert (preprocess.resize, preprocess.crop, preprocess.interpolation) == (resize, crop, interpolation)
    assert preprocess.std == (0.2, 0.3, 0.4)
    for height, width in [(96, 128), (301, 97), (40, 40), (33, 200), (1, 7)]:
        rgb = _image(height, width)
        rgb = rgb.float() / 255 if dtype == torch.float32 else rgb
        got = preprocess(rgb)
        assert got.shape == (3, crop, crop)
        assert got.dtype == torch.float32
        assert got.is_contiguous()
        # The same operations in the same order: equal to the last bit where it was measured.
        assert (got - preset(rgb)).abs().max() <= 1e-6


def test_preprocess_returns_contiguous_memory_for_channels_last_too():
    rgb = _image(20, 20)
    got = Preprocess(20, 20)(rgb.permute(1, 2, 0).contiguous().permute(2, 0, 1))
    assert got.is_contiguous()
    assert torch.equal(got, Preprocess(20, 20)(rgb))


def test_preprocess_leaves_its_input_alone():
    rgb = torch.rand(3, 32, 32)
    before = rgb.clone()
    Preprocess(32, 32)(rgb)
    assert torch.equal(rgb, before)


def test_preprocess_refuses_an_image_too_long_to_resize():
    assert Preprocess(8, 8)(torch.zeros(3, 2, 200)).shape == (3, 8, 8)
    with pytest.raises(ValueError, match=r"at most 1:100, got 201 × 2 pixels"):
        Preprocess(8, 8)(torch.zeros(3, 2, 201))


@pytest.mark.parametrize(
    ("rgb", "error"), [(torch.zeros(1, 4, 4), ValueError), (torch.zeros(3, 4, 4).int(), TypeError)]
)
def test_preprocess_refuses_what_is_not_rgb(rgb, error):
    with pytest.raises(error, match=r"pass .*through to_rgb"):
        Preprocess()(rgb)


@pytest.mark.parametrize(
    ("resize", "crop", "new_crop", "expected"),
    [(256, 224, 112, 128), (232, 224, 96, 99), (256, 224, 96, 110), (5, 4, 2, 3)],
)
def test_with_size_keeps_the_ratio(resize, crop, new_crop, expected):
    before = Preprocess(resize, crop, std=(1, 2, 3), interpolation="bicubic")
    after = before.with_size(new_crop)
    assert after == Preprocess(expected, new_crop, std=(1, 2, 3), interpolation="bicubic")
    assert before.with_size(crop) == before


def test_preprocess_survives_json():
    preprocess = Preprocess(232, 224, std=(0.1, 0.2, 0.3), interpolation="bicubic")
    assert Preprocess.from_dict(json.loads(json.dumps(preprocess.to_dict()))) == preprocess
    with pytest.raises(ValueError, match="expected the entries"):
        Preprocess.from_dict({"resize": 3})


@pytest.mark.parametrize(
    "wrong",
    [
        {"resize": 0},
        {"crop": 2.5},
        {"crop": True},
        {"mean": (0, 0)},
        {"mean": (0, 0, float("nan"))},
        {"std": (1, 0, 1)},
        {"interpolation": "nearest"},
    ],
    ids=str,
)
def test_preprocess_refuses_impossible_values(wrong):
    with pytest.raises(ValueError, match=f"Preprocess: expected {next(iter(wrong))}"):
        Preprocess(**wrong)


def test_from_torchvision_refuses_other_transforms():
    from torchvision.transforms import InterpolationMode, ToTensor
    from torchvision.transforms._presets import ImageClassification

    with pytest.raises(TypeError, match=r"got ToTensor; pass weights.transforms"):
        Preprocess.from_torchvision(ToTensor())
    with pytest.raises(NotImplementedError, match="antialiased"):
        Preprocess.from_torchvision(ImageClassification(crop_size=8, antialias=False))
    with pytest.raises(NotImplementedError, match="bilinear or bicubic"):
        Preprocess.from_torchvision(ImageClassification(crop_size=8, interpolation=InterpolationMode.NEAREST))


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_crops_of_8_bits_are_bytes_and_normalise_to_the_probes_input(interpolation):
    preprocess = Preprocess(40, 33, interpolation=interpolation)
    images = [_image(96, 128), _image(30, 31)]
    crops = torch.stack([preprocess.cropped(rgb) for rgb in images])
    assert crops.dtype == torch.uint8
    before = crops.clone()
    assert torch.equal(preprocess.normalised(crops), torch.stack([preprocess(rgb) for rgb in images]))
    assert torch.equal(crops, before)
    exact = crops.double() / 255
    exact = (exact - torch.tensor(preprocess.mean).view(3, 1, 1)) / torch.tensor(preprocess.std).view(3, 1, 1)
    assert (preprocess.normalised(crops) - exact).abs().max() < 1e-6
    assert preprocess.cropped(images[0].float() / 255).dtype == torch.float32


def test_the_decoder_is_recorded_where_it_is_not_the_usual_one():
    exact, draft = Preprocess(), Preprocess(decoder="draft")
    assert "decoder" not in exact.to_dict()
    assert draft.to_dict() == exact.to_dict() | {"decoder": "draft"}
    for each in (exact, draft):
        assert Preprocess.from_dict(json.loads(json.dumps(each.to_dict()))) == each
    assert draft.with_size(100).decoder == "draft"
    with pytest.raises(ValueError, match="decoder exact or draft, got 'nvjpeg'"):
        Preprocess(decoder="nvjpeg")
