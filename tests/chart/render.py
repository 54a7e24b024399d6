"""Renders the chart under all cases with helm 3 and helm 4, and checks what comes out.

- `helm lint --strict` says nothing but that there is no icon, and both helms render the same.
- Every manifest is valid for the oldest and the newest version of Kubernetes: strictly, and a warning (an unknown kind, for
  example) counts as a failure. The kinds of the Prometheus operator are validated by operator.js.
- Every option of values.yaml is used by a case.
- The renders are those in golden/; `render.py --write` makes them anew, to be read in the diff.
"""

import json
import pathlib
import re
import subprocess
import sys
import tempfile

import yaml

from chart import CHART, HELMS, KUBERNETES, Refused, cases, helm, render_text
from tools import HERE, PYTHON

GOLDEN = pathlib.Path(__file__).parent / "golden"
GOLDEN_KUBE = "1.33.0"
OPERATOR_KINDS = {"ServiceMonitor", "PrometheusRule"}


def lint(which, values):
    with tempfile.NamedTemporaryFile("w", suffix=".yaml") as given:
        json.dump(values, given)
        given.flush()
        said = helm(which, "lint", "--strict", CHART, "-f", given.name)
    told = [line for line in said.splitlines() if line.startswith("[") and "icon is recommended" not in line]
    assert not told, told


def ordered(text):
    """The manifests in an order of their own: the two helms print them in different ones."""
    objects = [one for one in yaml.safe_load_all(text) if one]
    return sorted(objects, key=lambda o: (o["kind"], o["metadata"].get("namespace", ""), o["metadata"]["name"]))


def sound(objects):
    """What no schema says."""
    names = [(o["kind"], o["metadata"].get("namespace"), o["metadata"]["name"]) for o in objects]
    assert len(set(names)) == len(names), f"two objects have one name: {sorted(names)}"
    images = set(re.findall(r'"image": "([^"]+)"', json.dumps(objects)))
    ours = {i for i in images if re.match(r"(registry\.example\.net/)?lifeboat[:@]", i)}
    added = {"registry.example.net/beside", "registry.example.net/before"}
    assert ours and images - ours <= added, f"images that are not ours: {images - ours}"
    for one in objects:
        if one["kind"] != "StatefulSet":
            continue
        spec = one["spec"]["template"]["spec"]
        container = next(c for c in spec["containers"] if c["name"] == "lifeboat")
        assert container["livenessProbe"]["httpGet"]["path"] == "/health/live", "liveness must not depend on a leader"
        assert container["readinessProbe"]["httpGet"]["path"] == "/health/ready"
        assert spec["securityContext"]["runAsNonRoot"] and spec["securityContext"]["runAsUser"] > 0
        hardened = container["securityContext"]
        assert hardened["readOnlyRootFilesystem"] and not hardened["allowPrivilegeEscalation"]
        assert hardened["capabilities"] == {"drop": ["ALL"]}
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        hook = container.get("lifecycle", {})
        assert set(hook) <= {"preStop"} and set(hook.get("preStop", {"sleep": 0})) == {"sleep"}, "a hook does more than wait"


def validate(version, renders):
    """Validates what was rendered for a version of Kubernetes."""
    with tempfile.TemporaryDirectory() as directory:
        files, of_the_operator = [], []
        for number, objects in enumerate(renders):
            for kind, where in ((False, files), (True, of_the_operator)):
                chosen = [o for o in objects if (o["kind"] in OPERATOR_KINDS) == kind]
                if chosen:
                    file = pathlib.Path(directory) / f"{number}-{kind}.yaml"
                    file.write_text(yaml.safe_dump_all(chosen))
                    where.append(file)
                    if kind:
                        file.with_suffix(".json").write_text(json.dumps(chosen))
        command = [PYTHON, "-m", "kubernetes_validate", "--strict", "-k", version, *files]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300)
        said = done.stdout + done.stderr
        bad = [line for line in said.splitlines() if not line.startswith("INFO ")]
        assert done.returncode == 0 and not bad, "\n".join(bad) or said
        print(f"ok: {said.count('INFO ')} manifests are valid for Kubernetes {version}")
        command = ["node", pathlib.Path(__file__).parent / "operator.js", HERE / "npm" / "node_modules"]
        done = subprocess.run(
            [*command, *(f.with_suffix(".json") for f in of_the_operator)], capture_output=True, text=True, timeout=120
        )
        assert done.returncode == 0, done.stdout + done.stderr
        print(done.stdout.strip())


def paths(values, defaults, before=()):
    """The options that a tree of values sets; the tree goes as deep as that of the defaults."""
    for key, value in values.items():
        here, default = (*before, key), defaults.get(key) if isinstance(defaults, dict) else None
        if isinstance(default, dict) and default and isinstance(value, dict) and key not in ("podSecurityContext", "containerSecurityContext"):
            yield from paths(value, default, here)
        else:
            yield here


def main(write):
    defaults = yaml.safe_load((CHART / "values.yaml").read_text())
    every, used = set(paths(defaults, defaults)), set()
    rendered = {kube: [] for kube in (GOLDEN_KUBE, *KUBERNETES)}
    for name, values in cases().items():
        used |= set(paths(values, defaults))
        texts = {}
        for which in HELMS:
            lint(which, values)
            texts[which] = render_text(which, values, kube=GOLDEN_KUBE)
        objects = ordered(texts["helm4"])
        assert objects == ordered(texts["helm3"]), f"{name}: helm 3 and helm 4 render something else"
        sound(objects)
        rendered[GOLDEN_KUBE].append(objects)
        for kube in KUBERNETES:
            rendered[kube].append(ordered(render_text(values=values, kube=kube)))
            sound(rendered[kube][-1])
        golden = GOLDEN / f"{name}.yaml"
        # The dashboard is a file of the chart already.
        short = [{**o, "data": dict.fromkeys(o["data"], "…")} if o["metadata"]["name"].endswith("-dashboard") else o for o in objects]
        text = yaml.safe_dump_all(short, sort_keys=False, width=120, allow_unicode=True)
        if write:
            golden.write_text(text)
        else:
            assert golden.exists() and golden.read_text() == text, f"{golden}: rendered otherwise; look at the diff after render.py --write"
        print(f"ok: {name}, {len(objects)} manifests, with both helms")
    for kube, renders in rendered.items():
        validate(kube, renders)
    assert not every - used, f"options that no case uses: {sorted('.'.join(o) for o in every - used)}"
    try:
        render_text(kube="1.27.0")
        raise AssertionError("Kubernetes 1.27 is too old, and was taken")
    except Refused as refused:
        assert "incompatible" in str(refused), refused
    stale = {g.stem for g in GOLDEN.glob("*.yaml")} - set(cases())
    assert not stale, f"no case any more: {stale}"


if __name__ == "__main__":
    main("--write" in sys.argv[1:])
