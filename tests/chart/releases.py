"""What the tests have in common that run a primary and a standby site from their rendered manifests, with clients at
both.

Three voters and three mirrors run as pods.py says, from the chart's examples. At each site a client writes and another
one reads, through the Service of that site and as clients.py says. After each step every member is ready again, both
clients of each site got on, no request of theirs failed, and no container was restarted by a probe or ended by itself.
"""

import http.client
import json
import pathlib
import sys
import tempfile
import time

from chart import CHART, find, fixed, render
from clients import DEADLINE, Reader, Writer
from image import unpack
from pods import Site, World, http_get, partition_of, revision_of

# Everything waits at most so long.
PATIENCE = 60
# The pauses of the chart are for real networks; the order of things does not depend on them.
QUICK = {"preStopSeconds": 1, "minReadySeconds": 1}


class Releases:
    def __init__(self, directory, program, root=None):
        self.directory, self.world = pathlib.Path(directory), World(directory, program, root)
        self.east, self.west = Site(self.world, 1), Site(self.world, 2)
        self.values = {self.east: dict(QUICK), self.west: dict(QUICK)}
        self.charts = {self.east: CHART, self.west: CHART}
        self.examples = CHART / "examples"
        self.writers, self.readers, self.began = [], [], time.monotonic()

    # What a step does and waits for.

    def upgrade(self, site, **values):
        """As `helm upgrade --reuse-values --set …`, and as an API server takes it."""
        self.values[site].update(values)
        example = self.examples / ("primary.yaml" if site is self.east else "standby.yaml")
        manifests = render(values=self.values[site], files=[example], chart=self.charts[site])
        if site.manifests:
            before, after = fixed(site.manifests), fixed(manifests)
            assert before == after, f"an API server would refuse this:\n{before}\n{after}"
        site.apply(manifests)

    def wait_for(self, what, condition):
        """Until it holds. A request that failed ends the test at once."""
        end, last = time.monotonic() + PATIENCE, None
        while time.monotonic() < end:
            self.no_request_failed()
            try:
                last = condition()
                if last:
                    return last
            except (OSError, http.client.HTTPException, LookupError, ValueError) as error:
                last = error
            time.sleep(0.1)
        raise AssertionError(f"waited in vain for {what}; at the end: {last!r}")

    def no_request_failed(self):
        failed = [client.failed for client in self.clients() if client.failed]
        assert failed == [], failed

    def clients(self):
        return [*self.writers, *self.readers]

    def all_ready(self, site):
        """As `kubectl rollout status` tells it."""
        with site.lock:
            pods, spec = list(site.pods.values()), site.stateful_set["spec"]
            revision, partition = revision_of(spec), partition_of(spec)
            return len(pods) == spec["replicas"] and all(
                pod.available(spec["minReadySeconds"]) and (pod.revision == revision or pod.ordinal < partition) for pod in pods
            )

    def status(self, site, path="/v1/status"):
        for address in site.endpoints():
            code, body = http_get(address, 7400, path)
            if code == 200:
                return json.loads(body)
        raise LookupError("no member answers")

    def members(self, site):
        return {m["name"]: m for m in self.status(site)["members"]}

    def roles(self, site, role):
        return sorted(name for name, m in self.members(site).items() if m["role"] == role and not m.get("joining"))

    def follows(self):
        """Every mirror of the standby is SYNCHRONIZED, and has what the primary site has."""
        reply = self.status(self.east, "/v1/replication")
        states = {m["name"]: m["state"] for m in reply["members"] if m["site"] == "west"}
        count = self.west.stateful_set["spec"]["replicas"]
        return len(states) == count and set(states.values()) == {"SYNCHRONIZED"}

    def only_leader(self):
        """The Service of the leader leads to its pod."""

        def found():
            leader = self.status(self.east)["leader"]
            if leader is None:
                return False
            leader = leader["name"]
            return self.east.behind(self.east.service("primary")) == [self.east.pods[f"lifeboat-{leader[-1]}"].address]

        self.wait_for("the Service to lead to the leader alone", found)

    def everybody_is_ready(self, after):
        for site in (self.east, self.west):
            if site.manifests:
                self.wait_for(f"all members of site {site.number} to be ready after {after}", lambda site=site: self.all_ready(site))

    def settled(self, what, slowest=DEADLINE, follows=True):
        """After a step: everybody is back, and no client was failed, or kept waiting for longer than so many seconds."""
        self.everybody_is_ready(what)
        if self.west.manifests and follows:
            self.wait_for(f"the standby to follow after {what}", self.follows)
        for client in self.clients():
            now = client.rounds
            # The round that runs may have begun before.
            self.wait_for(f"{client.name} to get on after {what}", lambda: client.rounds > now + 1)
        for site in (self.east, self.west):
            assert site.troubles == [], site.troubles
        self.told(what)
        for client in self.clients():
            tally = client.take_tally()
            print(f"          {client.name}: {tally}", flush=True)
            assert tally.slowest <= slowest, f"{client.name} was kept waiting for longer than {slowest} s"

    def told(self, what):
        print(f"{time.monotonic() - self.began:6.1f} s  ok: {what}", flush=True)

    def tool(self, site, kind, suffix):
        """Runs a pod that the chart brings for a command."""
        wanted = find(site.manifests, kind)
        spec = wanted["spec"] if kind == "Pod" else wanted["spec"]["template"]["spec"]
        return site.run_once(spec, f"{wanted['metadata']['name']}-{suffix}")

    def helm_test(self, site):
        code, out, err = self.tool(site, "Pod", "test")
        assert (code, out) == (0, "revision 1"), (code, out, err)

    # Steps that all begin and end with.

    def install(self):
        self.upgrade(self.east)
        self.settled("the primary site was installed: three pods found each other by name and founded the cluster")
        voters = self.roles(self.east, "voter")
        assert voters == ["east-0", "east-1", "east-2"], voters
        self.helm_test(self.east)
        self.told("its helm test wrote and read")

    def install_standby(self):
        self.upgrade(self.west)
        self.settled("the standby site joined by address")
        mirrors, sites = self.roles(self.east, "mirror"), {m["site"] for m in self.members(self.east).values()}
        assert mirrors == ["west-0", "west-1", "west-2"] and sites == {"east", "west"}, (mirrors, sites)
        self.helm_test(self.west)

    def start_clients(self):
        """Mirrors pass writes and linearizable reads on, so both sites take everything."""
        sites = {"east": self.east, "west": self.west}
        self.writers = [Writer(site, name) for name, site in sites.items()]
        self.readers = [Reader(site, name, self.writers) for name, site in sites.items()]

    def nothing_is_lost(self):
        for client in self.clients():
            client.stop()
        self.no_request_failed()
        for site in (self.east, self.west):
            for writer in self.writers:
                self.is_there(site, writer)
        # Else nothing was said about the age of what was read.
        assert all(reader.bounded > 0 for reader in self.readers), [reader.bounded for reader in self.readers]
        verified = self.east.pods["lifeboat-0"].exec("verify")
        assert verified.returncode == 0, verified.stdout + verified.stderr
        counts = {writer.name: writer.acknowledged for writer in self.writers}
        self.told(f"everything that was acknowledged is in both sites, and all members hold the same ({counts})")

    def is_there(self, site, writer):
        count = writer.acknowledged
        assert count > 100, count
        listed = site.pods["lifeboat-0"].exec("list", writer.keys, "--output", "json")
        assert listed.returncode == 0, listed.stderr
        found = {}
        for line in listed.stdout.splitlines():
            item = json.loads(line)
            if item.get("key"):
                found[item["key"]] = item["value"]
        missing = [n for n in range(1, count + 1) if found.get(f"{writer.keys}{n}") != str(n)]
        assert missing == [], f"lost at site {site.number}: {missing[:10]} of {count} of {writer.name}"


def main(kind, program, archive=None):
    """Runs such a test with a program, or with the one in an image."""
    with tempfile.TemporaryDirectory(prefix="lifeboat-chart-") as directory:
        pathlib.Path(directory).chmod(0o755)
        if program == "--image":
            test = kind(directory, "/lifeboat", unpack(archive, pathlib.Path(directory) / "image"))
        else:
            test = kind(directory, pathlib.Path(program).resolve())
        try:
            test.run()
        except BaseException:
            for client in test.clients():
                print(f"--- {client.name}: {client.tally}", file=sys.stderr)
            for log in sorted(pathlib.Path(directory).glob("site*/*.log")):
                print(f"--- the end of {log.relative_to(directory)}", file=sys.stderr)
                print("\n".join(log.read_text(errors="replace").splitlines()[-15:]), file=sys.stderr)
            raise
        finally:
            test.world.close()
