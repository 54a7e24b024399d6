"""The alert rules as the chart renders them: promtool reads them and runs the cases of rules_test.yaml; each alert has a case in
which it fires and one in which it does not, a runbook in docs/alerts.md, and words that promtool can fill in.
"""

import pathlib
import re
import subprocess
import tempfile

import yaml

from chart import find, render
from tools import ROOT

HERE = pathlib.Path(__file__).parent
RELEASE = 'namespace="test",job="lifeboat-headless"'


def rules(values=None):
    rendered = render(values={"prometheusRule": {"enabled": True, **(values or {})}})
    return find(rendered, "PrometheusRule")["spec"]


def promtool(*words):
    done = subprocess.run(["promtool", *map(str, words)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr


def main():
    spec = rules()
    alerts = {rule["alert"]: rule for group in spec["groups"] for rule in group["rules"]}
    cases = yaml.safe_load((HERE / "rules_test.yaml").read_text())
    fires, silent = set(), set()
    for case in cases["tests"]:
        for series in case["input_series"]:
            series["series"] = series["series"].replace("%R%", RELEASE)
        for check in case["alert_rule_test"]:
            for one in check.get("exp_alerts", []):
                # promtool compares the words too; they are checked by their shape below, and not written twice.
                one.setdefault("exp_annotations", {})
            (fires if check.get("exp_alerts") else silent).add(check["alertname"])
    for what, tried in (("fires", fires), ("is silent", silent)):
        assert tried == set(alerts), f"no case in which it {what}, or no such alert: {sorted(tried ^ set(alerts))}"
    with tempfile.TemporaryDirectory() as directory:
        full, bare = pathlib.Path(directory) / "full.yaml", pathlib.Path(directory) / "rules.yaml"
        full.write_text(yaml.safe_dump(spec))
        promtool("check", "rules", full)
        for rule in alerts.values():
            rule["annotations"] = {}
        bare.write_text(yaml.safe_dump(spec))
        test = pathlib.Path(directory) / "test.yaml"
        test.write_text(yaml.safe_dump(cases))
        promtool("test", "rules", test)
        # And promtool can say no: with an alert expected that does not fire.
        cases["tests"][0]["alert_rule_test"][0]["exp_alerts"] = [{"exp_labels": {"severity": "critical"}}]
        test.write_text(yaml.safe_dump(cases))
        assert subprocess.run(["promtool", "test", "rules", test], capture_output=True).returncode != 0

    runbooks = set(re.findall(r"^## (Lifeboat\w+)$", (ROOT / "docs" / "alerts.md").read_text(), re.MULTILINE))
    assert runbooks == set(alerts), f"docs/alerts.md: {sorted(runbooks ^ set(alerts))}"
    for name, rule in {r["alert"]: r for g in rules()["groups"] for r in g["rules"]}.items():
        said = rule["annotations"]
        assert set(said) == {"summary", "description", "runbook_url"}, name
        assert said["runbook_url"] == f"docs/alerts.md#{name.lower()}", said
        assert rule["labels"]["severity"] in ("warning", "critical"), name
    # The options.
    chosen = rules({"disabled": ["LifeboatNoLeader"], "selector": 'site="x"', "alertLabels": {"team": "t"}, "runbookUrl": "https://r/#"})
    text = yaml.safe_dump(chosen)
    left = [rule for group in chosen["groups"] for rule in group["rules"]]
    assert "LifeboatNoLeader" not in text and "job=" not in text and len(left) == len(alerts) - 1
    assert all(rule["labels"]["team"] == "t" and rule["annotations"]["runbook_url"].startswith("https://r/#") for rule in left)
    print(f"ok: {len(alerts)} alerts fire and stay silent as {len(cases['tests'])} cases say, and have runbooks")


if __name__ == "__main__":
    main()
