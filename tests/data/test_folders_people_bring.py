"""Folders as people have them: read rightly with a note on what was assumed, or refused with the cure."""

from __future__ import annotations

import io
import os
import struct
import subprocess
import zlib

import numpy as np
import pytest
from PIL import Image, ImageFile

from nas_moreau.data import describe_data, load_data
from nas_moreau.errors import InputError

RNG = np.random.default_rng(0)


def picture(size=(6, 6)):
    return Image.fromarray(RNG.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))


def put(root, tree, count=6):
    """Writes `count` images into each folder of a text such as "train/cat train/dog"."""
    for place in tree.split():
        folder = root / place
        folder.mkdir(parents=True, exist_ok=True)
        for index in range(count):
            picture().save(folder / f"{place.replace('/', '_')}{index}.png")
    return root


def load(root):
    return load_data(f"folder:{root}")


def noted(data, *words):
    return any(all(word in note for word in words) for note in data.notes)


# (folders, sizes of training and test part, words of a note)
LAYOUTS = [
    ("train/cat train/dog test/cat test/dog", (12, 12), []),
    ("train/cat train/dog val/cat val/dog", (12, 12), ["12 validation images", "test"]),
    ("train/cat train/dog val/cat val/dog test/cat test/dog", (24, 12), ["12 validation images", "training"]),
    ("train/cat train/dog valid/cat valid/dog", (12, 12), ["validation"]),
    ("train/cat train/dog validation/cat validation/dog", (12, 12), ["validation"]),
    ("Train/cat Train/dog Test/cat Test/dog", (12, 12), []),
    ("TRAIN/cat TRAIN/dog TEST/cat TEST/dog", (12, 12), []),
    ("training/cat training/dog testing/cat testing/dog", (12, 12), []),
    ("training_set/cat training_set/dog test_set/cat test_set/dog", (12, 12), []),
    ("trainset/cat trainset/dog testset/cat testset/dog", (12, 12), []),
    ("seg_train/seg_train/a seg_train/seg_train/b seg_test/seg_test/a seg_test/seg_test/b", (12, 12), ["seg_train"]),
    ("photos/train/cat photos/train/dog photos/test/cat photos/test/dog", (12, 12), ["photos"]),
    ("a/b/train/cat a/b/train/dog", (11, 1), ["a/b"]),
    ("photos/cat photos/dog", (11, 1), ["photos"]),
    ("cat dog", (11, 1), ["no parts"]),
    ("cat dog fish", (16, 2), ["no parts"]),
    ("train/cat train/dog", (11, 1), ["tenth"]),
    ("train/cat/images train/dog/images test/cat/images test/dog/images", (12, 12), []),
    ("cat/train dog/train cat/test dog/test", (12, 12), ["parts"]),
    ("bus car train", (16, 2), ["no parts"]),
    ("train/cat train/dog test/cat", (12, 6), ["dog", "test"]),
    ("train/cat train/dog __MACOSX/train/cat .Trash/train/cat @eaDir", (11, 1), ["tenth"]),
    ("train/cat train/dog train/__MACOSX train/.thumbnails", (11, 1), ["tenth"]),
    ("train/cat train/dog unlabelled/more", (11, 1), ["unlabelled"]),
    ("01_train/cat 01_train/dog 02_test/cat 02_test/dog", (12, 12), []),
    ("1/2/3/4/5/train/cat 1/2/3/4/5/train/dog", (11, 1), ["5"]),
]


@pytest.mark.parametrize("tree, sizes, words", LAYOUTS, ids=[tree for tree, _, _ in LAYOUTS])
def test_layouts_that_are_understood(tmp_path, tree, sizes, words):
    data = load(put(tmp_path, tree))
    assert (len(data.train), len(data.test)) == sizes
    assert len(data.files) == len(data.train)
    assert noted(data, *words)
    names = {name for place in tree.split() for name in place.split("/")}
    assert set(data.classes) <= names
    for path, label, pixels in zip(data.files, data.train.labels.tolist(), data.train.pixels):
        assert data.classes[label] in path.parts  # the label is that of the folder
        assert np.array_equal(np.asarray(Image.open(path)), pixels.permute(1, 2, 0).numpy())


# (folders, words of the cause, words of the cure)
REFUSED = [
    ("train", ["no class folders"], ["train/CLASS"]),
    ("train/cat", ["single class", "cat"], []),
    ("cat", ["single class"], []),
    ("train/cat train/dog test", ["no labels", "test"], ["mv "]),
    ("train/cat train/dog val/images", ["images"], []),
    ("train/cat train/dog test/cat test/bird", ["bird"], []),
    ("train/cat train/dog test/Cat test/dog", ["Cat"], ["mv ", "cat"]),
    ("train/cat train/dog Train/cat", ["Train"], []),
    ("val/cat val/dog test/cat test/dog", ["no training part", "val"], ["mv "]),
    ("train/cat/a train/cat/b train/dog/a train/dog/c", ["cat", "either"], ["mv "]),
    ("fold1/cat fold1/dog fold2/cat fold2/dog", ["fold1", "cat, dog", "parts"], ["mv ", "/train"]),
    ("train1/cat train1/dog train2/cat train2/dog test/cat", ["no training part", "train1"], ["train1, train2 into"]),
    ("pictures/cat pictures/dog test/cat", ["no training part", "pictures"], ["mv ", "/pictures"]),
    ("train/cat/images train/dog/images val/images", ["val/images", "no labels"], ["val/images/CLASS", "mv "]),
    ("images", ["6 images", "no labels"], ["images/CLASS"]),
]


@pytest.mark.parametrize("tree, cause, cure", REFUSED, ids=[tree for tree, _, _ in REFUSED])
def test_layouts_that_are_refused(tmp_path, tree, cause, cure):
    with pytest.raises(InputError) as caught:
        load(put(tmp_path, tree))
    assert all(word in caught.value.cause for word in cause), caught.value.cause
    assert all(word in caught.value.cure for word in cure), caught.value.cure


@pytest.mark.parametrize(
    "name, cure",
    [
        ("train-images-idx3-ubyte", "idx:"),
        ("arrays.npz", "npz:"),
        ("photos.zip", "unzip"),
        ("photos.tar.gz", "tar xf"),
        ("readme.txt", "train/CLASS"),
    ],
)
def test_a_folder_of_something_else_says_what_to_write(tmp_path, name, cure):
    (tmp_path / name).write_bytes(b"x")
    with pytest.raises(InputError) as caught:
        load(tmp_path)
    assert cure in caught.value.cure
    with pytest.raises(InputError):
        load(tmp_path / name)


def test_the_lines_that_refusals_give_make_folders_that_are_read(tmp_path):
    for name, files in {
        "windows": [f"train\\{label}\\bild {i}.png" for label in ("Birnen & Co", "Äpfel") for i in range(6)],
        "kaggle": [f"{label}.{i}.png" for label in ("cat", "dog") for i in range(6)],
        "scenes": [f"{label}_{i:03}.png" for label in ("cat", "dog") for i in range(6)],
    }.items():
        folder = tmp_path / f"my {name}"
        folder.mkdir()
        for file in files:
            picture().save(folder / file)
        with pytest.raises(InputError) as caught:
            load(folder)
        line = caught.value.cure.partition("folders of them: " if name == "windows" else "make folders: ")[2].rstrip(
            "."
        )
        subprocess.run(["bash", "-c", line], check=True)
        assert len(load(folder).classes) == 2 and len(load(folder).train) == 11
    put(tmp_path / "camera", ".", 3)
    for i in range(6):
        picture().save(tmp_path / "camera" / f"{('IMG', 'PXL')[i % 2]}_{i}.png")
    with pytest.raises(InputError) as caught:
        load(tmp_path / "camera")
    assert "CLASS" in caught.value.cure and "begin with" not in caught.value.cure


def test_labels_in_a_table_are_named(tmp_path):
    put(tmp_path, "images")
    (tmp_path / "labels.csv").write_text("file,label\n")
    with pytest.raises(InputError, match=r"labels\.csv is not read"):
        load(tmp_path)


def test_a_part_given_alone_points_to_the_others(tmp_path):
    put(tmp_path, "train/cat train/dog test/cat test/dog")
    assert noted(load(tmp_path / "train"), "test", "above")


def test_classes_match_whatever_the_normal_form_of_their_names(tmp_path):
    put(tmp_path, "train/Ka\u0308se train/Brot test/K\u00e4se test/Brot")
    assert load(tmp_path).classes == ("Brot", "K\u00e4se")


def test_names_that_are_not_utf8(tmp_path):
    put(tmp_path, "train/cat train/dog")
    os.rename(os.fsencode(tmp_path / "train" / "cat"), os.fsencode(tmp_path) + b"/train/K\xe4se")
    data = load(tmp_path)
    assert data.classes == ("K\\xe4se", "dog") and noted(data, "UTF-8")
    str(describe_data(data)).encode("utf-8")
    assert all(path.exists() for path in data.files)


def test_droppings_and_links_that_lead_nowhere(tmp_path):
    folder = put(tmp_path, "train/cat train/dog") / "train" / "cat"
    for name in ("Thumbs.db", ".DS_Store", "._cat0.png", "desktop.ini", "IMG_1.MOV", "IMG_1.AAE", "notes.txt"):
        (folder / name).write_bytes(b"x")
    (folder / "gone.png").symlink_to("nowhere.png")
    (tmp_path / "train" / "bird").symlink_to("nowhere")
    data = load(tmp_path)
    assert data.classes == ("cat", "dog") and len(data.train) + len(data.test) == 12
    assert noted(data, "3 files", ".mov", ".aae", ".txt") and not noted(data, "thumbs")
    assert noted(data, "2 links", "gone.png", "bird")


@pytest.mark.parametrize(
    "name, content, reason",
    [
        ("IMG_1.HEIC", b"\0\0\0\x18ftypheic" + bytes(50), "HEIC"),
        ("IMG_1.jpg", b"\0\0\0\x18ftypheic" + bytes(50), "HEIC"),
        ("IMG_1.dng", b"II*\0" + bytes(50), "raw"),
        ("page.jpg", b"<!DOCTYPE html><html>", "web page"),
        ("lfs.png", b"version https://git-lfs.github.com/spec/v1", "git lfs pull"),
        ("empty.png", b"", "empty"),
    ],
)
def test_what_only_looks_like_an_image_is_named_with_the_reason(tmp_path, name, content, reason):
    folder = put(tmp_path, "train/cat train/dog") / "train" / "cat"
    (folder / name).write_bytes(content)
    with pytest.raises(InputError) as caught:
        load(tmp_path)
    assert name in caught.value.cause and reason in caught.value.cause
    assert ("magick" in caught.value.cure) == (name.lower().endswith((".heic", ".dng")))
    if name == "IMG_1.HEIC":
        command = caught.value.cure.partition("ImageMagick: ")[2].partition(" -exec")[0]
        found = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=True)
        assert found.stdout.splitlines() == [str(folder / name)]


def deep(folder, highest, count=6):
    folder.mkdir(parents=True)
    for index in range(count):
        values = RNG.integers(0, highest + 1, (6, 6)).astype(np.uint16)
        values[0, 0], values[0, 1] = highest, 0
        Image.fromarray(values).save(folder / f"{index}.png")


@pytest.mark.parametrize("highest, white", [(65535, 65535), (60000, 65535), (4095, 4095), (1000, 1023), (255, 255)])
def test_depth_of_16_bit_images_is_that_of_the_set(tmp_path, highest, white):
    deep(tmp_path / "train" / "a", highest)
    put(tmp_path, "train/b")
    data = load(tmp_path)
    assert data.white == white == describe_data(data)["white"]
    first = np.asarray(Image.open(data.files[0]))
    assert data.train.pixels[0, 0].tolist() == np.rint(first / (white / 255)).tolist()
    assert noted(data, str(highest), str(white)) == (white < 65535)


def test_a_huge_jpeg_is_read_and_a_huge_other_file_named(tmp_path, monkeypatch):
    put(tmp_path, "train/cat train/dog")
    sharp = np.zeros((600, 900, 3), np.uint8)
    sharp[:, 450:] = 255
    Image.fromarray(sharp).save(tmp_path / "train" / "cat" / "huge.jpg")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100_000)
    data = load(tmp_path)
    assert noted(data, "1 JPEG", "reduced")
    where = [path.name for path in data.files]
    if "huge.jpg" in where:
        read = data.train.pixels[where.index("huge.jpg")].float()
        assert read[:, :, :12].max() < 8 and read[:, :, 20:].min() > 247
    Image.fromarray(sharp).save(tmp_path / "train" / "cat" / "huge.png")
    with pytest.raises(InputError) as caught:
        load(tmp_path)
    assert "1 of 14" in caught.value.cause and "huge.png" in caught.value.cause and "-resize" in caught.value.cause


def png_of(width, height, depth=8, colours=2):
    """Returns a PNG file that claims a size and holds no pixels."""
    chunks = [
        (b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colours, 0, 0, 0)),
        (b"IDAT", b""),
        (b"IEND", b""),
    ]
    parts = [struct.pack(">I", len(d)) + name + d + struct.pack(">I", zlib.crc32(name + d)) for name, d in chunks]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def jpeg_of(width, height, progressive):
    file = io.BytesIO()
    Image.new("RGB", (64, 64)).save(file, "JPEG", progressive=progressive)
    data = bytearray(file.getvalue())
    place = data.index(b"\xff\xc2" if progressive else b"\xff\xc0") + 5
    data[place : place + 4] = struct.pack(">HH", height, width)
    return bytes(data)


@pytest.mark.parametrize(
    "name, content",
    [
        ("a.png", png_of(17_000, 10_000)),
        ("deep.png", png_of(17_000, 10_000, 16, 6)),
        ("endless.png", png_of(2**31 - 1, 2**31 - 1)),
        ("a.jpg", jpeg_of(65_500, 65_500, False)),
        ("progressive.jpg", jpeg_of(65_500, 65_500, True)),
        ("a.bmp", b"BM" + struct.pack("<IHHIIiiHHIIiiII", 1000, 0, 0, 54, 40, 12_000, 14_000, 1, 24, 0, 0, 0, 0, 0, 0)),
        ("a.ppm", b"P6 13000 13000 255\n" + bytes(100)),
    ],
)
def test_a_forged_size_is_refused_before_memory_is_taken(tmp_path, monkeypatch, name, content):
    folder = put(tmp_path, "train/cat train/dog") / "train" / "cat"
    (folder / name).write_bytes(content)

    def load_no_other(image):
        assert image.size == (6, 6)
        return real(image)

    real = ImageFile.ImageFile.load_prepare
    monkeypatch.setattr(ImageFile.ImageFile, "load_prepare", load_no_other)
    with pytest.raises(InputError) as caught:
        load(tmp_path)
    assert "1 of 13" in caught.value.cause and name in caught.value.cause and "megapixels" in caught.value.cause


@pytest.mark.parametrize("value", [0, 9])
def test_pixels_without_content_get_a_warning(tmp_path, value):
    for name in ("a", "b"):
        (tmp_path / "train" / name).mkdir(parents=True)
        for index in range(6):
            Image.new("RGB", (6, 6), (value,) * 3).save(tmp_path / "train" / name / f"{index}.png")
    assert noted(load(tmp_path), "pixels are", "astype")


def test_files_of_several_frames_are_counted_and_a_turned_png_keeps_its_size(tmp_path):
    draw = np.random.default_rng(0)
    for name in ("cat", "dog"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for i in range(6):
            frames = [Image.fromarray(draw.integers(0, 256, (20, 10, 3), dtype=np.uint8)) for _ in range(2)]
            exif = Image.Exif()
            exif[0x0112] = 6
            frames[0].save(tmp_path / "photos" / name / f"{i}.png", exif=exif)
    frames[0].rotate(90, expand=True).save(tmp_path / "photos" / "cat" / "b.gif", save_all=True, append_images=frames)
    data = load_data(f"folder:{tmp_path / 'photos'}")
    assert data.image_size == (10, 20) and noted(data, "several frames", ": 1;")


def test_few_test_images_are_counted(tmp_path):
    assert noted(load(put(tmp_path, "train/cat train/dog")), "1;", "100 points")
