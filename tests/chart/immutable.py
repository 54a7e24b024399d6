"""An upgrade must be possible: what cannot be changed in a StatefulSet is the same in two versions of the chart,
whatever else changes.

The versions: the chart as it is, the same with another version and appVersion, the earlier ones that are kept as
packages, and, where git has the whole history, the chart as it was at the last commits that changed it. Besides, values
that people change on a running release must not touch these fields either.
"""

import pathlib
import shutil
import subprocess
import tarfile
import tempfile

from chart import CHART, HELMS, earlier, find, fixed, render
from tools import ROOT

# How many commits are looked at.
COMMITS = 10

# What people change.
CHANGES = {
    "more members": {"replicaCount": 7},
    "another image": {"image": {"tag": "next"}},
    "labels": {"commonLabels": {"a": "b"}, "podLabels": {"c": "d"}, "commonAnnotations": {"e": "f"}},
    "settings": {"settings": {"rpo_seconds": 30}},
    "monitoring": {"serviceMonitor": {"enabled": True}, "prometheusRule": {"enabled": True}},
    "the other mode": {"mode": "standby", "peers": ["east:7401"]},
    "founding": {"bootstrapExpect": 2},
    "times": {"minReadySeconds": 99, "preStopSeconds": 0, "updateStrategy": {"type": "OnDelete"}},
    "retention": {"persistence": {"retention": {"whenScaled": "Delete"}}},
    "a leader's Service": {"primaryService": {"enabled": True}},
}


def values_of(chart):
    """The files of values that came with a version, by name."""
    return {"defaults": [], **{file.stem: [file] for file in sorted((chart / "examples").glob("*.yaml"))}}


def copy_of(chart, directory, version):
    copy = pathlib.Path(directory) / version
    shutil.copytree(chart, copy)
    manifest = copy / "Chart.yaml"
    lines = manifest.read_text().splitlines()
    keys = {"version": version, "appVersion": f'"{version}"'}
    manifest.write_text("\n".join(next((f"{k}: {v}" for k, v in keys.items() if l.startswith(k + ":")), l) for l in lines) + "\n")
    return copy


def committed(directory):
    """The chart as it was, by commit."""

    def git(*words):
        return subprocess.run(["git", "-C", ROOT, *words], check=True, capture_output=True, text=True).stdout

    try:
        # The last commit of a shallow history seems to have made every file.
        if git("rev-parse", "--is-shallow-repository").strip() != "false":
            raise OSError("it is shallow")
        commits = git("log", f"--max-count={COMMITS}", "--format=%h", "--", "charts/lifeboat/templates").split()
    except (OSError, subprocess.CalledProcessError) as failure:
        print(f"   left out: earlier commits, the history is not here ({failure})")
        return
    for commit in commits:
        archive = pathlib.Path(directory) / f"{commit}.tar"
        git("archive", "--output", archive, commit, "charts/lifeboat")
        with tarfile.open(archive) as packed:
            packed.extractall(pathlib.Path(directory) / commit)
        yield commit, pathlib.Path(directory) / commit / "charts" / "lifeboat"


def main():
    with tempfile.TemporaryDirectory() as directory:
        charts = {"next": copy_of(CHART, directory, "9.8.7"), **earlier(directory), **dict(committed(directory))}
        for version, chart in charts.items():
            # Whoever installed that version goes on with the values that were right for it.
            for name, files in values_of(chart).items():
                was, now = fixed(render(files=files, chart=chart)), fixed(render(files=files))
                assert was == now, f"{name}: an upgrade from {version} would be refused:\n{was}\n{now}"
        for name, files in values_of(CHART).items():
            now = fixed(render(files=files))
            for what, values in CHANGES.items():
                # One member cannot found a cluster of two.
                if what == "founding" and name == "development" or name == "standby" and what == "founding":
                    continue
                for which in HELMS:
                    then = fixed(render(which, values=values, files=files))
                    assert then == now, f"{name}: changing {what} would be refused:\n{then}\n{now}"
    # The test would see a version in such a field.
    seen = render(chart=CHART)
    find(seen, "StatefulSet")["spec"]["volumeClaimTemplates"][0]["metadata"]["labels"]["helm.sh/chart"] = "lifeboat-9"
    assert fixed(seen) != fixed(render())
    print(f"ok: nothing that cannot be changed differs from {', '.join(charts)}, nor under {len(CHANGES)} changes")


if __name__ == "__main__":
    main()
