"""The export stage: a trained network as files for other programs, each verified by comparing outputs.

Every exported folder holds model.safetensors and config.json, from which timm loads it, and a model card, README.md.
The formats onnx, torch-export and python add model.onnx, model.pt2 and model.py.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import warnings
from collections.abc import Callable
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from nas_moreau.architecture import Network, multiply_adds, parameter_count
from nas_moreau.data.splitting import seeded
from nas_moreau.errors import InputError, unknown
from nas_moreau.export import FORMATS
from nas_moreau.export.classifier import Classifier, timm_configuration
from nas_moreau.export.model_card import model_card
from nas_moreau.plugins import module_of
from nas_moreau.runs.atomic import write_atomic
from nas_moreau.runs.manifest import record_files, sha256

TOLERANCE = 1e-4  # largest absolute difference of a logit, for outputs up to 1; relative beyond
BATCHES = (1, 3)
FILES = {"safetensors": "model.safetensors", "onnx": "model.onnx", "torch-export": "model.pt2", "python": "model.py"}


class ExportFailed(RuntimeError):
    """The outputs of an exported file differ from those of the network."""


def export(classifier: Classifier, form: str, output: str | PathLike[str]) -> dict[str, Any]:
    """Writes the folder `output` and returns format, output, files, digest, parameters, macs, trained and checks.

    `output` appears only after everything is verified: a failure leaves nothing behind.

    Args:
        classifier: The network.
        form: "safetensors", "onnx", "torch-export" or "python".
        output: A missing or empty folder.

    Raises:
        InputError: The folder is not empty, the network cannot be exported, or a package is missing.
        ExportFailed: Outputs differ by more than the tolerance.
    """
    if form not in FORMATS:
        raise unknown("format", form, FORMATS)
    if any(edge[0] == "noise" for cell in classifier.genotype.cells.values() for edge in cell.edges):
        raise InputError("The cell holds noise: its outputs are random.", "Export a cell of another space.")
    target = Path(output)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise InputError(f"{target} already holds files.", "Choose another folder with --output.")
    partial = None
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(".partial", f".{target.name}.", target.parent))
        partial.chmod(0o777 & ~_umask())
        with seeded(0):  # networks are built for the comparisons: the caller's random numbers stay as they are
            checks = _write(classifier, form, partial)
        if target.exists():
            target.rmdir()
        partial.rename(target)
    except OSError as error:
        raise InputError(f"{target} cannot be written: {error.strerror or error}.", "Choose another folder.") from error
    finally:
        if partial is not None:
            shutil.rmtree(partial, ignore_errors=True)
    return {
        "format": form,
        "output": str(target),
        "files": sorted(path.name for path in target.iterdir()),
        "digest": classifier.genotype.digest(),
        "parameters": parameter_count(classifier.network),
        "macs": multiply_adds(classifier.network, classifier.input_size),
        "trained": bool(classifier.record),
        "checks": checks,
    }


def _write(classifier: Classifier, form: str, folder: Path) -> list[dict[str, Any]]:
    from safetensors.torch import save

    state = {name: tensor.contiguous() for name, tensor in classifier.network.state_dict().items()}
    weights = save(state, {"format": "pt"})
    write_atomic(folder / "model.safetensors", weights)
    config = timm_configuration(classifier, sha256(weights))
    text = json.dumps(config, indent=2, allow_nan=False, ensure_ascii=False)
    write_atomic(folder / "config.json", text.encode())
    checks = _compare("timm", _timm(folder), classifier)
    if form != "safetensors":
        ways: dict[str, tuple[Callable[[Classifier, Path], None], Callable[[Path], Callable[[Tensor], Tensor]]]] = {
            "onnx": (_write_onnx, load_onnx),
            "torch-export": (_write_program, _load_program),
            "python": (write_python, load_python),
        }
        write, load = ways[form]
        write(classifier, folder / FILES[form])
        checks += _compare(form, load(folder / FILES[form]), classifier)
    write_atomic(folder / "README.md", model_card(classifier, form, checks).encode())
    record_files(folder, sorted(path.name for path in folder.iterdir()))
    return checks


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _compare(what: str, run: Callable[[Tensor], Tensor], classifier: Classifier) -> list[dict[str, Any]]:
    """Returns the largest difference at each batch size; raises ExportFailed when one is too large."""
    generator, rows = torch.Generator(device="cpu").manual_seed(0), []
    for count in BATCHES:
        images = torch.randn(count, *classifier.input_size, generator=generator, device="cpu")
        with torch.no_grad():
            wanted, found = classifier.network(images), run(images)
        same_shape = wanted.shape == found.shape
        difference = (wanted - found).abs().max().item() if same_shape else float("inf")
        limit = TOLERANCE * max(1.0, wanted.abs().max().item())
        if not difference <= limit:
            raise ExportFailed(
                f"The outputs of {what} differ from the network's by {difference:.2g} with a batch of {count}; "
                f"{limit:.2g} is allowed. Nothing was exported."
            )
        rows.append({"what": what, "batch": count, "largest_difference": difference})
    return rows


# --- the formats -----------------------------------------------------------------------------------------------------


def _timm(folder: Path) -> nn.Module:
    import timm

    import nas_moreau.timm_models  # noqa: F401 (registers)

    return timm.create_model(f"local-dir:{folder}", pretrained=True).eval()


def _example(classifier: Classifier) -> tuple[Tensor, dict[str, Any]]:
    """Returns images to export with, and torch.export's declaration that their number is variable."""
    # torch.export treats a size of 0 or 1 as a constant
    return torch.zeros(2, *classifier.input_size, device="cpu"), {"images": {0: torch.export.Dim("batch", min=1)}}


def _write_program(classifier: Classifier, path: Path) -> None:
    images, shapes = _example(classifier)
    torch.export.save(torch.export.export(classifier.network, (images,), dynamic_shapes=shapes), path)


def _load_program(path: Path) -> nn.Module:
    return torch.export.load(path).module()


def _write_onnx(classifier: Classifier, path: Path) -> None:
    try:
        import onnx
        import onnxruntime  # noqa: F401 (needed for the comparison)
        import onnxscript  # noqa: F401 (needed by torch's exporter)
    except ImportError as error:
        raise InputError(f"ONNX needs the package {error.name}.", "Run pip install 'nas_moreau[export]'.") from None
    images, shapes = _example(classifier)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's remarks on its own parts
        program = torch.onnx.export(
            classifier.network,
            (images,),
            dynamic_shapes=shapes,
            dynamo=True,
            external_data=False,
            verbose=False,
            input_names=["images"],
            output_names=["logits"],
        )
    assert program is not None, "what the exporter makes where it is given no file"
    model = program.model_proto
    facts = {key: classifier.data[key] for key in ("classes", "mean", "std", "image_size")}
    facts["digest"] = classifier.genotype.digest()
    onnx.helper.set_model_props(model, {key: json.dumps(value, ensure_ascii=False) for key, value in facts.items()})
    onnx.checker.check_model(model)
    write_atomic(path, model.SerializeToString())


def load_onnx(path: Path) -> Callable[[Tensor], Tensor]:
    """Returns images -> logits by onnxruntime on the CPU."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return lambda images: torch.from_numpy(session.run(["logits"], {"images": images.numpy()})[0])


def structure_of(network: Network) -> dict[str, Any]:
    """Returns the structure of a network as plain data, as `standalone.Network` takes it."""
    skeleton = network.genotype.skeleton
    parts = [[part.name, part.channels, part.outputs, part.stride, list(part.reads)] for part in network.parts]
    return {"preprocess": skeleton.preprocesses, "head_norm": skeleton.head_norm, "parts": parts}


def write_python(classifier: Classifier, path: Path) -> None:
    """Writes model.py: the network in one file that needs torch alone.

    Raises:
        InputError: An operation or block is registered by the user's code.
    """
    from nas_moreau.architecture.networks.skeleton import BUILT_IN_BLOCKS
    from nas_moreau.architecture.spaces.operation_table import OPERATIONS
    from nas_moreau.export import standalone

    genotype, structure = classifier.genotype, structure_of(classifier.network)
    names = {edge[0] for cell in genotype.cells.values() for edge in cell.edges}
    blocks = {part[0] for part in structure["parts"]} - set(genotype.cells)
    own = [("operation", name) for name in sorted(names) if OPERATIONS[name].build is not None]
    own += [("block", name) for name in sorted(blocks - set(BUILT_IN_BLOCKS))]
    if own:
        what, name = own[0]
        raise InputError(
            f"The {what} '{name}' is registered by your own code, which is not exported.", "Export as onnx."
        )
    source = Path(standalone.__file__).read_text(encoding="utf-8")
    before, rest = source.split("# --- exported values ---\n")
    after = rest.split("# --- end of exported values ---\n")[1]
    cells = json.loads(genotype.to_json())["cells"]
    lines = ["CELLS = {"]
    for name, cell in cells.items():
        edges = ",\n            ".join(json.dumps(edge) for edge in cell["edges"])
        lines += [f'    "{name}": {{', f'        "edges": [\n            {edges},\n        ],']
        lines += [f'        "concat": {cell["concat"]!r},', "    },"]
    channels, height, width = classifier.input_size
    lines += [
        "}",
        "STRUCTURE = {",
        f'    "preprocess": {structure["preprocess"]},',
        f'    "head_norm": {structure["head_norm"]},',
        '    "parts": [',
        *(f"        {json.dumps(part)}," for part in structure["parts"]),
        "    ],",
        "}",
        f"IN_CHANNELS = {channels}",
        f"CLASSES = {json.dumps(classifier.data['classes'], ensure_ascii=False)}",
        f"IMAGE_SIZE = ({height}, {width})  # height, width it was trained with; others work too",
        f"MEAN = {tuple(classifier.data['mean'])!r}  # of each channel, pixels scaled to 0..1",
        f"STD = {tuple(classifier.data['std'])!r}",
        "",
    ]
    write_atomic(path, (before + "\n".join(lines) + after).encode())


def load_python(path: Path) -> nn.Module:
    """Returns the network of a model.py, with the weights next to it."""
    network: nn.Module = module_of(path, "nas_moreau_exported_model").load(path.with_name("model.safetensors"))
    return network
