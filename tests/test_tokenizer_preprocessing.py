"""PIL images of every mode to pixel_values and back."""

import io

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from tokenizer_image.preprocessing import Preprocessing, nearest_size, postprocess, preprocess, to_pixel_values

RED, GREEN, BLUE = (255, 0, 0), (0, 255, 0), (0, 0, 255)


def reopened(image: Image.Image, format: str, **options) -> Image.Image:
    """The image after a round trip through a file."""
    file = io.BytesIO()
    image.save(file, format, **options)
    return Image.open(io.BytesIO(file.getvalue()))


def noise(size: tuple[int, int], seed: int = 0) -> Image.Image:
    width, height = size
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def colour_of(image: Image.Image, **settings) -> tuple[int, ...]:
    """The colour of a single-colour picture after preprocessing to 2x2."""
    pixels = preprocess(image, Preprocessing(image_size=2, **settings))
    assert pixels.dtype == np.uint8 and (pixels == pixels[:, :1, :1]).all()
    return tuple(int(value) for value in pixels[:, 0, 0])


def test_a_picture_of_the_right_size_keeps_its_pixels():
    image = noise((32, 32))
    pixels = preprocess(reopened(image, "PNG"), Preprocessing())
    assert pixels.shape == (3, 32, 32) and pixels.flags.c_contiguous
    np.testing.assert_array_equal(pixels, np.asarray(image).transpose(2, 0, 1))


@pytest.mark.parametrize("num_channels", [1, 3])
def test_uint8_to_pixel_values_and_back_is_the_identity(num_channels):
    pictures = torch.arange(256, dtype=torch.uint8).repeat(num_channels).reshape(1, num_channels, 16, 16)
    values = to_pixel_values(pictures)
    assert values.dtype == torch.float32 and values.min() == -1.0 and values.max() == 1.0
    assert values[0, 0, 0, 0] == -1.0 and values[0, 0, -1, -1] == 1.0
    (image,) = postprocess(values)
    assert image.mode == ("L" if num_channels == 1 else "RGB")
    again = preprocess(image, Preprocessing(image_size=16, num_channels=num_channels))
    np.testing.assert_array_equal(again, pictures[0].numpy())
    read_only = pictures.numpy()
    read_only.flags.writeable = False
    assert torch.equal(to_pixel_values(read_only), values)


def test_output_types():
    values = torch.tensor([-3.0, -1.0, 0.0, 3.0]).reshape(1, 1, 2, 2).repeat(2, 3, 1, 1)
    as_tensor, as_array = postprocess(values, "pt"), postprocess(values, "np")
    assert as_tensor.shape == (2, 3, 2, 2) and as_array.shape == (2, 2, 2, 3)
    assert as_tensor[0, 0].flatten().tolist() == [0.0, 0.0, 0.5, 1.0]
    np.testing.assert_array_equal(as_array, as_tensor.permute(0, 2, 3, 1).numpy())
    assert [image.getpixel((1, 1)) for image in postprocess(values)] == [(255, 255, 255)] * 2


def test_exif_orientation_is_applied_and_a_damaged_block_ignored():
    image = Image.new("RGB", (4, 4), BLUE)
    image.paste(RED, (0, 0, 4, 2))  # red above blue
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees clockwise to view: red on the right
    turned = preprocess(reopened(image, "PNG", exif=exif), Preprocessing(image_size=4))
    assert (turned[0, :, 2:] == 255).all() and (turned[2, :, :2] == 255).all()
    damaged = reopened(image, "PNG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff")
    assert preprocess(damaged, Preprocessing(image_size=4))[0, 0, 0] == 255


@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_exif_orientation_is_that_of_pillow(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = reopened(noise((4, 4)), "PNG", exif=exif)
    upright = np.asarray(ImageOps.exif_transpose(image)).transpose(2, 0, 1)
    np.testing.assert_array_equal(preprocess(image, Preprocessing(image_size=4)), upright)


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA", "LA", "PA", "RGBa", "La", "CMYK", "YCbCr", "HSV"])
def test_every_mode_becomes_rgb_and_grey(mode):
    white = Image.new("RGB", (6, 4), (255, 255, 255))
    image = white.convert("LA").convert(mode) if mode in ("La", "PA") else white.convert("RGBA").convert(mode)
    assert image.mode == mode
    assert colour_of(image) == (255, 255, 255)
    assert colour_of(image, num_channels=1) == (255,)


def test_colour_survives_palette_and_cmyk_files():
    image = Image.new("RGB", (8, 8), RED)
    assert colour_of(reopened(image.convert("P", palette=Image.Palette.ADAPTIVE), "PNG")) == RED
    cmyk = colour_of(reopened(image.convert("CMYK"), "JPEG", quality=95))
    assert max(abs(a - b) for a, b in zip(cmyk, RED, strict=True)) <= 2
    assert colour_of(image, num_channels=1) == (76,)  # ITU-R 601: 0.299 * 255


def test_transparency_shows_the_background():
    clear = Image.new("RGBA", (4, 4), (*RED, 0))
    assert colour_of(clear) == (255, 255, 255)
    assert colour_of(clear, background=GREEN) == GREEN
    half = colour_of(Image.new("RGBA", (4, 4), (255, 0, 0, 128)), background=(0, 0, 0))
    assert half == (128, 0, 0)
    palette = Image.new("P", (4, 4), 0)
    palette.putpalette([*RED, *BLUE])
    assert colour_of(reopened(palette, "PNG", transparency=0), background=GREEN) == GREEN
    assert colour_of(reopened(palette, "PNG", transparency=1), background=GREEN) == RED
    key_colour = reopened(Image.new("RGB", (4, 4), RED), "PNG", transparency=RED)
    assert colour_of(key_colour, background=BLUE) == BLUE


def test_deep_pictures_are_scaled_to_eight_bits():
    ramp = np.array([[0, 257, 32896, 65535]], dtype=np.uint16).repeat(4, axis=0)
    expected = [0, 1, 128, 255]
    sixteen_bit_png = reopened(Image.fromarray(ramp), "PNG")
    big_endian = Image.frombytes("I;16B", (4, 4), ramp.astype(">u2").tobytes())
    for image in (sixteen_bit_png, big_endian, Image.fromarray(ramp.astype(np.int32))):
        pixels = preprocess(image, Preprocessing(image_size=4))
        assert pixels[0, 0].tolist() == pixels[2, 3].tolist() == expected
    for scale in (1.0, 255.0):
        image = Image.fromarray((np.array([[0.0, 1.0], [0.5, 0.25]]) * scale).astype(np.float32))
        pixels = preprocess(image, Preprocessing(image_size=2, num_channels=1))
        assert pixels.tolist() == [[[0, 255], [128, 64]]]


def test_a_file_of_sixteen_bits_says_nothing_of_those_that_it_uses():
    values = np.full((4, 4), 1000, np.uint16)
    for format in ("TIFF", "PNG"):
        image = reopened(Image.fromarray(values), format)
        assert colour_of(image, num_channels=1) == (round(1000 * 255 / 65535),)
        assert colour_of(image, num_channels=1, sixteen_bit="data") == (255,)


def test_animations_give_their_first_frame_and_stay_where_they_are():
    frames = [Image.new("RGB", (4, 4), colour) for colour in (RED, GREEN, BLUE)]
    for format in ("GIF", "PNG", "TIFF"):
        animated = reopened(frames[0], format, save_all=True, append_images=frames[1:])
        assert colour_of(animated) == RED
        animated.seek(2)
        assert colour_of(animated) == RED and animated.tell() == 2


def test_crop_keeps_the_middle_and_squash_everything():
    image = Image.new("RGB", (30, 10), RED)
    image.paste(BLUE, (10, 0, 20, 10))
    for picture in (image, image.transpose(Image.Transpose.ROTATE_90)):
        assert (preprocess(picture, Preprocessing(image_size=10))[2] == 255).all()
        squashed = preprocess(picture, Preprocessing(image_size=10, resize="squash"))
        assert 0.3 < squashed[2].mean() / 255 < 0.37
    tiny = preprocess(Image.new("RGB", (1, 50), RED), Preprocessing(image_size=8))
    assert tiny.shape == (3, 8, 8) and (tiny[0] == 255).all()


def test_shrinking_is_antialiased():
    stripes = np.zeros((64, 64, 3), dtype=np.uint8)
    stripes[:, ::2] = 255
    pixels = preprocess(Image.fromarray(stripes), Preprocessing(image_size=16))
    assert abs(int(pixels[0, 8, 8]) - 127) <= 3  # picking single pixels would give 0 or 255


def test_the_callers_image_is_left_alone():
    image = noise((20, 12))
    before = image.tobytes()
    preprocess(image, Preprocessing(image_size=8, num_channels=1))
    assert image.size == (20, 12) and image.mode == "RGB" and image.tobytes() == before


def test_settings_survive_json():
    settings = Preprocessing(64, 1, "squash", (1, 2, 3))
    assert Preprocessing.from_dict(settings.to_dict()) == settings
    assert settings.to_dict()["background"] == [1, 2, 3]
    with pytest.raises(ValueError, match="flip; known: image_size"):
        Preprocessing.from_dict({"flip": True})


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"image_size": 0}, "image_size .* got 0"),
        ({"image_size": 1.5}, "image_size .* got 1.5"),
        ({"num_channels": 4}, "1 .grey. or 3 .RGB., got 4"),
        ({"resize": "pad"}, "one of crop, squash, got 'pad'"),
        ({"background": (0, 0, 256)}, "three whole numbers"),
    ],
)
def test_bad_settings(settings, message):
    with pytest.raises(ValueError, match=message):
        Preprocessing(**settings)


def test_bad_arguments():
    with pytest.raises(TypeError, match="PIL image, got ndarray"):
        preprocess(np.zeros((4, 4)), Preprocessing())
    with pytest.raises(ValueError, match="LAB"):
        preprocess(Image.new("LAB", (4, 4)), Preprocessing())
    with pytest.raises(TypeError, match="uint8 .* got torch.float32"):
        to_pixel_values(torch.zeros(1, 3, 2, 2))
    with pytest.raises(ValueError, match=r"shape \(3, 2, 2\)"):
        postprocess(torch.zeros(3, 2, 2))
    with pytest.raises(ValueError, match="one of pil, np, pt, got 'jpg'"):
        postprocess(torch.zeros(1, 3, 2, 2), "jpg")
    with pytest.raises(ValueError, match="NaN"):
        postprocess(torch.full((1, 3, 2, 2), torch.nan))


# Several sizes


@pytest.mark.parametrize(
    "size, expected",
    [((100, 100), (32, 32)), ((200, 90), (24, 40)), ((90, 200), (40, 24)), ((130, 100), (24, 40)),
     ((129, 100), (32, 32)), ((1000, 1), (24, 40)), ((40, 24), (24, 40))],
)  # fmt: skip
def test_a_picture_takes_the_size_whose_shape_is_nearest(size, expected):
    """The boundary between 32x32 and 24x40 is the geometric mean of their ratios, sqrt(40 / 24) = 1.291."""
    sizes = [(32, 32), (24, 40), (40, 24)]
    assert nearest_size(*size, sizes) == expected
    assert preprocess(noise(size), Preprocessing(image_size=16), sizes).shape == (3, *expected)
    assert preprocess(noise(size), Preprocessing(image_size=16)).shape == (3, 16, 16)


def test_the_shape_is_that_of_the_upright_picture():
    exif = Image.Exif()
    exif[0x0112] = 6
    lying = reopened(noise((200, 90)), "JPEG", exif=exif)
    assert preprocess(lying, Preprocessing(), [(24, 40), (40, 24)]).shape == (3, 40, 24)


def test_what_is_cropped_away_lies_at_both_ends():
    image = Image.new("RGB", (60, 20), RED)
    image.paste(BLUE, (10, 0, 50, 20))  # the middle, of shape 2:1
    kept = preprocess(image, Preprocessing(), [(10, 20)])
    assert kept.shape == (3, 10, 20) and (kept[2, :, 2:-2] >= 250).all()
    squashed = preprocess(image, Preprocessing(resize="squash"), [(10, 20)])
    assert squashed.shape == (3, 10, 20) and (squashed[0, :, :2] >= 250).all()
    tall = preprocess(image.transpose(Image.Transpose.ROTATE_90), Preprocessing(), [(20, 10)])
    assert (tall[2, 2:-2] >= 250).all()


def test_a_picture_of_one_of_the_sizes_keeps_its_pixels():
    image = noise((40, 24))
    pixels = preprocess(image, Preprocessing(), [(32, 32), (24, 40)])
    assert np.array_equal(pixels.transpose(1, 2, 0), np.asarray(image))
