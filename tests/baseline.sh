#!/bin/sh
# Checks that the baseline of instructions only changes in separate commits. Run it as tests/baseline.sh from the root of the
# repository. A commit that changed code together with the baseline would hide its cost, and many small regressions would go unnoticed.
# The benchmarks themselves (proxy/benches/), and how they are counted (tests/instructions.sh), may change with the baseline.
#
# Checks the commits since this script was added, as far as the clone has them: a shallow clone has fewer.
set -eu

if ! git rev-parse --is-inside-work-tree >/dev/null; then
    echo "*** baseline: not a git clone, so its commits are NOT checked" >&2
    exit 0
fi
added=$(git log -1 --diff-filter=A --format=%H -- tests/baseline.sh)
wrong=
for commit in $(git log --full-history --no-merges --format=%h "$added..HEAD" -- proxy/benches/instructions.txt); do
    others=$(git diff-tree --no-commit-id --name-only -r "$commit" | grep -v -e '^proxy/benches/' -e '^tests/instructions.sh$' || true)
    [ -z "$others" ] || wrong="$wrong
$(git log -1 --format='%h %s' "$commit")
$(echo "$others" | sed 's/^/    /')"
done
if [ -n "$wrong" ]; then
    echo "error: proxy/benches/instructions.txt must change in a separate commit, but was changed with other files in:$wrong" >&2
    exit 1
fi
[ "$(git rev-parse --is-shallow-repository)" = false ] ||
    echo "baseline: only $(git rev-list --count HEAD) commits were checked in this shallow clone" >&2
