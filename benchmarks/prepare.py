"""Measure how fast photos become pairs, and where the time goes.

    python benchmarks/prepare.py [photos=1000] [size=512] [condition=canny] [width=800] [height=600] [workers=2]

Photos are drawn first: noisy, detailed JPEGs of quality 90 in a temporary folder. CPU time is the number to go by on a
machine that does other work too.
"""

import os
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPOSITORY))

import cv2  # noqa: E402
import numpy as np  # noqa: E402
from hydra import compose, initialize_config_dir  # noqa: E402
from hydra.errors import HydraException  # noqa: E402
from hydra.utils import instantiate  # noqa: E402
from PIL import Image  # noqa: E402
from rich.console import Console  # noqa: E402
from rich.table import Table  # noqa: E402

from cnx.data.folder import BEHIND_MAP  # noqa: E402
from cnx.data.prepare.pair import ENCODINGS, PairMaker, encode, write_whole  # noqa: E402
from cnx.data.prepare.photos import Photo, find_photos  # noqa: E402
from cnx.data.prepare.resize import Crop  # noqa: E402
from cnx.errors import InputError, line_for_user  # noqa: E402

CHUNK = 16
OWN = {"photos": 1000, "size": 512, "width": 800, "height": 600, "workers": 2}


def draw_photo(number: int, width: int, height: int) -> Image.Image:
    """Soft areas, sharp shapes and a camera's noise: about as many edges and bytes as a photo has."""
    random = np.random.default_rng(number)
    soft = random.integers(0, 256, (height // 100 + 2, width // 100 + 2, 3), dtype=np.uint8)
    picture = cv2.resize(soft, (width, height), interpolation=cv2.INTER_CUBIC)
    for _ in range(60):
        centre = tuple(int(v) for v in random.integers(0, (width, height)))
        axes = tuple(int(v) for v in random.integers(4, 80, 2))
        colour = tuple(int(v) for v in random.integers(0, 256, 3))
        cv2.ellipse(picture, centre, axes, int(random.integers(180)), 0, 360, colour, -1, cv2.LINE_AA)
    return Image.fromarray((picture + random.normal(0, 4, picture.shape)).clip(0, 255).astype(np.uint8))


def parts(maker: PairMaker, photos: list[Photo]) -> dict[str, float]:
    """CPU seconds of each part, for all photos, on this thread."""
    seconds: dict[str, float] = defaultdict(float)

    def timed(part: str, do: Callable[[], Any]) -> Any:
        began = time.thread_time()
        result = do()
        seconds[part] += time.thread_time() - began
        return result

    for photo in photos:
        picture = timed("decode", lambda photo=photo: maker.read(maker.source / photo.path))
        picture = timed("resize", lambda picture=picture: maker.resize(picture))
        drawn = timed("annotate", lambda picture=picture: maker.resize.frame(maker.condition(picture), BEHIND_MAP))
        files = [("source", drawn, "png"), ("target", picture, maker.target_format)]
        for folder, image, suffix in files:
            what = "encode map" if folder == "source" else "encode picture"
            content = timed(what, lambda image=image, suffix=suffix: encode(image, suffix))
            path = maker.out / folder / f"part-{photo.path}.{suffix}"
            timed("write", lambda path=path, content=content: write_whole(path, content))
        timed("whole", lambda photo=photo: maker([photo]))
    seconds["name and the rest"] = seconds["whole"] - sum(v for part, v in seconds.items() if part != "whole")
    return seconds


def make(maker: PairMaker, photos: list[Photo]) -> None:
    cv2.setNumThreads(1)
    maker(photos)


def measure(pool: Executor, maker: PairMaker, photos: list[Photo]) -> tuple[float, float]:
    """Wall and CPU seconds of all photos, processes' start included."""
    began, cpu = time.perf_counter(), sum(os.times()[:4])
    chunks = [photos[start : start + CHUNK] for start in range(0, len(photos), CHUNK)]
    with pool:
        list(pool.map(make, [maker] * len(chunks), chunks))
    return time.perf_counter() - began, sum(os.times()[:4]) - cpu


def main(arguments: list[str]) -> None:
    own = OWN | {key: int(value) for key, _, value in (a.partition("=") for a in arguments) if key in OWN}
    others = [argument for argument in arguments if argument.partition("=")[0] not in OWN]
    with initialize_config_dir(str(REPOSITORY / "conf"), version_base="1.3"):
        condition = instantiate(compose("config", others).condition)
    console = Console(width=100)
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "photos"
        source.mkdir()
        for number in range(own["photos"]):
            draw_photo(number, own["width"], own["height"]).save(source / f"{number:06d}.jpg", quality=90)
        photos, _ = find_photos(source)
        count = len(photos)
        makers = []
        for suffix in ENCODINGS:
            out = Path(folder) / suffix
            for kind in ("source", "target"):
                (out / kind).mkdir(parents=True)
            makers.append(PairMaker(source, out, Crop(own["size"]), condition, 64, suffix))

        cv2.setNumThreads(1)
        heads = (f"pictures as {maker.target_format}" for maker in makers)
        table = Table("part", *heads, title=f"CPU milliseconds a photo ({own['width']}x{own['height']} JPEG), share")
        found = [parts(maker, photos[: min(count, 200)]) for maker in makers]
        few = min(count, 200)
        for part in [part for part in found[0] if part != "whole"] + ["whole"]:
            cells = (f"{1e3 * each[part] / few:.2f}  {each[part] / each['whole']:.0%}" for each in found)
            table.add_row(part, *cells)
        for maker in makers:
            size = {
                k: sum(f.stat().st_size for f in (maker.out / k).glob("*")) / few / 2e3 for k in ("source", "target")
            }
            table.caption = (table.caption or "") + (
                f"{maker.target_format}: {size['target']:.0f} kB a picture, {size['source']:.0f} kB a map. "
            )
        console.print(table)

        speeds = Table(
            "run", "photos/s", "CPU ms a photo", f"photos/s on {own['workers']} free cores", title=f"{count:,} photos"
        )
        workers, spawn = own["workers"], get_context("spawn")
        for maker in makers:
            for name, pool in (
                (f"{workers} threads", ThreadPoolExecutor(workers)),
                (f"{workers} processes", ProcessPoolExecutor(workers, mp_context=spawn)),
            ):
                wall, cpu = measure(pool, maker, photos)
                rates = (f"{count / wall:.0f}", f"{1e3 * cpu / count:.1f}", f"{workers * count / cpu:.0f}")
                speeds.add_row(f"{name}, {maker.target_format}", *rates)
        console.print(speeds)
        load = os.getloadavg()[0] if hasattr(os, "getloadavg") else float("nan")
        console.print(f"{os.cpu_count()} cores, load average {load:.1f}; the last column is reckoned from CPU time")


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except HydraException as error:
        sys.exit(f"benchmarks/prepare.py: {error}")
    except InputError as error:
        sys.exit(f"benchmarks/prepare.py: {line_for_user(error)}")
