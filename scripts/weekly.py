"""Turn the answers of check_links and check_upstream into the text of one issue."""

from __future__ import annotations

import html
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from kb.text import plain  # noqa: E402

# Well, or not yet known to be ill.
QUIET = frozenset({"ok", "unknown", "failing"})
LISTED = 100
LONGEST = 60_000  # characters; an issue holds 65,536


def code(text: object) -> str:
    """Text in an element in which no name is taken for a mention and no number for an issue."""
    return f"<code>{plain(str(text)[:300])}</code>"


def of_links(found: Sequence[dict[str, Any]]) -> list[str]:
    """A list of the links that need a person, red first, by verdict."""
    told = [f for f in found if f["verdict"] not in QUIET]
    lines = []
    order = sorted({(not f["red"], f["verdict"]) for f in told})
    for _, verdict in order:
        group = [f for f in told if f["verdict"] == verdict]
        lines += [f"### {plain(verdict)} ({len(group)})", ""]
        for one in group[:LISTED]:
            use = one["uses"][0]
            line = f"- {code(one['link'])} in {code(use['entry'])}, line {int(use['line'])}"
            line += f": {code(one['detail'])}" if one["detail"] else ""
            line += f"; now {code(one['target'])}" if one["target"] else ""
            lines.append(line + (f"; since {plain(one['since'])}" if one["since"] else ""))
        if len(group) > LISTED:
            lines.append(f"- and {len(group) - LISTED} more")
        lines.append("")
    return lines


def of_upstream(found: dict[str, Any]) -> list[str]:
    """The preprints that two services give as published, and the patch."""
    told = [n for n in found["entries"] if n["agreed"]]
    if not told:
        return []
    lines = [f"### Published since ({len(told)})", ""]
    for news in told[:LISTED]:
        services = " and ".join(code(name) for name in news["agreed"])
        lines.append(f"- {code(news['id'])}, line {int(news['line'])}: {services} agree")
    if found["patch"]:
        lines += ["", "Read it, then `git apply` it:", ""]
        lines.append(f"<pre>\n{html.escape(found['patch'])}</pre>")
    return [*lines, ""]


def fitted(blocks: Sequence[str]) -> str:
    """The blocks with a line end each, as many as an issue holds."""
    text = ""
    for block in blocks:
        if len(text) + len(block) > LONGEST:
            return (
                text + "\n\nAnd more: run scripts/check_links.py and scripts/check_upstream.py.\n"
            )
        text += block + "\n"
    return text


def main(
    links: Annotated[Path, typer.Argument(help="Output of check_links --json.")],
    upstream: Annotated[Path, typer.Argument(help="Output of check_upstream --json.")],
) -> None:
    """Print the issue, or nothing where nothing needs a person; exit 2 on unusable input."""
    try:
        body = of_links(json.loads(links.read_text(encoding="utf-8"))["links"])
        body += of_upstream(json.loads(upstream.read_text(encoding="utf-8")))
    except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
        typer.echo(f"weekly: not the output of the checks: {error!r}", err=True)
        raise typer.Exit(2) from None
    if body:
        intro = "What the weekly check of papers.yaml found. It is rewritten every week."
        typer.echo(fitted([intro, "", *body]).rstrip())


if __name__ == "__main__":
    typer.run(main)
