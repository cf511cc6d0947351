"""What search and retraining share (loop, checkpoints, signals, evaluation), and the retraining itself."""

__all__: list[str] = []
