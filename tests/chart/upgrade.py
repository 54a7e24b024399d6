"""An upgrade from an earlier version of the chart, under load: `upgrade.py PROGRAM`, or `upgrade.py --image ARCHIVE`,
as root. Takes about 75 s.

Both sites are installed from the newest of the versions in tests/chart/earlier, with the examples that came with it.
Then they go over to the present chart and another image as docs/kubernetes.md says: the standby, one member of the
primary to try it, which is rolled back, the whole primary; and at last both at once to a version after that. Pods are
restarted one after the other in their site, while the clients of releases.py write and read at both.

The earlier chart is kept as the package that people would have installed: so it is there where git has no history, and
nobody edits it together with the present one. The program is the same in all pods, whatever their image is called;
those of the earlier version pass for members of the feature level before this one, so the level rises with the last of
them. (Members that really are an older program are upgraded by `make upgrade-test`, without the chart.)
"""

import sys

from chart import CHART, earlier, version_of
from immutable import copy_of
from releases import Releases, main

# No client is kept waiting longer by members that are restarted as planned: three times the time after which a member
# answers, whatever became of the request (request_timeout_ms), so that two answers in a row may leave that open.
PLANNED = 15
# Passes for the program before this one.
OLD_LEVEL = 2
OLD = {"image": {"tag": "old"}, "extraArgs": ["--announce-feature-level", str(OLD_LEVEL)]}
NEW = {"image": {"tag": "new"}, "extraArgs": []}
NEXT = {"image": {"tag": "next"}, "extraArgs": []}


class Upgrade(Releases):
    def __init__(self, *arguments):
        super().__init__(*arguments)
        *_, self.old = earlier(self.directory / "earlier").values()
        self.examples = self.old / "examples"
        for site in (self.east, self.west):
            self.charts[site] = self.old
            self.values[site].update(OLD)
        # Its pods have rights at the API server, which an upgrade must not take from those that still run.
        self.values[self.east].update(primaryService={"enabled": True})

    def roll(self, what, sites, chart, values, partition=0, restarted=3):
        """As many pods of each site as are to be restarted go over to other values and another version of the chart."""
        before = {site: {pod.address for pod in site.pods.values()} for site in sites}
        identities = self.identities()
        for site in sites:
            self.charts[site] = chart
            self.upgrade(site, **values, updateStrategy={"partition": partition})
        self.settled(f"{what} (version {version_of(chart)} of the chart)", slowest=PLANNED)
        for site in sites:
            new = [pod for pod in site.pods.values() if pod.address not in before[site]]
            tag = values["image"]["tag"]
            assert len(new) == restarted and all(pod.container["image"].endswith(f":{tag}") for pod in new), new
            label = site.stateful_set["metadata"]["labels"]["helm.sh/chart"]
            assert label == f"lifeboat-{version_of(chart)}", label
            self.helm_test(site)
        assert self.identities() == identities, "a member came back as another one"
        self.only_leader()
        assert self.east.api.refused == [], self.east.api.refused

    def identities(self):
        return {name: member["id"] for name, member in self.members(self.east).items()}

    def level(self):
        return self.status(self.east)["feature_level"]

    def run(self):
        self.install()
        self.install_standby()
        self.start_clients()
        self.roll("the standby site was upgraded", [self.west], CHART, NEW)
        self.roll("one member of the primary site was upgraded", [self.east], CHART, NEW, partition=2, restarted=1)
        self.roll("it was rolled back", [self.east], self.old, OLD, restarted=1)
        assert self.level() == OLD_LEVEL, self.level()
        self.roll("the primary site was upgraded", [self.east], CHART, NEW)
        self.wait_for("the feature level to rise", lambda: self.level() > OLD_LEVEL)
        coming = copy_of(CHART, self.directory, "9.8.7")
        self.roll("both sites were upgraded at once", [self.east, self.west], coming, NEXT)
        self.nothing_is_lost()


if __name__ == "__main__":
    main(Upgrade, *sys.argv[1:])
