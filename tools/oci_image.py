"""Puts the image together without a container engine: `oci_image.py DOCKERFILE BINARY TAG ARCHIVE`.

The archive is an OCI layout that also has the manifest of `docker save`, so `docker load`, `podman load`, `skopeo copy oci-archive:…`
and `ctr images import` take it. What is in it follows the Dockerfile line by line: of its instructions those are understood that
stand there, and any other is an error, so the two ways to make the image cannot drift apart. The same inputs make the same
bytes: no time of day, owners 0, files in order.
"""

import gzip
import hashlib
import io
import json
import pathlib
import shlex
import sys
import tarfile

# Nothing in the image says when it was made.
EPOCH = "1970-01-01T00:00:00Z"


def seconds(text):
    assert text.endswith("s"), text
    return int(text[:-1])


class Image:
    def __init__(self, root, binary):
        self.root, self.binary, self.arguments = root, binary, {}
        self.files, self.config = {}, {}

    def run(self, dockerfile):
        text = dockerfile.read_text().replace("\\\n", " ")
        for line in text.splitlines():
            if line.strip() and not line.startswith("#"):
                word, rest = line.split(None, 1)
                getattr(self, f"do_{word.lower()}")(rest.strip())

    def do_from(self, rest):
        assert rest == "scratch", "only an image from nothing can be made here"

    def do_arg(self, rest):
        name, _, value = rest.partition("=")
        self.arguments[name] = str(self.binary) if name == "BINARY" else value

    def do_copy(self, rest):
        for name, value in self.arguments.items():
            rest = rest.replace("${" + name + "}", value)
        source, target = rest.split()
        source = self.root / source
        if source.is_dir():
            for file in sorted(source.rglob("*")):
                if file.is_file():
                    self.files[f"{target}/{file.relative_to(source)}".strip("/")] = file
        else:
            self.files[target.strip("/")] = source

    def do_user(self, rest):
        self.config["User"] = rest

    def do_expose(self, rest):
        self.config["ExposedPorts"] = {f"{port}/tcp": {} for port in rest.split()}

    def do_volume(self, rest):
        self.config["Volumes"] = {rest: {}}

    def do_env(self, rest):
        self.config.setdefault("Env", []).append(rest)

    def do_entrypoint(self, rest):
        self.config["Entrypoint"] = json.loads(rest)

    def do_cmd(self, rest):
        self.config["Cmd"] = json.loads(rest)

    def do_healthcheck(self, rest):
        flags, command = rest.split(" CMD ")
        given = dict(flag[2:].split("=") for flag in shlex.split(flags))
        nanos = 1_000_000_000
        self.config["Healthcheck"] = {
            "Test": ["CMD", *json.loads(command)],
            "Interval": seconds(given["interval"]) * nanos,
            "Timeout": seconds(given["timeout"]) * nanos,
            "StartPeriod": seconds(given["start-period"]) * nanos,
            "Retries": int(given["retries"]),
        }

    def layer(self):
        out = io.BytesIO()
        with tarfile.open(fileobj=out, mode="w", format=tarfile.USTAR_FORMAT) as tar:
            directories = {str(parent) for name in self.files for parent in pathlib.PurePath(name).parents} - {"."}
            # The data directory belongs to the user, for a volume that takes the rights of what it is mounted on.
            owned = [volume.strip("/") for volume in self.config.get("Volumes", {})]
            for name in sorted(directories | set(owned)):
                entry = tarfile.TarInfo(name)
                entry.type, entry.mode = tarfile.DIRTYPE, 0o755
                if name in owned:
                    entry.uid, entry.gid = map(int, self.config["User"].split(":"))
                tar.addfile(entry)
            for name, file in sorted(self.files.items()):
                content = file.read_bytes()
                entry = tarfile.TarInfo(name)
                entry.size, entry.mode = len(content), 0o755 if file == self.binary else 0o644
                tar.addfile(entry, io.BytesIO(content))
        return out.getvalue()


def digest(content):
    return "sha256:" + hashlib.sha256(content).hexdigest()


def as_json(value):
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()


def pack(image, tag):
    """The files of the archive, by name."""
    layer = image.layer()
    packed = gzip.compress(layer, mtime=0)
    config = as_json({
        "architecture": "amd64",
        "os": "linux",
        "created": EPOCH,
        "config": image.config,
        "rootfs": {"type": "layers", "diff_ids": [digest(layer)]},
        "history": [{"created": EPOCH, "created_by": "tools/oci_image.py"}],
    })
    blob = lambda kind, content: {"mediaType": kind, "digest": digest(content), "size": len(content)}
    manifest = as_json({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": blob("application/vnd.oci.image.config.v1+json", config),
        "layers": [blob("application/vnd.oci.image.layer.v1.tar+gzip", packed)],
    })
    listed = blob("application/vnd.oci.image.manifest.v1+json", manifest)
    listed["annotations"] = {"io.containerd.image.name": f"docker.io/library/{tag}", "org.opencontainers.image.ref.name": tag.split(":")[1]}
    at = lambda content: "blobs/" + digest(content).replace(":", "/")
    saved = [{"Config": at(config), "RepoTags": [tag], "Layers": [at(packed)]}]
    return {
        "oci-layout": as_json({"imageLayoutVersion": "1.0.0"}),
        "index.json": as_json({"schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json", "manifests": [listed]}),
        "manifest.json": as_json(saved),
        at(config): config,
        at(manifest): manifest,
        at(packed): packed,
    }


def main(dockerfile, binary, tag, archive):
    dockerfile, archive = pathlib.Path(dockerfile).resolve(), pathlib.Path(archive)
    image = Image(dockerfile.parent, pathlib.Path(binary).resolve())
    image.run(dockerfile)
    with tarfile.open(archive, "w", format=tarfile.USTAR_FORMAT) as tar:
        for name, content in sorted(pack(image, tag).items()):
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = len(content), 0o644
            tar.addfile(entry, io.BytesIO(content))
    print(f"{archive}: {tag}, {archive.stat().st_size / 2**20:.1f} MiB")


if __name__ == "__main__":
    main(*sys.argv[1:])
