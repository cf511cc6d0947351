"""Using what was found: classifiers, exports, model cards, predictions."""

__all__ = ["FORMATS"]

FORMATS = ("onnx", "torch-export", "python", "safetensors")
"""What a trained network can be written as."""
