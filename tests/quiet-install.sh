#!/bin/sh
# Installs Debian packages, as root: tests/quiet-install.sh PACKAGE... What is there already stays as it is.
#
# Debian starts the servers that it installs, and starts them again with the machine. Here they must not take ports: a policy that
# forbids it is in place meanwhile, and what was enabled is disabled again, whichever way this ends.
set -eu
policy=/usr/sbin/policy-rc.d
list=$(mktemp -d)

# What the system starts with the machine: systemd's links, and the scripts that come before systemd.
started() {
    { find /etc/systemd/system -type l; find /etc/init.d -type f; } 2>/dev/null | sort
}

tidy() {
    trap '' HUP INT TERM
    started >"$list/after"
    comm -13 "$list/before" "$list/after" | while read -r new; do
        name=${new##*/}
        case $new in
            /etc/init.d/*) update-rc.d "$name" disable ;;
            # It removes the links whether systemd runs or not.
            *) deb-systemd-helper disable "$name" || rm -f "$new" ;;
        esac >/dev/null 2>&1 || true
    done
    [ ! -e "$list/ours" ] || rm -f "$policy"
    rm -rf "$list"
}

started >"$list/before"
trap tidy EXIT
trap 'exit 1' HUP INT TERM
if [ ! -e "$policy" ]; then
    touch "$list/ours"
    printf '#!/bin/sh\nexit 101\n' >"$policy"
    chmod +x "$policy"
fi
apt-get update -qq
DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends --no-upgrade "$@"
