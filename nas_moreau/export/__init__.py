"""Using what was found: classifiers, exports, model cards, predictions."""

__all__: list[str] = []
