"""What can be found: search spaces, genotypes, supernets, derived networks. Torch is loaded only by what needs it."""

from nas_moreau.lazy_exports import lazy_exports as _lazy_exports

__all__, __getattr__, __dir__ = _lazy_exports(
    __name__,
    {
        "AlphaTable": "spaces.alpha_table",
        "Cell": "spaces.genotype",
        "Derivation": "spaces.space",
        "Genotype": "spaces.genotype",
        "LiteralSupernet": "networks.literal",
        "Network": "networks.network",
        "NetworkPart": "spaces.skeletons",
        "Percentile": "spaces.percentile",
        "SearchSpace": "spaces.space",
        "Skeleton": "spaces.skeletons",
        "Supernet": "networks.supernet",
        "cell_names": "spaces.zoo",
        "derive": "spaces.derivation",
        "explain": "spaces.derivation",
        "load_genotype": "spaces.zoo",
        "load_space": "spaces.space",
        "multiply_adds": "networks.costs",
        "parameter_count": "networks.costs",
        "percentile": "spaces.percentile",
        "provenance": "spaces.zoo",
        "published_cell": "spaces.zoo",
        "published_names": "spaces.zoo",
        "register_block": "networks.skeleton",
        "register_operation": "spaces.operation_table",
        "register_skeleton": "spaces.skeletons",
        "released_names": "spaces.zoo",
        "space_names": "spaces.space",
        "why_no_percentile": "spaces.percentile",
    },
)
