"""Just enough of a Kubernetes API server for helm's `lookup` and its other questions before an installation that is only tried.

It knows the versions, the groups, and StatefulSets that a test gives it; of everything else it says that it is not there.
"""

import contextlib
import http.server
import json
import pathlib
import tempfile
import threading

VERSION = {"major": "1", "minor": "33", "gitVersion": "v1.33.0", "platform": "linux/amd64"}


# What a release of the chart consists of.
RESOURCES = {
    "v1": {"configmaps": "ConfigMap", "pods": "Pod", "secrets": "Secret", "serviceaccounts": "ServiceAccount", "services": "Service"},
    "apps/v1": {"statefulsets": "StatefulSet"},
    "networking.k8s.io/v1": {"networkpolicies": "NetworkPolicy"},
    "policy/v1": {"poddisruptionbudgets": "PodDisruptionBudget"},
}


def resources(version):
    verbs = ["get", "list", "create", "patch"]
    listed = [{"name": n, "singularName": "", "namespaced": True, "kind": k, "verbs": verbs} for n, k in RESOURCES[version].items()]
    return {"kind": "APIResourceList", "groupVersion": version, "resources": listed}


def groups():
    named = [version for version in RESOURCES if "/" in version]
    versions = {version.split("/")[0]: {"groupVersion": version, "version": "v1"} for version in named}
    listed = [{"name": name, "versions": [one], "preferredVersion": one} for name, one in versions.items()]
    return {"kind": "APIGroupList", "apiVersion": "v1", "groups": listed}


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        path = self.path.split("?")[0].rstrip("/")
        known = {"/version": VERSION, "/api": {"kind": "APIVersions", "versions": ["v1"]}, "/apis": groups()}
        known |= {("/apis/" if "/" in version else "/api/") + version: resources(version) for version in RESOURCES}
        body = known.get(path)
        for (namespace, name), replicas in self.server.stateful_sets.items():
            if path == f"/apis/apps/v1/namespaces/{namespace}/statefulsets/{name}":
                self.server.asked += 1
                # As an object of the release that is upgraded.
                owner = {"meta.helm.sh/release-name": name, "meta.helm.sh/release-namespace": namespace}
                labels = {"app.kubernetes.io/managed-by": "Helm"}
                metadata = {"name": name, "namespace": namespace, "labels": labels, "annotations": owner}
                body = {"apiVersion": "apps/v1", "kind": "StatefulSet", "metadata": metadata, "spec": {"replicas": replicas}}
        status = 200 if body else 404
        body = body or {"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": "NotFound", "code": 404}
        text = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *_):
        pass


@contextlib.contextmanager
def running(stateful_sets):
    """A server, with the flags by which helm finds it."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.stateful_sets, server.asked = stateful_sets, 0
    threading.Thread(target=server.serve_forever, daemon=True).start()
    with tempfile.TemporaryDirectory() as directory:
        config = pathlib.Path(directory) / "kubeconfig"
        url = f"http://127.0.0.1:{server.server_address[1]}"
        cluster = {"name": "test", "cluster": {"server": url}}
        context = {"name": "test", "context": {"cluster": "test", "user": ""}}
        given = {"apiVersion": "v1", "kind": "Config", "clusters": [cluster], "contexts": [context], "current-context": "test"}
        config.write_text(json.dumps(given))
        server.flags = ["--dry-run=server", "--disable-openapi-validation", "--kubeconfig", config]
        try:
            yield server
        finally:
            server.shutdown()
            server.server_close()
