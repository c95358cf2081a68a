"""Pictures: bytes to RGB, and the resize and crop that brings them to a network's size.

Pixel coordinates are continuous: (0, 0) is the outer corner of the upper left pixel, whose center is
(0.5, 0.5), and a picture spans (0, 0) to (width, height). Resizing is then a pure scale, as in the
image chain of OPUS, whose weights can be loaded. Sizes are (height, width), as arrays have them.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
import simplejpeg
from numpy.typing import NDArray

from sparseoccvla.contracts import EncodedImage
from sparseoccvla.errors import InputError

# sensor_msgs/Image encodings: channels, and the conversion to RGB that they need.
RAW_ENCODINGS: dict[str, tuple[int, int | None]] = {
    "rgb8": (3, None),
    "bgr8": (3, cv2.COLOR_BGR2RGB),
    "rgba8": (4, cv2.COLOR_RGBA2RGB),
    "bgra8": (4, cv2.COLOR_BGRA2RGB),
    "mono8": (1, cv2.COLOR_GRAY2RGB),
}
COMPRESSED_ENCODINGS = ("jpeg", "png")
MAX_PIXELS = 64_000_000  # a header that promises more is damage or malice; it would fill the memory

_SIGNATURES = {b"\xff\xd8": "jpeg", b"\x89PNG\r\n\x1a\n": "png"}


class ImageError(InputError):
    """A picture can't be read; the text names camera and stamp, what came and what was wanted."""

    def __init__(self, image: EncodedImage, problem: str) -> None:
        super().__init__(f"picture of {image.camera} at {image.stamp_ns} ns: {problem}")


def size_px(image: EncodedImage) -> tuple[int, int]:
    """(height, width) a picture says it has, without decoding it.

    Raises:
        ImageError: unknown encoding, foreign or headless bytes, or an impossible size.
    """
    if image.encoding in RAW_ENCODINGS:
        height, width = image.height_px, image.width_px
    elif image.encoding in COMPRESSED_ENCODINGS:
        _check_signature(image)
        height, width = _jpeg_size(image) if image.encoding == "jpeg" else _png_size(image)
    else:
        known = ", ".join((*COMPRESSED_ENCODINGS, *RAW_ENCODINGS))
        raise ImageError(image, f"encoding is {image.encoding!r}, wanted one of {known}")
    if height <= 0 or width <= 0 or height * width > MAX_PIXELS:
        raise ImageError(image, f"size is {width}x{height} px, wanted 1 to {MAX_PIXELS} pixels")
    return height, width


def decode(image: EncodedImage, at_least_px: tuple[int, int] | None = None) -> NDArray[np.uint8]:
    """RGB (H, W, 3) of a picture. Damage is an error: half a street must not look like a gray one.

    Args:
        image: JPEG, PNG or raw bytes; raw rows may be padded (`row_bytes`).
        at_least_px: with (height, width), a JPEG may come out smaller, by the least factor of 1/8 to
            8/8 that is not below this size, and in less time.

    Raises:
        ImageError: truncated, damaged or foreign bytes, or a size that contradicts their number.
    """
    size_px(image)
    if image.encoding == "jpeg":
        height, width = at_least_px or (0, 0)
        try:
            return simplejpeg.decode_jpeg(image.data, "RGB", min_height=height, min_width=width, min_factor=1)
        except ValueError as error:
            raise ImageError(image, f"damaged JPEG of {len(image.data)} bytes: {error}") from error
    if image.encoding == "png":
        rgb = cv2.imdecode(np.frombuffer(image.data, np.uint8), cv2.IMREAD_COLOR_RGB)
        if rgb is None:
            raise ImageError(image, f"damaged PNG of {len(image.data)} bytes")
        return rgb.astype(np.uint8, copy=False)
    return _raw_rgb(image)


def _check_signature(image: EncodedImage) -> None:
    head = bytes(image.data[:8])
    found = next((name for magic, name in _SIGNATURES.items() if head.startswith(magic)), "unknown")
    if found != image.encoding:
        start = head.hex(" ") or "nothing"
        raise ImageError(
            image,
            f"{len(image.data)} bytes that begin with {start} ({found}), wanted {image.encoding}; "
            "does the publisher set the format it sends?",
        )


def _jpeg_size(image: EncodedImage) -> tuple[int, int]:
    try:
        height, width, *_ = simplejpeg.decode_jpeg_header(image.data)
    except ValueError as error:
        raise ImageError(image, f"no JPEG header in {len(image.data)} bytes: {error}") from error
    return height, width


def _png_size(image: EncodedImage) -> tuple[int, int]:
    header = bytes(image.data[12:24])
    if len(header) < 12 or header[:4] != b"IHDR":
        raise ImageError(image, f"no PNG header in {len(image.data)} bytes")
    return int.from_bytes(header[8:12], "big"), int.from_bytes(header[4:8], "big")


def _raw_rgb(image: EncodedImage) -> NDArray[np.uint8]:
    channels, conversion = RAW_ENCODINGS[image.encoding]
    height, width, row_bytes = image.height_px, image.width_px, image.row_bytes
    row_bytes = row_bytes or width * channels
    if row_bytes < width * channels:
        raise ImageError(
            image,
            f"rows of {row_bytes} bytes, wanted {width * channels} or more for {width} px",
        )
    if len(image.data) != height * row_bytes:
        raise ImageError(
            image,
            f"{len(image.data)} bytes, wanted {height} rows of {row_bytes}: {height * row_bytes}; "
            "was the message cut?",
        )
    rows = np.frombuffer(image.data, np.uint8).reshape(height, row_bytes)
    pixels = rows[:, : width * channels].reshape(height, width, channels)
    if conversion is None:
        return np.ascontiguousarray(pixels)
    return cv2.cvtColor(pixels, conversion).astype(np.uint8, copy=False)


@dataclass(frozen=True)
class Fit:
    """Resize, then crop, then perhaps mirror: how a camera's picture becomes a network's.

    What lies outside the resized picture is black.
    """

    source_px: tuple[int, int]
    resized_px: tuple[int, int]
    crop_px: tuple[int, int]  # rows and columns of the resized picture left out above and left
    size_px: tuple[int, int]
    mirror: bool = False

    @property
    def matrix(self) -> NDArray[np.float64]:
        """(3, 3) homogeneous source pixels to fitted pixels; it goes before `image_from_camera`."""
        scale_y, scale_x = np.divide(self.resized_px, self.source_px)
        top, left = self.crop_px
        matrix = np.array([[scale_x, 0, -left], [0, scale_y, -top], [0, 0, 1.0]])
        if self.mirror:
            matrix = np.array([[-1.0, 0, self.size_px[1]], [0, 1, 0], [0, 0, 1]]) @ matrix
        return matrix

    def apply(self, rgb: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Fitted picture (height, width, 3) of one of `source_px`.

        Raises:
            InputError: the picture has another size than the calibration it is projected with.
        """
        if rgb.shape[:2] != self.source_px:
            raise InputError(_wrong_size(rgb.shape[:2], self.source_px))
        return self._place(rgb)

    def load(self, image: EncodedImage) -> NDArray[np.uint8]:
        """Decode and fit; quicker than `decode` then `apply`, as a JPEG is decoded no larger than needed.

        Raises:
            ImageError: as `decode`, or another size than the calibration it is projected with.
        """
        size = size_px(image)
        if size != self.source_px:
            raise ImageError(image, _wrong_size(size, self.source_px))
        return self._place(decode(image, at_least_px=self.resized_px))

    def _place(self, rgb: NDArray[np.uint8]) -> NDArray[np.uint8]:
        height, width = self.resized_px
        if rgb.shape[:2] != self.resized_px:
            shrinks = rgb.shape[0] > height
            # Area averages what a smaller picture can't show; linear would let it flicker.
            method = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
            rgb = cv2.resize(rgb, (width, height), interpolation=method).astype(np.uint8, copy=False)
        (top, left), (rows, columns) = self.crop_px, self.size_px
        inside = rgb[max(top, 0) : max(top + rows, 0), max(left, 0) : max(left + columns, 0)]
        if inside.shape[:2] != self.size_px:
            padded = np.zeros((rows, columns, 3), np.uint8)
            y, x = max(-top, 0), max(-left, 0)
            padded[y : y + inside.shape[0], x : x + inside.shape[1]] = inside
            inside = padded
        return np.ascontiguousarray(inside[:, ::-1] if self.mirror else inside)


def fit(source_px: tuple[int, int], size_px: tuple[int, int]) -> Fit:
    """The `Fit` of validation and driving: fill the width, then cut off the top (sky) and equal sides.

    1600x900 becomes 704x256 by a scale of 0.44 without the upper 140 rows, 352x128 likewise by 0.22
    (image chain of OPUS). Sizes are (height, width).
    """
    (source_height, source_width), (height, width) = source_px, size_px
    if min(source_height, source_width, height, width) <= 0:
        raise InputError(
            f"can't fit {source_width}x{source_height} px to {width}x{height} px: a side is empty"
        )
    scale = max(height / source_height, width / source_width)
    resized = (round(source_height * scale), round(source_width * scale))
    return Fit(source_px, resized, (resized[0] - height, (resized[1] - width) // 2), size_px)


def _wrong_size(found_px: tuple[int, ...], wanted_px: tuple[int, int]) -> str:
    return (
        f"it is {found_px[1]}x{found_px[0]} px, its calibration (CameraInfo) says "
        f"{wanted_px[1]}x{wanted_px[0]}; publish the calibration of this picture size"
    )
