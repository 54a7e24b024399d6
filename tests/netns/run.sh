#!/usr/bin/env bash
# Three voters and a mirror in two network namespaces, 50 ms apart each way: the mirror must follow, and come back to no
# lag and equal content after packet loss, after each direction was dropped alone, and after the link was down.
#
# Usage: run.sh PROGRAM, as root (`make netns-test`). Needs ip, curl, python3 and /dev/net/tun; nothing else is touched on
# the machine, and everything is removed at the end, however it comes. Takes about a minute; gives up after five.
set -euo pipefail

program=$(realpath "${1:?usage: run.sh PROGRAM}")
here=$(dirname "$(realpath "$0")")
[ "$(id -u)" = 0 ] || { echo "this needs root: it makes network namespaces" >&2; exit 2; }
for tool in ip curl python3; do
    command -v "$tool" > /dev/null || { echo "$tool is missing" >&2; exit 2; }
done

deadline=$((SECONDS + 300))
east=lifeboat-east-$$
west=lifeboat-west-$$
east_ip=10.231.77.1
west_ip=10.231.77.2
directory=$(mktemp -d)
pids=()
passed=

clean_up() {
    trap - EXIT INT TERM
    if [ -z "$passed" ]; then
        for log in "$directory"/*.log; do
            echo "--- the end of $log" >&2
            tail -n 15 "$log" >&2 || true
        done
    fi
    for pid in "${pids[@]}"; do
        kill -9 "$pid" 2> /dev/null || true
        wait "$pid" 2> /dev/null || true
    done
    ip netns del "$east" 2> /dev/null || true
    ip netns del "$west" 2> /dev/null || true
    rm -rf "$directory"
}
trap clean_up EXIT
trap 'exit 130' INT TERM

fail() {
    echo "FAILED: $*" >&2
    exit 1
}

# until_true SECONDS WHAT COMMAND...: waits until a command succeeds.
until_true() {
    local end=$((SECONDS + $1)) what=$2
    shift 2
    until "$@"; do
        [ $SECONDS -lt $end ] || fail "waited in vain for $what"
        [ $SECONDS -lt $deadline ] || fail "it took too long; at the end it waited for $what"
        sleep 0.2
    done
}

ip netns add "$east"
ip netns add "$west"
mkfifo "$directory/control"
python3 "$here/shuttle.py" "$east" "lbe$$" "$west" "lbw$$" "$directory/control" > "$directory/shuttle.log" 2>&1 &
pids+=($!)
until_true 10 "the link" grep -q ready "$directory/shuttle.log"
connect() {
    ip -n "$1" addr add "$3" peer "$4" dev "$2"
    ip -n "$1" link set "$2" up
    ip -n "$1" link set lo up
}
connect "$east" "lbe$$" $east_ip $west_ip
connect "$west" "lbw$$" $west_ip $east_ip

# Says something to the link.
link() { echo "$*" > "$directory/control"; }

# member NAMESPACE IP NUMBER FLAGS...: starts a member.
member() {
    local namespace=$1 address=$2 number=$3
    shift 3
    ip netns exec "$namespace" "$program" serve --name "n$number" --data-dir "$directory/n$number" \
        --client-listen "$address:740$number" --peer-listen "$address:741$number" "$@" \
        > "$directory/n$number.log" 2>&1 &
    pids+=($!)
}

# ask NAMESPACE IP NUMBER TARGET [FLAGS...]: asks a member from within its own namespace.
ask() {
    local namespace=$1 url="http://$2:740$3$4"
    shift 4
    ip netns exec "$namespace" curl -sf --max-time 5 "$@" "$url"
}
of_east() { ask "$east" $east_ip 1 "$@"; }
of_mirror() { ask "$west" $west_ip 4 "$@"; }
ready() { ask "$1" "$2" "$3" /health/ready > /dev/null; }

# field NAME: a number in a status.
field() { python3 -c 'import json, sys; value = json.load(sys.stdin)[sys.argv[1]]; print(-1 if value is None else value)' "$1"; }

member "$east" $east_ip 1 --site east --bootstrap
until_true 30 "n1 to be ready" ready "$east" $east_ip 1
member "$east" $east_ip 2 --site east --join "http://$east_ip:7411"
member "$east" $east_ip 3 --site east --join "http://$east_ip:7411"
until_true 30 "n2 to be ready" ready "$east" $east_ip 2
until_true 30 "n3 to be ready" ready "$east" $east_ip 3
link delay 50
member "$west" $west_ip 4 --site west --role mirror --join "http://$east_ip:7411"
until_true 60 "the mirror to be ready" ready "$west" $west_ip 4

round=0
write() {
    local number
    round=$((round + 1))
    for number in $(seq 1 25); do
        of_east "/v1/kv/k$number" -X PUT --data "round $round, value $number $(printf 'x%.0s' {1..500})" > /dev/null ||
            fail "a write in the primary site failed in round $round"
    done
}

caught_up() {
    local ours theirs lag status
    ours=$(of_east /v1/status | field revision) || return 1
    status=$(of_mirror /v1/status) || return 1
    theirs=$(field revision <<< "$status")
    lag=$(field lag_seconds <<< "$status")
    [ "$ours" = "$theirs" ] && python3 -c "exit(not 0 <= $lag < 1.0)"
}
behind() { ! caught_up; }

# check WHAT SECONDS: the mirror comes back to no lag, with equal content.
check() {
    local began=$SECONDS revision
    until_true "$2" "the mirror to follow $1" caught_up
    revision=$(of_east /v1/status | field revision)
    of_east "/v1/keys?consistency=stale&rev=$revision" -H 'Accept: application/x-ndjson' > "$directory/east"
    of_mirror "/v1/keys?consistency=stale&rev=$revision" -H 'Accept: application/x-ndjson' > "$directory/west"
    [ "$(wc -l < "$directory/east")" -ge 26 ] || fail "the content of the primary site is not there"
    cmp -s "$directory/east" "$directory/west" || fail "the content differs $1"
    echo "ok: $1 (no lag after $((SECONDS - began)) s, revision $revision)"
}

# The mirror must know that it lags: its lag is more than so many seconds, or unknown.
lags() {
    local lag
    lag=$(of_mirror /v1/status | field lag_seconds) || return 1
    python3 -c "exit(not ($lag < 0 or $lag > $1))"
}

took=$(ip netns exec "$west" python3 -c "
import socket, time
began = time.monotonic()
socket.create_connection(('$east_ip', 7411), timeout=5)
print(int((time.monotonic() - began) * 1000))")
[ "$took" -ge 100 ] || fail "the round trip is $took ms: the link does not delay"
write
check "with 50 ms each way (a connection took $took ms)" 30

link loss 20
write
check "with 20% of all packets lost" 90
link loss 0
check "after the loss" 60

link drop a
write
until_true 20 "the mirror to know that it lags, when nothing reaches it" lags 2
behind || fail "the mirror followed although nothing reached it"
link drop none
check "after nothing came from the primary site" 60

link drop b
write
until_true 20 "the mirror to know that it lags, when nothing of it arrives" lags 2
link drop none
check "after nothing came from the mirror" 60

ip -n "$west" link set "lbw$$" down
write
until_true 20 "the mirror to know that it lags, when the link is down" lags 2
behind || fail "the mirror followed over a link that is down"
ip -n "$west" link set "lbw$$" up
check "after the link was down" 60

link delay 100
write
check "with 100 ms each way" 30
passed=yes
echo "passed in $SECONDS s"
