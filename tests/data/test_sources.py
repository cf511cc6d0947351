"""The table of data sources: what a specification means, what it cures, and a source of a user's own."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch

from nas_moreau.config import load_config
from nas_moreau.data import Images, Loaded, load_data, load_images, register_source
from nas_moreau.data.sources import SOURCES, find_source
from nas_moreau.errors import InputError


@pytest.mark.parametrize(
    ("spec", "cure"),
    [
        ("cifar", "cifar1"),
        ("CIFAR-10", "cifar10"),
        ("fashion-mnist", "fashion_mnist"),
        ("shape", "shapes"),
        ("foldr:pictures", "folder:pictures"),
        ("nzp:a.npz", "npz:a.npz"),
        ("quaternion", "shapes, cifar10"),
        ("", "shapes, cifar10"),
        ("shapes:5", "shapes"),
        ("npz:", "npz:FILE"),
        ("folder", "folder:DIR"),
        ("folder:", "folder:DIR"),
    ],
)
def test_an_unknown_specification_names_the_nearest(spec, cure):
    with pytest.raises(InputError) as caught:
        load_data(spec)
    assert cure in caught.value.cure and (not spec or spec.partition(":")[0] in caught.value.cause)


def test_a_bare_path_gets_its_kind(tmp_path):
    with pytest.raises(InputError) as caught:
        load_data(str(tmp_path))
    assert f"folder:{tmp_path}" in caught.value.cure
    (tmp_path / "a.npz").write_bytes(b"")
    with pytest.raises(InputError) as caught:
        load_data(str(tmp_path / "a.npz"))
    assert f"npz:{tmp_path / 'a.npz'}" in caught.value.cure


@pytest.mark.parametrize(
    "form, cure",
    [
        ("https://example.com/photos.zip", "download it first"),
        ("folder:https://example.com/photos", "download it first"),
        ("file://{}/my photos", "'folder:{}/my photos'"),
        ("folder:file://{}/my photos", "'folder:{}/my photos'"),
        ("folder:'{}/my photos'", "'folder:{}/my photos'"),
        ("folder={}/my photos", "'folder:{}/my photos'"),
        ("dir:{}/my photos", "'folder:{}/my photos'"),
        ("{}/my photos", "'folder:{}/my photos'"),
        ("folder:{}/my photo", "'folder:{}/my photos'"),
        ("{}/my photo", "folder:"),
        ("npz:{}/arays.npz", "npz:{}/arrays.npz"),
        ("npz:{}", "npz:{}/arrays.npz"),
        ("{}/table.csv", "savez"),
        ("{}/arrays.h5", "savez"),
        ("npz:{}/arrays.h5", "savez"),
        ("{}/one.jpg", "DIR/CLASS"),
        ("folder:{}/one.jpg", "DIR/CLASS"),
        ("folder:{}/arrays.npz", "npz:{}/arrays.npz"),
        ("C:\\photos", "folder:DIR"),
    ],
)
def test_what_is_given_instead_of_a_specification(form, cure, tmp_path):
    (tmp_path / "my photos").mkdir()
    np.savez(tmp_path / "arrays.npz", x=1)
    (tmp_path / "arrays.h5").write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(99))
    for name in ("table.csv", "one.jpg"):
        (tmp_path / name).write_text("x")
    with pytest.raises(InputError) as caught:
        load_data(form.replace("{}", str(tmp_path)))
    assert cure.replace("{}", str(tmp_path)) in caught.value.cure, str(caught.value)


@pytest.mark.parametrize("spec", ["folder:" + "x" * 5000, "folder:" + "x/" * 1000, "npz:" + "x" * 300, "y" * 300])
def test_a_path_of_any_length_is_one_sentence(spec):
    with pytest.raises(InputError) as caught:
        load_data(spec)
    assert len(str(caught.value)) < 3000


def test_a_name_with_and_without_a_place_is_two_sources():
    assert find_source("omniglot")[0].place is None
    source, place = find_source("omniglot:some/where:else")
    assert source.place == "DIR" and place == "some/where:else"


def test_every_row_says_what_it_reads():
    assert all(source.what and source.form == f"{key}{source.place or ''}" for key, source in SOURCES.items())


def images(count):
    return Images(torch.full((count, 1, 4, 4), 7, dtype=torch.uint8), torch.arange(count) % 2)


def test_a_registered_source_is_read_and_resized(registrations_forgotten):
    asked = []
    with registrations_forgotten():

        @register_source("mine", place="FILE", what="a test")
        def read(request):
            asked.append(request)
            return Loaded(images(6), images(2), ("a", "b"), ("A note.",), files=tuple(Path(str(i)) for i in range(6)))

        data = load_data("mine:some.bin", image_size=8, seed=3, download=True)
        with pytest.raises(InputError, match="mine"):
            register_source("mine", place="DIR", what="again")
    assert asked == [(Path("some.bin"), 8, 3, True)]
    assert data.name == "mine:some.bin" and data.image_size == (8, 8) and data.notes[0] == "A note."
    assert data.mean == pytest.approx((7 / 255,)) and len(data.files) == 6
    with pytest.raises(InputError):
        load_data("mine:some.bin")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes here")
@pytest.mark.parametrize("source", ["npz", "folder", "idx", "omniglot"])
def test_a_pipe_is_refused_and_not_waited_for(source, tmp_path):
    os.mkfifo(tmp_path / "pipe.npz")
    with pytest.raises(InputError, match="pipe"):
        load_data(f"{source}:{tmp_path / 'pipe.npz'}")


@pytest.mark.parametrize("name", ["", "a:b", "a b", "shapes"])
def test_a_name_that_cannot_be_written_or_is_taken_is_refused(name):
    with pytest.raises(InputError):
        register_source(name, what="a test")


@pytest.mark.parametrize(
    "loaded",
    [
        (1, 2, 3, 4),
        Loaded(images(4), images(0), ("a", "b")),
        Loaded(images(4), images(2), ("a",)),
        Loaded(images(4), images(2), ("a", "b"), files=(Path("one"),)),
        Loaded(
            images(4), Images(torch.zeros(2, 1, 5, 4, dtype=torch.uint8), torch.zeros(2, dtype=torch.int64)), ("a", "b")
        ),
    ],
)
def test_what_a_source_must_not_return(loaded, registrations_forgotten):
    with registrations_forgotten():
        register_source("mine", what="a test")(lambda request: loaded)
        with pytest.raises(InputError, match="'mine' returned"):
            load_data("mine")


def test_images_are_read_with_the_threads_of_the_configuration(registrations_forgotten):
    seen = []
    with registrations_forgotten():

        @register_source("threads", what="a test")
        def read(request):
            seen.append(torch.get_num_threads())
            return Loaded(images(6), images(2), ("a", "b"))

        torch.set_num_threads(2)
        try:
            for threads in ("1", "null"):
                load_images(load_config(overrides=["data.name=threads", f"performance.threads={threads}"]))
            assert seen == [1, 2] and torch.get_num_threads() == 2
        finally:
            torch.set_num_threads(1)
