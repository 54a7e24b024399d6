"""The archive of the image is whole and as the Dockerfile says: `image.py ARCHIVE`. What it holds is run: the program alone, in
a root directory with nothing else, as the user without rights.
"""

import hashlib
import io
import json
import os
import pathlib
import stat
import subprocess
import sys
import tarfile
import tempfile

from pods import CHROOT, SECRETS, USER


def read(archive):
    """All files of the archive, with every digest checked."""
    with tarfile.open(archive) as packed:
        files = {entry.name: packed.extractfile(entry).read() for entry in packed.getmembers()}
    for name, content in files.items():
        if name.startswith("blobs/sha256/"):
            assert hashlib.sha256(content).hexdigest() == name.rsplit("/", 1)[1], f"{name} is not what it says"
    return files


def parts(files):
    """The configuration and the layer, found both ways: by the OCI index, and as docker does."""
    at = lambda blob: files["blobs/" + blob["digest"].replace(":", "/")]
    (listed,) = json.loads(files["index.json"])["manifests"]
    manifest = json.loads(at(listed))
    (saved,) = json.loads(files["manifest.json"])
    assert files[saved["Config"]] == at(manifest["config"]) and [files[name] for name in saved["Layers"]] == [at(b) for b in manifest["layers"]]
    return json.loads(at(manifest["config"])), at(manifest["layers"][0])


def unpack(archive, root):
    """The root directory of a container, with the mount points and the devices that a runtime makes."""
    config, layer = parts(read(archive))
    root.mkdir()
    with tarfile.open(fileobj=io.BytesIO(layer)) as packed:
        packed.extractall(root)
    for made in ("dev", "proc", "sys", "tmp", SECRETS.strip("/")):
        (root / made).mkdir(parents=True)
    (root / "etc" / "resolv.conf").touch()
    for name, minor in (("null", 3), ("zero", 5), ("random", 8), ("urandom", 9)):
        os.mknod(root / "dev" / name, stat.S_IFCHR | 0o666, os.makedev(1, minor))
        (root / "dev" / name).chmod(0o666)
    return root


def main(archive):
    config, layer = parts(read(archive))
    running = config["config"]
    assert running["User"] == f"{USER}:{USER}" and running["Entrypoint"] == ["/lifeboat"] and running["Cmd"] == ["serve"]
    health = running["Healthcheck"]["Test"]
    assert health[:3] == ["CMD", "/lifeboat", "health"], health
    with tarfile.open(fileobj=io.BytesIO(layer)) as packed:
        names = sorted(entry.name for entry in packed.getmembers())
    assert names == ["data", "etc", "etc/group", "etc/nsswitch.conf", "etc/passwd", "lifeboat"], names
    with tempfile.TemporaryDirectory(prefix="lifeboat-image-") as directory:
        root = unpack(archive, pathlib.Path(directory) / "root")
        pathlib.Path(directory).chmod(0o755)

        def run(*command, timeout=30):
            inside = [CHROOT, f"--userspec={USER}:{USER}", "--groups=", root, *command]
            return subprocess.run(inside, env={}, capture_output=True, text=True, timeout=timeout)

        version = run("/lifeboat", "--version")
        assert version.returncode == 0 and version.stdout.startswith("lifeboat "), version
        # Nobody is there: the check says so, instead of failing in some other way.
        sick = run(*health[1:])
        assert sick.returncode == 1 and "refused" in sick.stdout, sick
        ready = run("/lifeboat", "serve", "--name", "n1", "--data-dir", "/data/lifeboat", "--bootstrap", "--check")
        assert ready.returncode == 0 and "configuration is valid" in ready.stdout, ready
        size = (root / "lifeboat").stat().st_size / 2**20
        print(f"ok: the image holds {len(names)} files, and its program of {size:.0f} MiB runs alone: {version.stdout.strip()}")


if __name__ == "__main__":
    main(sys.argv[1])
