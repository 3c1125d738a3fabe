"""Writes the kept results of the benchmarks into the page on performance: `python -m benchmarks.page`."""

from itertools import groupby
from pathlib import Path

from benchmarks.results import read, text_of

PAGE = Path(__file__).parents[1] / "docs" / "explanation" / "performance.md"
BEGIN, END = "<!-- results: python -m benchmarks.page -->\n", "<!-- end of results -->\n"


def page_of(text: str) -> str:
    """Return the page with the results of now between its marks."""
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    parts = []
    for machine, blocks in groupby(read().items(), key=lambda item: item[1]["machine"]):
        rows = "\n".join(text_of(title, block) for title, block in blocks)
        parts.append(f"{machine}:\n\n```text{rows}\n```\n")
    return before + BEGIN + "\n" + "\n".join(parts) + "\n" + END + after


if __name__ == "__main__":
    PAGE.write_text(page_of(PAGE.read_text()))
