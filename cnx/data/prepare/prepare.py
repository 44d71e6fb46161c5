"""Make a data set folder of a folder of photos, or finish one."""

import csv
import hashlib
import io
import json
import os
import time
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import cv2
from filelock import FileLock, Timeout
from PIL import Image

from cnx.condition import Condition
from cnx.data.ahead import map_ahead, progress
from cnx.data.prepare.caption import Captions
from cnx.data.prepare.journal import Journal
from cnx.data.prepare.pair import ENCODINGS, Dropped, OutputError, Pair, PairMaker, write_whole
from cnx.data.prepare.photos import Photo, find_photos
from cnx.data.prepare.resize import Resize
from cnx.errors import InputError

STAMP = "prepared.json"
STATE = ".prepare"  # the journals and the lock
CHUNK = 16  # photos that a thread does before it reports, and a learned detector looks at together
VERSION = 1  # of what is written; another version's folder is not gone on with


@dataclass(frozen=True)
class Item:
    """A line of the data set: the photo, its pair's name and its prompt."""

    photo: str
    name: str
    prompt: str


@dataclass
class Prepared:
    """What a run of `prepare` has found and done.

    Attributes:
        items: the data set, by the photos' paths.
        dropped: why each of the other photos is not in it.
        ignored: files in the folder of photos that are no pictures.
        made: items whose pairs this run has made; the others were there.
        stray: pairs in the folder, listed no longer because their photos are gone.
        recaptioned: whether an earlier run took its captions from elsewhere.
    """

    items: list[Item] = field(default_factory=list)
    dropped: dict[str, Dropped] = field(default_factory=dict)
    ignored: int = 0
    made: int = 0
    stray: int = 0
    recaptioned: bool = False


def prepare(
    source: str | Path,
    out: str | Path,
    resize: Resize,
    condition: Condition,
    captions: Captions,
    settings: dict[str, Any],
    caption_settings: dict[str, Any],
    min_side: int = 64,
    target_format: str = "jpg",
    workers: int | None = None,
) -> Prepared:
    """Make the folder `out` a data set of the photos in `source` and below, and say what became of each.

    Writes the Fill50K layout (`prompt.json`, `source/`, `target/`) with `metadata.jsonl` beside it, which Hugging
    Face's imagefolder reads, `dropped.csv` (photos that are left out, and why) and `prepared.json` (`settings`). What
    an earlier run has done is kept, a photo that has changed is done again, and the listings are written last: a
    folder with prompt.json is whole.

    Threads, not processes: decoding, resizing, annotating and encoding release the GIL, a detector with weights is in
    memory once, and two threads take less time than two processes (python benchmarks/prepare.py).

    Args:
        settings: what the pairs depend on; `out` is refused if an earlier run had others.
        caption_settings: what the captions depend on; where they have changed, captions are made anew.
        min_side: photos whose shorter side in pixels is below it are dropped.
        target_format: jpg (quality 95, colour at full resolution) or png (lossless).
        workers: threads; None is one for each core.

    Raises:
        InputError: no photos; `out` inside of `source` or the reverse, with other files in it, made with other
            settings, in use by another process or not to be written (what is there stays good); captions' own.
    """
    source, out = Path(source), Path(out)
    _check_places(source, out)
    if target_format not in ENCODINGS:
        raise InputError(f"target_format={target_format}: must be one of {', '.join(ENCODINGS)}")
    if min_side < 1:
        raise InputError(f"min_side={min_side}: must be at least 1 px")
    if workers is not None and workers < 1:
        raise InputError(f"workers={workers}: must be at least 1, or null for one a core")
    photos, ignored = find_photos(source)
    settings = {"version": VERSION, **settings}
    _check_out(out, settings)
    prompts = None if captions.looks else captions(source, [photo.path for photo in photos], [])
    with _held(out):
        stamp = _read_stamp(out)
        before = stamp.get("captions", caption_settings)
        if not stamp:  # first of all, so that whatever comes after is known to be from here
            _write(out / STAMP, _json({"settings": settings, "captions": caption_settings}))
        _sweep(out)
        found = Prepared(ignored=ignored, recaptioned=before != caption_settings)
        maker = PairMaker(source, out, resize, condition, min_side, target_format)
        try:
            pairs, kept = _make_pairs(maker, photos, workers or cores())
            if prompts is None:
                prompts = _describe(captions, caption_settings, source, out, photos, pairs, target_format)
        except OutputError as error:
            raise InputError(f"{error}; what is written is whole: mend that and run the same command again") from None
        _sort_out(found, photos, pairs, prompts)
        if not found.items:
            first, why = next(iter(found.dropped.items()))
            raise InputError(
                f"source={source}: none of {len(photos):,} pictures can be used; {first} is {why.kind}: {why.detail}"
            )
        found.made = sum(item.photo not in kept for item in found.items)
        found.stray = _count_files(out / "target") - len(found.items)
        _write_listings(out, found, target_format, {"settings": settings, "captions": caption_settings})
    return found


def _check_places(source: Path, out: Path) -> None:
    if out.exists() and not out.is_dir():
        raise InputError(f"out={out}: is a file; give a folder")
    inner, outer = out.resolve(), source.resolve()
    if inner == outer or outer in inner.parents:
        raise InputError(f"out={out}: lies in source={source}, whose pictures it would become; give a folder elsewhere")
    if inner in outer.parents:
        raise InputError(f"source={source}: lies in out={out}; give an out elsewhere")


def _check_out(out: Path, settings: dict[str, Any]) -> None:
    """Raise InputError unless `out` is new, empty, or was prepared with the same settings."""
    try:
        there = sorted(path.name for path in out.iterdir() if path.name[0] != ".") if out.exists() else []
    except OSError as error:
        raise InputError(f"out={out}: cannot be read ({error.strerror})") from None
    if not there:
        return
    if STAMP not in there:
        raise InputError(
            f"out={out}: has files that are not from task=prepare ({there[0]}); give a new or empty folder"
        )
    before, now = _flat(_read_stamp(out).get("settings", {})), _flat(settings)
    changed = [key for key in {**before, **now} if before.get(key) != now.get(key)]
    if changed:
        key = changed[0]
        raise InputError(
            f"out={out}: was prepared with {key}={before.get(key)}, and now {key}={now.get(key)}; give another out,"
            " or delete that folder to begin anew"
        )


@contextmanager
def _held(out: Path) -> Iterator[None]:
    """Make the folder and keep other processes out of it."""
    try:
        (out / STATE).mkdir(parents=True, exist_ok=True)
        lock = FileLock(out / STATE / "lock")
        lock.acquire(timeout=0)
    except Timeout:
        raise InputError(f"out={out}: another process is preparing it") from None
    except OSError as error:
        raise InputError(f"out={out}: cannot be written ({error.strerror}); choose a folder of your own") from None
    try:
        yield
    finally:
        lock.release()


def _sweep(out: Path) -> None:
    """Make the folders of the layout, and delete what a killed process has left half written."""
    for folder in (out, out / "source", out / "target"):
        folder.mkdir(exist_ok=True)
        for part in folder.glob(".*.tmp"):
            part.unlink(missing_ok=True)


def _make_pairs(maker: PairMaker, photos: Sequence[Photo], workers: int) -> tuple[dict[str, Pair | Dropped], set[str]]:
    """The pair of each photo, and the photos whose pairs an earlier run has made."""
    journal = Journal(maker.out / STATE / "pairs.jsonl")
    pairs: dict[str, Pair | Dropped] = dict(_still_good(journal, photos, maker))
    kept = set(pairs)
    missing = [photo for photo in photos if photo.path not in kept]
    chunks = [missing[start : start + CHUNK] for start in range(0, len(missing), CHUNK)]

    if missing:
        maker.condition.annotate([])  # a learned detector is loaded here once, and not by each thread
    warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)  # the error, at twice the size, counts
    threads = cv2.getNumThreads()
    cv2.setNumThreads(1)  # the photos are the parallelism
    results = map_ahead(maker, chunks, 2 * workers, workers)
    try:
        with closing(results), progress("Preparing photos", len(photos), done=len(pairs)) as advance:
            for chunk, done in zip(chunks, results, strict=True):
                found = list(zip(chunk, done, strict=True))
                pairs |= {photo.path: pair for photo, pair in found}
                # Only what is written is noted: a photo that could not be read is tried again next time.
                journal.append(asdict(photo) | asdict(pair) for photo, pair in found if isinstance(pair, Pair))
                advance(len(chunk))
    finally:
        cv2.setNumThreads(threads)
    return pairs, kept


def _still_good(journal: Journal, photos: Sequence[Photo], maker: PairMaker) -> Iterator[tuple[str, Pair]]:
    """The pairs in the journal whose photos are the same and whose files are whole."""
    now = {photo.path: photo for photo in photos}
    sources, targets = _sizes(maker.out / "source"), _sizes(maker.out / "target")
    for entry in journal.read():
        photo = Photo(entry["path"], entry["bytes"], entry["mtime_ns"])
        pair = Pair(entry["name"], entry["source_bytes"], entry["target_bytes"])
        there = (sources.get(f"{pair.name}.png"), targets.get(f"{pair.name}.{maker.target_format}"))
        if now.get(photo.path) == photo and there == (pair.source_bytes, pair.target_bytes):
            yield photo.path, pair


def _describe(
    captions: Captions,
    caption_settings: dict[str, Any],
    source: Path,
    out: Path,
    photos: Sequence[Photo],
    pairs: dict[str, Pair | Dropped],
    target_format: str,
) -> list[str]:
    """The prompt of each photo, by what is to be seen in its pair's picture; remembered by the picture's name."""
    key = hashlib.sha256(json.dumps(caption_settings, sort_keys=True).encode()).hexdigest()[:12]
    journal = Journal(out / STATE / f"captions-{key}.jsonl")
    known: dict[str, str] = {entry["name"]: entry["prompt"] for entry in journal.read()}
    names = {path: pair.name for path, pair in pairs.items() if isinstance(pair, Pair)}
    missing = list({name: path for path, name in names.items() if name not in known}.items())
    with progress("Captioning", len(missing)) as advance:
        for start in range(0, len(missing), captions.batch_size):
            batch = missing[start : start + captions.batch_size]
            pictures = [out / "target" / f"{name}.{target_format}" for name, _ in batch]
            prompts = captions(source, [path for _, path in batch], pictures)
            said = {name: prompt for (name, _), prompt in zip(batch, prompts, strict=True)}
            journal.append({"name": name, "prompt": prompt} for name, prompt in said.items())
            known |= said
            advance(len(batch))
    return [known[names[photo.path]] if photo.path in names else "" for photo in photos]


def _sort_out(
    found: Prepared, photos: Sequence[Photo], pairs: dict[str, Pair | Dropped], prompts: Sequence[str]
) -> None:
    """Divide the photos into items and dropped ones; of several photos of one picture the first is the item."""
    first: dict[str, str] = {}
    for photo, prompt in zip(photos, prompts, strict=True):
        pair = pairs[photo.path]
        if isinstance(pair, Dropped):
            found.dropped[photo.path] = pair
        elif pair.name in first:
            found.dropped[photo.path] = Dropped("duplicate", f"the same picture as {first[pair.name]}")
        else:
            first[pair.name] = photo.path
            found.items.append(Item(photo.path, pair.name, prompt))


def _write_listings(out: Path, found: Prepared, target_format: str, stamp: dict[str, Any]) -> None:
    layout, metadata = io.StringIO(), io.StringIO()
    for item in found.items:
        source, target = f"source/{item.name}.png", f"target/{item.name}.{target_format}"
        layout.write(_line({"source": source, "target": target, "prompt": item.prompt, "photo": item.photo}))
        # Columns in the order that diffusers' train_controlnet.py takes them to be: image, text, conditioning image.
        # imagefolder reads a file of each *_file_name, and calls the column by what is before that.
        metadata.write(_line({"file_name": target, "text": item.prompt, "conditioning_image_file_name": source}))
    dropped = io.StringIO()
    writer = csv.writer(dropped, lineterminator="\n")
    writer.writerow(["photo", "why", "detail"])
    writer.writerows([photo, why.kind, why.detail] for photo, why in found.dropped.items())
    counts = {"pairs": len(found.items), "dropped": Counter(why.kind for why in found.dropped.values())}
    _write(out / "dropped.csv", dropped.getvalue())
    _write(out / "metadata.jsonl", metadata.getvalue())
    _write(out / STAMP, _json({**stamp, **counts, "finished": time.strftime("%Y-%m-%d %H:%M:%S")}))
    _write(out / "prompt.json", layout.getvalue())


def _write(path: Path, text: str) -> None:
    # File names that are no text, which Linux allows, come out with their odd bytes as they are.
    write_whole(path, text.encode("utf-8", "surrogateescape"))


def _line(entry: dict[str, str]) -> str:
    try:
        text = json.dumps(entry, ensure_ascii=False)
        text.encode()
    except UnicodeEncodeError:
        text = json.dumps(entry)
    return text + "\n"


def _json(content: dict[str, Any]) -> str:
    return json.dumps(content, indent=2, ensure_ascii=False) + "\n"


def _read_stamp(out: Path) -> dict[str, Any]:
    """What `prepared.json` says; {} where it is not there or says nothing readable."""
    try:
        found = json.loads((out / STAMP).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _flat(settings: Any, prefix: str = "") -> dict[str, Any]:
    """Nested settings as {"condition.low": 100, ...}."""
    if not isinstance(settings, dict):
        return {prefix[:-1]: settings}
    return {path: value for key in settings for path, value in _flat(settings[key], f"{prefix}{key}.").items()}


def _sizes(folder: Path) -> dict[str, int]:
    with os.scandir(folder) as entries:
        return {entry.name: entry.stat().st_size for entry in entries}


def _count_files(folder: Path) -> int:
    with os.scandir(folder) as entries:
        return sum(not entry.name.startswith(".") for entry in entries)


def cores() -> int:
    """The cores that this process may use, which in a container are fewer than the machine's."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
