"""What all tests of the chart share: rendering it with a helm, and the values that are rendered."""

import json
import pathlib
import subprocess
import tarfile
import tempfile

import yaml

from tools import HELM3, HELM4, ROOT

CHART = ROOT / "charts" / "lifeboat"
EXAMPLES = CHART / "examples"
# Packages of versions before this one, as `make chart-keep` makes them.
KEPT = pathlib.Path(__file__).parent / "earlier"
HELMS = {"helm3": HELM3, "helm4": HELM4}
# The oldest version of Kubernetes that the chart takes, and the newest whose schemas are bundled.
KUBERNETES = ["1.28.0", "1.37.0"]
# What the API server lets one change in the spec; everything else is refused.
MUTABLE = {"replicas", "ordinals", "template", "updateStrategy", "persistentVolumeClaimRetentionPolicy", "minReadySeconds", "revisionHistoryLimit"}


class Refused(Exception):
    """helm said no; the text is what it said."""


def helm(which, *arguments, stdin=None):
    done = subprocess.run([HELMS[which], *map(str, arguments)], input=stdin, capture_output=True, text=True, timeout=60)
    if done.returncode != 0:
        raise Refused(done.stderr + done.stdout)
    return done.stdout


def render_text(which="helm4", values=None, files=(), chart=CHART, name="lifeboat", namespace="test", kube="1.33.0", more=()):
    """The manifests as text. `values` is a tree, `files` are files of values before it."""
    with tempfile.NamedTemporaryFile("w", suffix=".yaml") as given:
        # JSON is YAML.
        json.dump(values or {}, given)
        given.flush()
        flags = [flag for file in files for flag in ("-f", file)]
        return helm(which, "template", name, chart, "-n", namespace, "--kube-version", kube, *flags, "-f", given.name, *more)


def render(*arguments, **options):
    """The manifests as a list of objects."""
    return [one for one in yaml.safe_load_all(render_text(*arguments, **options)) if one]


def find(objects, kind, name=None):
    """The one object of a kind (and name)."""
    found = [o for o in objects if o["kind"] == kind and name in (None, o["metadata"]["name"])]
    assert len(found) == 1, f"{len(found)} objects {kind} {name or ''}"
    return found[0]


def fixed(objects):
    """The fields that an upgrade may not change, of every object that has such."""
    stateful_set = find(objects, "StatefulSet")
    spec = {key: value for key, value in stateful_set["spec"].items() if key not in MUTABLE}
    assert {"serviceName", "podManagementPolicy", "selector", "volumeClaimTemplates"} >= set(spec), sorted(spec)
    # The pods' labels are what Services select; they may grow, and must go on to match.
    labels = stateful_set["spec"]["template"]["metadata"]["labels"]
    assert stateful_set["spec"]["selector"]["matchLabels"].items() <= labels.items()
    # A member's name is its identity: the same pod must go on under the same one.
    names = [e["value"] for e in stateful_set["spec"]["template"]["spec"]["containers"][0]["env"] if e["name"] == "LIFEBOAT_NAME"]
    directory = [e["value"] for e in stateful_set["spec"]["template"]["spec"]["containers"][0]["env"] if e["name"] == "LIFEBOAT_DATA_DIR"]
    cluster_ips = {o["metadata"]["name"]: o["spec"].get("clusterIP") for o in objects if o["kind"] == "Service"}
    return {"name": stateful_set["metadata"]["name"], "spec": spec, "names": names, "directory": directory, "headless": cluster_ips.get(spec["serviceName"])}


def earlier(directory):
    """The earlier versions that are kept, unpacked, by version and the newest last."""
    now, charts = number_of(version_of(CHART)), {}
    for package in KEPT.glob("*.tgz"):
        with tarfile.open(package) as packed:
            packed.extractall(pathlib.Path(directory) / package.stem)
        chart = pathlib.Path(directory) / package.stem / "lifeboat"
        version = version_of(chart)
        assert number_of(version) < now, f"{package.name} is kept as an earlier version: raise `version` in Chart.yaml"
        charts[version] = chart
    assert charts, f"no earlier version is kept in {KEPT}"
    return dict(sorted(charts.items(), key=lambda one: number_of(one[0])))


def version_of(chart):
    return yaml.safe_load((chart / "Chart.yaml").read_text())["version"]


def number_of(version):
    return [int(part) for part in version.split(".")]


def cases():
    """Values that are rendered, linted and validated, by name: the examples, and every option at least once."""
    examples = {file.stem: yaml.safe_load(file.read_text()) for file in sorted(EXAMPLES.glob("*.yaml"))}
    matrix = yaml.safe_load((pathlib.Path(__file__).parent / "matrix.yaml").read_text())
    assert not set(examples) & set(matrix)
    return {**examples, **matrix}
