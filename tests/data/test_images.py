import os
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from detrx.data import DetectionMapper, build_test_loader
from detrx.data.images import MAX_PIXELS, ImageNote, image_sizes, open_picture, read_image

ORIENTATION = 0x0112


def png(pixels, bits, colour_type):
    """A PNG file of 16 bits per sample, also of the kinds that Pillow reads but does not write."""
    height, width = pixels.shape[:2]

    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    rows = b"".join(b"\0" + row.astype(f">u{bits // 8}").tobytes() for row in pixels)
    header = struct.pack(">IIBBBBB", width, height, bits, colour_type, 0, 0, 0)
    chunks = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunks


@pytest.mark.parametrize("kind", ["png", "tif", "pgm"])
def test_grey_of_16_bits_is_scaled_and_not_clipped(tmp_path, kind):
    values = np.array([[0, 128, 257, 25700], [32767, 32768, 65278, 65535]], dtype=np.uint16)
    path = tmp_path / f"grey.{kind}"
    if kind == "pgm":
        path.write_bytes(b"P5 4 2 65535\n" + values.astype(">u2").tobytes())
    else:
        Image.fromarray(values).save(path)
    picture = open_picture(path)
    assert picture.image.mode == "RGB"
    expected = np.round(values / 257).astype(np.uint8)
    assert (np.asarray(picture.image) == expected[..., None]).all()
    assert picture.notes == []


def test_grey_of_16_bits_that_uses_few_of_them_is_noted(tmp_path):
    path = tmp_path / "twelve_bits.png"
    Image.fromarray(np.array([[0, 4095]], dtype=np.uint16)).save(path)
    picture = open_picture(path)
    assert picture.notes == [ImageNote.DIM]
    assert np.asarray(picture.image)[0, 1].tolist() == [16, 16, 16]  # as stored: images stay comparable


def test_colours_of_16_bits(tmp_path):
    path = tmp_path / "colour.png"
    path.write_bytes(png(np.array([[[0, 257 * 100, 65535]]]), 16, 2))
    assert np.asarray(read_image(path))[0, 0].tolist() == [0, 100, 255]


@pytest.mark.parametrize(
    "values", [np.array([[0.0, 1.0]], np.float32), np.array([[0, 70000]], np.int32), np.array([[-1, 7]], np.int32)]
)
def test_pixels_without_a_white_are_refused(tmp_path, values):
    path = tmp_path / "numbers.tif"
    Image.fromarray(values).save(path)
    with pytest.raises(ValueError, match=r"numbers\.tif cannot be read: .*convert it to 8 or 16 bits"):
        read_image(path)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "RGB"])
def test_transparency_is_dropped_and_noted(tmp_path, mode):
    """The hidden colour appears, as in Detectron2, OpenCV and torchvision."""
    path = tmp_path / "transparent.png"
    if mode == "P":
        picture = Image.new("P", (2, 1))
        picture.putpalette([90, 90, 90, 5, 5, 5])
        picture.putpixel((1, 0), 1)
        picture.save(path, transparency=bytes([0, 128]))
        expected = [[90, 90, 90], [5, 5, 5]]
    elif mode == "RGB":
        Image.new("RGB", (2, 1), (90, 90, 90)).save(path, transparency=(90, 90, 90))
        expected = [[90, 90, 90]] * 2
    else:
        Image.new("RGBA", (2, 1), (90, 90, 90, 0)).convert(mode).save(path)
        expected = [[90, 90, 90]] * 2
    picture = open_picture(path)
    assert np.asarray(picture.image)[0].tolist() == expected
    assert picture.notes == [ImageNote.TRANSPARENT]


def test_opaque_alpha_is_not_worth_a_note(tmp_path):
    Image.new("RGBA", (2, 1), (90, 80, 70, 255)).save(tmp_path / "opaque.png")
    assert open_picture(tmp_path / "opaque.png").notes == []


@pytest.mark.parametrize(("mode", "suffix"), [("CMYK", "jpg"), ("YCbCr", "jpg"), ("L", "jpg"), ("1", "png")])
def test_other_colour_modes(tmp_path, mode, suffix):
    path = tmp_path / f"white.{suffix}"
    Image.new("RGB", (4, 4), (255, 255, 255)).convert(mode).save(path)
    assert np.asarray(read_image(path)).min() > 250


def test_animation_gives_its_first_frame(tmp_path):
    frames = [Image.new("RGB", (4, 4), colour) for colour in ((250, 0, 0), (0, 0, 250))]
    frames[0].save(tmp_path / "two.gif", save_all=True, append_images=frames[1:])
    picture = open_picture(tmp_path / "two.gif")
    assert np.asarray(picture.image)[0, 0].tolist() == [250, 0, 0]
    assert picture.notes == [ImageNote.FRAMES]


@pytest.fixture
def turned(tmp_path):
    """Stored on its side, 40 x 60, to be shown as 60 x 40; the top of what is stored is the right of what is shown."""
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    stored = Image.new("RGB", (40, 60))
    stored.paste((255, 255, 255), (0, 0, 40, 10))
    stored.save(tmp_path / "turned.jpg", exif=exif, quality=95)
    return tmp_path / "turned.jpg"


@pytest.mark.parametrize("annotated", [None, (60, 40), (30, 30)])
def test_orientation_is_applied(turned, annotated):
    picture = open_picture(turned, annotated)
    pixels = np.asarray(picture.image)
    assert pixels.shape == (40, 60, 3)
    assert pixels[:, 52:].min() > 200 and pixels[:, :48].max() < 50
    assert picture.notes == []


def test_orientation_is_not_applied_if_the_annotation_is_for_the_stored_image(turned):
    picture = open_picture(turned, (40, 60))
    pixels = np.asarray(picture.image)
    assert pixels.shape == (60, 40, 3)
    assert pixels[:8].min() > 200 and pixels[12:].max() < 50
    assert picture.notes == [ImageNote.NOT_TURNED]


def test_orientation_of_a_square_image_is_applied(tmp_path):
    exif = Image.Exif()
    exif[ORIENTATION] = 3
    stored = Image.new("L", (20, 20))
    stored.paste(255, (0, 0, 20, 6))
    stored.save(tmp_path / "square.png", exif=exif)
    picture = open_picture(tmp_path / "square.png", (20, 20))
    assert np.asarray(picture.image)[-6:].min() == 255 and picture.notes == []


def test_sizes_from_the_header(turned, tmp_path):
    assert image_sizes(turned) == ((60, 40), (40, 60))
    Image.new("L", (7, 5)).save(tmp_path / "plain.png")
    assert image_sizes(tmp_path / "plain.png") == ((7, 5), (7, 5))
    with pytest.raises(FileNotFoundError, match=r"nowhere\.png does not exist"):
        image_sizes(tmp_path / "nowhere.png")
    (tmp_path / "text.png").write_text("hello")
    with pytest.raises(ValueError, match=r"text\.png cannot be read: it is no image"):
        image_sizes(tmp_path / "text.png")


def test_broken_exif_does_not_hide_the_image(tmp_path):
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    path = tmp_path / "broken_exif.webp"
    Image.new("RGB", (40, 60)).save(path, exif=exif)
    path.write_bytes(path.read_bytes().replace(b"MM\0*", b"????"))
    picture = open_picture(path)
    assert picture.image.size == (40, 60)
    assert picture.notes == [ImageNote.BAD_EXIF]
    assert image_sizes(path) == ((40, 60), (40, 60))


@pytest.mark.parametrize(
    ("content", "reason"), [(b"", "the file is empty"), (b"no image", "it is no image, or of an unknown format")]
)
def test_reasons(tmp_path, content, reason):
    (tmp_path / "a.jpg").write_bytes(content)
    with pytest.raises(ValueError, match=rf"a\.jpg cannot be read: {reason}"):
        read_image(tmp_path / "a.jpg")


def test_folders_and_files_without_permission(tmp_path):
    (tmp_path / "a.jpg").mkdir()
    with pytest.raises(ValueError, match=r"a\.jpg cannot be read: it is a folder$"):
        read_image(tmp_path / "a.jpg")
    if os.geteuid():
        Image.new("L", (4, 4)).save(tmp_path / "secret.png")
        (tmp_path / "secret.png").chmod(0)
        with pytest.raises(ValueError, match=r"secret\.png cannot be read: Permission denied$"):
            read_image(tmp_path / "secret.png")


def test_mistakes_of_ours_are_not_taken_for_broken_files(tmp_path, monkeypatch):
    Image.new("P", (4, 4)).save(tmp_path / "good.png")
    monkeypatch.delattr(Image.Image, "has_transparency_data")  # as in a version of Pillow that is too old
    with pytest.raises(AttributeError, match="has_transparency_data"):
        read_image(tmp_path / "good.png")


class TestLimit:
    @pytest.fixture(autouse=True)
    def small_limit(self, monkeypatch):
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 50)  # Pillow raises errors above twice this
        monkeypatch.delenv(MAX_PIXELS, raising=False)

    @pytest.fixture
    def large(self, tmp_path):
        Image.new("1", (20, 10)).save(tmp_path / "large.png")
        return tmp_path / "large.png"

    @pytest.mark.parametrize(("setting", "limit"), [(None, 100), ("199", 199), ("60", 60)])
    @pytest.mark.parametrize("read", [read_image, image_sizes])
    def test_larger_images_are_refused_and_the_setting_is_named(self, large, monkeypatch, setting, limit, read):
        if setting:
            monkeypatch.setenv(MAX_PIXELS, setting)
        message = rf"large\.png cannot be read: it has more than {limit} pixels; .* {MAX_PIXELS} to a larger number, or"
        with pytest.raises(ValueError, match=message):
            read(large)

    @pytest.mark.parametrize("setting", ["200", "0"])
    @pytest.mark.filterwarnings("error")
    def test_the_setting_allows_them(self, large, monkeypatch, setting):
        monkeypatch.setenv(MAX_PIXELS, setting)
        assert read_image(large).size == (20, 10) and image_sizes(large) == ((20, 10), (20, 10))

    def test_not_a_number(self, large, monkeypatch):
        monkeypatch.setenv(MAX_PIXELS, "many")
        with pytest.raises(ValueError, match=f"{MAX_PIXELS} is 'many', expected a number of pixels"):
            read_image(large)

    @pytest.mark.parametrize("start", ["fork", "spawn"])
    def test_workers_of_loaders_have_it(self, large, monkeypatch, start):
        """And so have processes that import everything anew."""
        monkeypatch.setenv(MAX_PIXELS, "200")
        records = [{"file_name": str(large), "image_id": 0}] * 2
        loader = build_test_loader(records, DetectionMapper(is_train=False), num_workers=1)
        loader.multiprocessing_context = start
        assert [tuple(batch[0]["image"].shape) for batch in loader] == [(3, 10, 20)] * 2


def test_an_image_of_many_megapixels(tmp_path, monkeypatch):
    """200 megapixels, as 1 bit each; with Pillow's own limit they are refused."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", Image.MAX_IMAGE_PIXELS)
    Image.new("1", (20000, 10000)).save(tmp_path / "large.png")
    with pytest.raises(ValueError, match="it has more than 178956970 pixels"):
        image_sizes(tmp_path / "large.png")
    monkeypatch.setenv(MAX_PIXELS, "200000000")
    assert image_sizes(tmp_path / "large.png") == ((20000, 10000), (20000, 10000))


@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow's, about metadata
def test_damaged_bytes_never_lead_to_other_errors(tmp_path):
    """Decoders answer to some of these with TypeError, struct.error and others."""
    generator = np.random.default_rng(0)
    noise = Image.fromarray(generator.integers(0, 255, (24, 20, 3), dtype=np.uint8))
    outcomes = set()
    for suffix in ("png", "jpg", "gif", "bmp", "tif", "webp", "ppm"):
        path = tmp_path / f"damaged.{suffix}"
        noise.save(path)
        content = np.frombuffer(path.read_bytes(), dtype=np.uint8)
        for _ in range(25):
            damaged = content.copy()
            damaged[generator.integers(0, len(damaged), 2)] = generator.integers(0, 255, 2)
            path.write_bytes(damaged[: generator.integers(1, 2 * len(damaged))].tobytes())
            try:
                outcomes.add(read_image(path).mode)
            except ValueError as error:
                assert str(error).startswith(f"image {path} cannot be read: ")
                outcomes.add("refused")
    assert outcomes == {"RGB", "refused"}
