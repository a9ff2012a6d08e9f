"""The table of faults tried, build/fault-table.md: each test replaces its own section.

    fault_table.py --readme     puts what the last run of the tests wrote into the README
"""

import os
import pathlib
import re
import sys

SOURCE_DIR = pathlib.Path(__file__).resolve().parents[2]
PATH = pathlib.Path(os.environ.get("FAULT_TABLE", SOURCE_DIR / "build/fault-table.md"))
HEAD = "| fault | times | checked | result |\n| --- | --- | --- | --- |\n"


def write_section(name, rows, note):
    """`rows` are (fault, times, checked, result). Prints the section and puts it into the file."""
    lines = "".join("| " + " | ".join(str(cell) for cell in row) + " |\n" for row in rows)
    section = f"### {name}\n\n{note}\n\n{HEAD}{lines}"
    print(f"\n{section}", flush=True)
    sections = {}
    if PATH.exists():
        for text in re.split(r"(?m)^(?=### )", PATH.read_text()):
            if text.startswith("### "):
                sections[text.splitlines()[0][4:]] = text.rstrip() + "\n"
    sections[name] = section
    PATH.parent.mkdir(parents=True, exist_ok=True)
    PATH.write_text("\n".join(sections[key] for key in sorted(sections)))


def readme_table():
    """All sections as one table: faults of a section with the same result share a line."""
    lines = ["| what was tried | times | result |", "| --- | --- | --- |"]
    for text in re.split(r"(?m)^### ", PATH.read_text())[1:]:
        by_result = {}
        for line in text.splitlines():
            cells = [cell.strip() for cell in line.strip("|").split(" | ")]
            if len(cells) == 4 and cells[1].isdigit():
                by_result.setdefault(cells[3], []).append((cells[0], int(cells[1])))
        name = text.splitlines()[0]
        for result, faults in by_result.items():
            tried = ", ".join(fault for fault, _ in faults)
            lines.append(f"| **{name}**: {tried} | {sum(times for _, times in faults):,} | {result} |")
    return "\n".join(lines)


def update_readme():
    readme = SOURCE_DIR / "README.md"
    begin, end = "<!-- faults: begin -->", "<!-- faults: end -->"
    before, found, rest = readme.read_text().partition(begin)
    assert found and end in rest, f"README.md has no {begin} ... {end}"
    readme.write_text(f"{before}{begin}\n{readme_table()}\n{end}{rest.partition(end)[2]}")


if __name__ == "__main__":
    if sys.argv[1:] != ["--readme"]:
        sys.exit(__doc__)
    update_readme()
