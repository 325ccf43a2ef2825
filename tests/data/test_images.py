import io
import warnings

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from task2vec_ext.data import images, load_image, to_rgb
from task2vec_ext.data.images import jpeg_decoder

# Uneven sides, so that swapped axes show.
H, W = 5, 7


def _colours(height=H, width=W, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def _as_tensor(image):
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "LAB", "HSV"])
def test_to_rgb_agrees_with_pil_on_8_bit_modes(mode):
    colours = Image.fromarray(_colours())
    if mode == "LAB":
        image = Image.frombytes("LAB", (W, H), _colours().tobytes())
    elif mode == "PA":
        image = colours.convert("P").convert("PA")
    else:
        image = colours.convert(mode)
    rgb = to_rgb(image)
    assert rgb.dtype == torch.uint8
    assert torch.equal(rgb, _as_tensor(image.convert("RGB")))


@pytest.mark.parametrize("transparency", [3, bytes(range(256))], ids=["one-colour", "table"])
def test_to_rgb_keeps_the_colours_of_a_transparent_palette_without_a_warning(transparency):
    image = Image.fromarray(_colours()).quantize(16)
    expected = _as_tensor(image.convert("RGB"))
    image.info["transparency"] = transparency
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(to_rgb(image), expected)


def test_to_rgb_drops_alpha_without_compositing():
    image = Image.new("RGBA", (2, 1), (200, 100, 50, 0))
    assert to_rgb(image)[:, 0, 0].tolist() == [200, 100, 50]


@pytest.mark.parametrize(("mode", "plain"), [("RGBa", "RGBA"), ("La", "LA")])
def test_to_rgb_undoes_premultiplied_alpha(mode, plain):
    image = Image.new(plain, (2, 1), (200, 100, 50, 128) if plain == "RGBA" else (200, 128))
    expected = [200, 100, 50] if plain == "RGBA" else [200] * 3
    got = to_rgb(image.convert(mode))[:, 0, 0]
    assert (got - torch.tensor(expected)).abs().max() <= 1  # 8-bit premultiplied colours are a little coarser


@pytest.mark.parametrize("mode", ["I;16", "I;16L", "I;16B", "I"])
def test_to_rgb_scales_16_bit_greys_and_never_clips(mode):
    values = np.array([[0, 1, 255, 256], [300, 32768, 65534, 65535]], dtype=np.uint16)
    dtype = {"I": "<i4", "I;16B": ">u2"}.get(mode, "<u2")
    image = Image.frombytes(mode, (4, 2), values.astype(dtype).tobytes())
    rgb = to_rgb(image)
    assert rgb.dtype == torch.float32
    expected = torch.from_numpy(values.astype(np.float32) / 65535)
    assert all(torch.equal(plane, expected) for plane in rgb)


def test_to_rgb_refuses_32_bit_greys_beyond_16_bits():
    with pytest.raises(ValueError, match=r"0…65535, got values from 7 to 70000"):
        to_rgb(Image.fromarray(np.array([[7, 70000]], dtype=np.int32)))


def test_to_rgb_takes_float_images_in_unit_range_only():
    values = np.linspace(0, 1, 6, dtype=np.float32).reshape(2, 3)
    assert torch.equal(to_rgb(Image.fromarray(values))[1], torch.from_numpy(values))
    with pytest.raises(ValueError, match=r"got values from 0 to 255; divide by the highest possible value"):
        to_rgb(Image.fromarray(values * 255))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("extension", ["jpg", "png", "tif", "webp"])
def test_load_image_respects_exif_orientation(tmp_path, orientation, extension):
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"turned.{extension}"
    Image.fromarray(_colours()).save(path, exif=exif)
    with Image.open(path) as image:
        expected = ImageOps.exif_transpose(image)
        assert expected.size == ((W, H) if orientation < 5 else (H, W))
        assert torch.equal(load_image(path), _as_tensor(expected.convert("RGB")))


ENTRIES = b"Exif\0\0MM\0*\0\0\0\x08\0\x02\x01\x12\0\x03\0\0\0\x01\0\x06\0\0"  # two, of which the first is orientation 6


@pytest.mark.parametrize(
    ("exif", "shape"),
    [
        (b"Exif\0\0not a tiff header", (3, H, W)),
        (ENTRIES + b"\x01\x0f\0\x63\0\0\0\x01\0\0\0\0\0\0\0\0", (3, W, H)),
        (ENTRIES + b"\x01\x0f\0\x0b\0\0\0\x01\0\0\0\0\0\0\0\0", (3, W, H)),  # which PIL cannot write again
    ],
    ids=["header", "type", "float-for-text"],
)
def test_to_rgb_reads_an_image_with_damaged_exif(exif, shape):
    buffer = io.BytesIO()
    Image.fromarray(_colours()).save(buffer, "png", exif=exif)
    assert to_rgb(Image.open(buffer)).shape == shape


@pytest.mark.parametrize(
    ("array", "expected"),
    [
        (np.zeros((H, W), np.uint8), torch.uint8),
        (np.zeros((1, H, W), np.uint8), torch.uint8),
        (np.zeros((3, H, W), np.float64), torch.float32),
        (np.zeros((4, H, W), np.float16), torch.float32),
        (np.zeros((H, W, 1), bool), torch.uint8),
        (np.zeros((H, W, 3), ">u2"), torch.float32),
        (np.zeros((H, W, 4), np.uint32), torch.float32),
        (np.zeros((H, W, 3), np.longdouble), torch.float32),
        (np.zeros((H, W, 3), np.int64)[::-1, ::-1], torch.float32),
    ],
    ids=lambda case: f"{case.dtype}-{case.shape}" if isinstance(case, np.ndarray) else None,
)
def test_to_rgb_takes_arrays_of_every_layout_and_type(array, expected):
    rgb = to_rgb(array)
    assert rgb.shape == (3, H, W)
    assert rgb.dtype == expected


def test_to_rgb_puts_channels_and_values_in_place():
    colours = _colours()
    planes = torch.from_numpy(colours).permute(2, 0, 1)
    assert torch.equal(to_rgb(colours), planes)
    assert torch.equal(to_rgb(planes), planes)
    assert torch.equal(to_rgb(colours.transpose(2, 0, 1)), planes)
    assert torch.equal(to_rgb(np.dstack([colours, colours[..., :1]])), planes)
    assert torch.equal(to_rgb(colours[::-1].astype(">u2") * 257), planes.flip(1).float() / 255)
    assert torch.equal(to_rgb(planes[0] > 127), (planes[:1] > 127).expand(3, -1, -1) * torch.tensor(255).byte())
    assert torch.equal(to_rgb(planes.double() / 255), (planes.double() / 255).float())
    # [3, 5, 3] could be either: numpy's custom decides for arrays, torch's for tensors.
    assert torch.equal(to_rgb(colours[:3, :, :]), planes[:, :3])
    assert torch.equal(to_rgb(planes[:, :, :3]), planes[:, :, :3])


def test_to_rgb_does_not_share_memory_with_an_array():
    planes = np.ascontiguousarray(_colours().transpose(2, 0, 1))
    rgb = to_rgb(planes)
    planes[:] = 0
    assert rgb.any()


@pytest.mark.parametrize("dtype", [torch.uint16, torch.int16, torch.int32, torch.int64])
def test_to_rgb_scales_integers_as_16_bit(dtype):
    values = torch.tensor([[0, 12345, 32767]])
    assert torch.equal(to_rgb(values.to(dtype))[2], values.float() / 65535)


def test_to_rgb_refuses_8_bit_values_in_wide_integers_unless_they_say_16_bit():
    with pytest.raises(ValueError, match="highest value of 255, which looks 8-bit; convert the image to uint8"):
        to_rgb(torch.tensor([[0, 255]]))
    assert to_rgb(torch.tensor([[0, 255]]).to(torch.uint16)).max() == 255 / 65535


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("kind", ["tensor", "array", "pil"])
def test_to_rgb_refuses_pixels_that_are_not_finite(bad, kind):
    values = np.full((H, W), 0.5, np.float32)
    values[2, 3] = bad
    image = {"tensor": torch.from_numpy, "array": np.asarray, "pil": Image.fromarray}[kind](values)
    with pytest.raises(ValueError, match="expected finite pixels, got NaN or infinity"):
        to_rgb(image)


def test_to_rgb_clamps_the_overshoot_of_a_resize_and_refuses_normalised_images():
    assert to_rgb(torch.tensor([[-0.05, 0.5, 1.05]]))[0].tolist() == [[0, 0.5, 1]]
    with pytest.raises(ValueError, match=r"from -2 to 2; it looks already normalised: pass preprocess=None"):
        to_rgb(torch.tensor([[-2.0, 2.0]]))


@pytest.mark.parametrize(
    "image",
    [torch.zeros(3, 0, 4), torch.zeros(0, 4), np.zeros((0, 4, 3), np.uint8), Image.new("RGB", (0, 3))],
    ids=["tensor", "grey", "array", "pil"],
)
def test_to_rgb_refuses_an_image_without_pixels(image):
    with pytest.raises(ValueError, match="expected an image"):
        to_rgb(image)


@pytest.mark.parametrize("shape", [(4,), (2, H, W), (H, W, 3), (1, 3, H, W)], ids=str)
def test_to_rgb_refuses_tensors_of_other_shapes(shape):
    with pytest.raises(ValueError, match=r"expected an image \[H, W\] or \[C, H, W\]"):
        to_rgb(torch.zeros(shape))


@pytest.mark.parametrize("image", ["a.jpg", None, {"image": 1}, np.array([["a"]]), torch.zeros(2, 2).cfloat()])
def test_to_rgb_refuses_what_is_no_image(image):
    with pytest.raises(TypeError, match="to_rgb: expected"):
        to_rgb(image)


def _damaged(tmp_path, kind):
    path = tmp_path / f"{kind}.jpg"
    buffer = io.BytesIO()
    Image.fromarray(_colours(64, 64)).save(buffer, "jpeg")
    if kind == "directory":
        path.mkdir()
    elif kind != "missing":
        content = {"zero": b"", "truncated": buffer.getvalue()[:-500], "text": b"not an image at all"}
        path.write_bytes(content.get(kind, buffer.getvalue()))
    return path


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("missing", "no file"),
        ("directory", "a directory"),
        ("zero", "an empty file"),
        ("text", "no image format that PIL knows"),
        ("truncated", "OSError: .*truncated"),
        ("bomb", "DecompressionBombError"),
    ],
)
def test_load_image_names_the_path_and_the_reason(tmp_path, monkeypatch, kind, reason):
    path = _damaged(tmp_path, kind)
    if kind == "bomb":
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(ValueError, match=f"{path}.*{reason}"):
        load_image(path)


def test_load_image_reads_the_file_it_is_given(tmp_path):
    Image.fromarray(_colours()).save(tmp_path / "a.png")
    assert torch.equal(load_image(str(tmp_path / "a.png")), _as_tensor(_colours()))
    Image.fromarray(np.array([[0, 40000]], np.uint16)).save(tmp_path / "b.png")
    assert torch.equal(load_image(tmp_path / "b.png")[0], torch.tensor([[0, 40000]]) / 65535)


@pytest.mark.parametrize(
    ("image", "max_value", "expected"),
    [
        (np.array([[0, 4095]], np.uint16), 4095, [0, 1]),
        (np.array([[0, 51]], np.uint8), 102, [0, 0.5]),
        (np.array([[0.0, 255.0]], np.float32), 255, [0, 1]),
        (Image.fromarray(np.array([[0, 100000]], np.int32)), 200000, [0, 0.5]),
        (Image.fromarray(np.array([[0, 4095]], np.float32)), 4095, [0, 1]),
        (torch.tensor([[0, 255]]), 255, [0, 1]),
    ],
    ids=["uint16", "uint8", "float", "int32", "pil-float", "int64"],
)
def test_to_rgb_divides_by_the_value_of_white(image, max_value, expected):
    rgb = to_rgb(image, max_value=max_value)
    assert rgb.dtype == torch.float32
    assert rgb[1].flatten().tolist() == expected


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.array([[0, 5000]], np.uint16), r"pixels in 0…4095, got values from 0 to 5000; name the value of white"),
        (np.array([[0.0, 9000.0]]), r"float pixels in \[0, 4095\], got values from 0 to 9e\+03; divide"),
        (Image.new("RGB", (2, 2)), "more than 8 bits with max_value=4095, got 8 bits; .*16-bit colour"),
    ],
    ids=["integer", "float", "8-bit"],
)
def test_to_rgb_refuses_values_above_white(image, message):
    with pytest.raises(ValueError, match=message):
        to_rgb(image, max_value=4095)


def test_load_image_says_how_to_allow_more_pixels(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    Image.new("L", (50, 50)).save(tmp_path / "a.png")
    with pytest.raises(ValueError, match=r"shrink it, or allow more in Python: PIL.Image.MAX_IMAGE_PIXELS = "):
        load_image(tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 2500)
    assert load_image(tmp_path / "a.png").shape == (3, 50, 50)


def _photo(height=61, width=77):
    """Smooth colours and noise, as a JPEG sees in a photograph."""
    y, x = np.mgrid[:height, :width]
    smooth = np.stack([x * 255 // width, y * 255 // height, (x + y) * 255 // (height + width)], 2)
    noise = np.random.default_rng(0).integers(-30, 30, (height, width, 3))
    return Image.fromarray((smooth + noise).clip(0, 255).astype(np.uint8))


@pytest.fixture
def fast(monkeypatch):
    """simplejpeg's decoder, and what it returned."""
    pytest.importorskip("simplejpeg")
    decode, returned = jpeg_decoder(), []

    def spied(content):
        returned.append(decode(content))
        return returned[-1]

    monkeypatch.setattr(images, "jpeg_decoder", lambda: spied)
    return returned


@pytest.mark.parametrize("quality", [30, 95])
@pytest.mark.parametrize("subsampling", [0, 1, 2], ids=["444", "422", "420"])
@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("progressive", [False, True], ids=["baseline", "progressive"])
def test_the_fast_decoder_gives_pils_pixels(tmp_path, fast, mode, subsampling, quality, progressive):
    file = tmp_path / "image.jpg"
    options = {"quality": quality, "progressive": progressive} | ({"subsampling": subsampling} if mode == "RGB" else {})
    _photo().convert(mode).save(file, **options)
    assert torch.equal(load_image(file), to_rgb(Image.open(file)))
    assert len(fast) == 1


@pytest.mark.parametrize("kind", ["turned", "cmyk", "png", "truncated", "garbage inside", "two images"])
def test_pil_decides_where_a_jpeg_is_unusual(tmp_path, fast, kind):
    file, photo = tmp_path / "image.jpg", _photo()
    exif = Image.Exif()
    exif[0x0112] = 6
    if kind == "two images":
        photo.save(file, "MPO", save_all=True, append_images=[photo.rotate(90)])
    elif kind == "png":
        photo.save(file, "PNG")
    else:
        (photo.convert("CMYK") if kind == "cmyk" else photo).save(file, exif=exif if kind == "turned" else b"")
    content = file.read_bytes()
    if kind == "truncated":
        file.write_bytes(content[: len(content) // 2])
        with pytest.raises(ValueError, match="truncated"):
            load_image(file)
        return
    if kind == "garbage inside":
        file.write_bytes(content[:-400] + b"\xff\xd9" * 30 + content[-400:])
    try:
        with Image.open(file) as image:
            expected = to_rgb(image)
    except OSError:
        with pytest.raises(ValueError, match="readable image"):
            load_image(file)
        return
    assert torch.equal(load_image(file), expected)


def test_a_decoder_that_differs_from_pils_is_left_alone(monkeypatch):
    simplejpeg = pytest.importorskip("simplejpeg")
    assert jpeg_decoder() is not None
    decode = simplejpeg.decode_jpeg
    monkeypatch.setattr(simplejpeg, "decode_jpeg", lambda *given, **how: decode(*given, **how) ^ 1)
    jpeg_decoder.cache_clear()
    try:
        assert jpeg_decoder() is None
    finally:
        jpeg_decoder.cache_clear()


def test_a_draft_keeps_at_least_the_pixels_asked_for(tmp_path):
    _photo(480, 640).save(tmp_path / "image.jpg")
    sizes = {n: tuple(load_image(tmp_path / "image.jpg", at_least=n).shape[1:]) for n in (60, 61, 240, 300, 900)}
    assert sizes == {60: (60, 80), 61: (120, 160), 240: (240, 320), 300: (480, 640), 900: (480, 640)}
    draft, exact = (load_image(tmp_path / "image.jpg", at_least=n).float().mean((1, 2)) for n in (240, None))
    assert (draft - exact).abs().max() < 2
