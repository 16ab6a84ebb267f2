"""Data sets that are folders of images: which images, identities and cameras they have."""

import logging
import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar, NamedTuple

from fastreid.data.datasets.bases import ImageDataset

logger = logging.getLogger("fastreid.sskd.data")

IMAGE_ENDINGS = (".bmp", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp")
_OF_THE_SYSTEM = ("desktop.ini", "thumbs.db")  # written by Windows into folders of images
_SETTINGS = {
    "TRAIN": "train_folder", "QUERY": "query_folder", "GALLERY": "gallery_folder", "CAMERA": "camera",
    "IDENTITY": "identity", "TRACK": "track", "JUNK": "junk",
}  # fmt: skip
_OF_TIME = ("clip", "frame")  # groups of TRACK that do not name the track
_NOBODY = -1  # a person of the gallery whom no query shows
#: path, identity (None: unknown), camera; of training images with tracks a fourth, their :class:`Track`
Item = tuple


class Track(NamedTuple):
    """The tracklet of an image: tracks are numbered, and frames counted, within a clip of a camera.

    ``frame`` is None where frames are not known.
    """

    name: str
    clip: str = ""
    frame: int | None = None


class CropFolder(ImageDataset):
    r"""Images below a folder and its sub-folders: enough to be a target.

    ``camera`` and ``identity`` are regular expressions, searched for in an image's path below its folder
    (with ``/`` between folders, ending included). The first group that takes part is the name, without groups
    the whole match is: ``^([^/]+)/`` is the first sub-folder, ``_c(\d+)`` the number in
    ``0002_c1s1_000451_03.jpg``. Empty, there are no cameras, or no identities.

    A data set of one's own takes five lines::

        @DATASET_REGISTRY.register()
        class MySite(CropFolder):
            train_folder, query_folder, gallery_folder = "my_site/train", "my_site/query", "my_site/gallery"
            identity, camera = r"^(\d+)_", r"_c(\d+)"
            dataset_name = "my_site"

    Images that the expression ``junk`` matches are left out of query and gallery, and have no identity in
    training. By default these are files and sub-folders whose name begins with -1, the false detections of
    Market-1501.

    ``track`` says likewise which training images are of one tracklet of a camera, and so of one person. Its
    group ``(?P<frame>\d+)``, where it has one, is the frame, by which tracklets overlap in time. Its group
    ``(?P<clip>...)`` is the recording within which tracks are numbered and frames counted, if a camera has
    several: ``^(?:(?P<clip>.*)/)?.*_t(\d+)_f(?P<frame>\d+)`` reads ``monday/gate_t000012_f000451.jpg``.

    The config's ``SSKD.FOLDERS`` does it without code. Training images carry identities (None where
    ``identity`` finds none) and cameras as text prefixed with ``dataset_name``. Query and gallery carry them
    as numbers; they need ``identity``. A gallery image that it does not match shows somebody whom no query
    shows. Without cameras the queries are of one camera and the gallery of another, so that nothing is left
    out of the ranking.

    Args:
        root: folder of data sets (FASTREID_DATASETS), which relative folders are below.
        **kwargs: for :class:`fastreid.data.datasets.bases.ImageDataset`.

    Raises:
        FileNotFoundError: if a folder that is named is not there.
        ValueError: if it holds no image, a path has no camera or no identity where it should, or only one of
            query and gallery is named.
    """

    train_folder: str = ""
    query_folder: str = ""
    gallery_folder: str = ""
    camera: str = ""
    identity: str = ""
    track: str = ""
    junk: str = r"(?:^|/)-1(?!\d)"
    dataset_name: str = "crops"
    _junk_pids: ClassVar[list[int]] = [_NOBODY]

    def __init__(self, root: str = "datasets", **kwargs):
        self.root = os.path.expanduser(root)
        if bool(self.query_folder) != bool(self.gallery_folder):
            raise ValueError(
                f"{self._key('QUERY')} and {self._key('GALLERY')} go together: got {self.query_folder!r} and "
                f"{self.gallery_folder!r}; name both, or neither to train without evaluation"
            )
        query, gallery = self._test() if self.query_folder else ([], [])
        super().__init__(self._train() if self.train_folder else [], query, gallery, **kwargs)

    def _key(self, setting: str) -> str:
        return f"SSKD.FOLDERS.{self.dataset_name}.{setting}"

    def _train(self) -> list[tuple]:
        paths = self._paths("TRAIN", self.train_folder)
        cameras = self._names("CAMERA", paths) or [""] * len(paths)
        identities = self._names("IDENTITY", paths, needed=False) or [None] * len(paths)
        prefix = f"{self.dataset_name}_"
        people = [
            None if name is None or junk else prefix + name
            for name, junk in zip(identities, self._found("JUNK", paths))
        ]
        logger.info(
            "%s: %d training images, %s, %d of them with one of %d identities",
            self.dataset_name,
            len(paths),
            f"{len(set(cameras))} cameras" if self.camera else "no cameras",
            len(people) - people.count(None),
            len(set(people) - {None}),
        )
        cameras = [prefix + camera for camera in cameras]
        tracks = self._tracks(paths, cameras)
        return list(zip(paths.values(), people, cameras, *([tracks] if tracks else [])))

    def _tracks(self, paths: Mapping[str, str], cameras: Sequence[str]) -> list[Track]:
        """The track of every path; [] without the expression."""
        names = self._names("TRACK", paths)
        if not names:
            return []
        matches = self._found("TRACK", paths)
        clips, frames = (
            [match[group] if group in match.re.groupindex else None for match in matches]
            for group in _OF_TIME
        )
        wrong = [frame for frame in frames if not (frame or "0").isdecimal()]
        if wrong or None in frames and any(frames):
            path = list(paths)[frames.index(wrong[0] if wrong else None)]
            raise ValueError(
                f"{self._key('TRACK')} {self.track!r} finds no number for the frame of {path!r}: correct its "
                r"group (?P<frame>\d+)"
            )
        tracks = [
            Track(name, clip or "", int(frame) if frame else None)
            for name, clip, frame in zip(names, clips, frames)
        ]
        sizes = Counter((camera, *track[:2]) for camera, track in zip(cameras, tracks))
        again = Counter(zip(cameras, tracks) if any(frames) else ())
        twice = [path for path, *key in zip(paths, cameras, tracks) if again[tuple(key)] > 1]
        if twice:
            logger.warning(
                "%s: %d images show their tracklet more than once in a frame (first: %r): where cameras or "
                "recordings number their tracks anew, different people are joined; set CAMERA or TRACK's "
                "group (?P<clip>)", self.dataset_name, len(twice), twice[0],
            )  # fmt: skip
        logger.info(
            "%s: %d tracklets, %d of them of one image%s",
            self.dataset_name,
            len(sizes),
            list(sizes.values()).count(1),
            "" if any(frames) else "; no group (?P<frame>) says which of them overlap in time",
        )
        return tracks

    def _test(self) -> tuple[list[tuple], list[tuple]]:
        if not self.identity:
            raise ValueError(
                f"{self.dataset_name} has a query folder, but {self._key('IDENTITY')} is empty: ranking "
                r"needs the identities of query and gallery, as a regular expression such as '^(\d+)_'"
            )
        paths = [self._paths("QUERY", self.query_folder), self._paths("GALLERY", self.gallery_folder)]
        junk = [[below for below, found in zip(part, self._found("JUNK", part)) if found] for part in paths]
        for part, names in zip(paths, junk):
            for below in names:
                del part[below]
        if any(junk):
            logger.info(
                "%s: %d query and %d gallery images are junk by %s and left out (first: %r)",
                self.dataset_name, *map(len, junk), self._key("JUNK"), (junk[0] + junk[1])[0],
            )  # fmt: skip
        people = [self._names("IDENTITY", paths[0]), self._names("IDENTITY", paths[1], needed=False)]
        if set(people[1]) == {None}:
            raise ValueError(self._nothing_found("IDENTITY", paths[1], people[1]))
        if self.camera:
            cameras = [self._names("CAMERA", part) for part in paths]
        else:
            cameras = [[str(which)] * len(part) for which, part in enumerate(paths)]
            both = sorted(
                set(map(os.path.realpath, paths[0].values())) & set(map(os.path.realpath, paths[1].values()))
            )
            if both:
                raise ValueError(
                    f"{self.dataset_name} has no cameras, and {len(both)} images are in query and gallery "
                    f"both (first: {both[0]}), so that a query would find itself: keep the folders apart, or "
                    f"set {self._key('CAMERA')}"
                )
        person, camera = _numbers(people[0] + people[1]), _numbers(cameras[0] + cameras[1])
        shown = set(people[0])
        query, gallery = (
            [(path, person[name], camera[at]) for path, name, at in zip(part.values(), names, places)]
            for part, names, places in zip(paths, people, cameras)
        )
        logger.info(
            "%s: %d query and %d gallery images, %d of these of people whom no query shows",
            self.dataset_name,
            len(query),
            len(gallery),
            sum(name not in shown for name in people[1]),
        )
        return query, gallery

    def _paths(self, setting: str, folder: str) -> dict[str, str]:
        """{path below the folder, with "/": path} in sorted order."""
        at = os.path.join(self.root, os.path.expanduser(folder))
        if not os.path.isdir(at):
            raise FileNotFoundError(
                f"{self._key(setting)}: there is no folder {os.path.abspath(at)!r}; give an absolute path, "
                "or one below FASTREID_DATASETS"
            )
        return {os.path.relpath(path, at).replace(os.sep, "/"): path for path in image_paths(at)}

    def _found(self, setting: str, paths: Mapping[str, str]) -> list[re.Match | None]:
        """The match of a setting's expression in every path; None everywhere if it is empty."""
        rule = getattr(self, _SETTINGS[setting])
        try:
            return [re.search(rule, path) if rule else None for path in paths]
        except re.error as error:
            raise ValueError(f"{self._key(setting)} {rule!r} is no regular expression: {error}") from error

    def _names(self, setting: str, paths: Mapping[str, str], needed: bool = True) -> list[str | None]:
        """What a setting's expression finds in every path, None for nothing; [] if it is empty."""
        if not getattr(self, _SETTINGS[setting]):
            return []
        matches = self._found(setting, paths)
        aside = _OF_TIME if setting == "TRACK" else ()
        groups = [_groups(match, aside) if match else () for match in matches]
        names = [next((name for name in found if name), None) for found in groups]
        if needed and None in names:
            raise ValueError(self._nothing_found(setting, paths, names))
        return names

    def _nothing_found(self, setting: str, paths: Mapping[str, str], names: Sequence) -> str:
        first = next(path for path, name in zip(paths, names) if name is None)
        return (
            f"{self._key(setting)} {getattr(self, _SETTINGS[setting])!r} finds nothing in "
            f"{names.count(None)} of {len(names)} paths (first: {first!r}): correct the regular expression, "
            "or move these images away"
        )


def folder_class(name: str, settings: Mapping[str, str]) -> type[CropFolder]:
    """The data set that a node of ``SSKD.FOLDERS`` describes.

    Args:
        name: of the node, and so of the data set.
        settings: TRAIN, QUERY, GALLERY (folders), CAMERA, IDENTITY, TRACK and JUNK (regular expressions);
            what is missing or empty is as in :class:`CropFolder`.
    """
    if not isinstance(settings, Mapping):
        raise TypeError(f"SSKD.FOLDERS.{name} must be a node with {', '.join(_SETTINGS)}; got {settings!r}")
    wrong = [key for key, value in settings.items() if key not in _SETTINGS or not isinstance(value, str)]
    if wrong:
        raise ValueError(
            f"SSKD.FOLDERS.{name}.{wrong[0]} = {settings[wrong[0]]!r}: a folder takes "
            f"{', '.join(_SETTINGS)}, each a text"
        )
    attributes = {_SETTINGS[key]: value for key, value in settings.items() if value}
    return type(name, (CropFolder,), {**attributes, "dataset_name": name})


def _groups(match: re.Match, aside: Sequence[str]) -> Sequence[str | None]:
    """What the groups have found, those aside left out; without any group, the whole match."""
    out = {match.re.groupindex.get(name) for name in aside}
    return (
        [match[i] for i in range(1, match.re.groups + 1) if i not in out] if match.re.groups else [match[0]]
    )


def _numbers(names: Sequence) -> dict:
    """{name: 0, 1, ... in sorted order}; None is :data:`_NOBODY`."""
    return {**{name: number for number, name in enumerate(sorted(set(names) - {None}))}, None: _NOBODY}


def find_images(folder: str) -> list[str]:
    """List all images below a folder, by their endings in any letter case, sorted; may be empty.

    Links to folders are followed. Each folder is listed once, under its own path if it lies below ``folder``
    itself. Links to it, and links to a folder that holds them, are left out with a warning. Hidden files and
    folders (``.name``) are left out too; files of other endings are, with their count in the log.
    """
    if not os.path.isdir(folder):
        what = "is a file, not a folder" if os.path.exists(folder) else "not found"
        raise FileNotFoundError(f"folder {folder!r} {what}")
    paths, others, again = [], Counter(), []
    seen, pending, links = set(), [folder], []
    while pending or links:
        links.sort(reverse=True)
        at = pending.pop() if pending else links.pop()
        real = os.path.realpath(at)
        if real in seen:
            again.append(at)
            continue
        seen.add(real)
        with os.scandir(at) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                if entry.is_dir():
                    loop = entry.is_symlink() and Path(real).is_relative_to(os.path.realpath(entry.path))
                    (again if loop else links if entry.is_symlink() else pending).append(entry.path)
                elif entry.is_symlink() and not os.path.exists(entry.path):
                    raise FileNotFoundError(
                        f"link {entry.path!r} leads to {os.readlink(entry.path)!r}, which is not there: mend "
                        "or remove it"
                    )
                elif entry.name.lower().endswith(IMAGE_ENDINGS):
                    paths.append(entry.path)
                elif entry.name.lower() not in _OF_THE_SYSTEM:
                    others[os.path.splitext(entry.name)[1] or entry.name] += 1
    if again:
        logger.warning(
            "%s: %d links to folders that are listed already are left out (first: %s)",
            folder,
            len(again),
            min(again),
        )
    if others:
        count = ", ".join(f"{number} {ending}" for ending, number in others.most_common(5))
        logger.info("%s: %d files without an image's ending are left out (%s)", folder, others.total(), count)
    return sorted(paths)


def image_paths(folder: str) -> list[str]:
    """List the images of :func:`find_images`; a folder without any is an error."""
    paths = find_images(folder)
    if not paths:
        raise ValueError(f"no image below {folder!r}: looked for {', '.join(IMAGE_ENDINGS)}")
    return paths
