"""The model card of an exported network, in Markdown: description, training, use."""

from __future__ import annotations

from typing import Any

import nas_moreau
from nas_moreau.architecture import multiply_adds, parameter_count
from nas_moreau.export.classifier import Classifier
from nas_moreau.text import markdown

SHOWN_CLASSES = 20

USAGE = {
    "timm": """```python
import timm, nas_moreau.timm_models
model = timm.create_model("local-dir:FOLDER", pretrained=True).eval()
```""",
    "onnx": """```python
import onnxruntime
session = onnxruntime.InferenceSession("model.onnx")
logits = session.run(["logits"], {"images": images})[0]     # images: float32 (n, CHANNELS, HEIGHT, WIDTH), normalised
```

Class names, mean and standard deviation are in the file too: `session.get_modelmeta().custom_metadata_map`.""",
    "torch-export": """```python
import torch
network = torch.export.load("model.pt2").module()
logits = network(images)                                    # images: float32 (n, CHANNELS, HEIGHT, WIDTH), normalised
```""",
    "python": """```python
from model import CLASSES, load, normalise                   # model.py needs torch and nothing else
network = load("model.safetensors")
logits = network(normalise(pixels))                         # pixels: uint8 (n, CHANNELS, HEIGHT, WIDTH)
```""",
}


def model_card(classifier: Classifier, form: str, checks: list[dict[str, Any]]) -> str:
    """Returns the card's text."""
    data, network = classifier.data, classifier.network
    channels, height, width = classifier.input_size
    classes = data["classes"]
    names = ", ".join(map(markdown, classes[:SHOWN_CLASSES])) + (", ..." if len(classes) > SHOWN_CLASSES else "")
    size = f"{channels} x {height} x {width}"
    lines = [
        "---",
        "library_name: timm",
        "pipeline_tag: image-classification",
        "tags: [image-classification, timm, nas]",
        "---",
        f"# Network of the cell {classifier.genotype.digest()}",
        "",
        f"An image classifier with cells found by an architecture search (space {classifier.genotype.space}).",
        "",
        "| | |",
        "|---|---|",
        f"| parameters | {parameter_count(network):,} |",
        f"| multiply-adds | {multiply_adds(network, classifier.input_size):,} for one {size} image (convolutions and "
        "linear layers) |",
        f"| network | {classifier.channels} channels, {classifier.layers} layers |",
        f"| classes | {len(classes)}: {names} |",
        f"| images | {size}; the centre cut to that shape, then resized (bilinear, antialiased) |",
        f"| normalised | (pixels / 255 - mean) / std, mean {_numbers(data['mean'])}, std {_numbers(data['std'])} |",
        f"| trained on | {markdown(data['name'])}: {sum(data['train']):,} training and {sum(data['test']):,} test "
        "images |",
        "",
        "## Quality",
        "",
        *_quality(classifier),
        "",
        "## Use",
        "",
    ]
    for part in dict.fromkeys((form if form in USAGE else "timm", "timm")):
        text = USAGE[part].replace("CHANNELS", str(channels)).replace("HEIGHT", str(height))
        lines += [text.replace("WIDTH", str(width)), ""]
    lines += ["On the command line: `nas-moreau predict FOLDER IMAGES...`", "", "## Checked", ""]
    lines += [
        f"* {row['what']}, batch of {row['batch']}: outputs at most {row['largest_difference']:.1e} from the network's"
        for row in checks
    ]
    if data["notes"]:
        lines += ["", "## Notes on the images", "", *(f"* {markdown(note)}" for note in data["notes"])]
    return "\n".join([*lines, "", "## The cell", "", "```json", classifier.genotype.to_json(), "```", ""])


def _numbers(values: list[float]) -> str:
    return "(" + ", ".join(f"{value:.4f}" for value in values) + ")"


def _quality(classifier: Classifier) -> list[str]:
    if not classifier.record:
        return ["**The weights are random**: the network was exported without training."]
    result, environment = classifier.record["result"], classifier.record["environment"]
    settings, versions = classifier.record["config"]["retrain"], environment.get("packages", {})
    return [
        f"Test accuracy {100 * result['test_accuracy']:.2f} % on {sum(classifier.data['test']):,} images; one training "
        f"run (n = 1, seed {result['seed']}), epochs {result['epochs']}, batch {settings['batch_size']}, optimizer "
        f"{settings['optimizer']}, learning rate {settings['lr']:g}.",
        "",
        f"Made with nas_moreau {environment.get('nas_moreau', nas_moreau.__version__)} (commit "
        f"{environment.get('commit') or 'unknown'}), torch {versions.get('torch', 'unknown')}, on "
        f"{environment.get('accelerator') or environment.get('processor') or 'unknown hardware'}: "
        f"{markdown(str(environment.get('command', 'unknown')))}",
    ]
