#!/usr/bin/env bash
# The whole circle of disaster recovery on this machine: three voters in "east" and two mirrors in "west", a planned move
# there and back, the loss of east with writes that only east had, a forced failover to west, the return of east, the stranded
# writes brought back, and home again. Everything is checked; the first thing that is not as it should be ends it with 1.
#
#   examples/dr_drill.sh [DIRECTORY]        data and logs go there and stay; a temporary directory, removed, by default
#
# It needs the program and nothing else. LIFEBOAT names it, HOST is the loopback address, BASE_PORT the first port (two for
# each member). Takes about half a minute. What each command means: docs/disaster-recovery.md.
set -euo pipefail

lifeboat=${LIFEBOAT:-target/debug/lifeboat}
host=${HOST:-127.0.0.1}
base_port=${BASE_PORT:-7600}
keep=${1:-}
dir=${keep:-$(mktemp -d)}
# Longer than anything here should take, on a machine that has other things to do.
patience=60

members=(n1 n2 n3 m1 m2)
east=(n1 n2 n3)
west=(m1 m2)
declare -A pid url number
for place in "${!members[@]}"; do
    name=${members[place]}
    number[$name]=$place
    url[$name]=http://$host:$((base_port + 10 * place))
done
all=${url[n1]},${url[n2]},${url[n3]},${url[m1]},${url[m2]}
# Whom the commands ask, unless they name somebody.
export LIFEBOAT_ENDPOINTS=$all

# Members end with this script, however that ends: they read from here, and stop when nobody can write any more.
mkdir -p "$dir"
rm -f "$dir/alive"
mkfifo "$dir/alive"
exec 9<>"$dir/alive"

say() { printf '\n== %s\n' "$*"; }

fail() {
    echo "NOT AS IT SHOULD BE: $*" >&2
    exit 1
}

# Stops what still runs, and removes what nobody asked to keep. After a failure the data and the logs stay.
finish() {
    local code=$?
    trap - EXIT INT TERM
    for name in "${!pid[@]}"; do
        kill "${pid[$name]}" 2>/dev/null || true
    done
    wait
    rm -f "$dir/alive"
    if [[ $code == 0 && -z $keep ]]; then
        rm -rf "$dir"
    else
        echo "data and logs are in $dir" >&2
    fi
    exit "$code"
}
trap finish EXIT
trap 'exit 130' INT TERM

# start NAME [FLAG…]: as a service would, with the same flags each time but for those of the very first start.
start() {
    local name=$1 port=$((base_port + 10 * ${number[$1]})) place=(--site east)
    shift
    [[ $name == m* ]] && place=(--site west --role mirror)
    "$lifeboat" serve --name "$name" "${place[@]}" --data-dir "$dir/$name" --exit-with-parent \
        --client-listen "$host:$port" --peer-listen "$host:$((port + 1))" "$@" \
        <"$dir/alive" 9>&- >>"$dir/$name.log" 2>&1 &
    pid[$name]=$!
}

# As a power cut: nothing is flushed, nobody is told.
power_cut() {
    for name in "$@"; do
        kill -9 "${pid[$name]}"
        wait "${pid[$name]}" 2>/dev/null || true
        unset "pid[$name]"
    done
}

# Shows a command as a person would type it, and what it prints. Its exit code must be the one in $want (0).
run() {
    local code=0
    echo "\$ lifeboat $*"
    "$lifeboat" "$@" -o table 2>&1 || code=$?
    [[ $code == "${want:-0}" ]] || fail "it ended with $code, and not with ${want:-0}"
}

# until_ok WHAT COMMAND…: again and again until it succeeds.
until_ok() {
    local what=$1 begun=$SECONDS
    shift
    until "$@" >/dev/null 2>&1; do
        ((SECONDS - begun < patience)) || fail "$what"
        sleep 0.1
    done
}

# fenced MEMBER…: they serve nothing, because history went on without them.
fenced() {
    local name
    for name in "$@"; do
        [[ $("$lifeboat" health ready -e "${url[$name]}") == *"is fenced"* ]] || return 1
    done
}

# value_is KEY VALUE [FLAG…]
value_is() {
    local is
    is=$("$lifeboat" get "$1" "${@:3}" 2>&1) || is="($is)"
    [[ $is == "$2" ]] || fail "$1 is $is, and not $2 ${*:3}"
}

# The cluster agrees that this site has the voters and the lead, and that nothing is missing for a move to the other.
primary_is() {
    local plan
    plan=$("$lifeboat" dr plan -o json) || return 1
    [[ $plan == *"\"primary_site\":\"$1\""* && $plan != *'"switchover":{'* ]] || return 1
    "$lifeboat" dr switchover --to "$2" --check
}

say "three voters in east, two mirrors in west"
start n1 --bootstrap
for name in n2 n3 m1 m2; do
    start "$name" --join "http://$host:$((base_port + 1))"
done
until_ok "the cluster did not come up" primary_is east west
run members

say "some data: orders, the stock, a payment, invoices with numbers of their own"
for number_of in 1 2 3; do
    run put "orders/$number_of" "ordered in east"
done
run put stock 10
run seq invoices --step 1000

say "east will be worked on: move the primary site to west, as planned. Nothing is lost"
run dr switchover --to west --check
run dr switchover --to west --by "${USER:-somebody}" --reason "work in east"
are() { [[ $("$lifeboat" members -o plain | grep -c $'\t'"$2"$'\t'"$3"$'\t') == "$1" ]]; }
until_ok "the members of east are no mirrors" are 3 east mirror
run put orders/4 "ordered while west led"

say "and home again"
until_ok "east is not ready to lead again" primary_is west east
run dr switchover --to east
until_ok "west is not ready to follow again" primary_is east west
run dr plan

say "what would a failover to west be like? A rehearsal, which touches nothing"
run dr drill --site west

say "the mirrors are sent nothing for a while, so that what is written now is in east alone"
run members suspend m1
run members suspend m2
run put orders/5 "only east had it"
run put stock 9
run put payments/7 "paid" --idempotency-key payment-7
run seq invoices

say "east is lost: a power cut of all its members"
power_cut "${east[@]}"
# Until its lease is over the leader counts as one that may live.
no_primary() { [[ $("$lifeboat" dr survey -e "${url[m1]}" -o json) == *'"primary":null'* ]]; }
until_ok "the primary did not go" no_primary
run dr plan -e "${url[m1]}"
run dr survey -e "${url[m1]}"

say "nothing is given up by accident"
want=1 run dr force -e "${url[m1]}"

say "west shall go on without it"
run dr force --accept-data-loss --by "${USER:-somebody}" --reason "east is gone" -e "${url[m1]}"
# Clients are pointed there; until then they find it by themselves, as long as they know an address that answers.
LIFEBOAT_ENDPOINTS=${url[m1]},${url[m2]}
run put orders/6 "ordered after the failover"
run put stock 20
# The client had no answer, and sends the same request again under its key.
run put payments/7 "paid" --idempotency-key payment-7
run seq invoices
value_is orders/4 "ordered while west led"
until_ok "the other member of west did not come home by itself" are 2 west voter
run dr plan

say "east has power again: its members learn that history went on without them"
for name in "${east[@]}"; do
    start "$name"
done
until_ok "the members of east are not fenced" fenced "${east[@]}"
run dr plan -e "${url[n1]}"
want=1 run health ready -e "${url[n1]}"
# Whoever knows nothing of the old timeline is led to where history went on.
value_is stock 20 -e "${url[n1]}"

verified() { "$lifeboat" events -e "${url[$1]}" -o plain | grep -qw verified; }
say "they come home as mirrors; what only they have is written to files first"
for name in "${east[@]}"; do
    run dr rejoin -e "${url[$name]}"
done
LIFEBOAT_ENDPOINTS=$all
until_ok "east is not home" primary_is west east
for name in "${east[@]}"; do
    until_ok "$name is not verified" verified "$name"
    "$lifeboat" events -e "${url[$name]}" -o table | grep -w -e salvaged -e rejoined -e verified
done

say "what was stranded: look first, then bring it back. A conflict is left to a person"
run salvage list
want=4 run salvage apply
want=4 run salvage apply --apply
value_is orders/5 "only east had it"
value_is stock 20
run verify

say "home: the primary site is east again"
[[ $("$lifeboat" dr plan -o plain) == *"lifeboat dr switchover --to east --check"* ]] || fail "the plan offers no way home"
run dr switchover --to east --by "${USER:-somebody}" --reason "home again"
until_ok "west does not follow" primary_is east west

say "all data are there, on every member"
run verify
for name in "${members[@]}"; do
    for number_of in 1 2 3; do
        value_is "orders/$number_of" "ordered in east" -e "${url[$name]}"
    done
    value_is orders/4 "ordered while west led" -e "${url[$name]}"
    value_is orders/5 "only east had it" -e "${url[$name]}"
    value_is orders/6 "ordered after the failover" -e "${url[$name]}"
    value_is stock 20 -e "${url[$name]}"
    value_is payments/7 paid -e "${url[$name]}"
done
run list
run dr plan
say "all as it should be, after $SECONDS s"
