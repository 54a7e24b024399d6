#!/usr/bin/env bash
# Three voters on this machine, each started as it would be on a machine of its own. Ctrl-C stops them all.
#
#   examples/three_members.sh [DIRECTORY]        the data stays there; a new temporary directory by default
#
# LIFEBOAT names the program, HOST the loopback address, BASE_PORT the first port (two for each member).
set -euo pipefail

lifeboat=${LIFEBOAT:-target/debug/lifeboat}
host=${HOST:-127.0.0.1}
base_port=${BASE_PORT:-7500}
dir=${1:-$(mktemp -d)}
founder_peer=http://$host:$((base_port + 1))

member() {
    local number=$1 clients=$((base_port + 10 * ($1 - 1)))
    local how=(--join "$founder_peer")
    if [[ $number == 1 ]]; then
        how=(--bootstrap)
    fi
    mkdir -p "$dir"
    "$lifeboat" serve --name "n$number" --data-dir "$dir/n$number" \
        --client-listen "$host:$clients" --peer-listen "$host:$((clients + 1))" \
        "${how[@]}" 2>>"$dir/n$number.log" &
}

trap 'trap - INT TERM EXIT; kill $(jobs -p) 2>/dev/null; wait' INT TERM EXIT
for number in 1 2 3; do
    member "$number"
done
echo "data and logs in $dir"

for number in 1 2 3; do
    until curl --silent --fail --output /dev/null "http://$host:$((base_port + 10 * (number - 1)))/health/ready"; do
        # A member that ended will not become ready.
        [[ $(jobs -pr | wc -l) == 3 ]] || { tail -n 5 "$dir"/*.log >&2; exit 1; }
        sleep 0.2
    done
done
echo "ready: http://$host:$base_port/v1/status"
wait
