"""The training loop of search, retraining and hyper-parameter learning, and the retraining itself."""

from nas_moreau.lazy_exports import lazy_exports as _lazy_exports

__all__, __getattr__, __dir__ = _lazy_exports(
    __name__,
    {
        "Counters": "resume",
        "Evaluation": "evaluate",
        "Hook": "loop",
        "RetrainResult": "retrain",
        "evaluate_model": "evaluate",
    },
)
