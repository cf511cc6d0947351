"""Arrays and batches as people have them: read rightly with a note on what was assumed, or refused with the cure."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch

from nas_moreau.data import data_from_arrays, load_data
from nas_moreau.errors import InputError

RNG = np.random.default_rng(0)


X, Y = RNG.integers(0, 256, (30, 8, 8, 3), dtype=np.uint8), np.arange(30) % 3
X[0, 0, 0], X[0, 0, 1] = 0, 255
U, V = RNG.integers(0, 256, (12, 8, 8, 3), dtype=np.uint8), np.arange(12) % 3
U[0, 0, 0], U[0, 0, 1] = 0, 255


def noted(data, *words):
    return any(all(word in note for word in words) for note in data.notes)


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
    data = load_data(f"folder:{tmp_path}")
    assert data.classes == ("plane", "car") and data.test.labels.tolist() == [0, 1, 0, 1]
    assert np.array_equal(data.test.pixels.flatten(1).numpy(), rows[:, 1:])
    (tmp_path / "test_batch.bin").write_bytes(rows.tobytes()[:-1])
    with pytest.raises(InputError, match="short"):
        load_data(f"folder:{tmp_path}")


def test_a_forged_batch_runs_nothing(tmp_path):
    class Trap:
        def __reduce__(self):
            return (open, (str(tmp_path / "sprung"), "w"))

    batches(tmp_path / "b")
    (tmp_path / "b" / "data_batch_3").write_bytes(pickle.dumps({"data": Trap()}))
    with pytest.raises(InputError, match="data_batch_3"):
        load_data(f"folder:{tmp_path / 'b'}")
    assert not (tmp_path / "sprung").exists()
    (tmp_path / "b" / "data_batch_3").unlink()
    with pytest.raises(InputError, match="data_batch_3"):
        load_data(f"folder:{tmp_path / 'b'}")
