"""Native operators for CPUs, compiled at first use, with a portable path where that is not possible."""

__all__: list[str] = []
