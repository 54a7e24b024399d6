"""A very small Kubernetes for tests: it runs the pods of rendered manifests as processes in network namespaces.

What is real: the program, its arguments and its environment as rendered, each pod's own network namespace and address
(a new one each time it is made), a user without privileges, names by DNS (see names.py), the probes and their
thresholds, the pause before a stop, SIGTERM and then SIGKILL, and restarts of a container that ends. What is imitated:
the controller of the StatefulSet (parallel creation, replacement of deleted pods, rolling updates from the highest
ordinal down to a partition), and a Service as the list of ready pods, which clients learn of with a delay. What is
absent: nodes, the scheduler, images, network policies, storage but for a directory a claim.

Needs root, and touches nothing of the machine but what it removes again: namespaces named `lbc…` and their resolv.conf.
"""

import ctypes
import hashlib
import http.client
import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import threading
import time

import names
from pod_api import NAME as API_NAME
from pod_api import PodApi

CLONE_NEWNET = 0x40000000
# How long it takes until clients of a Service know that a pod came or goes.
PROPAGATION = 0.3
# Of a container that ended: before it is started again.
RESTART = 0.5
USER = 65532
# By its path, because pods have no PATH.
CHROOT = shutil.which("chroot")
# Where pods find the files of their service account.
SECRETS = "/var/run/secrets/kubernetes.io/serviceaccount"


def ip(*words):
    subprocess.run(["ip", *map(str, words)], check=True, capture_output=True, text=True)


class World:
    """The network under all sites: one bridge in a namespace of its own, into which this process moves."""

    def __init__(self, directory, program, root=None):
        self.directory = pathlib.Path(directory)
        # The program, on this machine or in the image whose files are in `root`.
        self.program, self.root = program, root
        self.tag = f"lbc{os.getpid() % 100000}"
        self.sites = []
        ip("netns", "add", self.tag)
        namespace = os.open(f"/run/netns/{self.tag}", os.O_RDONLY)
        if ctypes.CDLL(None, use_errno=True).setns(namespace, CLONE_NEWNET) != 0:
            raise OSError(ctypes.get_errno(), "setns")
        os.close(namespace)
        ip("link", "set", "lo", "up")
        ip("link", "add", "br0", "type", "bridge")
        ip("link", "set", "br0", "up")
        pathlib.Path("/proc/sys/net/ipv4/ip_forward").write_text("1")

    def close(self):
        for site in self.sites:
            site.close()
        ip("netns", "del", self.tag)

    def external(self, name):
        """The address of a per-pod Service with a name outside, as a load balancer would have one."""
        for site in self.sites:
            for service in site.objects("Service"):
                hostname = service["metadata"].get("annotations", {}).get("external-dns.alpha.kubernetes.io/hostname")
                if hostname == name:
                    pod = site.pods.get(service["spec"]["selector"]["statefulset.kubernetes.io/pod-name"])
                    return [pod.address] if pod else []
        return None


class Site:
    """One Kubernetes cluster with one release in it."""

    def __init__(self, world, number, namespace="test"):
        self.world, self.number, self.namespace = world, number, namespace
        self.directory = world.directory / f"site{number}"
        self.directory.mkdir()
        self.directory.chmod(0o755)
        self.gateway = f"10.{number}.0.1"
        self.manifests, self.pods, self.count = [], {}, 0
        # A list of what no test should see: restarts by a probe, and containers that ended by themselves.
        self.troubles = []
        self.lock = threading.RLock()
        # A site that is lost makes no pods, until it is back.
        self.lost = self.closed = False
        # What all pods were made of last, as those below the partition of an update still are.
        self.rolled_out = None
        ip("addr", "add", f"{self.gateway}/16", "dev", "br0")
        names.serve(self.gateway, self.look_up)
        self.api = PodApi(self, self.directory / "api")
        world.sites.append(self)
        threading.Thread(target=self.control, daemon=True).start()

    # What is wanted.

    def apply(self, manifests):
        """As `helm upgrade` does. Nothing waits here."""
        with self.lock:
            self.manifests = manifests

    def objects(self, kind):
        return [one for one in self.manifests if one["kind"] == kind]

    @property
    def stateful_set(self):
        (one,) = self.objects("StatefulSet")
        return one

    def config(self, name, key):
        return next(o for o in self.objects("ConfigMap") if o["metadata"]["name"] == name)["data"][key]

    # Names and Services.

    def look_up(self, name, _asker):
        if name == API_NAME:
            return [self.gateway]
        with self.lock:
            for service in self.objects("Service"):
                full = f"{service['metadata']['name']}.{self.namespace}.svc.cluster.local"
                if name == full:
                    return self.behind(service)
                if name.endswith("." + full) and service["spec"].get("clusterIP") == "None":
                    pod = self.pods.get(name[: -len(full) - 1])
                    return [pod.address] if pod else None
            return self.world.external(name)

    def behind(self, service):
        """The addresses to which a Service leads."""
        wanted = service["spec"]["selector"]
        pods = [pod for pod in self.pods.values() if wanted.items() <= pod.labels.items()]
        if not service["spec"].get("publishNotReadyAddresses"):
            pods = [pod for pod in pods if pod.in_service()]
        return [pod.address for pod in pods]

    def endpoints(self):
        """The addresses of the Service for clients."""
        with self.lock:
            return self.behind(self.service("client"))

    def service(self, component):
        (one,) = [o for o in self.objects("Service") if o["metadata"]["labels"].get("app.kubernetes.io/component") == component]
        return one

    # The controller.

    def control(self):
        while not self.closed:
            time.sleep(0.1)
            with self.lock:
                if self.manifests and not self.closed and not self.lost:
                    self.step(self.stateful_set)

    def step(self, wanted):
        spec, name = wanted["spec"], wanted["metadata"]["name"]
        revision = revision_of(spec)
        ordinals = range(spec["replicas"])
        for pod in list(self.pods.values()):
            if pod.ordinal not in ordinals:
                pod.delete()
        partition = partition_of(spec)
        for ordinal in ordinals:
            if f"{name}-{ordinal}" not in self.pods:
                made_of = wanted if ordinal >= partition else self.rolled_out or wanted
                self.pods[f"{name}-{ordinal}"] = Pod(self, made_of, ordinal, revision_of(made_of["spec"]))
        if spec["updateStrategy"]["type"] != "RollingUpdate":
            return
        for ordinal in reversed(ordinals[partition:]):
            pod = self.pods[f"{name}-{ordinal}"]
            if pod.revision != revision:
                return pod.delete()
            if not pod.available(spec["minReadySeconds"]):
                return
        if partition == 0:
            self.rolled_out = wanted

    def next_address(self):
        with self.lock:
            self.count += 1
            return self.count, f"10.{self.number}.{1 + self.count // 250}.{1 + self.count % 250}"

    def volume(self, claim):
        directory = self.directory / claim
        if not directory.exists():
            directory.mkdir()
            os.chown(directory, USER, USER)
        return directory

    def lose_volume(self, claim):
        shutil.rmtree(self.directory / claim)

    def run_once(self, pod_spec, name):
        """Runs a pod of the chart's own tools to its end; gives its exit code and what it printed."""
        box = Box(self, name)
        try:
            for container in [*pod_spec.get("initContainers", []), *pod_spec["containers"]]:
                command = [self.world.program, *container["args"]]
                assert container["command"] == ["/lifeboat"]
                done = box.run(command, {one["name"]: one["value"] for one in container["env"]})
                if done.returncode != 0:
                    break
            return done.returncode, done.stdout.strip(), done.stderr.strip()
        finally:
            box.close()

    def close(self):
        with self.lock:
            self.closed = True
            for pod in list(self.pods.values()):
                pod.kill()


def revision_of(spec):
    """What tells two templates of pods apart."""
    template = json.dumps(spec["template"], sort_keys=True)
    return hashlib.sha256(template.encode()).hexdigest()[:8]


def partition_of(spec):
    """The lowest ordinal that an update touches."""
    return spec["updateStrategy"].get("rollingUpdate", {}).get("partition", 0)


class Box:
    """A network namespace with an address of the site."""

    def __init__(self, site, name):
        self.site = site
        number, self.address = site.next_address()
        world = site.world
        self.namespace = f"{world.tag}-{site.number}-{number}"
        host, inside = f"v{site.number}x{number}", f"w{site.number}x{number}"
        ip("netns", "add", self.namespace)
        # Under the bridge's namespace, where this process is.
        ip("link", "add", host, "type", "veth", "peer", "name", inside, "netns", self.namespace)
        ip("link", "set", host, "master", "br0", "up")
        ip("-n", self.namespace, "link", "set", "lo", "up")
        ip("-n", self.namespace, "addr", "add", f"{self.address}/16", "dev", inside)
        ip("-n", self.namespace, "link", "set", inside, "up")
        ip("-n", self.namespace, "route", "add", "default", "via", site.gateway)
        self.etc = pathlib.Path("/etc/netns") / self.namespace
        self.etc.mkdir(parents=True)
        (self.etc / "resolv.conf").write_text(f"nameserver {site.gateway}\noptions timeout:1 attempts:2\n")
        (self.etc / "hostname").write_text(name + "\n")

    def command(self, words, account=None, volume=None):
        """What runs a command in it, without privileges, and with the files of a service account where pods look for them."""
        if self.site.world.root is not None:
            return ["ip", "netns", "exec", self.namespace, "sh", "-ec", self.contained(account, volume), "sh", *map(str, words)]
        mount = []
        if account is not None:
            # In the mounts of this process alone.
            at = pathlib.PurePath(SECRETS)
            script = f'mount -t tmpfs tmpfs /run && mkdir -p {at.parent} && ln -s {account} {at} && exec "$@"'
            mount = ["sh", "-c", script, "sh"]
        drop = ["setpriv", f"--reuid={USER}", f"--regid={USER}", "--clear-groups", "--no-new-privs", "--bounding-set=-all"]
        return ["ip", "netns", "exec", self.namespace, *mount, *drop, *map(str, words)]

    def contained(self, account, volume):
        """A script that runs a command from the image's files alone, which it cannot change. Its mounts are its own."""
        root = "/mnt"
        mounts = [(self.site.world.root, ""), ("/etc/resolv.conf", "/etc/resolv.conf")]
        mounts += [(account, SECRETS)] if account is not None else []
        lines = [f"mount --bind {source} {root}{target}" for source, target in mounts]
        lines.append(f"mount -o remount,bind,ro {root}")
        lines += [f"mount --bind {volume} {root}/data"] if volume is not None else []
        user = f"{CHROOT} --userspec={USER}:{USER} --groups= {root}"
        return "\n".join([*lines, f'exec setpriv --no-new-privs {user} "$@"'])

    def run(self, words, environment=None, timeout=120):
        return subprocess.run(self.command(words), env=environment or {}, capture_output=True, text=True, timeout=timeout)

    def close(self):
        subprocess.run(["ip", "netns", "del", self.namespace], check=False, capture_output=True)
        shutil.rmtree(self.etc, ignore_errors=True)
        try:
            self.etc.parent.rmdir()
        except OSError:
            pass  # others are in it


class Pod:
    """One pod from creation to removal; its successor is another."""

    def __init__(self, site, stateful_set, ordinal, revision):
        self.site, self.ordinal, self.revision = site, ordinal, revision
        self.name = f"{stateful_set['metadata']['name']}-{ordinal}"
        template = stateful_set["spec"]["template"]
        self.spec = template["spec"]
        (self.container,) = self.spec["containers"]
        self.labels = {
            **template["metadata"]["labels"],
            "statefulset.kubernetes.io/pod-name": self.name,
            "apps.kubernetes.io/pod-index": str(ordinal),
        }
        (claim,) = stateful_set["spec"]["volumeClaimTemplates"]
        self.claim = f"{claim['metadata']['name']}-{self.name}"
        self.box = Box(site, self.name)
        self.address = self.box.address
        self.process, self.ending, self.gone = None, False, threading.Event()
        self.ready_since, self.changes = None, [(0.0, False)]
        self.environment = self.resolve()
        threading.Thread(target=self.live, daemon=True).start()

    def resolve(self):
        """The environment as the kubelet makes it, and the mount as a path of this machine."""
        fields = {"metadata.name": self.name, "metadata.namespace": self.site.namespace}
        fields |= {f"metadata.labels['{label}']": value for label, value in self.labels.items()}
        resolved = {}
        for one in self.container["env"]:
            source = one.get("valueFrom", {})
            if "fieldRef" in source:
                value = fields[source["fieldRef"]["fieldPath"]]
            elif "configMapKeyRef" in source:
                value = self.site.config(source["configMapKeyRef"]["name"], source["configMapKeyRef"]["key"])
            else:
                value = re.sub(r"\$\(([A-Z_]+)\)", lambda found: resolved[found[1]], one["value"])
            resolved[one["name"]] = value
        (mount,) = self.container["volumeMounts"]
        self.volume = self.site.volume(self.claim)
        data = resolved["LIFEBOAT_DATA_DIR"]
        assert mount["mountPath"] == "/data" and data.startswith("/data/"), data
        if self.site.world.root is not None:
            return resolved
        return {**resolved, "LIFEBOAT_DATA_DIR": str(self.volume) + data[len("/data") :]}

    # The life of its container.

    def start(self):
        assert self.container["command"] == ["/lifeboat"]
        account = self.site.api.account if self.spec["automountServiceAccountToken"] else None
        command = self.box.command([self.site.world.program, *self.container["args"]], account, self.volume)
        log = open(self.site.directory / f"{self.name}.log", "ab")
        self.process = subprocess.Popen(command, env=self.environment, stdout=log, stderr=log)
        log.close()

    def live(self):
        failures = {"readinessProbe": 0, "livenessProbe": 0}
        due = dict.fromkeys(failures, 0.0)
        started, restart_at = False, None
        self.start()
        while not self.gone.is_set():
            time.sleep(0.05)
            now = time.monotonic()
            if self.process.poll() is not None and not self.ending:
                self.set_ready(False)
                if restart_at is None:
                    self.site.troubles.append((self.name, f"ended with {self.process.returncode}"))
                    restart_at = now + RESTART
                elif now >= restart_at:
                    restart_at, started = None, False
                    self.start()
                continue
            if self.ending:
                # The kubelet goes on with readiness probes; endpoints have forgotten the pod already.
                continue
            if not started:
                started = self.probe("startupProbe")
                continue
            for probe in failures:
                if now < due[probe]:
                    continue
                due[probe] = now + self.container[probe]["periodSeconds"]
                failures[probe] = 0 if self.probe(probe) else failures[probe] + 1
                failed = failures[probe] >= self.container[probe]["failureThreshold"]
                if probe == "readinessProbe" and (failed or failures[probe] == 0):
                    self.set_ready(not failed)
                if probe == "livenessProbe" and failed:
                    self.site.troubles.append((self.name, "killed by its liveness probe"))
                    self.process.kill()

    def probe(self, probe):
        asked = self.container[probe]
        (port,) = [p["containerPort"] for p in self.container["ports"] if p["name"] == asked["httpGet"]["port"]]
        try:
            return http_get(self.address, port, asked["httpGet"]["path"], asked["timeoutSeconds"])[0] == 200
        except OSError:
            return False

    def set_ready(self, ready):
        if ready != (self.ready_since is not None):
            self.ready_since = time.monotonic() if ready else None
            self.changes.append((time.monotonic(), ready))

    def in_service(self):
        """Whether clients think that it is ready."""
        then = time.monotonic() - PROPAGATION
        return [ready for at, ready in self.changes if at <= then][-1]

    def available(self, min_ready_seconds):
        since = self.ready_since
        return since is not None and not self.ending and time.monotonic() - since >= min_ready_seconds

    def exec(self, *words):
        """As kubectl exec does."""
        return self.box.run([self.site.world.program, *words], self.environment)

    # Its end.

    def delete(self):
        """Gracefully; returns at once."""
        with self.site.lock:
            if not self.ending:
                self.ending = True
                self.set_ready(False)
                threading.Thread(target=self.drain, daemon=True).start()

    def drain(self):
        began = time.monotonic()
        pause = self.container.get("lifecycle", {}).get("preStop", {}).get("sleep", {}).get("seconds", 0)
        time.sleep(pause)
        self.process.send_signal(signal.SIGTERM)
        left = self.spec["terminationGracePeriodSeconds"] - (time.monotonic() - began)
        try:
            code = self.process.wait(left)
            if code not in (0, 3):
                self.site.troubles.append((self.name, f"ended with {code} when it was stopped"))
        except subprocess.TimeoutExpired:
            self.site.troubles.append((self.name, "did not stop in its grace period"))
        self.kill()

    def kill(self):
        """As when the node is gone."""
        with self.site.lock:
            self.ending = True
            self.gone.set()
            if self.process is not None:
                self.process.kill()
                self.process.wait()
            self.box.close()
            if self.site.pods.get(self.name) is self:
                del self.site.pods[self.name]


def http_get(address, port, path, timeout=5):
    """The status and the body."""
    connection = http.client.HTTPConnection(address, port, timeout=timeout)
    try:
        connection.request("GET", path, headers={"Connection": "close"})
        reply = connection.getresponse()
        return reply.status, reply.read()
    except http.client.HTTPException as error:
        raise OSError(str(error)) from error
    finally:
        connection.close()
