"""Ready-made configurations: one YAML file each; nas_moreau.config reads them."""
