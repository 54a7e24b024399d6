"""Every metric that a rule, a case of the rules, or the dashboard names is in the `/metrics` of running members:
`metrics.py PROGRAM`. That all of those are documented is for `tests/tools/metrics_docs.rs`.

A primary with three voters and a mirror run on loopback; what one kind of member alone shows is there too.
"""

import http.client
import json
import pathlib
import re
import socket
import subprocess
import sys
import tempfile
import time

import yaml

from chart import CHART, find, render

# What Prometheus itself adds.
OF_PROMETHEUS = {"up"}
NAME = re.compile(r"\b(lifeboat_[a-z_]+|up)\b")


def ports(count):
    """Free ports, held until all are known."""
    held = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    numbers = [one.getsockname()[1] for one in held]
    for one in held:
        one.close()
    return numbers


def get(port, path):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", path)
        reply = connection.getresponse()
        return reply.status, reply.read().decode()
    finally:
        connection.close()


def show(program, wanted):
    """Waits until members show all these series, by their names as Prometheus stores them."""
    numbers = ports(8)
    peers = [f"127.0.0.1:{port}" for port in numbers[4:]]
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as directory:
        members = []
        try:
            for at in range(4):
                command = [program, "serve", "--name", f"n{at}", "--data-dir", f"{directory}/n{at}"]
                command += ["--client-listen", f"127.0.0.1:{numbers[at]}", "--peer-listen", peers[at], "--canary-interval-ms", "100ms"]
                command += ["--site", "west", "--role", "mirror"] if at == 3 else ["--site", "east", "--bootstrap-expect", "3"]
                for peer in peers[:3]:
                    command += ["--discover", peer]
                log = open(f"{directory}/n{at}.log", "w")
                members.append(subprocess.Popen(command, stdout=log, stderr=log))
            end = time.monotonic() + 60
            while True:
                try:
                    names = set()
                    for port in numbers[:4]:
                        status, _ = get(port, "/health/ready")
                        assert status == 200, f"{port} is not ready"
                        get(port, "/v1/kv/x")
                        names |= set(re.findall(r"^(lifeboat_\w+)", get(port, "/metrics")[1], re.MULTILINE))
                    # What is measured between members takes a moment to be known.
                    assert wanted <= names, f"no member shows {sorted(wanted - names)}"
                    return
                except (OSError, http.client.HTTPException, AssertionError) as error:
                    if time.monotonic() > end:
                        logs = "".join(pathlib.Path(f"{directory}/n{at}.log").read_text()[-1500:] for at in range(4))
                        raise AssertionError(f"{error}\n{logs}") from error
                    time.sleep(0.2)
        finally:
            for member in members:
                member.kill()
                member.wait()


def named():
    """Which names are used, and where."""
    spec = find(render(values={"prometheusRule": {"enabled": True}}), "PrometheusRule")["spec"]
    used = {"rules": " ".join(rule["expr"] for group in spec["groups"] for rule in group["rules"])}
    dashboard = json.loads((CHART / "files" / "dashboard.json").read_text())
    panels = [panel for panel in dashboard["panels"] if panel["type"] != "row"]
    assert len({panel["id"] for panel in dashboard["panels"]}) == len(dashboard["panels"])
    for panel in panels:
        assert panel["targets"], panel["title"]
    used["dashboard"] = " ".join(target["expr"] for panel in panels for target in panel["targets"])
    used["dashboard"] += json.dumps(dashboard["templating"])
    cases = yaml.safe_load((pathlib.Path(__file__).parent / "rules_test.yaml").read_text())["tests"]
    used["cases"] = " ".join(series["series"] for case in cases for series in case["input_series"])
    return {where: set(NAME.findall(text)) - OF_PROMETHEUS for where, text in used.items()}


def check_expressions():
    """promtool reads every expression of the dashboard, as a rule."""
    dashboard = json.loads((CHART / "files" / "dashboard.json").read_text())
    queries = [t["expr"] for p in dashboard["panels"] for t in p.get("targets", [])]
    queries = [q.replace("$__rate_interval", "5m").replace("$namespace", "n").replace("$job", "j") for q in queries]
    rules = [{"record": f"panel:{at}", "expr": query} for at, query in enumerate(queries)]
    with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
        yaml.safe_dump({"groups": [{"name": "dashboard", "rules": rules}]}, file)
        file.flush()
        done = subprocess.run(["promtool", "check", "rules", file.name], capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
    return len(queries)


def main(program):
    used = named()
    show(str(pathlib.Path(program).resolve()), set().union(*used.values()))
    for where, names in used.items():
        assert len(names) > 10, f"{where}: {names}"
        print(f"ok: {len(names)} metrics of the {where} are shown by running members")
    print(f"ok: promtool reads the {check_expressions()} queries of the dashboard")


if __name__ == "__main__":
    main(sys.argv[1])
