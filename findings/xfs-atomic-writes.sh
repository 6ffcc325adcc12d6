#!/usr/bin/env bash
# XFS with reflink says that it writes large units atomically, on a device that cannot; ext4 on the same device says that it cannot.
#
# Versions: Linux 6.18, XFS made by xfsprogs 6.1.0 and ext4 (in loop-mounted files; root), a C compiler.
# One would guess: statx(2)'s atomic_write_unit_max is what the hardware does, so it is 0 where the queue's atomic_write_max_bytes is 0.
# What happens: the file system does it by writing elsewhere and remapping, and reports units far beyond a block; only
#   atomic_write_unit_max_opt, a later field, is 0 and says that no hardware helps. Who takes the first field for "fast" is wrong.
# Seen: "device: 0 bytes; XFS: units from 4096 to 1048576, by hardware 0; ext4: 0"
set -euo pipefail
dir=$(mktemp -d)
trap 'umount "$dir/xfs" "$dir/ext4" 2> /dev/null || true; rm -rf "$dir"' EXIT
cd "$dir"
if ! command -v mkfs.xfs > /dev/null; then
    mkdir -p debs/partial root
    apt-get -qq -y --no-install-recommends -d -o Dir::Cache::archives="$dir/debs" install xfsprogs=6.1.0-1 > apt.log 2>&1
    for deb in debs/*.deb; do dpkg -x "$deb" root; done
    libraries=$(find "$dir/root" -name '*.so*' -printf '%h\n' | sort -u | paste -sd:)
    mkfs.xfs() { LD_LIBRARY_PATH="$libraries" "$dir/root/sbin/mkfs.xfs" "$@"; }
fi
mkdir xfs ext4
truncate -s 400M xfs.image ext4.image
mkfs.xfs -q -m reflink=1 xfs.image
mkfs.ext4 -q ext4.image
mount -o loop xfs.image xfs
mount -o loop ext4.image ext4
cat > units.c <<'C'
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

int main(int argc, char **argv)
{
    unsigned char answer[256] = {0};
    unsigned unit[3];
    if (argc < 2 || syscall(SYS_statx, AT_FDCWD, argv[1], 0, 0x10000 /* STATX_WRITE_ATOMIC */, answer)) return 2;
    memcpy(&unit[0], answer + 0xa8, 8); /* stx_atomic_write_unit_min, _max */
    memcpy(&unit[2], answer + 0xb8, 4); /* stx_atomic_write_unit_max_opt */
    printf("%u %u %u\n", unit[0], unit[1], unit[2]);
    return 0;
}
C
cc -O1 -Wall -o units units.c
touch xfs/file ext4/file
loop=$(findmnt -no SOURCE xfs)
device=$(cat "/sys/block/${loop##*/}/queue/atomic_write_max_bytes")
read -r min max opt < <(./units xfs/file)
read -r _ other _ < <(./units ext4/file)
echo "device: $device bytes; XFS: units from $min to $max, by hardware $opt; ext4: $other"
if ((device != 0 || max < 4096 || opt != 0 || other != 0)); then
    echo "changed: this is not what was seen with Linux 6.18"
    exit 1
fi
