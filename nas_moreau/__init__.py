"""Neural architecture search by a single-loop Moreau-envelope bilevel method, and the solver on its own.

The names below are the public API; the subpackages (`nas_moreau.bilevel`, `problems`, `architecture`, `data`, `runs`,
`search`) export further ones. Each is imported when it is first used:

    from nas_moreau import run
    result = run("smoke", "runs/first", seed=1)     # search, retrain, evaluate, report: a `Result`
"""

from nas_moreau.lazy_exports import lazy_exports as _lazy_exports

__version__ = "0.1.0"


__all__, __getattr__, __dir__ = _lazy_exports(
    __name__,
    {
        # the solver
        "Bilevel": "bilevel",
        "Method": "bilevel",
        "StepSizes": "bilevel",
        "moreau": "bilevel",
        "register_method": "bilevel",
        "solve": "bilevel",
        # what can be found
        "Genotype": "architecture",
        "Network": "architecture",
        "SearchSpace": "architecture",
        "Supernet": "architecture",
        "derive": "architecture",
        "load_genotype": "architecture",
        "load_space": "architecture",
        "multiply_adds": "architecture",
        "parameter_count": "architecture",
        "register_operation": "architecture",
        # a search inside a module
        "Choice": "modules",
        "search_module": "modules",
        # a run: its configuration, its images, its stages
        "Config": "config",
        "Hook": "training",
        "InputError": "errors",
        "load_config": "config",
        "load_data": "data",
        "compare": "compare",
        "Mixing": "search",
        "register_metric": "runs",
        "register_mixing": "search",
        "register_rule": "search",
        "register_source": "data",
        "Result": "api",
        "load_run": "api",
        "retrain": "api",
        "run": "api",
        "search": "search",
    },
)
