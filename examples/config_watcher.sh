#!/usr/bin/env bash
# Follows a configuration under a prefix and calls a command whenever it has changed, with curl and a shell alone.
#
#   examples/config_watcher.sh http://127.0.0.1:7400 config/ 'echo changed at revision $REVISION'
#
# First the keys are read, then the changes behind that reading are watched, so that nothing falls in between. When the
# stream ends, whatever ended it, it is begun again behind the last revision that was told. When changes were lost (410,
# or an end with "compacted"), the keys are read anew.
set -euo pipefail

endpoint=${1:-http://127.0.0.1:7400}
prefix=${2:-config/}
command=${3:-'echo "the configuration has changed at revision $REVISION"'}
pause=1

# The revision of an event, which stands behind its type.
revision_of() { sed -n 's/^{"type":"[a-z]*","revision":\([0-9]*\).*/\1/p' <<<"$1"; }

# Prints the revision of what was read.
read_all() {
    local page
    page=$(curl -fsS --retry 10 --retry-connrefused --max-time 20 "$endpoint/v1/keys?prefix=$prefix&limit=1&keys_only=true")
    # The page's own revision stands first.
    sed -n 's/^{"revision":\([0-9]*\).*/\1/p' <<<"$page"
}

revision=$(read_all)
REVISION=$revision sh -c "$command"

while true; do
    # A member that is silent for three heartbeats is no use: --speed-time ends the stream then.
    while IFS= read -r line; do
        case $line in
            '{"type":"change"'*)
                revision=$(revision_of "$line")
                REVISION=$revision sh -c "$command"
                ;;
            '{"type":"heartbeat"'*) revision=$(revision_of "$line") ;;
            '{"type":"end","reason":"compacted"'* | *'urn:lifeboat:problem:compacted'*)
                echo "changes were lost; reading the keys anew" >&2
                revision=$(read_all)
                REVISION=$revision sh -c "$command"
                ;;
        esac
    done < <(curl -sSN --speed-limit 1 --speed-time 16 -H 'Accept: application/x-ndjson' \
        "$endpoint/v1/watch?prefix=$prefix&since=$revision&heartbeat=5s" || true; echo)
    sleep "$pause"
done
