"""Where the images of a folder are: its parts, its classes, and what is not read and why.

Understood are PART/CLASS/*, CLASS/* (no parts), CLASS/PART/*, each one or more folders deeper if no other images
lie beside, and images in a single folder inside their class (CLASS/images/*). What could be read in two ways is
refused.
"""

from __future__ import annotations

import os
import re
import shlex
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from nas_moreau.data.image_files import is_image
from nas_moreau.data.parts import FILLERS, SPELLINGS, part_of
from nas_moreau.errors import InputError, nearest
from nas_moreau.text import is_utf8, name_text, specification

_DROPPINGS = frozenset(
    (
        "__macosx",
        "thumbs.db",
        "ehthumbs.db",
        "desktop.ini",
        "picasa.ini",
        "icon\r",
        "@eadir",
        "$recycle.bin",
        "#recycle",
        "lost+found",
        "system volume information",
    )
)
"""Files and folders, in lower case, that systems leave behind; names with a leading dot are passed over as well."""
_DEEPEST = 6
_TABLES = frozenset((".csv", ".tsv", ".json", ".txt", ".xlsx", ".xml"))
"""Endings of files that may hold labels, which are not read."""
_OF_CAMERAS = "img|dsc|dscn|dscf|pxl|vid|mvimg|scan|screenshot|image|photo"
_NAMED_BY_CLASS = re.compile(rf"(?!(?:{_OF_CAMERAS})[._-])([^\W\d_]+)[._-]\D{{0,3}}\d", re.I)
"""A name that begins with a class and a number; cameras' and programs' own names do not."""
_MOST_WORDS = 100  # more than that are no classes
_SHOWN = 5
_ARCHIVES = {".zip": "unzip", ".tar": "tar xf", ".gz": "tar xf", ".tgz": "tar xf", ".xz": "tar xf", ".7z": "7z x"}
Classes = dict[str, list[Path]]


def is_dropping(name: str) -> bool:
    """Returns whether a file or folder is one that an operating system or a program left behind."""
    return name.startswith(".") or name.lower() in _DROPPINGS


@dataclass
class Layout:
    """What a folder holds.

    Attributes:
        parts: Part (train, validation, test) -> class -> image files, both sorted by name.
        notes: Sentences on what was assumed and what was not read.
    """

    parts: dict[str, Classes]
    notes: list[str]


@dataclass
class _Folder:
    """The entries of one folder, sorted."""

    path: Path
    folders: list[Path] = field(default_factory=list)
    images: list[Path] = field(default_factory=list)
    others: list[Path] = field(default_factory=list)
    broken: list[Path] = field(default_factory=list)


def _entries(path: Path) -> _Folder:
    found = _Folder(path)
    for entry in sorted(path.iterdir()):
        if is_dropping(entry.name):
            continue
        if entry.is_dir():
            found.folders.append(entry)
        elif not entry.is_file():
            found.broken.append(entry)
        elif is_image(entry):
            found.images.append(entry)
        else:
            found.others.append(entry)
    return found


def _holds_images(path: Path, depth: int = _DEEPEST) -> bool:
    """Returns whether an image lies in a folder or at most `depth` folders below."""
    found = _entries(path)
    return bool(found.images) or (depth > 0 and any(_holds_images(folder, depth - 1) for folder in found.folders))


class _Reader:
    """Collects what is not read while the folders are walked through."""

    def __init__(self, root: Path):
        self.root = root
        self.notes: list[str] = []
        self.others: Counter[str] = Counter()
        self.broken: list[Path] = []
        self.unread: list[Path] = []  # images outside class folders
        self.left: list[Path] = []  # folders that are neither a part nor a class

    def count(self, found: _Folder) -> None:
        self.others.update(path.suffix.lower() or "no ending" for path in found.others)
        self.broken += found.broken

    def layout(self) -> Layout:
        """Returns the parts of the folder, or raises InputError."""
        here = _entries(self.root)
        while True:
            parts = self._parts(here)
            if parts is not None:
                break
            inner = self._only_folder(here)
            if inner is None:
                parts = self._without_parts(here)
                break
            self.notes.append(f"The images are read from {self._below(inner)}, the only folder with images.")
            self.left += [folder for folder in here.folders if folder != inner]
            here = _entries(inner)
        parts = {part: parts[part] for part in SPELLINGS if part in parts}
        return Layout(parts, [*self.notes, *self._summary()])

    def _below(self, path: Path) -> str:
        return name_text(path.relative_to(self.root)) if path != self.root else "."

    def _only_folder(self, here: _Folder) -> Path | None:
        """Returns the one folder that holds all the images, if it is not a class folder itself."""
        filled = [folder for folder in here.folders if _holds_images(folder)]
        if here.images or len(filled) != 1 or len(filled[0].relative_to(self.root).parts) > _DEEPEST:
            return None
        return None if _entries(filled[0]).images else filled[0]

    def _parts(self, here: _Folder) -> dict[str, Classes] | None:
        """Returns the parts if folders are named after them, else None."""
        named: dict[str, list[Path]] = {}
        for folder in here.folders:
            if (part := part_of(folder.name)) is not None:
                named.setdefault(part, []).append(folder)
        rest = [folder for folder in here.folders if part_of(folder.name) is None]
        if not named or (any(_entries(folder).images for folder in rest) and not self._with_classes(named)):
            return None  # `train` among `bus` and `car` is a class
        for part, folders in named.items():
            if len(folders) > 1:
                names = " and ".join(folder.name for folder in folders)
                raise InputError(
                    f"{self.root} has {len(folders)} folders for the {part} part: {names}.",
                    "Keep or rename one of them.",
                )
        if "train" not in named:
            others = [folder for folders in named.values() for folder in folders]
            likely = [folder for folder in rest if _holds_images(folder)] or others
            cure = f"Rename the folder of training images: {_move(likely[0], here.path / 'train')}."
            if len(likely) > 1 and likely != others:
                cure = (
                    f"Put the training images of {', '.join(folder.name for folder in likely)} into one folder: train."
                )
            raise InputError(
                f"{self.root} has no training part; it has {', '.join(folder.name for folder in [*others, *rest])}.",
                cure,
            )
        self.left += rest
        self.unread += here.images
        self.count(here)
        train = self._classes(named["train"][0], None)
        order = [part for part in ("validation", "test") if part in named]
        return {"train": train} | {part: self._classes(named[part][0], train) for part in order}

    def _with_classes(self, named: dict[str, list[Path]]) -> bool:
        return any(_entries(folder).folders for folders in named.values() for folder in folders)

    def _classes(self, folder: Path, known: Classes | None) -> Classes:
        """Returns the images of a part by class; `known` are the training classes, for another part."""
        here = _entries(folder)
        while (inner := self._only_folder(here)) is not None and not (known and name_text(inner.name) in known):
            self.notes.append(f"The images are read from {self._below(inner)}, the only folder with images.")
            here = _entries(inner)
        if known and len(here.folders) == 1 and name_text(here.folders[0].name) not in known:
            here = _entries(here.folders[0])  # val/images/*
        if here.images and not here.folders:
            raise self._without_labels(here, folder, known)
        self.unread += here.images
        self.count(here)
        found = self._class_files(here.folders)
        if known is not None and (extra := sorted(set(found) - set(known))):
            close = nearest(extra[0], known)
            raise InputError(
                f"The classes in {here.path} differ from those of train: it adds {extra[:_SHOWN]}"
                + (f" and lacks {missing[:_SHOWN]}." if (missing := sorted(set(known) - set(found))) else "."),
                f"Rename it: {_move(here.path / extra[0], here.path / close)}."
                if close
                else "Give the training part these classes too, or remove them.",
            )
        return found

    def _without_labels(self, here: _Folder, folder: Path, known: Classes | None) -> InputError:
        """Returns the error for a part, or a whole set, whose images are in no class folders."""
        tables = [path.name for path in here.others if path.suffix.lower() in _TABLES]
        unread = f" ({', '.join(tables[:_SHOWN])} is not read: folders give the labels)" if tables else ""
        cause = f"{here.path} holds {len(here.images)} images and no class folders: they have no labels{unread}."
        words = {match[1] for path in here.images if (match := _NAMED_BY_CLASS.match(path.name))}
        if known is None and 2 <= len(words) <= _MOST_WORDS and all(_NAMED_BY_CLASS.match(p.name) for p in here.images):
            listed = ", ".join(sorted(words)[:_SHOWN])
            return InputError(
                cause,
                f"If their names begin with the class ({listed}), make folders: cd {shlex.quote(str(here.path))} && "
                'for f in *.*; do c="${f%%[._-]*}"; mkdir -p "$c" && mv "$f" "$c/"; done.',
            )
        instead = "" if known is None else f", or move it away: {_move(folder, self.root.parent / 'unlabelled')}"
        return InputError(cause, f"Put them at {here.path}/CLASS/*, a folder for each class{instead}.")

    def _class_files(self, folders: Iterable[Path]) -> Classes:
        """Returns the images of class folders by the class's name."""
        found: Classes = {}
        empty = []
        for folder in folders:
            name = name_text(folder.name)
            if name in found:
                raise InputError(f"Two class folders in {folder.parent} are named '{name}'.", "Rename one of them.")
            found[name] = self._images(folder)
            if not is_utf8(folder.name):
                self.notes.append(f"The name of the folder of '{name}' is not UTF-8; stray bytes are written as \\xNN.")
            if not found[name]:
                empty.append(folder)
        if empty:
            raise InputError(
                f"{len(empty)} class folders in {empty[0].parent} hold no images: "
                f"{', '.join(folder.name for folder in empty[:10])}.",
                "Put images directly into them or remove them.",
            )
        return dict(sorted(found.items()))

    def _images(self, folder: Path) -> list[Path]:
        """Returns the images of a class: those in its folder, or in the only folder inside."""
        here = _entries(folder)
        self.count(here)
        filled = [inner for inner in here.folders if _holds_images(inner)]
        if here.images or not filled:
            self.unread += [path for inner in filled for path in _entries(inner).images]
            return here.images
        if len(filled) > 1:
            names = ", ".join(inner.name for inner in filled[:_SHOWN])
            raise InputError(
                f"{folder} holds {len(filled)} folders of images ({names}): either level could be the classes.",
                f"Put the images of a class directly into its folder: mv {shlex.quote(str(folder))}/*/* "
                f"{shlex.quote(str(folder))}/.",
            )
        return self._images(filled[0])

    def _without_parts(self, here: _Folder) -> dict[str, Classes]:
        """Returns the parts of a folder that holds classes directly."""
        filled = [folder for folder in here.folders if _holds_images(folder)]
        if not filled:
            raise self._nothing(here)
        if len(filled) == 1 and name_text(filled[0].name).lower() in FILLERS and not here.images:
            inner = _entries(filled[0])
            inner.others += here.others
            raise self._without_labels(inner, here.path, None)
        if transposed := self._transposed(filled):
            self.notes.append("Each class has its own folders of parts; they are read as such.")
            return transposed
        contents = [_entries(folder) for folder in filled]
        inside = {() if found.images else tuple(inner.name for inner in found.folders) for found in contents}
        if len(filled) > 1 and len(inside) == 1 and len(names := inside.pop()) > 1:
            raise InputError(
                f"The folders {', '.join(f.name for f in filled[:_SHOWN])} of {here.path} all hold the folders "
                f"{', '.join(names[:_SHOWN])}: they look like parts.",
                f"Name the parts train, val and test: {_move(filled[0], here.path / 'train')}.",
            )
        self.unread += here.images
        self.count(here)
        if len(filled) > 1:
            self.notes.append(f"There are no parts: the {len(here.folders)} folders are taken as classes.")
        beside = [p.name for p in sorted(here.path.resolve().parent.iterdir()) if p.is_dir() and part_of(p.name)]
        if part_of(here.path.resolve().name) and len(beside) > 1:
            self.notes.append(
                f"The folder is one of the parts {', '.join(beside)}; give the one above to use them all."
            )
        return {"train": self._class_files(here.folders)}

    def _transposed(self, folders: list[Path]) -> dict[str, Classes] | None:
        """Returns the parts of CLASS/PART/* with the parts of every class among those of training, else None."""
        found: dict[str, Classes] = {}
        for folder in folders:
            here = _entries(folder)
            parts = [part_of(inner.name) for inner in here.folders]
            if here.images or not here.folders or None in parts or len(set(parts)) < len(parts):
                return None
            self.count(here)
            for part, inner in zip(parts, here.folders):
                found.setdefault(str(part), {})[name_text(folder.name)] = self._images(inner)
        return found if set(found.get("train", {})) == {name_text(folder.name) for folder in folders} else None

    def _nothing(self, here: _Folder) -> InputError:
        """Returns the error for a folder without class folders, by what else it holds."""
        names = {path.name: path for path in here.others}
        quoted = shlex.quote(str(here.path))
        if any("\\" in path.name for path in here.images):
            return InputError(
                f"The names of files in {here.path} hold backslashes, as of a zip file made on Windows.",
                f'Make folders of them: cd {quoted} && for f in *\\\\*; do t="${{f//\\\\//}}"; '
                'mkdir -p "${t%/*}"; mv "$f" "$t"; done.',
            )
        if here.images:
            return self._without_labels(here, here.path, None)
        if any("idx3-ubyte" in name for name in names):
            return InputError(
                f"{here.path} holds the idx files of MNIST or a relative.", f"Write {specification('idx', here.path)}."
            )
        arrays = [name for name in names if name.lower().endswith(".npz")]
        if arrays:
            return InputError(
                f"{here.path} holds {arrays[0]}.", f"Write {specification('npz', here.path / arrays[0])}."
            )
        packed = [
            (name, _ARCHIVES[path.suffix.lower()]) for name, path in names.items() if path.suffix.lower() in _ARCHIVES
        ]
        if packed:
            name, command = packed[0]
            return InputError(
                f"{here.path} holds the archive {name} and no images.",
                f"Unpack it: cd {quoted} && {command} {shlex.quote(name)}.",
            )
        listed = ", ".join([*(f"{folder.name}/" for folder in here.folders), *names][:_SHOWN]) or "nothing"
        return InputError(
            f"{self.root} holds no folder 'train' and no class folders with images (found: {listed}).",
            "Put the images at DIR/train/CLASS/* and DIR/test/CLASS/*, or at DIR/CLASS/*.",
        )

    def _summary(self) -> list[str]:
        """Returns sentences on what was not read."""
        notes = []
        if self.others:
            listed = ", ".join(f"{count} {ending}" for ending, count in sorted(self.others.items()))
            notes.append(f"{sum(self.others.values())} files with other endings were skipped: {listed}.")
        for paths, what in (
            (self.broken, "links that lead nowhere, or special files, were skipped"),
            (self.unread, "images outside the class folders were not used"),
            (self.left, "other folders were not read"),
        ):
            if paths:
                more = f" and {len(paths) - _SHOWN} more" if len(paths) > _SHOWN else ""
                notes.append(f"{len(paths)} {what}: {', '.join(map(self._below, paths[:_SHOWN]))}{more}.")
        return notes


def _move(source: Path, target: Path) -> str:
    return f"mv {shlex.quote(str(source))} {shlex.quote(str(target))}"


def find_layout(directory: str | os.PathLike[str]) -> Layout:
    """Returns the image files of a folder by part and class.

    Raises:
        InputError: The images have no classes, or their layout can be read in more than one way.
    """
    return _Reader(Path(directory)).layout()
