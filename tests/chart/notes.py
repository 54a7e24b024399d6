"""What NOTES.txt says. helm shows it only for an installation, so it is rendered as a manifest of a copy of the chart."""

import pathlib
import shutil
import tempfile

import yaml

from chart import CHART, render_text


def notes(which, values):
    with tempfile.TemporaryDirectory() as directory:
        copy = pathlib.Path(directory) / "lifeboat"
        shutil.copytree(CHART, copy)
        text = (copy / "templates" / "NOTES.txt").read_text()
        (copy / "templates" / "notes.yaml").write_text('{{- define "notes" }}' + text + '{{ end }}\nnotes: {{ include "notes" . | toJson }}\n')
        rendered = render_text(which, values, chart=copy, more=["--show-only", "templates/notes.yaml"])
    return yaml.safe_load(rendered)["notes"]
