"""The whole life of two releases, from their rendered manifests: `lifecycle.py PROGRAM`, as root. Takes about two
minutes. With `lifecycle.py --image ARCHIVE` the pods run from the files of the image and nothing else, mounted
read-only.

After each step all is as releases.py says, with clients at both sites. At the end the primary site is lost, and comes
home. Upgrades from an earlier version of the chart are a test of their own, upgrade.py.
"""

import json
import sys

from pods import http_get
from releases import Releases, main


class Lifecycle(Releases):
    def leader_service(self):
        """The Service of the leader leads to its pod, by the label that members set through the API server."""
        self.upgrade(self.east, primaryService={"enabled": True})
        self.settled("the Service of the leader was switched on")
        self.only_leader()
        before = self.status(self.east)
        self.east.pods[f"lifeboat-{before['leader']['name'][-1]}"].kill()
        # It may come back so fast that it is elected again.
        self.wait_for("an election", lambda: self.status(self.east)["leader"] and self.status(self.east)["term"] > before["term"])
        self.only_leader()
        self.settled("the leader was killed: its Service leads to the one elected then")
        assert self.east.api.refused == [] and self.east.api.patched > 3, (self.east.api.refused, self.east.api.patched)

    def rolling_restart(self):
        for site, name in ((self.east, "primary"), (self.west, "standby")):
            before = {pod.name: pod.address for pod in site.pods.values()}
            self.upgrade(site, podAnnotations={"restarted": "once"})
            self.settled(f"a rolling restart of the {name} site, with new addresses")
            after = {pod.name: pod.address for pod in site.pods.values()}
            assert before.keys() == after.keys() and not set(before.values()) & set(after.values()), (before, after)

    def scale_up(self):
        before = {name: id(pod) for name, pod in self.east.pods.items()}
        self.upgrade(self.east, replicaCount=5)
        self.wait_for("five voters", lambda: len(self.roles(self.east, "voter")) == 5)
        self.settled("scaled up to five voters, without restarting one")
        kept = {name: id(pod) for name, pod in self.east.pods.items() if name in before}
        assert kept == before, "a member was restarted"

    def scale_down(self):
        # The order of docs/kubernetes.md: the member, its pod, its volume.
        for name in ("east-4", "east-3"):
            done = self.east.pods["lifeboat-0"].exec("members", "remove", name)
            assert done.returncode == 0, done
        self.wait_for("three voters", lambda: len(self.roles(self.east, "voter")) == 3)
        self.upgrade(self.east, replicaCount=3, scaleDownTo=3)
        self.wait_for("two pods to go", lambda: len(self.east.pods) == 3)
        for ordinal in (3, 4):
            self.east.lose_volume(f"data-lifeboat-{ordinal}")
        # Until its pod went, the container of a removed member ended with 3 and was started again.
        for name, what in list(self.east.troubles):
            assert name in ("lifeboat-3", "lifeboat-4") and what == "ended with 3", (name, what)
        self.east.troubles.clear()
        self.settled("scaled down to three voters, members first")

    def scale_up_again(self):
        self.upgrade(self.east, replicaCount=4, scaleDownTo=None)
        self.wait_for("the fourth voter", lambda: len(self.roles(self.east, "voter")) == 4)
        self.settled("scaled up again under the name of a removed member")
        done = self.east.pods["lifeboat-0"].exec("members", "remove", "east-3")
        assert done.returncode == 0, done
        self.upgrade(self.east, replicaCount=3, scaleDownTo=3)
        self.wait_for("the pod to go", lambda: len(self.east.pods) == 3)
        self.east.lose_volume("data-lifeboat-3")
        self.east.troubles.clear()
        self.settled("and down again")

    def all_deleted(self):
        for site, name in ((self.east, "primary"), (self.west, "standby")):
            with site.lock:
                for pod in list(site.pods.values()):
                    pod.delete()
            self.wait_for("all pods to go", lambda site=site: not any(pod.ending for pod in list(site.pods.values())))
            self.settled(f"every pod of the {name} site was deleted at once")

    def all_killed(self):
        pods = [pod for site in (self.east, self.west) for pod in list(site.pods.values())]
        addresses = {pod.address for pod in pods}
        for pod in pods:
            pod.kill()
        self.settled("every process of both sites was killed at once, and all came back at other addresses")
        assert not addresses & {pod.address for site in (self.east, self.west) for pod in site.pods.values()}

    def volume_lost(self):
        for site, member, role in ((self.east, "east-1", "voter"), (self.west, "west-1", "mirror")):
            before = self.members(self.east)[member]["id"]
            with site.lock:
                pod = site.pods["lifeboat-1"]
                pod.kill()
                site.lose_volume(pod.claim)
            self.wait_for(f"{member} to be back", lambda: self.members(self.east)[member]["id"] != before)
            self.wait_for(f"{member} in its role", lambda: member in self.roles(self.east, role))
            self.settled(f"the volume of {member} was lost: it came back under its name, as a {role}")

    def switchover(self):
        """The Job of the chart moves the primary site there and back."""
        for site, name in ((self.west, "west"), (self.east, "east")):
            self.upgrade(self.east, dr={"switchover": {"to": name, "confirm": name, "id": f"to-{name}"}})
            code, out, err = self.tool(self.east, "Job", "pod")
            assert code == 0, (out, err)
            self.wait_for(f"{name} to be the primary site", lambda site=site: len(self.roles(site, "voter")) == 3 and self.led_from(name))
            self.upgrade(self.east, dr={"switchover": {"to": "", "confirm": ""}})
            self.settled(f"a Job moved the primary site to {name}", follows=False)

    def led_from(self, name):
        status = self.status(self.east)
        return status["leader"] and self.members(self.east)[status["leader"]["name"]]["site"] == name

    def primary_site_lost(self):
        """The whole primary site goes, the standby is forced, and the old site comes home as docs/kubernetes.md says."""
        with self.east.lock:
            self.east.lost = True
            for pod in list(self.east.pods.values()):
                pod.kill()
        self.wait_for("the standby to be without a leader", lambda: self.west.endpoints() == [])
        forced = self.west.pods["lifeboat-0"].exec("dr", "force", "--accept-data-loss", "--by", "the test")
        assert forced.returncode == 0, forced.stdout + forced.stderr
        self.wait_for("three voters in the standby site", lambda: self.all_ready(self.west) and [
            name for name in self.roles(self.west, "voter") if name.startswith("west-")
        ] == ["west-0", "west-1", "west-2"])
        written = self.west.pods["lifeboat-1"].exec("put", "after", "the fork")
        assert written.returncode == 0, written.stderr
        self.told("the primary site was lost, and the standby was forced")
        self.east.lost = False
        self.wait_for("the old members to fence themselves", lambda: self.old_roles() == ["fenced"] * 3)
        self.wait_for("no fenced member to be in the Service", lambda: self.east.endpoints() == [])
        for ordinal in range(3):
            home = self.east.pods[f"lifeboat-{ordinal}"].exec("dr", "rejoin")
            assert home.returncode == 0, home.stdout + home.stderr
        self.wait_for("the old members to be mirrors", lambda: [
            name for name in self.roles(self.west, "mirror") if name.startswith("east-")
        ] == ["east-0", "east-1", "east-2"])
        self.everybody_is_ready("the return")
        read = self.east.pods["lifeboat-2"].exec("get", "after")
        assert (read.returncode, read.stdout) == (0, "the fork"), read
        for site in (self.east, self.west):
            assert site.troubles == [], site.troubles
        self.told("the old site fenced itself, and came home as mirrors")

    def old_roles(self):
        with self.east.lock:
            pods = list(self.east.pods.values())
        return [json.loads(http_get(pod.address, 7400, "/v1/role")[1])["role"] for pod in pods]

    def run(self):
        for step in (
            self.install,
            self.install_standby,
            self.start_clients,
            self.leader_service,
            self.rolling_restart,
            self.scale_up,
            self.scale_down,
            self.scale_up_again,
            self.all_deleted,
            self.all_killed,
            self.volume_lost,
            self.switchover,
            self.nothing_is_lost,
            self.primary_site_lost,
            self.nothing_is_lost,
        ):
            step()


if __name__ == "__main__":
    main(Lifecycle, *sys.argv[1:])
