"""For maintainers: draw the mermaid diagrams of notebooks and pages, so that neither building nor reading
them needs a network. ``python docs/diagrams.py mermaid.min.js``, with that file of the npm package
mermaid 11."""

import re
import sys
from pathlib import Path

import nbformat
from playwright.sync_api import sync_playwright

sys.path.insert(0, str(Path(__file__).parent))
from extension import DIAGRAMS, HERE, diagram

from helpers import layout

_FENCE = re.compile(r"^```\{?mermaid\}?\n(.*?)^```", re.M | re.S)
# Text as text, not as HTML inside of the drawing; fonts of any machine.
_SETTINGS = "{startOnLoad: false, theme: 'neutral', htmlLabels: false, fontFamily: 'sans-serif', \
flowchart: {htmlLabels: false, wrappingWidth: 400}, deterministicIds: true}"


def sources() -> list[str]:
    """Every diagram of notebooks and pages."""
    texts = [path.read_text() for path in HERE.glob("*.md")]
    for path in layout.NOTEBOOKS.glob("*.ipynb"):
        texts += [cell.source for cell in nbformat.read(path, as_version=4).cells]
    return [match for text in texts for match in _FENCE.findall(text)]


def main(mermaid: str, browser: str = "/usr/bin/chromium") -> None:
    wanted = {diagram(source): source for source in sources()}
    for old in set(DIAGRAMS.glob("*.svg")) - set(wanted):
        old.unlink()
    with sync_playwright() as play:
        page = play.chromium.launch(executable_path=browser, args=["--no-sandbox"]).new_page()
        page.set_content("<body></body>")
        page.add_script_tag(path=mermaid)
        page.evaluate(f"mermaid.initialize({_SETTINGS})")
        for path, source in wanted.items():
            draw = "([id, text]) => mermaid.render(id, text).then(made => made.svg)"
            path.write_text(page.evaluate(draw, [f"diagram-{path.stem}", source]) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
