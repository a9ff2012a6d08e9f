"""The table of faults tried, build/fault-table.md: each test replaces its own section."""

import os
import pathlib
import re

from cluster import SOURCE_DIR

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
