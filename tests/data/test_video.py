import sys
from fractions import Fraction

import pytest
from PIL import Image

from detrx.data.video import Video, VideoWriter

pytest.importorskip("av")

SIZE = (64, 48)


def write_video(path, count=10, rate=5, size=SIZE):
    """Frame i is grey of value 20 * i."""
    with VideoWriter(path, Fraction(rate)) as writer:
        for i in range(count):
            writer.write(Image.new("RGB", size, (20 * i,) * 3))
    return path


def greys(frames):
    return [frame["image"].resize((1, 1)).getpixel((0, 0))[0] for frame in frames]


def test_what_was_written_is_read(tmp_path):
    clip = Video(write_video(tmp_path / "clip.mp4"))
    assert (clip.length, clip.rate) == (10, 5)
    frames = list(clip)
    assert greys(frames) == pytest.approx([20 * i for i in range(10)], abs=4)
    assert [frame["frame"] for frame in frames] == list(range(10))
    assert [frame["timestamp"] for frame in frames] == pytest.approx([i / 5 for i in range(10)])
    assert {frame["image"].size for frame in frames} == {SIZE}
    assert {frame["image"].mode for frame in frames} == {"RGB"}
    assert {frame["file_name"] for frame in frames} == {str(tmp_path / "clip.mp4")}
    assert greys(clip) == greys(frames)  # a video can be read again


@pytest.mark.parametrize(("every", "expected"), [(3, [0, 3, 6, 9]), (4, [0, 4, 8]), (20, [0])])
def test_every_so_many_frames(every, expected, tmp_path):
    clip = Video(write_video(tmp_path / "clip.mp4"), every)
    frames = list(clip)
    assert [frame["frame"] for frame in frames] == expected
    assert greys(frames) == pytest.approx([20 * i for i in expected], abs=4)
    assert [frame["timestamp"] for frame in frames] == pytest.approx([i / 5 for i in expected])
    assert clip.length == len(expected) and clip.rate == Fraction(5, every)


def test_odd_sizes_lose_a_row_and_a_column(tmp_path):
    frames = list(Video(write_video(tmp_path / "odd.mp4", 2, size=(33, 51))))
    assert [frame["image"].size for frame in frames] == [(32, 50)] * 2


def test_rotated_video_is_upright(tmp_path, monkeypatch):
    """Phones store a video on its side, and how it is to be turned."""
    import av

    path = write_video(tmp_path / "clip.mp4", 1)

    class Turned:
        rotation, time = -90, 0.0  # counterclockwise

        def to_image(self):
            image = Image.new("RGB", SIZE)
            image.paste((255, 255, 255), (0, 0, SIZE[0], 8))  # the top
            return image

    class Container:
        def __init__(self, inner):
            self.streams, self.inner = inner.streams, inner

        def demux(self, stream):
            return [self]

        def decode(self):
            return [Turned()]

        def __enter__(self):
            return self

        def __exit__(self, *_):
            self.inner.close()

    real = av.open
    monkeypatch.setattr(av, "open", lambda *args: Container(real(*args)))
    (frame,) = Video(path)
    assert frame["image"].size == (48, 64)
    assert frame["image"].getpixel((47, 30)) == (255, 255, 255)  # the top has become the right
    assert frame["image"].getpixel((0, 30)) == (0, 0, 0)


@pytest.mark.parametrize("kept", [0, 40, 400])
def test_broken_video_is_named(kept, tmp_path):
    path = write_video(tmp_path / "clip.mp4")
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(ValueError, match=r"video .*clip\.mp4 (cannot be read|has no frame)"):
        list(Video(path))


@pytest.mark.parametrize("every", [1, 3])
def test_damaged_frames_are_an_error_after_the_others(every, tmp_path):
    import av

    path = write_video(tmp_path / "clip.mp4")
    with av.open(str(path)) as container:
        packets = [packet for packet in container.demux(container.streams.video[0]) if packet.size]
    content = bytearray(path.read_bytes())
    start, size = packets[4].pos, packets[4].size
    content[start : start + size] = b"\xff" * size
    path.write_bytes(content)
    frames = []
    with pytest.raises(ValueError, match=r"video .*clip\.mp4 cannot be read completely; damaged frames: 1$"):
        for frame in Video(path, every):
            frames.append(frame["frame"])
    assert frames == sorted(set(frames)) and len(frames) in (9 // every, 9 // every + 1)


def test_nothing_but_damaged_frames(tmp_path):
    path = write_video(tmp_path / "clip.mp4")
    content = bytearray(path.read_bytes())
    start = content.index(b"mdat") + 4
    content[start : start + 600] = bytes(600)
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"video .*clip\.mp4 has no frame that can be read"):
        list(Video(path))


def test_no_video_at_all(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"video .*none\.mp4 does not exist"):
        Video(tmp_path / "none.mp4")
    sound = tmp_path / "sound.mp4"
    import av
    import numpy as np

    with av.open(str(sound), "w") as container:
        stream = container.add_stream("aac", rate=8000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), dtype=np.float32), format="fltp", layout="mono")
        frame.sample_rate = 8000
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    with pytest.raises(ValueError, match=r"sound\.mp4 has no pictures in it"):
        Video(sound)


def test_missing_package(tmp_path, monkeypatch):
    path = write_video(tmp_path / "clip.mp4", 1)
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(ImportError, match="videos need PyAV: pip install av"):
        Video(path)
