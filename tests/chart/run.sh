#!/usr/bin/env bash
# All tests of the chart, one after the other: run.sh [PROGRAM]. Without a program those that run members are left out.
# The tools must be there already (tests/chart/tools.py). Ends with how many passed.
set -euo pipefail

here=$(dirname "$(realpath "$0")")
python=$here/../../target/chart-tools/venv/bin/python
program=${1:-}
tests=(readme render refusals immutable rules obedience)
if [[ -n $program ]]; then
    program=$(realpath "$program")
    tests+=(metrics)
    # Not only whether somebody is root: a container may forbid it.
    probe=lifeboat-probe-$$
    if [[ $(id -u) == 0 ]] && ip netns add "$probe" 2> /dev/null \
        && ip link add "lbp$$" type veth peer name "lbq$$" netns "$probe" 2> /dev/null; then
        tests+=(upgrade lifecycle)
    else
        echo "left out: upgrade, lifecycle (they make network namespaces, which is not allowed here)" >&2
    fi
    ip link del "lbp$$" 2> /dev/null || true
    ip netns del "$probe" 2> /dev/null || true
fi

failed=()
for test in "${tests[@]}"; do
    echo "== tests/chart/$test.py"
    began=$SECONDS
    case $test in
        metrics | upgrade | lifecycle) "$python" "$here/$test.py" "$program" || failed+=("$test") ;;
        *) "$python" "$here/$test.py" || failed+=("$test") ;;
    esac
    echo "   ($((SECONDS - began)) s)"
done
echo "chart: $((${#tests[@]} - ${#failed[@]})) passed, ${#failed[@]} failed"
[[ ${#failed[@]} == 0 ]] || { echo "failed: ${failed[*]}" >&2; exit 1; }
