"""Self-contained HTML pages, without scripts, in the light or dark scheme of the reader's system."""

from __future__ import annotations

import html

__all__ = ["page", "text"]

STYLE = """
:root { color-scheme: light dark; --paper: #fff; --ink: #1f2328; --line: #8884; --good: #1a7f37; --bad: #cf222e;
  --quiet: #59636e; }
@media (prefers-color-scheme: dark) {
  :root { --paper: #15181c; --ink: #e6e9ec; --good: #3fb950; --bad: #ff7b72; --quiet: #a0a8b0; }
}
body { background: var(--paper); color: var(--ink); font: 15px/1.45 system-ui, sans-serif; margin: 1.2rem auto;
  max-width: 72rem; padding: 0 1rem; }
h1 { font-size: 1.35rem; margin: 0 0 .3rem; }
table { border-collapse: collapse; width: 100%; }
td, th { border-top: 1px solid var(--line); padding: .25rem .5rem; vertical-align: top; }"""


def page(title: str, style: str, body: str) -> str:
    """Put a body on a page of this title; ``style`` follows the common rules."""
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{text(title)}</title>
<style>{STYLE}{style}</style>
</head>
<body>
{body}
</body>
</html>
"""


def text(x: str) -> str:
    """Escape a text for an element or an attribute."""
    return html.escape(x, quote=True)
