"""Visits every page of the built site with Chromium, as a reader does: ``python docs/check_site.py out/docs``.

On each page, at the width of a phone and of a desktop: no link, anchor or image is broken, nothing comes from another
site, the browser's console has no errors and no warnings, and the page does not scroll sideways. All text is readable
in the light and in the dark scheme of colors. The search finds something, and the page 404 is right at any depth.
``--screenshots FOLDER`` keeps pictures of some pages, for the eye.

It needs Chromium and the package playwright: ``pip install 'gdm-optim[check-docs]'``. Without Chromium it says that
nothing was checked.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from contextlib import suppress
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any
from urllib.parse import unquote, urldefrag, urlsplit

from playwright.sync_api import Page, sync_playwright

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
PHONE, DESKTOP = {"width": 390, "height": 844}, {"width": 1280, "height": 900}
SCHEMES: tuple[Any, ...] = ("dark", "light")
SHOWN = ("index", "start/numpy", "api/generated/gdm.AdamW", "optimizers", "api/c")
LOOK = """() => ({
    links: [...document.querySelectorAll('a[href]')].map(a => a.href),
    ids: [...document.querySelectorAll('[id]')].map(e => e.id),
    broken: [...document.images].filter(i => i.complete && i.naturalWidth == 0).map(i => i.src),
})"""
# Which elements stick out. Those inside of an element that scrolls by itself do not.
SIDEWAYS = """() => document.documentElement.scrollWidth <= innerWidth ? [] :
    [...document.querySelectorAll('article *')].filter(e => {
        for (let x = e; x; x = x.parentElement)
            if (getComputedStyle(x).overflowX != 'visible') return false;
        return e.getBoundingClientRect().right > innerWidth + 1;
    }).map(e => e.outerHTML.slice(0, 100)).slice(0, 3).concat(`${document.documentElement.scrollWidth} pixels wide`)"""

# Which text is too faint: the ratio of its luminance and the background's is below 4.5, the least by WCAG 2 (AA).
FAINT = """() => {
    const numbers = color => color.match(/[\\d.]+/g).map(Number);
    const linear = x => x <= 0.04045 ? x / 12.92 : ((x + 0.055) / 1.055) ** 2.4;
    const luminance = color => {
        const [r, g, b] = numbers(color).map(x => linear(x / 255));
        return 0.2126 * r + 0.7152 * g + 0.0722 * b + 0.05;
    };
    const background = e => {
        for (; e; e = e.parentElement) {
            const color = getComputedStyle(e).backgroundColor;
            if ((numbers(color)[3] ?? 1) > 0.5) return color;
        }
        return 'rgb(255, 255, 255)';
    };
    const found = new Map();
    const texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
    while (texts.nextNode()) {
        const text = texts.currentNode.textContent.trim(), e = texts.currentNode.parentElement;
        if (!text || !e.checkVisibility({visibilityProperty: true})) continue;
        const color = getComputedStyle(e).color, behind = background(e);
        const [a, b] = [luminance(color), luminance(behind)], ratio = Math.max(a / b, b / a);
        if (ratio < 4.5) found.set(color + behind, `${text.slice(0, 30)} (${color} on ${behind}: ${ratio.toFixed(1)})`);
    }
    return [...found.values()];
}"""


class Handler(SimpleHTTPRequestHandler):
    """A web server as sites have it: a wrong address brings the page 404."""

    def log_message(self, *args: Any) -> None:
        pass

    def copyfile(self, source: Any, outputfile: Any) -> None:
        with suppress(BrokenPipeError, ConnectionResetError):  # the browser has gone on to the next page
            super().copyfile(source, outputfile)

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        if code != 404:
            super().send_error(code, message, explain)
            return
        body = (Path(self.directory) / "404.html").read_bytes()
        self.send_response(404)
        self.send_header("Content-Type", "text/html")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


class Check:
    """Visits pages, and collects what is wrong with them."""

    def __init__(self, folder: Path, address: str, page: Page) -> None:
        self.folder, self.address, self.page = folder, address, page
        self.faults: list[str] = []
        self.links: dict[str, set[str]] = {}  # of each page
        self.ids: dict[str, set[str]] = {}
        self.where = ""
        page.on("console", lambda message: self._heard(message.type, message.text))
        page.on("pageerror", lambda error: self.fault(f"error in a script: {error}"))
        page.on("request", lambda request: self._asked(request.url))
        page.on("response", lambda response: self._answered(response.url, response.status))

    def fault(self, text: str) -> None:
        self.faults.append(f"{self.where}: {text}")

    def _heard(self, kind: str, text: str) -> None:
        # A wrong address on purpose is an error for the browser, too.
        if kind in ("error", "warning") and not (self.where == "404" and "404" in text):
            self.fault(f"console: {text}")

    def _asked(self, url: str) -> None:
        if not url.startswith((self.address, "data:")):
            self.fault(f"asks another site for {url}")

    def _answered(self, url: str, status: int) -> None:
        if status >= 400 and not (self.where == "404" and url.endswith("/nowhere/at/all")):
            self.fault(f"{url} has the status {status}")

    def visit(self, name: str) -> None:
        """Everything that can be seen on a page by itself."""
        self.where = name
        self.page.goto(f"{self.address}/{name}")
        for image in self.page.locator("img[loading=lazy]").all():
            image.scroll_into_view_if_needed()
        seen = self.page.evaluate(LOOK)
        self.links[name], self.ids[name] = set(seen["links"]), set(seen["ids"])
        for image in seen["broken"]:
            self.fault(f"broken image {image}")
        for size in (DESKTOP, PHONE):
            self.page.set_viewport_size(size)
            for element in self.page.evaluate(SIDEWAYS):
                self.fault(f"scrolls sideways at {size['width']} pixels: {element}")
        for scheme in SCHEMES:
            self.page.emulate_media(color_scheme=scheme)
            for text in self.page.evaluate(FAINT):
                self.fault(f"faint text in the {scheme} scheme: {text}")

    def follow_links(self) -> None:
        """All links between the pages lead to something."""
        for page, links in self.links.items():
            self.where = page
            for link in links:
                url, anchor = urldefrag(link)
                if not url.startswith(self.address):
                    continue
                name = unquote(urlsplit(url).path).lstrip("/") or "index.html"
                if not (self.folder / name).is_file():
                    self.fault(f"broken link {link}")
                elif anchor and name in self.ids and unquote(anchor) not in self.ids[name]:
                    self.fault(f"broken anchor {link}")

    def search(self) -> None:
        self.where = "search.html"
        self.page.goto(f"{self.address}/search.html?q=momentum")
        self.page.wait_for_selector("ul.search li a", timeout=20_000)

    def not_found(self) -> None:
        self.where = "404"
        self.page.goto(f"{self.address}/nowhere/at/all")
        if not self.page.inner_text("h1").startswith("No such page"):
            self.fault("is not what a wrong address brings")
        self.page.click("article p a")
        if urlsplit(self.page.url).path != "/index.html":
            self.fault(f"its link leads to {self.page.url}")


def screenshots(page: Page, address: str, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for scheme in SCHEMES:
        page.emulate_media(color_scheme=scheme)
        for size, label in ((PHONE, "phone"), (DESKTOP, "desktop")):
            page.set_viewport_size(size)
            for name in SHOWN:
                page.goto(f"{address}/{name}.html")
                page.screenshot(path=folder / f"{name.replace('/', '-')}-{label}-{scheme}.png")


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("site", type=Path, help="the folder of the built site")
    parser.add_argument("--screenshots", type=Path, help="a folder for pictures of some pages")
    options = parser.parse_args()
    if CHROMIUM is None:
        print("NOT CHECKED: the site; there is no chromium here")
        return 0
    names = sorted(str(file.relative_to(options.site)) for file in options.site.rglob("*.html"))
    assert "index.html" in names, f"{options.site} has no site: make docs"
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(options.site)))
    Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    with sync_playwright() as playwright:
        # A sandbox cannot be had as root, as in containers.
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page(viewport=PHONE)
        check = Check(options.site, address, page)
        for name in names:
            check.visit(name)
        check.follow_links()
        check.search()
        check.not_found()
        if options.screenshots:
            screenshots(page, address, options.screenshots)
        browser.close()
    server.shutdown()
    print(*check.faults, sep="\n")
    print(f"{len(names)} pages, {sum(map(len, check.links.values()))} links: {len(check.faults)} faults")
    return 1 if check.faults else 0


if __name__ == "__main__":
    sys.exit(main())
