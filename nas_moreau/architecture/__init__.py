"""What can be found: search spaces, genotypes, supernets, derived networks. Torch is loaded only by what needs it."""

from nas_moreau import _hand_on

__all__, __getattr__, __dir__ = _hand_on(
    __name__,
    {
        "Cell": "genotype",
        "Derivation": "space",
        "Genotype": "genotype",
        "LiteralSupernet": "literal",
        "Network": "network",
        "SearchSpace": "space",
        "Supernet": "supernet",
        "cell_names": "zoo",
        "derive": "derivation",
        "explain": "derivation",
        "load_genotype": "zoo",
        "load_space": "space",
        "multiply_adds": "counting",
        "parameter_count": "counting",
        "provenance": "zoo",
        "published_cell": "zoo",
        "published_names": "zoo",
        "published_sizes": "zoo",
        "register_operation": "operations",
        "released_names": "zoo",
        "space_names": "space",
    },
)
