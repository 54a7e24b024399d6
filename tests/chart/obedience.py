"""The clients of the chart's tests try again when they are told to and at no other time, and see what is wrong. Here
they talk to a server that misbehaves.
"""

import http.server
import json
import threading
import time
import types

import clients
from clients import Reader, Writer

# How long a client may take to see what is wrong: longer than any pause.
PATIENCE = 20


def problem(status, code, retry, **headers):
    document = {"type": f"urn:lifeboat:problem:{code}", "title": code, "status": status, "detail": "", "retry": retry}
    return status, json.dumps(document), {"Content-Type": "application/problem+json", **headers}


def written(version, status=None):
    """As a member answers a write."""
    reply = {"revision": 7, "create_revision": 7, "version": version, "previous_revision": None}
    return status or (201 if version == 1 else 200), json.dumps(reply), {"Content-Type": "application/json"}


def value(number, **headers):
    return 200, str(number), {"Content-Type": "application/octet-stream", **headers}


CUT = "the connection is cut in the middle of the reply"
NO_PROXY = (502, "<h1>Bad Gateway</h1>", {"Content-Type": "text/html"})


class Handler(http.server.BaseHTTPRequestHandler):
    def answer(self):
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        server = self.server
        server.seen.append((time.monotonic(), self.path, self.headers["Idempotency-Key"]))
        # The last one again and again.
        reply = server.script.pop(0) if len(server.script) > 1 else server.script[0]
        status, body, headers = written(1) if reply == CUT else reply
        self.send_response(status)
        for name, text in headers.items():
            self.send_header(name.replace("_", "-"), text)
        self.send_header("Content-Length", str(len(body) + (reply == CUT)))
        self.end_headers()
        self.wfile.write(body.encode())

    do_GET = do_PUT = answer

    def log_message(self, *_):
        pass


def meets(make, script, until):
    """What a client asked a server that answers so, and the client."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.script, server.seen = list(script), []
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    clients.PORT = server.server_address[1]
    client = make(types.SimpleNamespace(endpoints=lambda: ["127.0.0.1"]))
    try:
        end = time.monotonic() + PATIENCE
        while not until(client, server) and client.failed is None:
            assert time.monotonic() < end, f"nothing came of {script}"
            time.sleep(0.01)
        return server.seen, client
    finally:
        client.stop()
        server.shutdown()
        server.server_close()


def writer(site):
    return Writer(site, "x")


class Written:
    """What a writer did: ten writes a minute ago, four of them before, and two more are under way."""

    written, begun, acknowledged, keys, counter = 10, 12, 10, "load/x/", "counter/x"

    def acknowledged_at(self, moment):
        return 10 if moment > time.monotonic() - 60 else 4


def reader(site):
    return Reader(site, "y", [Written()])


def fails(make, script, word):
    seen, client = meets(make, script, lambda client, server: False)
    assert word in client.failed, f"{script}: {client.failed}"
    assert len(seen) == len(script), f"{script} was asked for {len(seen)} times"


def obeys(again, pause=0.0):
    """The writer sends the same once more, with the same key and not too early, and goes on."""
    good = [written(1), written(1), problem(400, "bad-key", "never")]
    seen, client = meets(writer, [again, *good], lambda client, server: False)
    (first, path, key), (second, path_again, key_again), (_, _, other_key), *_ = seen
    assert (path, key) == (path_again, key_again) and key and key != other_key, seen
    assert second - first >= pause, f"{again}: again after {second - first} s"
    assert client.tally.repeated == 1 and sum(client.tally.reasons.values()) == 1, str(client.tally)


def main():
    obeys(problem(503, "stopping", "safe", Retry_After="1"), 1.0)
    obeys(problem(503, "no-leader", "safe"))
    obeys(problem(429, "queue-full", "safe", Retry_After="1"), 1.0)
    obeys(problem(504, "unknown-outcome", "unknown"))
    obeys(CUT)

    never = {400: "bad-header", 404: "unknown-lease", 409: "lease-exists", 412: "condition-failed", 421: "wrong-timeline"}
    for status, code in never.items():
        fails(writer, [problem(status, code, "never")], "not to be tried again")
        fails(writer, [written(1), problem(status, code, "never")], "not to be tried again")
    for reply in (NO_PROXY, (503, "", {}), (204, "", {})):
        fails(writer, [reply], "neither expected nor a problem document")
    # Executed twice: a key that was new is replaced, a counter is put more often than it was told.
    fails(writer, [written(1, 200)], "neither expected")
    fails(writer, [CUT, written(2)], "neither expected")
    fails(writer, [written(1), written(1), written(1), written(3)], "put 2 times")

    fails(reader, [problem(404, "not-found", "never")], "not to be tried again")
    fails(reader, [value(9)], "shows 9, which should be 10 to 12")
    fails(reader, [value(13)], "shows 13")
    fails(reader, [value(10), problem(404, "not-found", "never")], "not to be tried again")
    fails(reader, [value(10), value(3)], "shows 3")
    fresh, old, unknown = ({"Lifeboat-Lag-Seconds": lag} for lag in ("0.020", "90.000", "unknown"))
    fails(reader, [value(10), value(10), value(9, **fresh)], "shows 9, which should be 10")
    fails(reader, [value(10), value(10), value(3, **old)], "shows 3, which should be 4")
    fails(reader, [value(10), value(10), value(5, **old), value(12), value(10), value(4, **unknown)], "shows 4, which should be 5")
    fails(reader, [value(12), value(10), value(5, **old), value(11)], "shows 11, which should be 12")

    clients.DEADLINE = 3
    seen, client = meets(writer, [problem(503, "no-leader", "safe")], lambda client, server: False)
    assert "no success in 3 s" in client.failed and len(seen) > 3, client.failed
    print("ok: clients try again when they are told to and at no other time, and see what is wrong")


if __name__ == "__main__":
    main()
