"""Crops of a tracker's results, in the format of MOT Challenge, as a folder that TRACK can read."""

import math
import os
import re
import shutil
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from PIL import Image

from ..refusals import optional
from .datasets import image_paths
from .views import read_image

#: widest run of digits in a crop's name; longer numbers stay whole
_DIGITS = 6


class Box(NamedTuple):
    """A row of a tracker's results: left, top, width and height in pixels, from 0; ``row`` counts from 1."""

    row: int
    frame: int
    track: int
    left: float
    top: float
    width: float
    height: float


def read_boxes(path: str) -> list[Box]:
    """Read ``frame,id,left,top,width,height,...`` a row; more columns and blank rows are skipped."""
    boxes: list[Box] = []
    seen: dict[tuple[int, int], int] = {}
    with open(path, encoding="utf-8-sig", errors="replace") as file:
        for row, line in enumerate(file, 1):
            if not line.strip():
                continue
            box = _box(row, line)
            if box is None:
                raise ValueError(
                    f"{path!r}, row {row}: {line.strip()[:80]!r} is not frame,id,left,top,width,height,... "
                    "with frame and id of 0 or more and a box of finite size above 0: correct or remove it"
                )
            if (box.frame, box.track) in seen:
                raise ValueError(
                    f"{path!r}, row {row}: track {box.track} has a box in frame {box.frame} already, in row "
                    f"{seen[box.frame, box.track]}: remove one"
                )
            seen[box.frame, box.track] = row
            boxes.append(box)
    if not boxes:
        raise ValueError(f"{path!r} has no row: give the results of a tracker")
    return boxes


def _box(row: int, line: str) -> Box | None:
    """The box of a row, None if it is none."""
    try:
        frame, track, *sides = map(float, re.split(r"\s*,\s*|\s+", line.strip())[:6])
    except ValueError:
        return None
    whole = frame >= 0 and frame.is_integer() and track >= 0 and track.is_integer()
    if not whole or len(sides) < 4 or not all(map(math.isfinite, sides)) or min(sides[2:]) <= 0:
        return None
    return Box(row, int(frame), int(track), *sides)


def cut_crops(boxes: Sequence[Box], frames: str, camera: str, output: str, every: int) -> dict[str, int]:
    """Cut boxes out of their frames and keep them as ``CAMERA_tTRACK_fFRAME.jpg`` in a new folder.

    Boxes are cut at the frame's edges. The folder appears when all is written.

    Args:
        boxes: of :func:`read_boxes`.
        frames: a folder of images whose names end with the frame's number, or a video, whose first frame is
            number 1.
        camera: of the crops' names.
        output: folder to make.
        every: a track's next crop is of this many frames later, or more [frames, >= 1].

    Returns:
        {"crops", "tracklets", "outside": boxes without a pixel inside their frame}.

    Raises:
        FileExistsError: if ``output`` is there already.
        FileNotFoundError: if there are no frames, or none of a box's number.
        ImportError: if a video needs OpenCV, which is not installed.
        OSError: if a frame cannot be read.
        ValueError: for another camera or ``every``, a video that cannot be read, or no crop to keep.
    """
    if not re.fullmatch(r"[A-Za-z0-9-]+", camera):
        raise ValueError(f"a camera's name is of letters, digits and '-', got {camera!r}: give another")
    if every < 1:
        raise ValueError(f"one crop every {every} frames: give 1 or more")
    if os.path.lexists(output):
        raise FileExistsError(f"{output!r} is there already: give another folder, or remove it")
    wanted = _by_frame(boxes, every)
    crops, outside = defaultdict(int), 0
    draft = f"{os.path.abspath(output)}.{os.getpid()}.tmp"
    try:
        os.makedirs(draft)
        for frame, image in (_in_folder if os.path.isdir(frames) else _in_video)(frames, wanted):
            for box in wanted[frame]:
                left, top = round(max(0, box.left)), round(max(0, box.top))
                right = round(min(image.width, box.left + box.width))
                bottom = round(min(image.height, box.top + box.height))
                if left >= right or top >= bottom:
                    outside += 1
                    continue
                name = f"{camera}_t{box.track:0{_DIGITS}d}_f{frame:0{_DIGITS}d}.jpg"
                image.crop((left, top, right, bottom)).save(os.path.join(draft, name), quality=95)
                crops[box.track] += 1
        if not crops:
            raise ValueError(
                f"all {outside} boxes are outside their frames of {frames!r}: are they of these?"
            )
        os.replace(draft, output)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return {"crops": sum(crops.values()), "tracklets": len(crops), "outside": outside}


def _by_frame(boxes: Sequence[Box], every: int) -> dict[int, list[Box]]:
    """The boxes to cut by their frames, ascending: of each track the first, then one ``every`` frames."""
    wanted: dict[int, list[Box]] = defaultdict(list)
    last: dict[int, int] = {}
    for box in sorted(boxes, key=lambda box: (box.frame, box.track)):
        if box.frame - last.get(box.track, -math.inf) >= every:
            last[box.track] = box.frame
            wanted[box.frame].append(box)
    return wanted


def _missing(frames: str, boxes: Sequence[Box], there: str) -> FileNotFoundError:
    return FileNotFoundError(
        f"frame {boxes[0].frame}, of row {boxes[0].row}, is not in {frames!r}, which has {there}: give the "
        "frames that these results are of"
    )


def _in_folder(folder: str, wanted: Mapping[int, Sequence[Box]]) -> Iterator[tuple[int, Image.Image]]:
    numbered: dict[int, str] = {}
    for path in image_paths(folder):
        number = re.search(r"(\d+)\D*$", os.path.splitext(os.path.basename(path))[0])
        if number is None:
            continue
        other = numbered.setdefault(int(number[1]), path)
        if other != path:
            raise ValueError(f"{other!r} and {path!r} are both frame {int(number[1])}: keep one")
    for frame, boxes in wanted.items():
        if frame not in numbered:
            there = f"{min(numbered)} to {max(numbered)}" if numbered else "none with a number"
            raise _missing(folder, boxes, there)
    for frame in wanted:
        yield frame, read_image(numbered[frame])


def _in_video(path: str, wanted: Mapping[int, Sequence[Box]]) -> Iterator[tuple[int, Image.Image]]:
    if not os.path.isfile(path):
        raise FileNotFoundError(f"{path!r} is neither a folder of frames nor a video")
    cv2 = optional(
        "cv2", 'reading a video needs OpenCV, or a folder of frames: pip install "fastreid-sskd[video]"'
    )
    video = cv2.VideoCapture(path)
    try:
        if not video.isOpened() or not video.grab():
            raise ValueError(f"{path!r} cannot be read as a video: convert it, or give a folder of frames")
        at = 1
        for frame, boxes in wanted.items():
            while at < frame and video.grab():
                at += 1
            read, pixels = video.retrieve() if at == frame else (False, None)
            if not read:
                raise _missing(path, boxes, f"1 to {at}" if frame else "frames from 1 on")
            yield frame, Image.fromarray(cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB))
    finally:
        video.release()
