"""The API server as a pod meets it, over TLS: it lets a service account patch the labels of pods as the chart's Role says, and
nothing else.

The certificate is for `kubernetes.default.svc`, signed by an authority that only the files of the service account name. The token
changes every few seconds, as Kubernetes changes it every hour; the one before is refused.
"""

import http.server
import json
import pathlib
import re
import ssl
import subprocess
import threading
import time

NAME = "kubernetes.default.svc"
# How long a token is good for.
ROTATION = 5


def certificates(directory):
    def openssl(*words):
        subprocess.run(["openssl", *map(str, words)], check=True, capture_output=True, cwd=directory)

    key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"]
    openssl("req", "-x509", *key, "-keyout", "ca.key", "-out", "ca.crt", "-subj", "/CN=authority")
    openssl("req", *key[:-2], "-keyout", "server.key", "-out", "server.csr", "-subj", "/CN=kubernetes")
    (directory / "names").write_text(f"subjectAltName=DNS:kubernetes,DNS:{NAME}\nbasicConstraints=CA:FALSE\n")
    openssl("x509", "-req", "-in", "server.csr", "-CA", "ca.crt", "-CAkey", "ca.key", "-CAcreateserial", "-days", "2", "-extfile", "names", "-out", "server.crt")


class PodApi:
    """For one site. `account` is the directory that pods see as their service account's."""

    def __init__(self, site, directory):
        self.site, self.patched, self.refused = site, 0, []
        private = pathlib.Path(directory) / "private"
        self.account = pathlib.Path(directory) / "account"
        for made in (private, self.account):
            made.mkdir(parents=True)
        certificates(private)
        (self.account / "ca.crt").write_text((private / "ca.crt").read_text())
        (self.account / "namespace").write_text(site.namespace)
        self.rotate()
        self.account.chmod(0o755)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(private / "server.crt", private / "server.key")
        server = http.server.ThreadingHTTPServer((site.gateway, 443), Handler)
        server.socket = context.wrap_socket(server.socket, server_side=True)
        server.api = self
        threading.Thread(target=server.serve_forever, daemon=True).start()
        threading.Thread(target=self.rotate_for_ever, daemon=True).start()

    def rotate(self):
        self.token = f"token-{time.monotonic_ns()}"
        # As the kubelet does it: all at once.
        fresh = self.account / "token.new"
        fresh.write_text(self.token)
        fresh.rename(self.account / "token")

    def rotate_for_ever(self):
        while True:
            time.sleep(ROTATION)
            self.rotate()

    def patch(self, token, kind, path, body):
        """The status of an answer."""
        if token != f"Bearer {self.token}":
            return 401
        asked = re.fullmatch(rf"/api/v1/namespaces/{self.site.namespace}/pods/([a-z0-9-]+)", path)
        rules = [rule for role in self.site.objects("Role") for rule in role["rules"]]
        allowed = asked and any(
            asked[1] in rule["resourceNames"] and "patch" in rule["verbs"] and "pods" in rule["resources"] for rule in rules
        )
        if not allowed:
            return 403
        changed = json.loads(body)
        if kind != "application/merge-patch+json" or set(changed) != {"metadata"} or set(changed["metadata"]) != {"labels"}:
            return 400
        with self.site.lock:
            pod = self.site.pods.get(asked[1])
            if pod is None:
                return 404
            pod.labels.update(changed["metadata"]["labels"])
            self.patched += 1
        return 200


class Handler(http.server.BaseHTTPRequestHandler):
    def do_PATCH(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        api = self.server.api
        status = api.patch(self.headers["Authorization"], self.headers["Content-Type"], self.path, body)
        if status not in (200, 401, 404):
            api.refused.append((status, self.path, body))
        self.send_response(status)
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"{}")

    def log_message(self, *_):
        pass
