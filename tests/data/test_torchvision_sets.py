"""torchvision's sets: nothing is fetched unasked, files in its layout are read, faults are one sentence."""

from __future__ import annotations

import gzip
import socket
import struct
import types
import urllib.error

import numpy as np
import pytest
import torchvision.datasets

from nas_moreau.data import load_data
from nas_moreau.errors import InputError


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("a connection was tried")

    monkeypatch.setattr(socket, "create_connection", refuse)


@pytest.mark.parametrize("name", ["cifar10", "cifar100", "fashion_mnist", "omniglot"])
def test_absent_sets_are_not_fetched(tmp_path, name):
    with pytest.raises(InputError, match=name) as caught:
        load_data(name, directory=tmp_path)
    assert "--download" in caught.value.cure
    assert not list(tmp_path.rglob("*.gz"))


def test_failed_download_is_one_sentence(tmp_path, monkeypatch):
    def fail(*_, **__):
        assert socket.getdefaulttimeout() == 60  # a stalled connection must end
        raise urllib.error.URLError("no route")

    monkeypatch.setattr(torchvision.datasets, "CIFAR10", fail)
    with pytest.raises(InputError, match=r"cifar10 .*no route") as caught:
        load_data("cifar10", directory=tmp_path, download=True)
    assert "connection" in caught.value.cure
    assert socket.getdefaulttimeout() is None


def test_unusable_folder_with_download(tmp_path, monkeypatch):
    def fail(*_, **__):
        raise RuntimeError("File not found or corrupted.\nSecond line")

    monkeypatch.setattr(torchvision.datasets, "CIFAR100", fail)
    with pytest.raises(InputError, match=r"cifar100 .* \(File not found or corrupted\)"):
        load_data("cifar100", directory=tmp_path, download=True)


def test_fashion_mnist_in_torchvisions_layout(tmp_path):
    folder = tmp_path / "FashionMNIST" / "raw"
    folder.mkdir(parents=True)
    images = np.random.default_rng(0).integers(0, 256, (10, 28, 28), dtype=np.uint8)
    for part in ("train", "t10k"):
        image_bytes = struct.pack(">4I", 0x0803, *images.shape) + images.tobytes()
        label_bytes = struct.pack(">2I", 0x0801, 10) + bytes(range(10))
        for name, content in (("images-idx3", image_bytes), ("labels-idx1", label_bytes)):
            (folder / f"{part}-{name}-ubyte").write_bytes(content)
            (folder / f"{part}-{name}-ubyte.gz").write_bytes(gzip.compress(content))
    data = load_data("fashion_mnist", directory=tmp_path)
    assert np.array_equal(data.train.pixels[:, 0].numpy(), images)
    assert (data.mean, data.std) == ((0.2860,), (0.3530,))
    assert data.classes[9] == "Ankle boot"


def test_cifar_arrays_become_channels_first(tmp_path, monkeypatch):
    (tmp_path / "cifar-10-batches-py").mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (20, 32, 32, 3), dtype=np.uint8)
    part = types.SimpleNamespace(data=pixels, targets=[i % 10 for i in range(20)], classes=[str(i) for i in range(10)])
    monkeypatch.setattr(torchvision.datasets, "CIFAR10", lambda *_, **__: part)
    data = load_data("cifar10", tmp_path)
    assert np.array_equal(data.train.pixels.permute(0, 2, 3, 1).numpy(), pixels)
    assert data.train.pixels.is_contiguous()
    assert data.train.labels.tolist() == part.targets
    assert (data.mean, data.std) == ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616))
    assert load_data("cifar10", tmp_path, image_size=16).image_size == (16, 16)
