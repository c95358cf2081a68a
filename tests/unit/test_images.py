"""Pictures: every encoding gives the same RGB, damage is named, and the matrix tells where pixels went."""

import cv2
import numpy as np
import pytest

from sparseoccvla.contracts import EncodedImage
from sparseoccvla.errors import InputError
from sparseoccvla.images import Fit, ImageError, decode, fit, size_px

HEIGHT, WIDTH = 48, 80


@pytest.fixture
def rgb():
    """Smooth colors, so that JPEG keeps them, and no channel equals another."""
    y, x = np.mgrid[0:HEIGHT, 0:WIDTH]
    return np.stack([x * 3, y * 5, 255 - x - y], axis=-1).astype(np.uint8)


def encoded(data, encoding="jpeg", **size):
    return EncodedImage("cam_front", 7, data, encoding, **size)


def as_file(rgb, extension, *options):
    return cv2.imencode(extension, rgb[..., ::-1], options)[1].tobytes()


def raw(rgb, encoding, padding=0):
    pixels = {
        "rgb8": rgb,
        "bgr8": rgb[..., ::-1],
        "rgba8": np.dstack([rgb, np.full((HEIGHT, WIDTH), 9, np.uint8)]),
        "bgra8": np.dstack([rgb[..., ::-1], np.full((HEIGHT, WIDTH), 9, np.uint8)]),
        "mono8": rgb[..., :1],
    }[encoding]
    rows = pixels.reshape(HEIGHT, -1)
    rows = np.pad(rows, ((0, 0), (0, padding)), constant_values=77)
    return encoded(
        rows.tobytes(), encoding, width_px=WIDTH, height_px=HEIGHT, row_bytes=rows.shape[1] if padding else 0
    )


@pytest.mark.parametrize("padding", [0, 5])
@pytest.mark.parametrize("encoding", ["rgb8", "bgr8", "rgba8", "bgra8"])
def test_every_raw_color_encoding_gives_the_same_rgb_also_with_padded_rows(rgb, encoding, padding):
    np.testing.assert_array_equal(decode(raw(rgb, encoding, padding)), rgb)


def test_gray_becomes_three_equal_channels(rgb):
    np.testing.assert_array_equal(decode(raw(rgb, "mono8", 3)), np.repeat(rgb[..., :1], 3, axis=-1))


def test_png_is_exact_and_jpeg_near_with_red_first(rgb):
    np.testing.assert_array_equal(decode(encoded(as_file(rgb, ".png"), "png")), rgb)
    near = decode(encoded(as_file(rgb, ".jpg", cv2.IMWRITE_JPEG_QUALITY, 98)))
    assert np.abs(near.astype(int) - rgb).mean() < 2
    assert np.abs(near[..., ::-1].astype(int) - rgb).mean() > 20  # swapped channels would be seen


def test_a_gray_jpeg_becomes_rgb(rgb):
    data = cv2.imencode(".jpg", rgb[..., 0])[1].tobytes()
    assert decode(encoded(data)).shape == (HEIGHT, WIDTH, 3)


def test_data_may_be_a_view_and_its_size_is_known_without_decoding(rgb):
    image = encoded(memoryview(as_file(rgb, ".jpg")))
    assert size_px(image) == decode(image).shape[:2] == (HEIGHT, WIDTH)
    assert size_px(encoded(as_file(rgb, ".png"), "png")) == (HEIGHT, WIDTH)


def test_damage_anywhere_in_a_jpeg_is_an_error_not_a_gray_half(rgb):
    data = as_file(rgb, ".jpg")
    middle = len(data) * 3 // 4
    for damaged in (data[: len(data) // 2], data[:-2], data[:middle] + bytes(60) + data[middle + 60 :]):
        with pytest.raises(ImageError, match=r"picture of cam_front at 7 ns: damaged JPEG of \d+ bytes: .+"):
            decode(encoded(damaged))


@pytest.mark.parametrize(
    ("image", "text"),
    [
        (encoded(b""), "0 bytes that begin with nothing"),
        (encoded(b"hello world"), "begin with 68 65 6c 6c 6f 20 77 6f .unknown., wanted jpeg"),
        (
            encoded(b"\x89PNG\r\n\x1a\n" + bytes(30)),
            r"\(png\), wanted jpeg; does the publisher set the format",
        ),
        (encoded(b"\xff\xd8\xff\xe0" + bytes(20)), "no JPEG header in 24 bytes"),
        (encoded(b"\x89PNG\r\n\x1a\n", "png"), "no PNG header in 8 bytes"),
        (
            encoded(b"\x89PNG\r\n\x1a\n" + bytes(4) + b"IHDR" + b"\xff" * 8 + bytes(9), "png"),
            "size is 4294967295x4294967295 px, wanted 1 to",
        ),
        (encoded(b"", "yuv422"), "encoding is 'yuv422', wanted one of jpeg, png, rgb8"),
        (encoded(b"", "rgb8"), "size is 0x0 px"),
        (encoded(bytes(10), "rgb8", width_px=2, height_px=2), "10 bytes, wanted 2 rows of 6: 12"),
        (
            encoded(bytes(8), "rgb8", width_px=2, height_px=2, row_bytes=4),
            "rows of 4 bytes, wanted 6 or more",
        ),
    ],
)
def test_foreign_bytes_are_refused_by_name(image, text):
    with pytest.raises(ImageError, match=text):
        decode(image)


def test_fit_cuts_the_sky_as_the_public_weights_expect():
    for size, scale, top in (((256, 704), 0.44, 140), ((128, 352), 0.22, 70)):
        found = fit((900, 1600), size)
        np.testing.assert_allclose(found.matrix, [[scale, 0, 0], [0, scale, -top], [0, 0, 1]], atol=1e-12)
    np.testing.assert_allclose(fit((396, 704), (256, 704)).matrix, [[1, 0, 0], [0, 1, -140], [0, 0, 1]])


def test_a_tall_picture_is_cut_above_a_wide_one_at_both_sides():
    assert fit((480, 640), (256, 704)).crop_px == (528 - 256, 0)
    assert fit((100, 1000), (100, 600)).crop_px == (0, 200)


FITS = [
    fit((60, 100), (32, 100)),
    fit((60, 100), (20, 50)),
    Fit((60, 100), (60, 100), (10, 20), (40, 60), mirror=True),
    Fit((60, 100), (30, 50), (-6, -8), (50, 70)),
    Fit((60, 100), (30, 50), (4, -8), (40, 50), mirror=True),
    Fit((60, 100), (120, 200), (50, 30), (64, 120)),
]


def centroid_px(rgb):
    weight = rgb[..., 0].astype(float)
    y, x = np.mgrid[0 : rgb.shape[0], 0 : rgb.shape[1]] + 0.5
    return np.array([(x * weight).sum(), (y * weight).sum()]) / weight.sum()


@pytest.mark.parametrize("chosen", FITS)
def test_the_matrix_says_where_each_pixel_went(chosen):
    picture = np.zeros((60, 100, 3), np.uint8)
    picture[40:44, 44:48] = 255
    predicted = chosen.matrix @ [46, 42, 1]
    fitted = chosen.apply(picture)
    assert fitted.shape == (*chosen.size_px, 3)
    np.testing.assert_allclose(centroid_px(fitted), predicted[:2], atol=0.06)
    assert np.abs(centroid_px(fitted) - predicted[:2] - 0.5).max() > 0.3  # half a pixel would be seen


def test_outside_the_picture_is_black():
    padded = Fit((60, 100), (60, 100), (-5, -5), (70, 110)).apply(np.full((60, 100, 3), 255, np.uint8))
    assert padded[:5].max() == padded[-5:].max() == padded[:, :5].max() == padded[:, -5:].max() == 0
    assert padded[5:-5, 5:-5].min() == 255


def test_load_equals_decode_and_apply_though_it_decodes_less():
    y, x = np.mgrid[0:360, 0:640]
    rgb = np.stack([x / 3, y / 2, 128 + 60 * np.sin(x / 25)], axis=-1).astype(np.uint8)
    image = encoded(as_file(rgb, ".jpg", cv2.IMWRITE_JPEG_QUALITY, 95))
    chosen = fit((360, 640), (128, 320))
    assert decode(image, at_least_px=chosen.resized_px).shape == (180, 320, 3)
    difference = np.abs(chosen.load(image).astype(int) - chosen.apply(decode(image)))
    assert difference.mean() < 1
    assert np.percentile(difference, 99) <= 4


def test_a_picture_of_another_size_than_its_calibration_is_refused(rgb):
    chosen = fit((2 * HEIGHT, 2 * WIDTH), (HEIGHT, WIDTH))
    with pytest.raises(ImageError, match=r"cam_front at 7 ns: it is 80x48 px, its calibration .* 160x96"):
        chosen.load(encoded(as_file(rgb, ".jpg")))
    with pytest.raises(InputError, match="it is 80x48 px"):
        chosen.apply(rgb)
    with pytest.raises(InputError, match="a side is empty"):
        fit((0, 10), (5, 5))
