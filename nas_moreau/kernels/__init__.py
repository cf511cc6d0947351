"""Native operators for CPUs, compiled at first use, and kernels in Triton; a portable path where neither can be."""

__all__: list[str] = []
