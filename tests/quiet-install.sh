#!/bin/sh
# Installs Debian packages, as root: tests/quiet-install.sh PACKAGE... Installed packages are not upgraded.
#
# Debian starts the servers that it installs, and again at boot. Here they must not occupy ports: a temporary policy prevents the
# start, and newly enabled services are disabled again, however this script ends.
set -eu
policy=/usr/sbin/policy-rc.d
list=$(mktemp -d)

# Lists what the system starts at boot: systemd's links and init scripts.
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
            # This removes the links whether or not systemd is running.
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
