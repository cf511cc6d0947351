"""Ready-made configurations: one YAML file each, which begins with the command that runs it."""

__all__: list[str] = []
