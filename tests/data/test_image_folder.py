"""Image folders of any format and size; faults are named all at once."""

from __future__ import annotations

import os

import numpy as np
import pytest
import torch
from PIL import Image

from nas_moreau.data import image_files, load_data
from nas_moreau.data.parts import hold_out
from nas_moreau.data.resizing import fit_image, fit_pixels
from nas_moreau.errors import InputError

RNG = np.random.default_rng(0)


def picture(width=8, height=8, mode="RGB"):
    return Image.fromarray(RNG.integers(0, 256, (height, width, 3), dtype=np.uint8)).convert(mode)


def make(root, counts, part="train", size=(8, 8), ending="png"):
    for name, count in counts.items():
        folder = root / part / name
        folder.mkdir(parents=True, exist_ok=True)
        for index in range(count):
            picture(*size).save(folder / f"{index:03}.{ending}")
    return root


def load(root, **options):
    return load_data(f"folder:{root}", **options)


def test_plain_folder(tmp_path):
    make(tmp_path, {"zebra": 3, "ant": 4})
    make(tmp_path, {"zebra": 2, "ant": 1}, "test")
    data = load(tmp_path)
    assert data.classes == ("ant", "zebra")
    assert data.train.labels.tolist() == [0] * 4 + [1] * 3
    assert data.test.labels.tolist() == [0, 1, 1]
    first = np.asarray(Image.open(tmp_path / "train" / "ant" / "000.png"))
    assert np.array_equal(data.train.pixels[0].permute(1, 2, 0).numpy(), first)
    last = np.asarray(Image.open(tmp_path / "test" / "zebra" / "001.png"))
    assert np.array_equal(data.test.pixels[-1].permute(1, 2, 0).numpy(), last)
    assert data.notes[0] == "All images are 8x8 and are kept so."
    assert [path.parent.name for path in data.files] == ["ant"] * 4 + ["zebra"] * 3


def test_one_size_is_kept_even_if_not_square(tmp_path):
    make(tmp_path, {"a": 10, "b": 10}, size=(9, 6))
    data = load(tmp_path)
    assert data.image_size == (6, 9)
    assert (len(data.train), len(data.test)) == (18, 2)
    assert data.test.labels.tolist() == [0, 1]
    assert any("tenth of every class is held out" in note for note in data.notes)


def test_held_out_tenth_is_seeded(tmp_path):
    make(tmp_path, {"a": 40, "b": 20})
    same, again, other = (load(tmp_path, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(same.test.pixels, again.test.pixels)
    assert not torch.equal(same.test.pixels, other.test.pixels)
    assert torch.bincount(same.test.labels).tolist() == [4, 2]
    assert len(same.files) == len(same.train)
    for path, image in zip(same.files, same.train.pixels):
        assert np.array_equal(np.asarray(Image.open(path)), image.permute(1, 2, 0).numpy())
    everything = torch.cat([same.train.pixels, same.test.pixels]).flatten(1)
    assert len(torch.unique(everything, dim=0)) == 60
    assert any("'a' has 36 training images, 'b' 18" in note for note in same.notes)


def test_different_sizes_become_32_and_say_so(tmp_path):
    make(tmp_path, {"a": 6, "b": 6}, size=(40, 50))
    make(tmp_path, {"a": 2, "b": 2}, "test", size=(64, 33))
    data = load(tmp_path)
    assert data.image_size == (32, 32)
    assert data.notes[0].startswith("Images have 2 different sizes: the shorter side resized to 32 pixels")


def test_image_size_is_obeyed(tmp_path):
    make(tmp_path, {"a": 6, "b": 6}, size=(40, 50))
    assert load(tmp_path, image_size=16).image_size == (16, 16)
    assert load(tmp_path, image_size=16).notes[0].startswith("Images are 40x50: the shorter side")
    for wrong in (0, -3, 5000):
        with pytest.raises(InputError, match="image size"):
            load(tmp_path, image_size=wrong)


def test_large_images_of_one_size_are_not_kept(tmp_path):
    make(tmp_path, {"a": 0, "b": 0})
    for index in range(10):
        Image.new("RGB", (700, 600)).save(tmp_path / "train" / "ab"[index % 2] / f"{index}.png")
    assert load(tmp_path).image_size == (32, 32)


def test_resizing_keeps_the_centre():
    # Left half black, right half white, twice as wide as high: the square keeps the edge in its middle.
    wide = np.zeros((20, 40, 3), dtype=np.uint8)
    wide[:, 20:] = 255
    fitted = np.asarray(fit_image(Image.fromarray(wide), 10))
    assert fitted.shape == (10, 10, 3)
    assert fitted[:, :4].max() == 0
    assert fitted[:, 6:].min() == 255
    for size in (10, (10, 16), (7, 40)):
        fitted = np.asarray(fit_image(Image.fromarray(wide), size))
        tensor = fit_pixels(torch.from_numpy(wide).permute(2, 0, 1)[None], size, chunk=1)
        assert (tensor[0].permute(1, 2, 0).int() - torch.from_numpy(fitted.copy()).int()).abs().max() <= 1


def test_a_very_long_image_needs_no_memory(tmp_path):
    make(tmp_path, {"a": 9, "b": 9})
    Image.new("RGB", (60_000, 1)).save(tmp_path / "train" / "a" / "long.png")
    assert load(tmp_path).image_size == (32, 32)


def test_every_kind_of_image_becomes_rgb(tmp_path):
    make(tmp_path, {"a": 1, "b": 1}, size=(4, 4))
    make(tmp_path, {"b": 1}, "test", size=(4, 4))
    folder = tmp_path / "test" / "a"
    folder.mkdir(parents=True)
    clear = Image.new("RGBA", (4, 4), (10, 20, 30, 0))
    clear.putpixel((0, 0), (10, 20, 30, 255))
    palette = Image.new("P", (4, 4), 1)
    palette.putpalette([1, 2, 3, 200, 100, 50])
    see_through = palette.copy()
    see_through.info["transparency"] = bytes([0, 0])
    deep = Image.fromarray(np.full((4, 4), 257 * 77, dtype=np.uint16))
    turned = Image.new("L", (4, 4), 9)
    expected = {
        "1_gray.png": (Image.new("L", (4, 4), 77), (77, 77, 77)),
        "2_bit.png": (Image.new("1", (4, 4), 1), (255, 255, 255)),
        "3_palette.png": (palette, (200, 100, 50)),
        "4_palette_clear.png": (see_through, (255, 255, 255)),
        "5_rgba.png": (clear, (255, 255, 255)),
        "6_gray_alpha.png": (Image.new("LA", (4, 4), (7, 255)), (7, 7, 7)),
        "7_deep.png": (deep, (77, 77, 77)),
        "8_plain.bmp": (turned, (9, 9, 9)),
        "9_cmyk.tif": (Image.new("CMYK", (4, 4), (0, 255, 255, 0)), (255, 0, 0)),
    }
    for name, (image, _) in expected.items():
        image.save(folder / name)
    data = load(tmp_path)
    for index, (name, (_, colour)) in enumerate(expected.items()):
        assert data.test.pixels[index, :, -1, -1].tolist() == list(colour), name
    assert data.test.pixels[4, :, 0, 0].tolist() == [10, 20, 30]


def test_camera_rotation_is_undone(tmp_path):
    make(tmp_path, {"a": 5, "b": 5}, size=(6, 10), ending="jpg")
    upright = Image.new("L", (10, 6))
    upright.paste(255, (0, 0, 10, 3))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise: 10x6 becomes 6x10, its top the right side
    upright.save(tmp_path / "train" / "a" / "zz.jpg", exif=exif, quality=95)
    data = load(tmp_path)
    assert data.image_size == (10, 6)
    whole = torch.cat([data.train.pixels, data.test.pixels]).float().mean(1)
    assert any(image[:, 3:].mean() > 250 and image[:, :3].mean() < 5 for image in whole)


def test_unreadable_files_are_listed_all_at_once(tmp_path):
    make(tmp_path, {"a": 5, "b": 5})
    good = (tmp_path / "train" / "a" / "000.png").read_bytes()
    for index in range(12):
        (tmp_path / "train" / "a" / f"bad{index:02}.png").write_bytes(b"no image")
    (tmp_path / "train" / "a" / "empty.jpg").write_bytes(b"")
    (tmp_path / "train" / "b" / "short.png").write_bytes(good[: len(good) // 2])
    with pytest.raises(InputError) as caught:
        load(tmp_path)
    assert "14 of 24" in caught.value.cause
    assert sum(f"bad{index:02}.png" in caught.value.cause for index in range(12)) == 10
    assert "4 more" in caught.value.cause


def test_huge_declared_images_are_refused(tmp_path, monkeypatch):
    make(tmp_path, {"a": 5, "b": 5})
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 20)  # 64 pixels are more than twice as many
    with pytest.raises(InputError, match="10 of 10"):
        load(tmp_path)


def test_memory_limit_comes_before_memory(tmp_path, monkeypatch):
    make(tmp_path, {"a": 5, "b": 5})
    monkeypatch.setattr("nas_moreau.data.images.MAX_BYTES", 10 * 3 * 64 - 1)
    with pytest.raises(InputError, match="memory"):
        load(tmp_path)


def test_other_files_are_passed_over_and_counted(tmp_path):
    make(tmp_path, {"a": 5, "b": 5})
    (tmp_path / "train" / "a" / "notes.txt").write_text("hello")
    (tmp_path / "train" / "a" / ".hidden.png").write_text("hello")
    (tmp_path / "train" / ".cache").mkdir()
    os.mkfifo(tmp_path / "train" / "a" / "pipe.png")  # opening it would wait for ever
    (tmp_path / "train" / "a" / "loop.png").symlink_to("loop.png")
    data = load(tmp_path)
    assert len(data.train) + len(data.test) == 10
    assert any(note.startswith("1 files with other endings") for note in data.notes)


def test_layout_faults(tmp_path):
    with pytest.raises(InputError, match="does not exist"):
        load(tmp_path / "absent")
    with pytest.raises(InputError, match="'train'"):
        load(tmp_path)
    make(tmp_path, {"a": 10})
    with pytest.raises(InputError, match="single class"):
        load(tmp_path)
    (tmp_path / "train" / "b").mkdir()
    with pytest.raises(InputError, match=r"1 class folders .*: b"):
        load(tmp_path)


def test_test_classes_must_match(tmp_path):
    make(tmp_path, {"a": 2, "b": 2})
    make(tmp_path, {"a": 2, "c": 2}, "test")
    with pytest.raises(InputError, match=r"\['c'\].*\['b'\]"):
        load(tmp_path)


def test_too_few_to_hold_out(tmp_path):
    make(tmp_path, {"a": 2, "b": 2})
    with pytest.raises(InputError, match="tenth"):
        load(tmp_path)
    with pytest.raises(InputError, match="each class"):
        hold_out(torch.arange(20), 0, "here")


def test_every_class_keeps_training_images():
    labels = torch.cat([torch.zeros(30, dtype=torch.int64), torch.arange(1, 6)])
    train, test = hold_out(labels, 0, "here")
    assert set(labels[train].tolist()) == set(range(6))
    assert sorted([*train.tolist(), *test.tolist()]) == list(range(35))


def test_endings():
    from pathlib import Path

    assert image_files.is_image(Path("a/B.JPEG"))
    assert not image_files.is_image(Path("a/.b.png"))
    assert not image_files.is_image(Path("a/b.txt"))
