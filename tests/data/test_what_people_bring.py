"""Folders and arrays as people have them: read rightly with a note on what was assumed, or refused with the cure."""

from __future__ import annotations

import io
import os
import pickle
import struct
import subprocess
import zlib

import numpy as np
import pytest
import torch
from PIL import Image, ImageFile

from nas_moreau.data import data_from_arrays, describe_data, load_data
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


def test_copies_between_parts_and_classes_are_noted(tmp_path):
    for side in (4, 5):  # 48 and 75 bytes: multiples of eight and others
        images = np.random.default_rng(0).integers(0, 256, (30, side, side, 3), dtype=np.uint8)
        copied = images.copy()
        copied[[4, 9]] = copied[2]  # labels 2, 1 and 0
        others = np.concatenate([images[:2], 255 - images[:4]])
        clean = npz(tmp_path, x_train=images, y_train=Y, x_test=255 - images[:6], y_test=V[:6])
        assert not noted(clean, "copies")
        data = npz(tmp_path, x_train=copied, y_train=Y, x_test=others, y_test=V[:6])
        assert noted(data, "copies", "2 of 6") and noted(data, "copies", "classes", ": 1.")


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


# -- arrays ------------------------------------------------------------------------------------------------------------

X, Y = RNG.integers(0, 256, (30, 8, 8, 3), dtype=np.uint8), np.arange(30) % 3
X[0, 0, 0], X[0, 0, 1] = 0, 255
U, V = RNG.integers(0, 256, (12, 8, 8, 3), dtype=np.uint8), np.arange(12) % 3
U[0, 0, 0], U[0, 0, 1] = 0, 255


def npz(tmp_path, **arrays):
    np.savez(tmp_path / "a.npz", **arrays)
    return load_data(f"npz:{tmp_path / 'a.npz'}")


KEYS = [
    "x_train y_train x_test y_test",
    "X_train y_train X_test y_test",
    "train_images train_labels test_images test_labels",
    "train_x train_y test_x test_y",
    "images_train labels_train images_test labels_test",
    "xtrain ytrain xtest ytest",
    "train_img train_lbl test_img test_lbl",
    "train/x train/y test/x test/y",
    "inputs outputs inputs_test outputs_test",
    "trainX trainY testX testY",
    "train_data train_targets test_data test_targets",
    "Xtr Ytr Xte Yte",
    "x_train y_train x_val y_val",
]


@pytest.mark.parametrize("keys", KEYS)
def test_names_of_arrays(tmp_path, keys):
    data = npz(tmp_path, **dict(zip(keys.split(), (X, Y, U, V))))
    assert np.array_equal(data.train.pixels.permute(0, 2, 3, 1).numpy(), X)
    assert np.array_equal(data.test.pixels.permute(0, 2, 3, 1).numpy(), U)
    assert data.train.labels.tolist() == Y.tolist() and data.test.labels.tolist() == V.tolist()


@pytest.mark.parametrize("keys", ["x y", "X Y", "images labels", "data target", "x_train y_train"])
def test_arrays_without_a_test_part(tmp_path, keys):
    data = npz(tmp_path, **dict(zip(keys.split(), (X, Y))))
    assert (len(data.train), len(data.test)) == (27, 3) and noted(data, "tenth")


def test_medmnist_and_keras(tmp_path):
    gray = X[..., 0]
    parts = {"train_images": gray, "train_labels": Y[:, None].astype(np.uint8)}
    parts |= {"val_images": U[..., 0], "val_labels": V[:, None].astype(np.uint8)}
    parts |= {"test_images": U[..., 1], "test_labels": V[:, None].astype(np.uint8)}
    data = npz(tmp_path, **parts)
    assert data.input_size == (1, 8, 8) and (len(data.train), len(data.test)) == (42, 12)
    assert np.array_equal(data.train.pixels[:30, 0].numpy(), gray) and noted(data, "12 validation images")
    data = npz(tmp_path, x_train=gray, y_train=Y.astype(np.uint8), x_test=U[..., 0], y_test=V.astype(np.uint8))
    assert np.array_equal(data.test.pixels[:, 0].numpy(), U[..., 0])


# (how the arrays are stored, pixels that come out as bytes, words of a note)
PIXELS = {
    "uint8": (lambda x: x, lambda x: x, []),
    "int64": (lambda x: x.astype(np.int64), lambda x: x, []),
    "float 0..255": (lambda x: x.astype(np.float32), lambda x: x, ["255"]),
    "float 0..1": (lambda x: x / np.float32(255), lambda x: x, ["0 to 1"]),
    "float64 0..1": (lambda x: x / 255, lambda x: x, ["0 to 1"]),
    "float16 0..1": (lambda x: (x > 127).astype(np.float16), lambda x: (x > 127) * 255, ["0 to 1"]),
    "float -1..1": (lambda x: x / 127.5 - 1, lambda x: x, ["-1 to 1"]),
    "float 0..1, rounded": (lambda x: x / 255 * 1.0001 - 1e-7, lambda x: x, ["0 to 1"]),
    "float -1..1, rounded": (lambda x: x / 127.5 - 1.0001, lambda x: x, ["-1 to 1"]),
    "float 0..255, resized": (lambda x: x + 0.001, lambda x: x, ["255"]),
    "bool": (lambda x: x > 127, lambda x: (x > 127) * 255, ["true"]),
    "uint16": (lambda x: x.astype(np.uint16) * 257, lambda x: x, []),
    "12 bits": (lambda x: (x * (4095 / 255)).round().astype(np.uint16), lambda x: x, ["4095"]),
    "channels first": (lambda x: x.transpose(0, 3, 1, 2), lambda x: x, ["3 channels"]),
    "Fortran order": (np.asfortranarray, lambda x: x, []),
    "big endian": (lambda x: x.astype(">i4"), lambda x: x, []),
}


@pytest.mark.parametrize("kind", PIXELS)
def test_pixels(tmp_path, kind):
    store, expect, words = PIXELS[kind]
    data = npz(tmp_path, x_train=store(X), y_train=Y, x_test=store(U), y_test=V)
    assert np.array_equal(data.train.pixels.permute(0, 2, 3, 1).numpy(), expect(X))
    assert np.array_equal(data.test.pixels.permute(0, 2, 3, 1).numpy(), expect(U))
    assert noted(data, *words) or not words


@pytest.mark.parametrize(
    "shape, channels, size",
    [
        ((30, 8, 8), 1, (8, 8)),
        ((30, 8, 8, 1), 1, (8, 8)),
        ((30, 1, 8, 8), 1, (8, 8)),
        ((30, 4, 8, 8), 4, (8, 8)),
        ((30, 8, 8, 4), 4, (8, 8)),
        ((30, 2, 8, 8), 2, (8, 8)),
        ((30, 8, 8, 5), 5, (8, 8)),
        ((30, 3, 40, 20), 3, (40, 20)),
        ((30, 40, 3, 3), 3, (40, 3)),
        ((30, 4, 4, 3), 3, (4, 4)),
    ],
)
def test_axis_of_channels(tmp_path, shape, channels, size):
    x = RNG.integers(0, 256, shape, dtype=np.uint8)
    data = npz(tmp_path, x_train=x, y_train=Y)
    assert data.channels == channels and data.image_size == size
    assert noted(data, f"{channels} channels") == (len(shape) == 4 and (channels in (2, 5) or shape[1] == channels))


BAD_PIXELS = {
    "ambiguous axis": (np.zeros((30, 3, 32, 3), np.uint8), ["(30, 3, 32, 3)"], ["transpose(0, 2, 3, 1)"]),
    "eight of everything": (np.zeros((30, 8, 8, 8), np.uint8), ["(30, 8, 8, 8)"], ["channels"]),
    "flat": (np.zeros((30, 784), np.uint8), ["(30, 784)"], ["reshape(-1, 28, 28)"]),
    "five axes": (np.zeros((30, 2, 8, 8, 3), np.uint8), ["(30, 2, 8, 8, 3)"], []),
    "standardised": (X.astype(float) / 50 - 2, ["-2"], ["astype('uint8')"]),
    "-0.5 to 0.5": (X / 255 - 0.5, ["-0.5"], ["astype('uint8')"]),
    "an axis lost": (RNG.integers(0, 256, (30, 40, 3), dtype=np.uint8), ["(30, 40, 3)"], ["[..., None]"]),
    "0 to 16": (RNG.integers(0, 17, (30, 8, 8)).astype(float), ["16"], ["255 / 16", "astype('uint8')"]),
    "signed": (X.astype(np.int16) - 128, ["-128"], ["astype('uint8')"]),
    "32 bits": (X.astype(np.uint32) * 2**20, ["267386880"], ["astype('uint8')"]),
    "nan": (np.full((30, 8, 8), np.nan), ["NaN"], []),
    "complex": (X.astype(complex), ["complex"], ["uint8"]),
    "text": (np.full((30, 8, 8), "x"), ["<U1"], ["uint8"]),
    "objects": (np.array([None] * 30, dtype=object), ["object"], ["tolist"]),
}


@pytest.mark.parametrize("kind", BAD_PIXELS)
def test_pixels_that_are_refused(tmp_path, kind):
    x, cause, cure = BAD_PIXELS[kind]
    with pytest.raises(InputError) as caught:
        npz(tmp_path, x_train=x, y_train=Y, x_test=x[:12], y_test=V)
    assert all(word in caught.value.cause for word in ["x_train", *cause]), caught.value.cause
    assert all(word in caught.value.cure for word in cure), caught.value.cure


def test_the_line_that_a_refusal_gives_cures_it(tmp_path):
    x_train = X.astype(float) / 50 - 2
    with pytest.raises(InputError) as caught:
        npz(tmp_path, x_train=x_train, y_train=Y)
    names = {"x_train": x_train}
    exec(caught.value.cure.partition(": ")[2].rstrip("."), {}, names)
    data = npz(tmp_path, x_train=names["x_train"], y_train=Y)
    assert int(data.train.pixels.min()) == 0 and int(data.train.pixels.max()) == 255


@pytest.mark.parametrize("other", [U / 255, U.astype(np.uint8) // 2 / 1.0])
def test_parts_of_two_ranges_are_refused(tmp_path, other):
    x = {"x_train": X.astype(float), "x_test": other} if other.max() <= 1 else {"x_train": X / 255, "x_test": other}
    with pytest.raises(InputError) as caught:
        npz(tmp_path, **x, y_train=Y, y_test=V)
    assert caught.value.cure


NAMES = np.array(["ant", "bee", "cow"])
LABELS = {
    "(n, 1)": (lambda y: y[:, None], ("0", "1", "2"), []),
    "(1, n)": (lambda y: y[None], ("0", "1", "2"), []),
    "one-hot": (lambda y: np.eye(3)[y], ("0", "1", "2"), ["one-hot"]),
    "one-hot of integers": (lambda y: np.eye(3, dtype=np.int32)[y], ("0", "1", "2"), ["one-hot"]),
    "one-hot of booleans": (lambda y: np.eye(3, dtype=bool)[y], ("0", "1", "2"), ["one-hot"]),
    "whole floats": (lambda y: y.astype(np.float32), ("0", "1", "2"), []),
    "from 1": (lambda y: y + 1, ("1", "2", "3"), ["1, 2, 3"]),
    "with gaps": (lambda y: np.array([3, 10, 20])[y], ("3", "10", "20"), ["3, 10, 20"]),
    "text": (lambda y: NAMES[y], ("ant", "bee", "cow"), []),
    "bytes": (lambda y: NAMES.astype("S")[y], ("ant", "bee", "cow"), []),
    "digits as text": (lambda y: np.array(["2", "9", "10"])[y], ("2", "9", "10"), []),
    "big endian": (lambda y: y.astype(">u8"), ("0", "1", "2"), []),
}


@pytest.mark.parametrize("kind", LABELS)
def test_labels(tmp_path, kind):
    store, classes, words = LABELS[kind]
    data = npz(tmp_path, x_train=X, y_train=store(Y), x_test=U, y_test=store(V))
    assert data.classes == classes
    assert data.train.labels.tolist() == Y.tolist() and data.test.labels.tolist() == V.tolist()
    assert noted(data, *words) or not words


@pytest.mark.parametrize("store", [lambda y: y % 2 == 1, lambda y: np.where(y % 2 == 1, 1, -1)])
def test_two_classes(tmp_path, store):
    data = npz(tmp_path, x_train=X, y_train=store(Y), x_test=U, y_test=store(V))
    assert data.train.labels.tolist() == (Y % 2).tolist() and len(data.classes) == 2


@pytest.mark.parametrize(
    "key, names, labels",
    [
        ("class_names", NAMES, lambda y: y),
        ("label_names", NAMES.astype("S"), lambda y: y),
        ("classes_names", NAMES, None),
        ("class_names", NAMES, lambda y: y + 1),
        ("classes", NAMES, lambda y: y),
        ("class_names", NAMES, lambda y: NAMES[y]),
        ("class_names", NAMES[::-1], lambda y: NAMES[y]),
    ],
)
def test_class_names(tmp_path, key, names, labels):
    given = Y if labels is None else labels(Y)
    data = npz(tmp_path, x_train=X, y_train=given, **{key: names})
    found = [data.classes[i] for i in data.train.labels.tolist()]
    where = [int(np.flatnonzero((p.permute(1, 2, 0).numpy() == X).all((1, 2, 3)))[0]) for p in data.train.pixels]
    assert found == ([str(Y[i]) for i in where] if labels is None else [str(NAMES[Y[i]]) for i in where])


BAD_LABELS = {
    "one class": (np.zeros(30, int), {}, ["single class"]),
    "absent in training": (Y % 2, {"class_names": NAMES}, ["cow"]),
    "too few names": (Y, {"class_names": NAMES[:2]}, ["2 class names"]),
    "objects as names": (Y, {"class_names": NAMES.astype(object)}, ["class_names"]),
    "several ones": (np.ones((30, 3), int), {}, ["one-hot"]),
    "scores": (np.full((30, 3), 0.25), {}, ["fractions"]),
    "negative": (Y - 1, {}, ["between -1 and 1"]),
    "fractions": (Y / 2, {}, ["fractions"]),
    "huge floats": (np.where(Y == 0, 1e30, Y), {}, ["fractions"]),
    "one-hot of other classes": (np.eye(3)[Y], {"x_test": U, "y_test": np.eye(4)[V]}, ["one-hot"]),
    "numbers of files": (np.arange(30), {}, ["30 different"]),
    "objects": (np.array(["a", None] * 15, dtype=object), {}, ["object"]),
    "another number": (Y[:29], {}, ["30 images", "29 labels"]),
    "empty": (np.array(["ant", "bee", ""])[Y], {}, ["empty"]),
    "dates": (np.zeros(30, "datetime64[D]"), {}, ["datetime64"]),
}


@pytest.mark.parametrize("kind", BAD_LABELS)
def test_labels_that_are_refused(tmp_path, kind):
    labels, more, words = BAD_LABELS[kind]
    with pytest.raises(InputError) as caught:
        npz(tmp_path, x_train=X, y_train=labels, **more)
    assert all(word in caught.value.cause for word in words), caught.value.cause
    assert caught.value.cure


def test_a_part_of_one_image_has_one_label(tmp_path):
    for store in (lambda y: y[:, None], lambda y: np.eye(3)[y], lambda y: np.eye(3, dtype=bool)[y]):
        data = npz(tmp_path, x_train=X, y_train=store(Y), x_test=U[:1], y_test=store(V[:1]))
        assert data.test.labels.tolist() == V[:1].tolist() and data.train.labels.tolist() == Y.tolist()


@pytest.mark.parametrize("name", ["classes", "labels", "array"])
def test_class_names_that_are_no_text_are_escaped(tmp_path, name):
    names = np.array(["ant", "b\udce4e", "cow"])
    given = {"y_train": names[Y]} if name == "labels" else {"y_train": Y, "class_names": names}
    data = npz(tmp_path, x_train=X, **given)
    if name == "array":
        data = data_from_arrays(X, Y, class_names=names.tolist())
    assert data.classes == ("ant", "b\\xe4e", "cow") and noted(data, "b\\xe4e")


@pytest.mark.parametrize("names", [["ant", "ant", "cow"], ["ant", "\udce4", "\\xe4"], ["ant", "", "cow"]])
def test_class_names_that_cannot_be_told_apart_are_refused(names):
    with pytest.raises(InputError):
        data_from_arrays(X, Y, class_names=names)


def test_a_class_absent_in_the_test_is_noted_and_one_absent_in_training_refused(tmp_path):
    assert noted(npz(tmp_path, x_train=X, y_train=Y, x_test=U, y_test=V % 2), "'2'", "test")
    with pytest.raises(InputError, match="y_test"):
        npz(tmp_path, x_train=X, y_train=Y % 2, x_test=U, y_test=V)


def test_arrays_that_are_not_read_are_named(tmp_path):
    assert noted(npz(tmp_path, x_train=X, y_train=Y, weights=Y), "weights")
    with pytest.raises(InputError, match="x_train and X_train"):
        npz(tmp_path, x_train=X, X_train=X, y_train=Y)
    with pytest.raises(InputError, match="y_test"):
        npz(tmp_path, x_train=X, y_train=Y, x_test=X)


def test_arrays_without_names_and_images_along_the_last_axis(tmp_path):
    np.savez(tmp_path / "a.npz", X, Y, U, V)
    with pytest.raises(InputError) as caught:
        load_data(f"npz:{tmp_path / 'a.npz'}")
    line = caught.value.cure.partition(": ")[2].rstrip(".").replace("'named.npz'", repr(str(tmp_path / "b.npz")))
    exec(line, {"numpy": np})
    assert len(load_data(f"npz:{tmp_path / 'b.npz'}").test) == 12
    with pytest.raises(InputError) as caught:
        npz(tmp_path, X=X.transpose(1, 2, 3, 0), y=Y[:, None])
    assert "X.transpose(3, 0, 1, 2)" in caught.value.cure


def test_one_array_and_a_folder_are_told_apart(tmp_path):
    np.save(tmp_path / "a.npy", X)
    with pytest.raises(InputError, match="one array"):
        load_data(f"npz:{tmp_path / 'a.npy'}")
    np.savez(tmp_path / "b.npz", x=X, y=Y)
    with pytest.raises(InputError, match=r"npz:.*b\.npz"):
        load_data(f"npz:{tmp_path}")


# -- the batches of CIFAR ----------------------------------------------------------------------------------------------


def batches(root, hundred=False):
    root.mkdir()
    rows = RNG.integers(0, 256, (6, 3072), dtype=np.uint8)

    def dump(name, content):
        (root / name).write_bytes(pickle.dumps(content, protocol=2))

    if hundred:
        dump("train", {"data": rows, "fine_labels": [0, 1] * 3, "coarse_labels": [0] * 6})
        dump("test", {"data": rows, "fine_labels": [0, 1] * 3, "coarse_labels": [0] * 6})
        dump("meta", {"fine_label_names": ["apple", "bear"], "coarse_label_names": ["all"]})
    else:
        for i in range(1, 6):
            dump(f"data_batch_{i}", {b"data": rows, b"labels": [0, 1] * 3})
        dump("test_batch", {"data": rows, "labels": [1, 0] * 3})
        dump("batches.meta", {"label_names": ["plane", "car"]})
    return rows


@pytest.mark.parametrize("hundred", [False, True])
def test_batches_of_cifar(tmp_path, hundred):
    rows = batches(tmp_path / "batches", hundred)
    data = load_data(f"folder:{tmp_path / 'batches'}")
    assert data.classes == (("apple", "bear") if hundred else ("plane", "car"))
    assert torch.equal(data.test.pixels.flatten(1), torch.from_numpy(rows))
    assert len(data.train) == (6 if hundred else 30) and noted(data, "CIFAR")


def test_batches_of_cifar_for_c(tmp_path):
    rows = RNG.integers(0, 256, (4, 3073), dtype=np.uint8)
    rows[:, 0] = [0, 1, 0, 1]
    for name in [*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin"]:
        (tmp_path / name).write_bytes(rows.tobytes())
    (tmp_path / "batches.meta.txt").write_text("plane\ncar\n\n")
    data = load(tmp_path)
    assert data.classes == ("plane", "car") and data.test.labels.tolist() == [0, 1, 0, 1]
    assert np.array_equal(data.test.pixels.flatten(1).numpy(), rows[:, 1:])
    (tmp_path / "test_batch.bin").write_bytes(rows.tobytes()[:-1])
    with pytest.raises(InputError, match="short"):
        load(tmp_path)


def test_a_forged_batch_runs_nothing(tmp_path):
    class Trap:
        def __reduce__(self):
            return (open, (str(tmp_path / "sprung"), "w"))

    batches(tmp_path / "b")
    (tmp_path / "b" / "data_batch_3").write_bytes(pickle.dumps({"data": Trap()}))
    with pytest.raises(InputError, match="data_batch_3"):
        load(tmp_path / "b")
    assert not (tmp_path / "sprung").exists()
    (tmp_path / "b" / "data_batch_3").unlink()
    with pytest.raises(InputError, match="data_batch_3"):
        load(tmp_path / "b")
