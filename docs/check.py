"""Looks at the built documentation in a browser: `make docs-check`.

Fails where a page shows raw LaTeX or a formula that could not be drawn, where a link leads nowhere,
and where a public name has no entry in the reference. Pictures of every page, as wide as a desktop
and as a phone, light and dark, go to build/docs-pictures. Nothing is fetched: name resolution is
switched off.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tempfile
from html.parser import HTMLParser
from itertools import product
from pathlib import Path
from urllib.parse import unquote, urlsplit

import spectral_triton

WIDTHS = {"desktop": "1280,1000", "phone": "500,1000"}
THEMES = {"light": "1", "dark": "0"}
"""What the page is told of the colors the reader prefers, by Chromium's numbers."""
UNSEEN = ("script", "style", "code", "pre", "mjx-assistive-mml")
WITHOUT_CONTENT = ("genindex", "search", "py-modindex")


class Page(HTMLParser):
    """Links, anchors and the text a reader sees outside of code."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.anchors: set[str] = set()
        self.text: list[str] = []
        self._hidden: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        if given.get("id"):
            self.anchors.add(given["id"] or "")
        for name in ("href", "src"):
            if given.get(name):
                self.links.append(given[name] or "")
        if tag in UNSEEN:
            self._hidden.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if self._hidden and self._hidden[-1] == tag:
            self._hidden.pop()

    def handle_data(self, data: str) -> None:
        if not self._hidden:
            self.text.append(data)


def browse(browser: str, page: Path, *options: str) -> str:
    """What the browser writes for a page, with its scripts run and no network."""
    with tempfile.TemporaryDirectory() as profile:
        command = [
            browser,
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--hide-scrollbars",
            "--virtual-time-budget=15000",
            "--host-resolver-rules=MAP * ~NOTFOUND",
            f"--user-data-dir={profile}",
            *options,
            page.absolute().as_uri(),
        ]
        ended = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    return ended.stdout


def faults_of_page(path: Path, page: Page, html: str, pages: dict[Path, Page]) -> list[str]:
    """What is wrong with one page, each in a line."""
    text = "".join(page.text)
    raw = re.findall(r".{0,20}\\[a-zA-Z]{2,}.{0,20}", text)
    faults = [f"raw LaTeX: {found!r}" for found in raw]
    faults += ["a formula could not be drawn"] * html.count("<mjx-merror")
    if 'class="math' in html and "<mjx-container" not in html:
        faults.append("formulas are not drawn")
    for link in page.links:
        parts = urlsplit(link)
        if parts.scheme or parts.netloc:
            continue
        place = unquote(parts.fragment)
        target = (path.parent / unquote(parts.path)).resolve() if parts.path else path.resolve()
        if not target.exists():
            faults.append(f"{link} leads nowhere")
        elif place and target in pages and place not in pages[target].anchors:
            faults.append(f"{link} has no such place")
    return faults


def main() -> int:
    """Checks build/docs, or the folder that is given; the number of faults is the exit status."""
    root = Path(sys.argv[1] if len(sys.argv) > 1 else "build/docs")
    pictures = root.parent / "docs-pictures"
    browser = shutil.which("chromium") or shutil.which("google-chrome") or shutil.which("chrome")
    if browser is None:
        sys.exit("docs-check needs Chromium (Debian: apt-get install chromium)")
    paths = [path for path in sorted(root.glob("*.html")) if path.stem not in WITHOUT_CONTENT]
    if not paths:
        sys.exit(f"{root} has no pages: run make docs first")
    pictures.mkdir(parents=True, exist_ok=True)
    drawn = {path.resolve(): browse(browser, path, "--dump-dom") for path in paths}
    pages = {path: Page(html) for path, html in drawn.items()}
    faults = [
        f"{path.name}: {fault}"
        for path, page in pages.items()
        for fault in faults_of_page(path, page, drawn[path], pages)
    ]
    anchors = set().union(*(page.anchors for page in pages.values()))
    for name in spectral_triton.__all__:
        full = f"spectral_triton.{name}"
        if full not in anchors and f"module-{full}" not in anchors:
            faults.append(f"no entry for {full}")
    for path, (name, size), (theme, number) in product(paths, WIDTHS.items(), THEMES.items()):
        target = pictures / f"{path.stem}-{name}-{theme}.png"
        browse(
            browser,
            path,
            f"--window-size={size}",
            f"--blink-settings=preferredColorScheme={number}",
            f"--screenshot={target.absolute()}",
        )
    print("\n".join(sorted(set(faults))) or f"{len(paths)} pages without a fault; {pictures}")
    return min(len(set(faults)), 100)


if __name__ == "__main__":
    sys.exit(main())
