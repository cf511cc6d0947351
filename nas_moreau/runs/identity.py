"""What a run was made of, by content: identity.json and the digests in its checkpoints, compared by every reader.

An identity is a digest for each of `PARTS`: a folder that was moved, or a file of another name, has the same one; a
file that was replaced by another of the same name and shape has another one. All comparisons are made by
`refuse_other`: on resume, before evaluation, prediction, export and derivation, and between the ranks of a group.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from nas_moreau.errors import InputError, quoted
from nas_moreau.runs.configuration import configuration_digest
from nas_moreau.runs.plain_files import read_json, read_yaml

Identity = Mapping[str, str]
"""Part -> digest; parts that a run does not have are missing."""
IDENTITY = "identity.json"
PARTS = {
    "configuration": "Put the run's config.yaml back as it was",
    "images": "Put the images and labels back as they were (a folder that was moved is given with --data)",
    "data": "Give the same data as before",
    "module": "Make the module with the same parameters, Choices and options as before",
    "space": "Put the file of the search space back as it was",
    "genotype": "Put the run's genotype.json back as it was",
    "weights": "Put the run's checkpoints back as they were",
}
"""Part -> what to do where it differs; the configuration without what a resumed run may change."""


def recorded_identity(folder: Path) -> dict[str, str]:
    """Returns the identity of the run in a folder: of identity.json, and the digest of its config.yaml.

    Raises:
        InputError: One of the files is damaged, or they contradict each other.
    """
    found = read_json(folder / IDENTITY) or {}
    if not all(part in PARTS and isinstance(digest, str) for part, digest in found.items()):
        raise InputError(f"{folder / IDENTITY} is damaged.", "Restore it, or start again in another folder.")
    config = read_yaml(folder / "config.yaml")
    if config is not None:
        own = {"configuration": configuration_digest(config)}
        found |= own
    return found


def refuse_other(expected: Identity, found: Identity, what: str, whose: str, cure: str | None = None) -> None:
    """Refuses what has another identity; parts that only one of both has are not compared.

    Args:
        expected: The identity it must have.
        found: The identity it has.
        what: What is compared, for the message.
        whose: What `expected` belongs to.
        cure: What to do, if not that of the part.

    Raises:
        InputError: Names the first part that differs, and what to do.
    """
    for part, usual in PARTS.items():
        if part in expected and part in found and expected[part] != found[part]:
            raise InputError(
                f"{what[:1].upper()}{what[1:]} has another {part} than {whose} "
                f"(digest {quoted(found[part])}, not {quoted(expected[part])}).",
                cure or f"{usual}, or start again in another folder.",
            )
