"""What the book needs beside Sphinx: MathJax and diagrams without a network, links into the glossary."""

import hashlib
import re
import shutil
from pathlib import Path

import jupyter_server_mathjax
from docutils import nodes
from sphinx import addnodes
from sphinx.transforms import SphinxTransform
from sphinx.util import logging
from sphinx.util.docutils import SphinxDirective

HERE = Path(__file__).parent
DIAGRAMS = HERE / "diagrams"
_log = logging.getLogger(__name__)


def diagram(source: str) -> Path:
    """Where the drawing of a mermaid diagram is kept: its name is a digest of what it was drawn from."""
    text = "\n".join(line.rstrip() for line in source.strip().splitlines())
    return DIAGRAMS / f"{hashlib.sha256(text.encode()).hexdigest()[:16]}.svg"


class Mermaid(SphinxDirective):
    """A diagram, as `docs/diagrams.py` has drawn it."""

    has_content = True

    def run(self):
        path = diagram("\n".join(self.content))
        if not path.exists():
            text = "no drawing of this diagram: draw it (docs/diagrams.py) and commit it"
            _log.warning(text, location=self.get_location())
            return []
        # Not as an image: then the page's fonts and colours are those of the drawing too.
        svg = f'<div class="diagram" role="img">{path.read_text()}</div>'
        return [nodes.raw("", svg, format="html")]


def terms() -> dict[str, str]:
    """Words that the pages use, in small letters -> the term of the glossary that explains them."""
    text = (HERE / "glossary.md").read_text()
    body = text.split("```{glossary}\n")[1].split("\n```")[0]
    words = {}
    for block in re.split(r"\n\s*\n", body):
        lines = [line.lower() for line in block.splitlines() if not line.startswith((" ", "\t"))]
        words |= {word: lines[0] for line in lines if line for word in (line, plural(line))}
    return words


def plural(word: str) -> str:
    """Of a noun, or of the noun before "of": `planes of reconstruction`."""
    noun, of, rest = word.partition(" of ")
    return (f"{noun[:-1]}ies" if noun.endswith("y") else f"{noun}s") + of + rest


class PageNames(SphinxTransform):
    """Link the name of a page, as notebooks write it, to the page: `docs/results.md`."""

    default_priority = 690

    def apply(self):
        for literal in list(self.document.findall(nodes.literal)):
            match = re.fullmatch(r"docs/([\w-]+)\.md", literal.astext())
            if match and match[1] in self.env.found_docs:
                to = addnodes.pending_xref(
                    "", refdomain="std", reftype="doc", reftarget=f"/{match[1]}", refexplicit=True
                )
                to["refdoc"] = self.env.docname
                literal.replace_self(to)
                to += literal


class FirstMentions(SphinxTransform):
    """Link a term of the glossary where a page uses it for the first time."""

    default_priority = 700

    def apply(self):
        if self.env.docname == "glossary" or self.env.docname.startswith("api/"):
            return
        words, linked = terms(), set()
        pattern = re.compile(
            r"(?<![\w-])(" + "|".join(sorted(map(re.escape, words), key=len, reverse=True)) + r")(?![\w-])",
            re.IGNORECASE,
        )
        kept = (
            nodes.title,
            nodes.thead,
            nodes.literal,
            nodes.literal_block,
            nodes.reference,
            nodes.math,
            nodes.raw,
        )
        kept += (addnodes.pending_xref, nodes.FixedTextElement, nodes.caption, nodes.comment)
        for text in list(self.document.findall(nodes.Text)):
            if any(isinstance(each, kept) for each in _ancestors(text)):
                continue
            parts, end = [], 0
            for match in pattern.finditer(text):
                term = words[match[1].lower()]
                if term in linked:
                    continue
                linked.add(term)
                parts += [nodes.Text(text[end : match.start()]), self.link(term, match[1])]
                end = match.end()
            if parts:
                text.parent.replace(text, [*parts, nodes.Text(text[end:])])

    def link(self, term, word):
        to = addnodes.pending_xref(
            "", refdomain="std", reftype="term", reftarget=term, refexplicit=True, refwarn=True
        )
        to["refdoc"] = self.env.docname
        to += nodes.inline(word, word, classes=["xref", "std", "std-term"])
        return to


def _ancestors(node):
    while node.parent is not None:
        node = node.parent
        yield node


def copy_mathjax(app, error):
    """Put MathJax beside the pages, without what it says to screen readers in ten languages (4 MB)."""
    if error is None and app.builder.format == "html":
        source = Path(jupyter_server_mathjax.__file__).parent / "static"
        unused = shutil.ignore_patterns("a11y", "localization")
        shutil.copytree(source, Path(app.outdir, "_static", "mathjax"), ignore=unused, dirs_exist_ok=True)


def leave_out_undocumented(app, docname, source):
    """A field of a dataclass is explained among its parameters: not once more, without a word."""
    # Sphinx's apidoc takes no options for the pages of packages.
    if docname.startswith("api/"):
        source[0] = source[0].replace("   :undoc-members:\n", "")


def setup(app):
    app.add_directive("mermaid", Mermaid)
    app.add_transform(PageNames)
    app.add_transform(FirstMentions)
    app.connect("source-read", leave_out_undocumented)
    app.connect("build-finished", copy_mathjax)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
