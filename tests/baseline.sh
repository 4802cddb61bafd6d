#!/bin/sh
# The baseline of instructions moves in commits of its own only: tests/baseline.sh, at the root of the repository. A commit that changes
# code and the baseline with it would take whatever it costs for granted, and many small steps would go unseen. How the pieces are
# counted (proxy/benches/) may change with the baseline.
#
# Looks at the commits since this script was added, as far as the clone has them: a shallow one begins later.
set -eu

if ! git rev-parse --is-inside-work-tree >/dev/null; then
    echo "*** baseline: this is no clone, so its commits are NOT looked at" >&2
    exit 0
fi
added=$(git log -1 --diff-filter=A --format=%H -- tests/baseline.sh)
wrong=
for commit in $(git log --full-history --no-merges --format=%h "$added..HEAD" -- proxy/benches/instructions.txt); do
    others=$(git diff-tree --no-commit-id --name-only -r "$commit" | grep -v '^proxy/benches/' || true)
    [ -z "$others" ] || wrong="$wrong
$(git log -1 --format='%h %s' "$commit")
$(echo "$others" | sed 's/^/    /')"
done
if [ -n "$wrong" ]; then
    echo "error: proxy/benches/instructions.txt must change in a commit of its own, and here it did not:$wrong" >&2
    exit 1
fi
[ "$(git rev-parse --is-shallow-repository)" = false ] ||
    echo "baseline: in this shallow clone, only $(git rev-list --count HEAD) commits were looked at" >&2
