"""Videos: the built-in moving sprites, and animations, films and folders of frames as people have them."""

import io

import numpy as np
import pytest
from PIL import Image

from tokenizer_image.signals import video_files
from tokenizer_image.signals.moving_sprites import DIRECTIONS, HELD_OUT_MOVES, MovingSprites
from tokenizer_image.signals.video_files import frame_folders, is_video, read_frames, read_video, write_gif
from tokenizer_image.sprites.scenes import HELD_OUT_PAIRS


def frames_of(count: int = 4, height: int = 6, width: int = 8) -> np.ndarray:
    """Frames of one colour each, which every format keeps."""
    shades = np.arange(count, dtype=np.uint8)[:, None, None, None] * 60
    return np.broadcast_to(shades, (count, height, width, 3)).copy()


# ---- moving sprites


def test_a_row_is_the_same_whenever_it_is_drawn():
    first, again = MovingSprites(seed=3)[5], MovingSprites(num_examples=10, seed=3)[5]
    assert np.array_equal(first.values, again.values) and first.texts == again.texts
    assert first.values.shape == (8, 32, 32, 3) and first.values.dtype == np.uint8 and first.rate == 8.0
    assert not np.array_equal(first.values, MovingSprites(seed=4)[5].values)
    assert MovingSprites(image_size=16)[0].values.shape == (8, 16, 16, 3)


def test_the_thing_moves_where_the_caption_says():
    """Where frames differ from their mean over time, the later half of the video lies on the named side."""
    source = MovingSprites(seed=1)
    for row in range(40):
        values = source[row].values.astype(float)
        changed = np.abs(values - np.median(values, axis=0)).sum(axis=-1)
        place = [np.argwhere(part > 60).mean(axis=0)[::-1] for part in (changed[0], changed[-1])]  # x, y
        way = np.subtract(place[1], place[0])
        attributes = source.attributes(row)
        assert way @ np.asarray(DIRECTIONS[attributes["direction"]]) > 2
        full = source.texts(row)[0]
        assert all(attributes[name] in full for name in ("thing", "colour", "direction"))


def test_held_out_combinations_are_seen_in_their_split_alone():
    def is_held_out(attributes: dict[str, str]) -> bool:
        thing = attributes["thing"]
        return (thing, attributes["colour"]) in HELD_OUT_PAIRS or (thing, attributes["direction"]) in HELD_OUT_MOVES

    for split in ("train", "validation", "held_out"):
        source = MovingSprites(split)
        assert {is_held_out(source.attributes(row)) for row in range(200)} == {split == "held_out"}
    assert ("dog", "right") not in HELD_OUT_MOVES  # the example of the documents
    fingerprints = {MovingSprites(split, seed=seed).fingerprint for split in ("train", "held_out") for seed in (0, 1)}
    assert len(fingerprints) == 4


def test_splits_and_sizes_that_there_are_not():
    with pytest.raises(ValueError, match="have no split 'test'; they have: train, validation, held_out"):
        MovingSprites("test")
    with pytest.raises(ValueError, match="num_examples=0 must be at least 1"):
        MovingSprites(num_examples=0)
    with pytest.raises(ValueError, match="image_size=4 is too small"):
        MovingSprites(image_size=4)
    with pytest.raises(IndexError, match="row 7 is outside"):
        MovingSprites(num_examples=7)[7]


# ---- files


def test_a_gif_comes_back_as_it_was_written(tmp_path):
    frames = frames_of()
    write_gif(tmp_path / "a.gif", frames, rate=5.0)
    video = read_video(tmp_path / "a.gif")
    assert np.array_equal(video.frames, frames) and video.rate == pytest.approx(5.0)


def test_webp_and_transparency(tmp_path):
    images = [Image.fromarray(frame) for frame in frames_of(3)]
    images[0].save(tmp_path / "a.webp", save_all=True, append_images=images[1:], duration=100, lossless=True)
    video = read_video(tmp_path / "a.webp")
    assert np.array_equal(video.frames, frames_of(3)) and video.rate == pytest.approx(10.0)
    clear = [Image.new("RGBA", (4, 4), (0, 0, 0, 0)), Image.new("RGBA", (4, 4), (0, 0, 255, 255))]
    clear[0].save(tmp_path / "b.webp", save_all=True, append_images=clear[1:], lossless=True)
    assert read_video(tmp_path / "b.webp").frames[:, 0, 0].tolist() == [[255, 255, 255], [0, 0, 255]]


def test_a_film(tmp_path):
    av = pytest.importorskip("av")
    frames = frames_of(6, 32, 48)
    with av.open(str(tmp_path / "a.mp4"), "w") as container:
        stream = container.add_stream("mpeg4", rate=12)
        stream.width, stream.height, stream.pix_fmt = 48, 32, "yuv420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    video = read_video(tmp_path / "a.mp4")
    assert video.frames.shape == frames.shape and video.rate == pytest.approx(12.0)
    assert np.abs(video.frames.astype(int) - frames).mean() < 6
    (tmp_path / "b.mp4").write_bytes(b"no film at all" * 50)
    with pytest.raises(ValueError, match="it cannot be read"):
        read_video(tmp_path / "b.mp4")


def test_frames_are_ordered_by_their_numbers(tmp_path):
    (tmp_path / "walk").mkdir()
    frames = frames_of(4)
    for number, frame in zip((1, 2, 10, 11), frames, strict=True):
        Image.fromarray(frame).save(tmp_path / "walk" / f"{number}.png")
    found = frame_folders(["walk/10.png", "walk/2.png", "walk/1.png", "walk/11.png", "alone.png", "walk/a.gif"])
    assert found == {"walk": ["walk/1.png", "walk/2.png", "walk/10.png", "walk/11.png"]}
    video = read_frames(tmp_path, found["walk"])
    assert np.array_equal(video.frames, frames) and video.rate is None


def test_frames_of_different_sizes_are_named(tmp_path):
    Image.new("RGB", (8, 6)).save(tmp_path / "0.png")
    Image.new("RGB", (9, 6)).save(tmp_path / "1.png")
    with pytest.raises(ValueError, match="differ in size: the first has 8x6 pixels, 1.png has 9x6 pixels"):
        read_frames(tmp_path, ["0.png", "1.png"])


def test_frames_outside_of_the_folder_are_refused(tmp_path):
    (tmp_path / "in").mkdir()
    Image.new("RGB", (8, 6)).save(tmp_path / "0.png")
    with pytest.raises(ValueError, match="outside of the data set's folder"):
        read_frames(tmp_path / "in", ["../0.png", "../0.png"])


def test_videos_that_are_none(tmp_path, monkeypatch):
    Image.new("RGB", (8, 6)).save(tmp_path / "one.gif")
    with pytest.raises(ValueError, match="it has 1 frame: a video has two or more"):
        read_video(tmp_path / "one.gif")
    write_gif(tmp_path / "a.gif", frames_of())
    content = (tmp_path / "a.gif").read_bytes()
    (tmp_path / "cut.gif").write_bytes(content[:30])
    with pytest.raises(ValueError, match="it cannot be read"):
        read_video(tmp_path / "cut.gif")
    (tmp_path / "text.gif").write_bytes(b"GIF of nothing")
    with pytest.raises(ValueError, match="it cannot be read"):
        read_video(tmp_path / "text.gif")
    with pytest.raises(ValueError, match="videos are files with the endings"):
        read_video(tmp_path / "a.txt")
    for name, limit in (("MOST_FRAMES", 3), ("MOST_PIXELS", 3 * 48)):
        with monkeypatch.context() as patch:
            patch.setattr(video_files, name, limit)
            with pytest.raises(ValueError, match="more than .* cut it into shorter ones"):
                read_video(tmp_path / "a.gif")
    huge = io.BytesIO()
    Image.new("P", (1, 1)).save(huge, "GIF")
    (tmp_path / "huge.gif").write_bytes(huge.getvalue()[:6] + b"\xff\xff\xff\xff" + huge.getvalue()[10:])
    with pytest.raises(ValueError, match="pixels"):
        read_video(tmp_path / "huge.gif")


def test_what_cannot_be_written(tmp_path):
    for frames, rate in ((frames_of().astype(float), 8.0), (frames_of()[0], 8.0), (frames_of(), 0.0)):
        with pytest.raises(ValueError, match="a GIF needs uint8 frames"):
            write_gif(tmp_path / "a.gif", frames, rate)
    assert is_video("a/B.GIF") and is_video("a.mp4") and not is_video("a.png")
