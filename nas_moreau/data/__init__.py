"""Data sets held in memory as uint8 tensors, seeded splits and orders, augmentation of whole batches."""

from nas_moreau.lazy_exports import lazy_exports as _lazy_exports

__all__, __getattr__, __dir__ = _lazy_exports(
    __name__,
    {
        "Augment": "augmentation",
        "Batches": "batches",
        "Data": "images",
        "Images": "images",
        "Loaded": "images",
        "Part": "batches",
        "Request": "sources",
        "data_from_arrays": "loading",
        "describe_data": "images",
        "epoch_order": "splitting",
        "generator_for": "splitting",
        "load_data": "loading",
        "load_images": "loading",
        "register_source": "sources",
        "seed_for": "splitting",
        "stratified_split": "splitting",
    },
)
