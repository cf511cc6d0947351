"""Data sets held in memory as uint8 tensors, seeded splits and orders, augmentation of whole batches."""

from nas_moreau import _hand_on

__all__, __getattr__, __dir__ = _hand_on(
    __name__,
    {
        "Augment": "augmentation",
        "Data": "images",
        "Images": "images",
        "describe_data": "describing",
        "epoch_order": "splitting",
        "generator_for": "seeds",
        "load_data": "loading",
        "seed_for": "seeds",
        "stratified_split": "splitting",
    },
)
