#!/usr/bin/env bash
# The API, one curl after the other, each checked. Run it against `make run`, or name one member's address:
#
#   examples/curl_tour.sh [http://127.0.0.1:7400]
#
# It writes only keys that begin with "tour/", and removes them at the end.
set -euo pipefail

member=${1:-http://127.0.0.1:7400}
kv=$member/v1/kv/tour

# Runs curl and checks the status: want 201 -X PUT … prints the body.
want() {
    local status=$1 reply
    shift
    reply=$(curl --silent --show-error --write-out '\n%{http_code}' "$@")
    if [[ ${reply##*$'\n'} != "$status" ]]; then
        echo "expected $status, got ${reply##*$'\n'}: curl $*" >&2
        echo "${reply%$'\n'*}" >&2
        exit 1
    fi
    echo "${reply%$'\n'*}"
}

field() {
    sed -n "s/.*\"$1\":\([0-9]*\).*/\1/p"
}

echo "# nothing is left of an earlier tour"
want 200 -X DELETE "$member/v1/keys?prefix=tour/"

echo "# created, then replaced"
want 201 -X PUT -d 'one' "$kv/a"
first=$(want 200 -H 'Accept: application/json' "$kv/a" | field mod_revision)
want 200 -X PUT -d 'two' "$kv/a"

echo "# the newest value, and the one before"
want 200 "$kv/a"
want 200 "$kv/a?rev=$first"

echo "# conditions"
want 412 -X PUT -H 'If-None-Match: *' -d 'three' "$kv/a"
want 412 -X PUT -H "If-Match: \"$first\"" -d 'three' "$kv/a"
now=$(want 200 -H 'Accept: application/json' "$kv/a" | field mod_revision)
want 200 -X PUT -H "If-Match: \"$now\"" -d 'three' "$kv/a"

echo "# a key is any bytes"
want 201 -X PUT -d 'slash' "$kv/x%2Fy"
want 201 -X PUT -d 'zero' "$kv/%00"

echo "# ranges"
want 200 "$member/v1/keys?prefix=tour/&limit=2"
want 200 -H 'Accept: application/x-ndjson' "$member/v1/keys?prefix=tour/&keys_only=true"

echo "# without asking the leader"
want 200 "$kv/a?consistency=stale&max_lag=1m"

echo "# the cluster"
want 200 "$member/v1/status"
want 200 "$member/v1/role"
want 200 "$member/health/ready"

echo "# gone"
want 200 -X DELETE "$kv/a"
want 404 "$kv/a"
want 200 -X DELETE "$member/v1/keys?prefix=tour/"
echo "# all as expected"
