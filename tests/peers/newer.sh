#!/bin/sh
# Fetches nginx and HAProxy as Debian's unstable suite has them, with the libraries that they need, into a folder:
#
#   tests/peers/newer.sh FOLDER
#
# Nothing is installed: apt resolves and downloads in the folder, the packages are unpacked there, and FOLDER/nginx and FOLDER/haproxy
# start what they contain with its own loader and libraries. The mirror is the one that this machine's Debian comes from.
set -eu
folder=$1
mkdir -p "$folder"
folder=$(cd "$folder" && pwd)
[ -x "$folder/nginx" ] && [ -x "$folder/haproxy" ] && exit 0

mirror=$(apt-get indextargets --format '$(REPO_URI) $(LABEL)' 'Created-By: Packages' | sed -n 's/ Debian$//p' | head -1)
keys=/usr/share/keyrings/debian-archive-keyring.gpg
if [ -z "$mirror" ] || ! [ -f "$keys" ]; then
    echo "error: this is no Debian, or its package lists are missing (apt-get update)" >&2
    exit 1
fi
mkdir -p "$folder/lists/partial" "$folder/archives/partial" "$folder/root"
echo "deb [signed-by=$keys] $mirror sid main" > "$folder/sources.list"
# An empty status file: as if nothing were installed, so that all libraries come too.
cat > "$folder/apt.conf" <<END
Dir::State "$folder";
Dir::State::status "/dev/null";
Dir::Cache "$folder";
Dir::Etc::sourcelist "$folder/sources.list";
Dir::Etc::sourceparts "/dev/null";
Dir::Etc::preferencesparts "/dev/null";
Acquire::Languages "none";
Acquire::IndexTargets::deb::DEP-11::DefaultEnabled "false";
APT::Sandbox::User "root";
END
export APT_CONFIG="$folder/apt.conf"
apt-get -qq update
apt-get -qq install --yes --download-only --no-install-recommends nginx haproxy
for package in "$folder"/archives/*.deb; do
    dpkg-deb --extract "$package" "$folder/root"
done
rm -rf "$folder/archives" "$folder/lists"
for program in nginx haproxy; do
    cat > "$folder/$program" <<END
#!/bin/sh
exec "$folder/root/usr/lib64/ld-linux-x86-64.so.2" --library-path "$folder/root/usr/lib/x86_64-linux-gnu" "$folder/root/usr/sbin/$program" "\$@"
END
    chmod +x "$folder/$program"
    "$folder/$program" -v
done
