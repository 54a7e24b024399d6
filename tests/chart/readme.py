"""Makes charts/lifeboat/README.md from README.head.md and the comments of values.yaml: `readme.py --write`; else it checks.

In values.yaml a comment that begins with "# --" describes the value below it, lines of comment behind it belong to it, and
"# @section NAME" begins a table. A value without a description is an error, and so is a description of a group of values.
"""

import json
import re
import sys

import yaml

from chart import CHART

VALUES = CHART / "values.yaml"


def rows(text):
    """(section, path, description) of every value, in order."""
    section, description, path, found = "", None, [], []
    for number, line in enumerate(text.splitlines(), 1):
        bare = line.strip()
        if bare.startswith("# @section "):
            section, description = bare[len("# @section ") :], None
        elif bare.startswith("# -- "):
            description = bare[len("# -- ") :]
        elif bare.startswith("#"):
            if description is not None:
                description += " " + bare[1:].strip()
        elif not bare:
            description = None
        elif key := re.match(r"( *)([A-Za-z0-9_]+):( .*|$)", line):
            depth = len(key[1]) // 2
            path = [*path[:depth], key[2]]
            if description is not None:
                found.append((section, tuple(path), description))
            description = None
        elif not re.match(r" *- ", line):
            raise SystemExit(f"{VALUES}:{number}: not understood: {line}")
    return found


def at(values, path):
    for key in path:
        values = values[key]
    return values


def leaves(values, described, before=()):
    """The paths that must have a description: every value, unless the group above it has one."""
    for key, value in values.items():
        path = (*before, key)
        if path in described or not isinstance(value, dict) or not value:
            yield path
        else:
            yield from leaves(value, described, path)


def readme():
    text = VALUES.read_text()
    values, found = yaml.safe_load(text), rows(text)
    described = {path for _, path, _ in found}
    missing = set(leaves(values, described)) - described
    if missing:
        raise SystemExit(f"without a description: {sorted('.'.join(path) for path in missing)}")
    out, section = [(CHART / "README.head.md").read_text().rstrip("\n"), "", "## Values"], None
    out += ["", "Made from the comments of [values.yaml](values.yaml) by `make chart-readme`."]
    for here, path, description in found:
        if here != section:
            section = here
            out += ["", f"### {section}", "", "| value | default | meaning |", "|---|---|---|"]
        default = json.dumps(at(values, path), ensure_ascii=False)
        out.append(f"| `{'.'.join(path)}` | `{default}` | {description.replace('|', chr(92) + '|')} |")
    return "\n".join(out) + "\n"


def main(write):
    made, file = readme(), CHART / "README.md"
    if write:
        file.write_text(made)
    elif not file.exists() or file.read_text() != made:
        raise SystemExit("charts/lifeboat/README.md is not what values.yaml says; run: make chart-readme")
    print("ok: the README lists every value")


if __name__ == "__main__":
    main("--write" in sys.argv[1:])
