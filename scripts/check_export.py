"""Exports a network of full size and compares it image by image: ONNX in onnxruntime, and the stand-alone model.py.

    python scripts/check_export.py [--genotype DARTS_V2] [--data npz:cifar10.npz] [--images 1000] [--steps 8]

The network (36 channels, 20 cells) is trained for a few steps, so that its running statistics and logits are those of
images. Asserted: every test image gets the same class in onnxruntime; model.py has equal bits in float64.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import torch

from nas_moreau.architecture import load_genotype
from nas_moreau.config import Config, load_config
from nas_moreau.data import Augment, Data, load_images
from nas_moreau.export.classifier import Classifier, untrained
from nas_moreau.export.formats import export, load_onnx, load_python

BATCH = 50


def trained(genotype: str, config: Config, data: Data, steps: int) -> Classifier:
    """Returns the network after some steps of SGD on batches of 16."""
    found = untrained(load_genotype(genotype), config)
    network, normalise = found.network.train(), Augment(data.mean, data.std)
    optimizer = torch.optim.SGD(network.parameters(), 0.025, momentum=0.9)
    for step in range(steps):
        chosen = torch.arange(step * 16, step * 16 + 16) % len(data.train)
        batch = data.train.take(chosen)
        loss = torch.nn.functional.cross_entropy(network(normalise.normalise(batch.pixels)), batch.labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    network.eval()
    return found


def compare(found: Classifier, data: Data, images: int) -> tuple[int, float, float, bool]:
    """Returns images of equal class, the largest difference of logits, the least margin, and whether bits are equal."""
    pixels = Augment(data.mean, data.std).normalise(data.test.pixels[:images])
    with tempfile.TemporaryDirectory() as place:
        export(found, "onnx", Path(place) / "onnx")
        export(found, "python", Path(place) / "python")
        session, alone = (
            load_onnx(Path(place) / "onnx" / "model.onnx"),
            load_python(Path(place) / "python" / "model.py"),
        )
        equal, apart, margin = 0, 0.0, float("inf")
        with torch.no_grad():
            for batch in pixels.split(BATCH):
                ours, theirs = found.network(batch), session(batch)
                equal += int((ours.argmax(1) == theirs.argmax(1)).sum())
                apart = max(apart, (ours - theirs).abs().max().item())
                top = ours.topk(2).values
                margin = min(margin, (top[:, 0] - top[:, 1]).min().item())
            few = pixels[:8].double()
            bits = torch.equal(found.network.double()(few), alone.double()(few))
    return equal, apart, margin, bits


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--genotype", default="DARTS_V2")
    parser.add_argument("--data", default="shapes")
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--channels", type=int, default=36)
    parser.add_argument("--layers", type=int, default=20)
    args = parser.parse_args()
    sizes = [f"retrain.channels={args.channels}", f"retrain.layers={args.layers}", "retrain.auxiliary=false"]
    config = load_config(overrides=[f"data.name={args.data}", *sizes])
    data = load_images(config)
    found = trained(args.genotype, config, data, args.steps)
    equal, apart, margin, bits = compare(found, data, args.images)
    count = min(args.images, len(data.test))
    print(f"{args.genotype}, {args.channels} channels, {args.layers} layers, {args.steps} steps on {args.data}")
    print(
        f"onnxruntime: {equal} of {count} images of equal class; logits at most {apart:.2g} apart, the closest two "
        f"classes of an image {margin:.2g}"
    )
    print(f"model.py in float64: {'equal bits' if bits else 'OTHER bits'}")
    raise SystemExit(not (equal == count and bits))


if __name__ == "__main__":
    main()
