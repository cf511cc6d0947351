"""Characters are classes; sets below one folder are merged without doubling a drawing."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from nas_moreau.data import load_data
from nas_moreau.errors import InputError

RNG = np.random.default_rng(0)


def draw(root, alphabet, character, names, size=105):
    folder = root / alphabet / character
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        Image.fromarray(RNG.integers(0, 2, (size, size), dtype=np.uint8) * 255).convert("1").save(
            folder / f"{name}.png"
        )


def test_sets_are_merged_by_alphabet_and_character(tmp_path):
    for root in (tmp_path / "one", tmp_path / "two"):
        draw(root, "Greek", "character01", ["0001_01", "0001_02", "0001_03"])
        draw(root, "Greek", "character02", ["0002_01", "0002_02", "0002_03"])
    draw(tmp_path / "two", "Latin", "character01", ["0003_01", "0003_02", "0003_03", "0003_04"])
    data = load_data(f"omniglot:{tmp_path}")
    assert data.classes == ("Greek/character01", "Greek/character02", "Latin/character01")
    assert len(data.train) + len(data.test) == 10
    assert (data.channels, data.image_size) == (1, (28, 28))
    assert load_data(f"omniglot:{tmp_path}", image_size=35).image_size == (35, 35)


def test_full_size_keeps_the_bits(tmp_path):
    draw(tmp_path, "A", "c1", [str(i) for i in range(6)])
    draw(tmp_path, "A", "c2", [str(i) for i in range(6)])
    data = load_data(f"omniglot:{tmp_path}", image_size=105)
    assert set(data.train.pixels.unique().tolist()) == {0, 255}
    assert data.notes[0] == "All images are 105x105 and are kept so."


def test_faults(tmp_path):
    with pytest.raises(InputError, match="does not exist"):
        load_data(f"omniglot:{tmp_path / 'absent'}")
    draw(tmp_path, "A", "c1", ["1"])
    with pytest.raises(InputError, match="1 characters"):
        load_data(f"omniglot:{tmp_path}")
    draw(tmp_path, "A", "c2", ["1"])
    (tmp_path / "A" / "c2" / "2.png").write_bytes(b"no image")
    with pytest.raises(InputError, match="1 of 3"):
        load_data(f"omniglot:{tmp_path}")


def test_a_folder_that_holds_itself_ends(tmp_path):
    draw(tmp_path, "A", "c1", ["1", "2", "3", "4", "5"])
    draw(tmp_path, "A", "c2", ["1", "2", "3", "4", "5"])
    (tmp_path / "A" / "again").symlink_to(tmp_path, target_is_directory=True)
    assert load_data(f"omniglot:{tmp_path}").num_classes == 2
