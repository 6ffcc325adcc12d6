#!/usr/bin/env bash
# A sparse raw image of qemu-img on XFS takes 1 MiB for each scattered write of 4 KiB.
#
# Versions: qemu-img and qemu-io 10.0.2, XFS made by xfsprogs 6.1.0 (in a loop-mounted file; root).
# One would guess: a raw image is sparse, and 1 MiB of scattered data takes about 1 MiB (as a file made by truncate does).
# What happens: qemu-img gives each file that it creates an extent size hint of 1 MiB (extent_size_hint, also where nobody asks). XFS then allocates
#   1 MiB for a block that was not there. Guests that write in order gain, guests that write here and there take up to 256 times the space, and
#   `qemu-img info` tells of no hint.
# Seen: "256 writes of 4 KiB: 1 MiB in a file of truncate, 256 MiB in one of qemu-img, 1 with extent_size_hint=0"
set -euo pipefail
dir=$(mktemp -d)
trap 'cd /; umount "$dir/mount" 2> /dev/null || true; rm -rf "$dir"' EXIT
cd "$dir"
if ! command -v mkfs.xfs > /dev/null; then
    mkdir -p debs/partial root
    apt-get -qq -y --no-install-recommends -d -o Dir::Cache::archives="$dir/debs" install xfsprogs=6.1.0-1 > apt.log 2>&1
    for deb in debs/*.deb; do dpkg -x "$deb" root; done
    libraries=$(find "$dir/root" -name '*.so*' -printf '%h\n' | sort -u | paste -sd:)
    mkfs.xfs() { LD_LIBRARY_PATH="$libraries" "$dir/root/sbin/mkfs.xfs" "$@"; }
fi
truncate -s 1G image
mkfs.xfs -q image
mkdir mount
mount -o loop image mount
cd mount
truncate -s 4G plain.raw
qemu-img create -q -f raw hinted.raw 4G
qemu-img create -q -f raw -o extent_size_hint=0 unhinted.raw 4G
for n in $(seq 0 255); do echo "write -q $((n * 16777216)) 4096"; done > ../writes
taken=()
for file in plain hinted unhinted; do
    qemu-io -f raw "$file.raw" < ../writes > /dev/null
    taken+=($(($(stat -c '%b * %B' "$file.raw") / 1048576)))
    rm "$file.raw"
done
echo "256 writes of 4 KiB: ${taken[0]} MiB in a file of truncate, ${taken[1]} MiB in one of qemu-img, ${taken[2]} with extent_size_hint=0"
if ((taken[0] > 8 || taken[1] < 200 || taken[2] > 8)); then
    echo "changed: this is not what was seen with QEMU 10.0.2 on XFS"
    exit 1
fi
