#!/bin/sh
# Downloads nginx and HAProxy from Debian's unstable suite, with their libraries, into a folder:
#
#   tests/peers/newer.sh FOLDER
#
# Nothing is installed: apt downloads into the folder, the packages are unpacked there, and FOLDER/nginx and FOLDER/haproxy
# start the executables with their own loader and libraries. The mirror is this machine's.
set -eu
folder=$1
mkdir -p "$folder"
folder=$(cd "$folder" && pwd)
[ -x "$folder/nginx" ] && [ -x "$folder/haproxy" ] && exit 0

mirror=$(apt-get indextargets --format '$(REPO_URI) $(LABEL)' 'Created-By: Packages' | sed -n 's/ Debian$//p' | head -1)
keys=/usr/share/keyrings/debian-archive-keyring.gpg
if [ -z "$mirror" ] || ! [ -f "$keys" ]; then
    echo "error: this is not Debian, or its package lists are missing (run apt-get update)" >&2
    exit 1
fi
mkdir -p "$folder/lists/partial" "$folder/archives/partial" "$folder/root"
echo "deb [signed-by=$keys] $mirror sid main" > "$folder/sources.list"
# An empty status file makes apt download all libraries, as if nothing were installed.
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
