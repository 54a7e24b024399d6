"""What the chart refuses: values that are not right, one by one and with both helms, and steps that would endanger the quorum.

For the latter helm asks an API server how the release stands (`lookup`); api_server.py stands in for one.
"""

import copy
import json
import re

import yaml

import api_server
from chart import CHART, HELMS, Refused, render, render_text
from notes import notes
from tools import ROOT

# Values, and a word of the refusal. By the schema:
BY_SCHEMA = [
    ({"bogus": 1}, "bogus"),
    ({"mode": "secondary"}, "mode"),
    ({"mode": None}, "mode"),
    ({"site": "East"}, "site"),
    ({"site": ""}, "site"),
    ({"site": "a" * 41}, "site"),
    ({"replicaCount": 0}, "replicaCount"),
    ({"replicaCount": -1}, "replicaCount"),
    ({"replicaCount": 64}, "replicaCount"),
    ({"replicaCount": "3"}, "replicaCount"),
    ({"replicaCount": 2.5}, "replicaCount"),
    ({"bootstrapExpect": 0}, "bootstrapExpect"),
    ({"bootstrapExpect": 10}, "bootstrapExpect"),
    ({"peers": "east:7401"}, "peers"),
    ({"peers": ["http://east:7401"]}, "peers"),
    ({"peers": ["a:1", "a:1"]}, "peers"),
    ({"peers": ["a b"]}, "peers"),
    ({"memberNamePrefix": "-x"}, "memberNamePrefix"),
    ({"scaleDownTo": 0}, "scaleDownTo"),
    ({"settings": {"rpo_second": 1}}, "rpo_second"),
    ({"settings": {"name": "x"}}, "name"),
    ({"settings": {"peer_url": "x"}}, "peer_url"),
    ({"settings": {"rpo_seconds": {}}}, "rpo_seconds"),
    ({"settings": {"rpo_seconds": 0.5}}, "rpo_seconds"),
    ({"extraArgs": "--x"}, "extraArgs"),
    ({"extraArgs": [1]}, "extraArgs"),
    ({"extraEnv": [{"value": "1"}]}, "extraEnv"),
    ({"extraEnv": [{"name": "A", "value": 1}]}, "extraEnv"),
    ({"extraEnv": {"A": "1"}}, "extraEnv"),
    ({"extraEnvFrom": ["x"]}, "extraEnvFrom"),
    ({"clusterDomain": "-"}, "clusterDomain"),
    ({"listenAddress": "localhost"}, "listenAddress"),
    ({"listenAddress": "::"}, "listenAddress"),
    ({"advertise": {"peerUrl": "lifeboat:7401"}}, "peerUrl"),
    ({"advertise": {"clientUrl": "https://a"}}, "clientUrl"),
    ({"service": {"type": "ExternalName"}}, "type"),
    ({"service": {"port": 0}}, "port"),
    ({"service": {"port": 65536}}, "port"),
    ({"service": {"nodePort": -1}}, "nodePort"),
    ({"service": {"loadBalancerSourceRanges": ["10.0.0.0"]}}, "loadBalancerSourceRanges"),
    ({"service": {"externalTrafficPolicy": "local"}}, "externalTrafficPolicy"),
    ({"service": {"trafficDistribution": "Near"}}, "trafficDistribution"),
    ({"service": {"annotations": {"a": 1}}}, "annotations"),
    ({"primaryService": {"enabled": "yes"}}, "enabled"),
    ({"primaryService": {"label": "a b"}}, "label"),
    ({"headlessService": {"type": "ClusterIP"}}, "type"),
    ({"peerServices": {"type": "None"}}, "type"),
    ({"peerServices": {"annotations": {"a": True}}}, "annotations"),
    ({"image": "lifeboat"}, "image"),
    ({"image": {"repository": ""}}, "repository"),
    ({"image": {"tag": "a:b"}}, "tag"),
    ({"image": {"tag": 1.0}}, "tag"),
    ({"image": {"digest": "sha256:abc"}}, "digest"),
    ({"image": {"pullPolicy": "Sometimes"}}, "pullPolicy"),
    ({"image": {"pullSecrets": ["x"]}}, "pullSecrets"),
    ({"persistence": {"size": "10 GB"}}, "size"),
    ({"persistence": {"size": 10}}, "size"),
    ({"persistence": {"accessModes": ["ReadWriteMany"]}}, "accessModes"),
    ({"persistence": {"accessModes": []}}, "accessModes"),
    ({"persistence": {"retention": {"whenScaled": "Keep"}}}, "whenScaled"),
    ({"resources": {"limit": {}}}, "limit"),
    ({"spread": {"zones": False}}, "zones"),
    ({"spread": {"racks": "off"}}, "racks"),
    ({"topologySpreadConstraints": {}}, "topologySpreadConstraints"),
    ({"affinity": []}, "affinity"),
    ({"nodeSelector": {"a": 1}}, "nodeSelector"),
    ({"tolerations": {}}, "tolerations"),
    ({"priorityClassName": 5}, "priorityClassName"),
    ({"dnsPolicy": "Cluster"}, "dnsPolicy"),
    ({"podDisruptionBudget": {"maxUnavailable": -1}}, "maxUnavailable"),
    ({"podDisruptionBudget": {"maxUnavailable": "1"}}, "maxUnavailable"),
    ({"podDisruptionBudget": {"minAvailable": 2}}, "minAvailable"),
    ({"podDisruptionBudget": {"unhealthyPodEvictionPolicy": "Never"}}, "unhealthyPodEvictionPolicy"),
    ({"minReadySeconds": -1}, "minReadySeconds"),
    ({"updateStrategy": {"type": "Recreate"}}, "type"),
    ({"updateStrategy": {"partition": -1}}, "partition"),
    ({"preStopSeconds": -1}, "preStopSeconds"),
    ({"terminationGracePeriodSeconds": 0}, "terminationGracePeriodSeconds"),
    ({"probes": {"liveness": {"httpGet": {"path": "/health/leader"}}}}, "httpGet"),
    ({"probes": {"liveness": {"successThreshold": 2}}}, "successThreshold"),
    ({"probes": {"readiness": {"periodSeconds": 0}}}, "periodSeconds"),
    ({"podAnnotations": {"a": 1}}, "podAnnotations"),
    ({"podLabels": {"a": None, "b": 2}}, "podLabels"),
    ({"commonLabels": []}, "commonLabels"),
    ({"extraVolumes": {}}, "extraVolumes"),
    ({"extraObjects": [1]}, "extraObjects"),
    ({"nameOverride": "A"}, "nameOverride"),
    ({"fullnameOverride": "a" * 41}, "fullnameOverride"),
    ({"serviceAccount": {"automount": True}}, "automount"),
    ({"networkPolicy": {"remoteSites": ["west"]}}, "remoteSites"),
    ({"networkPolicy": {"clients": ["apps"]}}, "clients"),
    ({"serviceMonitor": {"interval": "15"}}, "interval"),
    ({"serviceMonitor": {"enabled": 1}}, "enabled"),
    ({"prometheusRule": {"disabled": ["NoLeader"]}}, "disabled"),
    ({"prometheusRule": {"runbookUrl": ""}}, "runbookUrl"),
    ({"dashboard": {"labels": {"grafana_dashboard": 1}}}, "labels"),
    ({"dr": {"force": {}}}, "force"),
    ({"dr": {"switchover": {"id": "A!"}}}, "id"),
    ({"dr": {"switchover": {"timeoutSeconds": 0}}}, "timeoutSeconds"),
    ({"tests": {"image": "busybox"}}, "image"),
]

# By templates/_checks.tpl: values that contradict each other.
BY_CHECKS = [
    ({"mode": "standby"}, "peers must be given"),
    ({"bootstrapExpect": 5}, "would never be there"),
    ({"replicaCount": 6, "bootstrapExpect": 3}, "two clusters could be founded"),
    ({"replicaCount": 11}, "9 are the most"),
    ({"persistence": {"existingClaim": "mine"}}, "for one member"),
    ({"primaryService": {"enabled": True}, "serviceAccount": {"create": False}}, "service account of its own"),
    ({"terminationGracePeriodSeconds": 19}, "at least preStopSeconds and 15 s"),
    ({"dr": {"switchover": {"to": "west"}}}, "set dr.switchover.confirm"),
    ({"dr": {"switchover": {"to": "west", "confirm": "east"}}}, "set dr.switchover.confirm"),
]


def refused(which, values, word, **more):
    try:
        render_text(which, values, **more)
    except Refused as no:
        assert word in str(no), f"{values}: refused, but not for {word}: {no}"
        return str(no)
    raise AssertionError(f"{which} took {values}")


def covered(schema, values):
    """That no place of the schema is without a refusal: each property is named by at least one of them."""
    tried = {next(iter(one)) for one, _ in values}
    # Whatever is a plain object of Kubernetes, or a string of any kind, has no more to refuse than its type.
    plain = {"global", "hostAliases", "dnsConfig", "runtimeClassName", "schedulerName", "podSecurityContext", "containerSecurityContext"}
    plain |= {"commonAnnotations", "extraVolumeMounts", "extraContainers", "initContainers"}
    missing = set(schema["properties"]) - tried - plain
    assert not missing, f"no refusal is tried for {sorted(missing)}"


def strict(schema, where="values"):
    """Every object with properties refuses others."""
    if "properties" in schema and where != "values.global":
        keyed = where.endswith("items")
        assert schema.get("additionalProperties") is False, f"{where} takes anything" if not keyed else where
    for name, below in schema.get("properties", {}).items():
        strict(below, f"{where}.{name}")
    if isinstance(schema.get("items"), dict):
        strict(schema["items"], f"{where}.items")


def same_keys(values, schema, where="values"):
    """values.yaml and the schema name the same options."""
    if "properties" not in schema or where in ("values.settings", "values.resources") or where.startswith("values.probes."):
        return
    named = set(schema["properties"]) - {"global"}
    assert set(values) == named, f"{where}: only in one of values.yaml and the schema: {sorted(set(values) ^ named)}"
    for name, below in values.items():
        same_keys(below, schema["properties"][name], f"{where}.{name}")


def every_setting(schema):
    """`settings` takes what docs/operations.md lists, but for what the chart sets itself."""
    table = (ROOT / "docs" / "operations.md").read_text().split("\n## Settings\n")[1].split("\n## ")[0]
    listed = set(re.findall(r"^\| `([a-z_]+)` \|", table, re.MULTILINE))
    ours = {"name", "site", "role", "data_dir", "client_listen", "peer_listen", "client_url", "peer_url", "bootstrap", "join"}
    ours |= {"bootstrap_expect", "discover", "kubernetes_label", "kubernetes_pod", "kubernetes_api"}
    taken = set(schema["properties"]["settings"]["properties"])
    assert ours <= listed and taken == listed - ours, f"settings of the schema and of the page: {sorted(taken ^ (listed - ours))}"


def scaling():
    """Fewer members only when told; and the members that must go first are named."""
    for which in HELMS:
        with api_server.running(stateful_sets={("test", "lifeboat"): 5}) as server:
            ask = {"more": server.flags}
            said = refused(which, {"site": "east", "replicaCount": 3}, "replicaCount goes from 5 to 3", **ask)
            assert "east-4, east-3" in said and "scaleDownTo=3" in said, said
            # The word must name the number: one that was forgotten in the values does not help the next time.
            refused(which, {"replicaCount": 3, "scaleDownTo": 4}, "replicaCount goes from 5 to 3", **ask)
            refused(which, {"replicaCount": 1}, "default-4, default-3, default-2, default-1", **ask)
            render_text(which, {"replicaCount": 3, "scaleDownTo": 3}, **ask)
            render_text(which, {"replicaCount": 5}, **ask)
            render_text(which, {"replicaCount": 7}, **ask)
            assert server.asked > 0, "helm did not ask the API server, so nothing is shown"
    print("ok: fewer members are refused unless told")


def warnings():
    """The notes warn of what works and is not wise."""
    warned = {1: "one voter is no cluster", 2: "two voters are worse than one", 3: None, 4: "an even number", 5: None}
    for which in HELMS:
        for count, words in warned.items():
            said = notes(which, {"replicaCount": count})
            assert (words in said) if words else ("WARNING" not in said), (count, said)
        assert "persistence is off" in notes(which, {"persistence": {"enabled": False}})
        assert "no network policy" in notes(which, {"networkPolicy": {"enabled": False}})
        assert "lets no member of another site" in notes(which, {"mode": "standby", "peers": ["a:1"]})
        assert "dr plan" in notes(which, {})
    print("ok: the notes warn")


def budget():
    """The budget never goes negative, and never blocks a drain for ever."""
    for count in range(1, 10):
        (one,) = [o for o in render(values={"replicaCount": count}) if o["kind"] == "PodDisruptionBudget"]
        assert one["spec"]["maxUnavailable"] == 1 and "minAvailable" not in one["spec"], one


def main():
    schema = json.loads((CHART / "values.schema.json").read_text())
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    strict(schema)
    same_keys(copy.deepcopy(values), schema)
    every_setting(schema)
    covered(schema, BY_SCHEMA)
    for which in HELMS:
        for one, word in BY_SCHEMA:
            said = refused(which, one, word)
            assert "schema" in said, f"{one} was not refused by the schema: {said}"
        for one, word in BY_CHECKS:
            refused(which, one, word)
    print(f"ok: {len(BY_SCHEMA)} values are refused by the schema, {len(BY_CHECKS)} by the templates, with both helms")
    scaling()
    warnings()
    budget()


if __name__ == "__main__":
    main()
