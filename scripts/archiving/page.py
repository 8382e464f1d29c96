"""The page that tells what became of an archive: one HTML file with small pictures in it."""

from __future__ import annotations

import base64
import html
import io
import re
from collections import Counter
from collections.abc import Iterator
from itertools import islice
from pathlib import Path, PurePosixPath

from PIL import Image

from pfstorer_core.errors import PFStorerError
from pfstorer_core.pictures.reading import read_picture
from pfstorer_core.weights.whole_files import write_whole

from .listing import OWN, REPORT
from .manifest import Manifest
from .results import DONE, FAILED, GONE, OTHER, WAITING, Result

TEMPLATE = Path(__file__).with_name("page.html")
LONGEST = 320  # pixels of a small picture's longer side
QUALITY = 80  # of WebP


def write_page(manifest: Manifest, originals: Path, output: Path, shown: int) -> Path:
    """Writes the page and returns its place: failures first, then before and after.

    Args:
        manifest: of the archive.
        originals: folder of the originals.
        output: folder of the restored pictures, and of the page.
        shown: restored photos that are shown, evenly spread over all, and failures with a picture.

    Raises:
        PFStorerError: it cannot be written.
    """
    counts = manifest.counts()
    restored = counts[DONE]
    parts = {
        "heading": html.escape(f"Archive of {originals.name or originals}"),
        "summary": _summary(counts, shown),
        "failures": "".join(_failures(manifest, originals, shown)),
        "pictures": "".join(_pictures(manifest, originals, output, shown, restored)),
        "others": "".join(_others(manifest)),
    }
    template = TEMPLATE.read_text(encoding="utf-8")
    # In one pass: a file may be called anything, also what looks like another mark.
    page = re.sub("@@([a-z]+)@@", lambda mark: parts[mark[1]], template)
    place = output / REPORT
    partial = output / OWN / f"{REPORT}.part"
    write_whole(place, partial, lambda file: file.write(page.encode("utf-8", "replace")))
    return place


def _summary(counts: Counter[str], shown: int) -> str:
    photos = sum(counts[state] for state in (DONE, FAILED, WAITING))
    words = [f"{photos} photos: {counts[DONE]} restored", f"{counts[FAILED]} not restored"]
    if counts[WAITING]:
        words.append(f"{counts[WAITING]} still wait (run the same command again)")
    if counts[GONE]:
        words.append(f"{counts[GONE]} restored before whose originals are no longer there")
    if counts[OTHER]:
        words.append(f"and {counts[OTHER]} files of other kinds, which were left out")
    if counts[DONE] > shown:
        words.append(f"{shown} of those restored are shown")
    return f"{', '.join(words)}. All of them stand in <code>archive.sqlite</code>."


def _failures(manifest: Manifest, originals: Path, shown: int) -> Iterator[str]:
    failed = manifest.results(FAILED)
    cards = [
        f"<figure>{_small(originals / result.path)}"
        f"<figcaption><b>{html.escape(result.path)}</b><br>"
        f'<span class="wrong">{html.escape(result.error)}</span></figcaption></figure>'
        for result, _ in islice(failed, shown)
    ]
    rest = [
        f"<li><b>{html.escape(result.path)}</b>: {html.escape(result.error)}</li>"
        for result, _ in failed
    ]
    if cards or rest:
        yield f'<h2 class="wrong">Not restored</h2><div class="cards">{"".join(cards)}</div>'
        yield f"<ul>{''.join(rest)}</ul>"


def _pictures(
    manifest: Manifest, originals: Path, output: Path, shown: int, restored: int
) -> Iterator[str]:
    if not restored:
        return
    yield '<h2>Before and after</h2><div class="cards">'
    step = max(1, -(-restored // shown)) if shown else restored + 1
    for number, (result, name) in enumerate(manifest.results(DONE)):
        if number % step == 0 and shown:
            yield _card(result, originals / result.path, output / name)
    yield "</div>"


def _card(result: Result, before: Path, after: Path) -> str:
    size = _size_of(after)
    first = _small(before, size)
    pair = f'<div class="pair">{first}{_small(after, size)}</div>'
    slider = '<input type="range" value="50" aria-label="from before to after">'
    report = f"<details><summary>Report</summary><pre>{html.escape(result.report)}</pre></details>"
    caption = f"<b>{html.escape(result.path)}</b><br>{result.seconds:.1f} s"
    return f"<figure>{pair}{slider}<figcaption>{caption}{report}</figcaption></figure>"


def _others(manifest: Manifest) -> Iterator[str]:
    kinds: Counter[str] = Counter()
    for result, _ in manifest.results(OTHER):
        kinds[PurePosixPath(result.path).suffix.lower() or "without an extension"] += 1
    if kinds:
        items = [f"<li>{count} {html.escape(kind)}</li>" for kind, count in kinds.most_common()]
        yield "<h2>Left out</h2><p>Files that are not of a kind that is read:</p>"
        yield f"<ul>{''.join(items)}</ul>"


def _size_of(path: Path) -> tuple[int, int] | None:
    """Returns the size in which a picture is shown, None where it cannot be read."""
    try:
        with Image.open(path) as picture:
            width, height = picture.size
    except (OSError, ValueError, SyntaxError):
        return None
    factor = LONGEST / max(width, height)
    return max(1, round(width * factor)), max(1, round(height * factor))


def _small(path: Path, size: tuple[int, int] | None = None) -> str:
    """Returns a small picture as an element, nothing where it cannot be read."""
    try:
        picture = read_picture(path, path.name)
    except PFStorerError:
        return ""
    if size is None:
        picture.thumbnail((LONGEST, LONGEST), Image.Resampling.LANCZOS)
    else:
        picture = picture.resize(size, Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    # A fresh copy of the pixels: WebP would keep a colour profile, which may name a program.
    plain = Image.frombytes("RGB", picture.size, picture.tobytes())
    plain.save(buffer, "WEBP", quality=QUALITY, method=4)
    source = base64.b64encode(buffer.getvalue()).decode()
    return f'<img alt="" loading="lazy" src="data:image/webp;base64,{source}">'
