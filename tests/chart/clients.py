"""Clients of a release: they call through its Service, try again as docs/http-api.md says, and do nothing else that
would hide a failure.

A try that got no answer (nobody is ready, the connection was refused, cut, or silent) is repeated: reads change
nothing, and each write carries an Idempotency-Key of its own, the same at every try. A problem document is obeyed:
`safe` and `unknown` are tried again, not before `Retry-After`, until the deadline; `never`, a reply that is no problem
document, and a reply that cannot be right end the client for good, and with it the test.

What is right is checked at every reply. A write is executed once, however often it was sent: a new key is created, and
the counter has as many versions as it was put. A linearizable read, at either site, misses no write that was
acknowledged before it began, and shows nothing older than the read before. A stale read is no older than its lag says,
and the same member never goes back.
"""

import bisect
import collections
import http.client
import json
import random
import threading
import time
import uuid

PORT = 7400
# As the Rust client has them (docs/client.md): for a whole call and for one try, and the pauses in between.
DEADLINE = 30
ATTEMPT = 6
FIRST_PAUSE, LONGEST_PAUSE = 0.02, 1.0

Reply = collections.namedtuple("Reply", "status headers body address sent")


class Failed(Exception):
    """A request that failed for whoever sent it, or a reply that is wrong."""


class Tally:
    """What became of the requests of one step."""

    def __init__(self):
        self.requests, self.repeated, self.slowest = 0, 0, 0.0
        # How often a try was followed by another one, by the reason.
        self.reasons = collections.Counter()

    def __str__(self):
        words = f"{self.requests} requests, slowest {self.slowest:.2f} s, {self.repeated} tried again"
        return words + "".join(f"; {count} × {why}" for why, count in sorted(self.reasons.items()))


class Client:
    """One request after the other, until it is stopped or one of them failed."""

    def __init__(self, site, name):
        self.site, self.name = site, name
        self.tally, self.rounds, self.turn, self.failed = Tally(), 0, 0, None
        self.stopped = threading.Event()
        self.thread = threading.Thread(target=self.run, daemon=True)
        self.thread.start()

    def run(self):
        try:
            while not self.stopped.is_set():
                self.round()
                self.rounds += 1
                # So that the machine has something left for the members.
                time.sleep(0.01)
        except Exception as error:  # whatever it is: nobody but the test would hear of it
            self.failed = f"{self.name}: {error!r}"

    def stop(self):
        self.stopped.set()
        self.thread.join(DEADLINE + ATTEMPT + 5)
        assert not self.thread.is_alive(), f"{self.name} does not end"

    def take_tally(self):
        """What it did since the last time."""
        taken, self.tally = self.tally, Tally()
        return taken

    def call(self, method, path, expected, headers=None, body=None):
        """The reply to a request, which has one of the expected statuses, after as many tries as it takes."""
        what, began, tries = f"{method} {path}", time.monotonic(), 0
        while True:
            reply, why = self.attempt(method, path, headers or {}, body)
            wanted = 0.0
            if reply and reply.status in expected:
                break
            if reply:
                why, wanted = obey(what, reply)
            self.tally.reasons[why] += 1
            pause = min(FIRST_PAUSE * 2**tries, LONGEST_PAUSE) * random.uniform(0.5, 1.5)
            tries += 1
            if time.monotonic() + max(pause, wanted) > began + DEADLINE:
                raise Failed(f"{what}: no success in {DEADLINE} s and {tries} tries, at last: {why}")
            time.sleep(max(pause, wanted))
        tally = self.tally
        tally.requests += 1
        tally.repeated += tries > 0
        tally.slowest = max(tally.slowest, time.monotonic() - began)
        return reply

    def attempt(self, method, path, headers, body):
        """The reply, or why there is none."""
        endpoints = self.site.endpoints()
        if not endpoints:
            return None, "no member is ready"
        # As a load balancer: any of them, another one each time.
        self.turn += 1
        address = endpoints[self.turn % len(endpoints)]
        connection = http.client.HTTPConnection(address, PORT, timeout=ATTEMPT)
        try:
            sent = time.monotonic()
            connection.request(method, path, body=body, headers={**headers, "Connection": "close"})
            answer = connection.getresponse()
            return Reply(answer.status, answer.headers, answer.read(), address, sent), None
        except OSError as error:
            return None, error.strerror or str(error) or type(error).__name__
        except http.client.IncompleteRead:
            return None, "the reply was cut"
        finally:
            connection.close()


def obey(what, reply):
    """Why a request is tried again, and after how many seconds at the soonest; fails when the reply forbids another try."""
    told = f"{what}: {reply.status} {reply.body[:500]!r}"
    if reply.headers.get_content_type() != "application/problem+json":
        raise Failed(f"neither expected nor a problem document: {told}")
    problem = json.loads(reply.body)
    if problem["retry"] not in ("safe", "unknown"):
        raise Failed(f"not to be tried again: {told}")
    code = problem["type"].rsplit(":", 1)[1]
    return f"{reply.status} {code}", float(reply.headers.get("Retry-After", 0))


class Writer(Client):
    """Writes one key after the other, and the number of the newest into a counter."""

    def __init__(self, site, name):
        # The newest number that is in its key, that was sent to the counter, and that is acknowledged there; and when it was.
        self.written = self.begun = self.acknowledged = 0
        self.times = []
        self.keys, self.counter = f"load/{name}/", f"counter/{name}"
        super().__init__(site, f"writer {name}")

    def round(self):
        number = self.acknowledged + 1
        first = self.put(f"{self.keys}{number}", number, (201,))
        self.expect(first["version"] == 1, "a new key", first)
        self.written = self.begun = number
        counted = self.put(self.counter, number, (201,) if number == 1 else (200,))
        self.expect(counted["version"] == number, f"put {number} times", counted)
        self.times.append(time.monotonic())
        self.acknowledged = number

    def put(self, key, number, expected):
        headers = {"Idempotency-Key": str(uuid.uuid4())}
        return json.loads(self.call("PUT", f"/v1/kv/{key}", expected, headers, str(number)).body)

    def expect(self, right, what, reply):
        if not right:
            raise Failed(f"{what}, and the reply says {reply}")

    def acknowledged_at(self, moment):
        """The newest number that was acknowledged then."""
        return bisect.bisect_right(self.times, moment)


class Reader(Client):
    """Reads at one site what writers wrote, wherever they did."""

    def __init__(self, site, name, writers):
        self.writers, self.bounded = writers, 0
        # The newest number seen: of a writer, and of a writer at a member.
        self.seen, self.seen_at = collections.Counter(), collections.Counter()
        super().__init__(site, f"reader {name}")

    def round(self):
        for writer in self.writers:
            if writer.acknowledged > 0:
                self.read_counter(writer)
                self.read_newest(writer)
                self.read_stale(writer)

    def read_counter(self, writer):
        least = max(writer.acknowledged, self.seen[writer])
        found = int(self.call("GET", f"/v1/kv/{writer.counter}", (200,)).body)
        self.within(least, found, writer.begun, f"a linearizable read of {writer.counter}")
        self.seen[writer] = found

    def read_newest(self, writer):
        """A key that is not there answers 404, which is not expected here."""
        newest = writer.written
        found = int(self.call("GET", f"/v1/kv/{writer.keys}{newest}", (200,)).body)
        self.within(newest, found, newest, f"a linearizable read of {writer.keys}{newest}")

    def read_stale(self, writer):
        # A member that came newly may not have the key yet.
        reply = self.call("GET", f"/v1/kv/{writer.counter}?consistency=stale", (200, 404))
        found = int(reply.body) if reply.status == 200 else 0
        # An address is never given twice, so it stands for one process.
        least, lag = self.seen_at[writer, reply.address], reply.headers["Lifeboat-Lag-Seconds"]
        if lag != "unknown":
            least = max(least, writer.acknowledged_at(reply.sent - float(lag)))
            self.bounded += 1
        self.within(least, found, writer.begun, f"a stale read of {writer.counter} at {reply.address} with a lag of {lag}")
        self.seen_at[writer, reply.address] = found

    def within(self, least, found, most, what):
        if not least <= found <= most:
            raise Failed(f"{what} shows {found}, which should be {least} to {most}")
