"""Videos in stage 1: networks over blocks of frames, moving sprites, animations, films and folders of frames."""

import io

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import with_open_blocks

from tokenizer_image import VQVAE, VQVAEConfig
from tokenizer_image.frame_networks import channels_to_frames, frames_to_channels
from tokenizer_image.signals import video_files
from tokenizer_image.signals.loading import load_signals
from tokenizer_image.signals.moving_sprites import DIRECTIONS, HELD_OUT_MOVES, MovingSprites
from tokenizer_image.signals.settings import SignalSettings
from tokenizer_image.signals.video_files import frames_in, is_frame, is_video, read_video, write_gif
from tokenizer_image.sprites.scenes import HELD_OUT_PAIRS

SETTINGS = SignalSettings("video", 4, num_channels=3, frame_size=8)


def frames_of(count: int = 4, height: int = 6, width: int = 8) -> np.ndarray:
    """Frames of one colour each, which every format keeps."""
    shades = np.arange(count, dtype=np.uint8)[:, None, None, None] * 60
    return np.broadcast_to(shades, (count, height, width, 3)).copy()


def video_tokenizer(seed: int = 0, **settings) -> VQVAE:
    """Videos of 4 frames of 16x16, two blocks of two frames, 2x2 positions of two codes each."""
    torch.manual_seed(seed)
    defaults = {
        "hidden_sizes": [6, 8], "patch_size": 4, "num_res_blocks": 1, "code_dim": 4, "codebook_sizes": [16, 8],
        "quantizer_options": {"kmeans_start": False}, "signal": "video", "image_size": 16, "num_frames": 4,
        "frame_patch": 2,
    }  # fmt: skip
    return with_open_blocks(VQVAE(VQVAEConfig(**{**defaults, **settings})).eval())


# ---- networks


def test_frames_become_channels_and_come_back():
    frames = torch.arange(2 * 3 * 4 * 2 * 2.0).view(2, 3, 4, 2, 2)  # (B, C, T, side, side)
    column = frames.flatten(2, 3)
    blocks = frames_to_channels(column, 2)
    assert blocks.shape == (4, 6, 2, 2)
    assert torch.equal(blocks[1, 3:], frames[0, :, 3])  # the second block's second frame
    assert torch.equal(channels_to_frames(blocks, 2, steps=2), column)


def test_codes_lie_time_by_time_then_place_by_place(tmp_path):
    tokenizer = video_tokenizer()
    layout = tokenizer.layout()
    assert len(layout) == tokenizer.tokens_per_image == 2 * 4 * 2
    assert layout.row.tolist() == [row for row in range(4) for _ in range(4)]  # two grids below each other
    assert layout.depth.tolist() == [0, 1] * 8
    values = torch.rand(3, 3, 64, 16) * 2 - 1
    codes = tokenizer.encode(values)
    output = tokenizer(values)
    assert torch.equal(output.codes, codes) and output.reconstruction.shape == values.shape
    assert torch.equal(tokenizer.decode(codes), output.reconstruction.clamp(-1, 1))
    later = values.clone()
    later[:, :, 32:] = 0  # the last two frames
    assert torch.equal(tokenizer.encode(later)[:, :8], codes[:, :8])
    tokenizer.save_pretrained(tmp_path)
    loaded = VQVAE.from_pretrained(tmp_path).eval()
    assert loaded.fingerprint == tokenizer.fingerprint and torch.equal(loaded.encode(values), codes)
    assert tokenizer.encode(values[:, :, :32]).shape == (3, 8)  # any whole number of blocks


def test_a_block_is_decoded_from_its_codes_and_those_before():
    tokenizer = video_tokenizer()
    inputs = torch.randn(1, 4, 4, 2, requires_grad=True)
    decoded = tokenizer.decoder(inputs)
    (gradient,) = torch.autograd.grad(decoded[:, :, :32].sum(), inputs, retain_graph=True)
    assert gradient[:, :, :2].any() and not gradient[:, :, 2:].any()
    (gradient,) = torch.autograd.grad(decoded[:, :, 32:].sum(), inputs)
    assert gradient[:, :, :2].any() and gradient[:, :, 2:].any()


def test_sizes_that_are_no_videos():
    tokenizer = video_tokenizer()
    for size in ((16, 64), (48, 16), (64, 12), (0, 16)):
        with pytest.raises(ValueError, match="a video is a column of square frames"):
            tokenizer.layout(size)
    with pytest.raises(ValueError, match="videos have one level"):
        video_tokenizer(num_levels=2, codebook_sizes=[8, 8])
    with pytest.raises(ValueError, match="network='mlp' is for pictures"):
        video_tokenizer(network="mlp")
    with pytest.raises(ValueError, match="no axis of time"):
        video_tokenizer(causal=True)
    for settings in ({"length": 1}, {"length": 4, "frame_size": 0}, {"length": 4, "num_channels": 1}):
        with pytest.raises(ValueError, match="two frames or more, of at least one pixel, in RGB"):
            SignalSettings("video", **{"num_channels": 3, "frame_size": 8, **settings})


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
    (tmp_path / "walk" / "notes.txt").write_text("no frame")
    (tmp_path / "walk" / "._1.png").write_text("what macOS keeps beside a picture")
    found = [file.name for file in frames_in(tmp_path / "walk")]
    assert found == ["1.png", "2.png", "10.png", "11.png"]
    assert [is_frame(name) for name in ("walk/1.png", "alone.png", "walk/a.gif")] == [True, False, False]
    video = read_video(tmp_path / "walk")
    assert np.array_equal(video.frames, frames) and video.rate is None


def test_frames_of_different_sizes_are_named(tmp_path):
    Image.new("RGB", (8, 6)).save(tmp_path / "0.png")
    Image.new("RGB", (9, 6)).save(tmp_path / "1.png")
    with pytest.raises(ValueError, match="differ in size: the first has 8x6 pixels, 1.png has 9x6 pixels"):
        read_video(tmp_path)


def test_videos_that_are_none(tmp_path, monkeypatch):
    Image.new("RGB", (8, 6)).save(tmp_path / "one.gif")
    with pytest.raises(ValueError, match="it has 1 frame: a video has two or more"):
        read_video(tmp_path / "one.gif")
    write_gif(tmp_path / "a.gif", frames_of())
    content = (tmp_path / "a.gif").read_bytes()
    for length in (30, len(content) // 2, len(content) - 1):
        (tmp_path / "cut.gif").write_bytes(content[:length])
        with pytest.raises(ValueError, match="it is cut off"):
            read_video(tmp_path / "cut.gif")
    Image.fromarray(frames_of()[0]).save(tmp_path / "a.webp", save_all=True, append_images=[Image.new("RGB", (8, 6))])
    (tmp_path / "cut.webp").write_bytes((tmp_path / "a.webp").read_bytes()[:-9])
    with pytest.raises(ValueError, match="it is cut off"):
        read_video(tmp_path / "cut.webp")
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


# ---- folders


def test_a_folder_of_videos_of_every_kind(tmp_path):
    for split, count in (("train", 3), ("validation", 2)):
        (tmp_path / split).mkdir()
        for number in range(count):
            write_gif(tmp_path / split / f"{number}.gif", frames_of(4, 8, 8))
            (tmp_path / split / f"{number}.txt").write_text(f"video {number}")
    walk = tmp_path / "train" / "walk"
    walk.mkdir()
    for number, frame in enumerate(frames_of(4, 8, 12)):
        Image.fromarray(frame).save(walk / f"{number}.png")
    (tmp_path / "train" / "walk.txt").write_text("someone walks")
    write_gif(tmp_path / "train" / "long.gif", np.concatenate([frames_of(4, 8, 8)] * 3)[:10])
    write_gif(tmp_path / "train" / "short.gif", frames_of(3, 8, 8))
    Image.new("RGB", (8, 8)).save(tmp_path / "train" / "still.gif")
    source = load_signals(SETTINGS, str(tmp_path), "train")
    keys = [source.key(row) for row in range(len(source))]
    names = [f"train/{name}" for name in ("0.gif", "1.gif", "2.gif", "long.gif", "long.gif from frame 4")]
    assert sorted(keys) == sorted([*names, "train/long.gif from frame 8", "train/short.gif", "train/walk"])
    examples = {key: source[row] for row, key in enumerate(keys)}
    assert all(one.values.shape == (4, 8, 8, 3) and one.values.dtype == np.uint8 for one in examples.values())
    assert examples["train/walk"].texts == ("someone walks",) and examples["train/1.gif"].texts == ("video 1",)
    assert np.array_equal(examples["train/0.gif"].values, frames_of(4, 8, 8))
    short = examples["train/short.gif"].values
    assert np.array_equal(short, frames_of(4, 8, 8)[[0, 1, 2, 2]])  # followed by its last frame
    column = examples["train/walk"].input_values
    assert column.shape == (3, 32, 8) and np.array_equal(column[:, 8:16], np.moveaxis(frames_of(4, 8, 8)[1], -1, 0))
    lines = "\n".join(source.summary.lines())
    assert "still.gif" in lines and "a video has two or more" in lines
    assert "videos of another size are cropped to squares and resized to 8x8: 1 of 12x8" in lines
    before = source.fingerprint
    Image.new("RGB", (12, 8), "red").save(walk / "3.png")
    assert load_signals(SETTINGS, str(tmp_path), "train").fingerprint != before
    assert len(load_signals(SETTINGS, str(tmp_path), "validation")) == 2


def test_frame_folders_of_classes_and_in_metadata(tmp_path):
    for name in ("dog", "cat"):
        for number in range(3):
            folder = tmp_path / "classes" / name / str(number)
            folder.mkdir(parents=True)
            for frame, pixels in enumerate(frames_of(4, 8, 8)):
                Image.fromarray(pixels).save(folder / f"{frame}.png")
    source = load_signals(SETTINGS, str(tmp_path / "classes"), "train")
    assert source.label_names == ["cat", "dog"] and {source.texts(row)[0] for row in range(len(source))} <= {
        "cat",
        "dog",
    }
    (tmp_path / "classes" / "metadata.jsonl").write_text(
        "".join(f'{{"file_name": "dog/{number}", "text": "dog {number} walks"}}\n' for number in range(3))
    )
    source = load_signals(SETTINGS, str(tmp_path / "classes"), "train")
    assert {source.texts(row)[0] for row in range(len(source))} < {f"dog {number} walks" for number in range(3)}


def test_frames_outside_of_the_folder_are_refused(tmp_path):
    for number in range(2):
        (tmp_path / "data" / f"{number}").mkdir(parents=True)
        for frame, pixels in enumerate(frames_of(4, 8, 8)):
            Image.fromarray(pixels).save(tmp_path / "data" / f"{number}" / f"{frame}.png")
    Image.new("RGB", (8, 8)).save(tmp_path / "outside.png")
    (tmp_path / "data" / "0" / "4.png").symlink_to(tmp_path / "outside.png")
    with pytest.raises(ValueError, match="none of its 1 videos can be read: 0.*outside of the data set's folder"):
        for split in ("train", "validation"):
            load_signals(SETTINGS, str(tmp_path / "data"), split)


def test_folders_that_hold_other_kinds(tmp_path):
    with pytest.raises(ValueError, match="holds no videos: it has no file of a kind that is read"):
        load_signals(SETTINGS, str(tmp_path))
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    with pytest.raises(ValueError, match="holds no videos: it has 1 pictures, such as a.png"):
        load_signals(SETTINGS, str(tmp_path))
    write_gif(tmp_path / "a.gif", frames_of())
    with pytest.raises(ValueError, match="mixes 1 videos, such as a.gif, and 1 pictures, such as a.png"):
        load_signals(SETTINGS, str(tmp_path))
    (tmp_path / "a.mp4").write_bytes(b"film")
    with pytest.raises(ValueError, match="it has 2 pictures, such as a.gif and 1 videos, such as a.mp4"):
        load_signals(SignalSettings("audio", 8, 8000), str(tmp_path))
    (tmp_path / "cut").mkdir()
    for name in ("a.gif", "b.gif"):
        (tmp_path / "cut" / name).write_bytes((tmp_path / "a.gif").read_bytes()[:-1])
    with pytest.raises(ValueError, match="none of its .* videos can be read: .*.gif: it is cut off"):
        load_signals(SETTINGS, str(tmp_path / "cut"))
