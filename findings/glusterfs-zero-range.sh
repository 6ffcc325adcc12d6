#!/usr/bin/env bash
# GlusterFS answers 0 to fallocate's ZERO_RANGE and leaves the old bytes where they are.
#
# Versions: glusterfs 10.3 (root; installed if it is missing), Linux 6.18, python3.
# One would guess: EOPNOTSUPP, as for the modes that it does not have (COLLAPSE, INSERT), or zeros.
# What happens: 0, at once, also in a single process over one folder without any network, and the bytes stay, in the mount and in the
#   brick. A program that takes the answer for zeros gives its user what was there before. PUNCH_HOLE makes zeros.
# Seen: "ZERO_RANGE answers 0, 8192 old bytes are left; PUNCH_HOLE answers 0, 0 are left"
set -euo pipefail
dir=$(mktemp -d)
trap 'umount "$dir/mount" 2> /dev/null || true; rm -rf "$dir"' EXIT
cd "$dir"
command -v glusterfs > /dev/null || apt-get -qq -y --no-install-recommends install glusterfs-client=10.3-5 > apt.log 2>&1
mkdir brick mount
printf 'volume posix\n  type storage/posix\n  option directory %s/brick\nend-volume\n' "$dir" > volume
glusterfs -f "$dir/volume" -l "$dir/log" "$dir/mount"
until mountpoint -q mount; do sleep 0.1; done
cat > zero.py <<'P'
import ctypes, os, sys
libc = ctypes.CDLL(None, use_errno=True)
libc.fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_long, ctypes.c_long]
def left(mode):
    fd = os.open("mount/file", os.O_RDWR | os.O_CREAT | os.O_TRUNC)
    os.write(fd, b"\xa5" * 65536)
    os.fsync(fd)
    answer = libc.fallocate(fd, mode, 4096, 8192)
    os.fsync(fd)
    os.close(fd)
    mount, brick = (open(folder + "/file", "rb").read()[4096:12288] for folder in ("mount", "brick"))
    assert mount == brick
    return answer, 8192 - mount.count(0)
print("ZERO_RANGE answers %d, %d old bytes are left; " % left(0x10) + "PUNCH_HOLE answers %d, %d are left" % left(0x03))
P
python3 zero.py | tee seen
if [ "$(cat seen)" != "ZERO_RANGE answers 0, 8192 old bytes are left; PUNCH_HOLE answers 0, 0 are left" ]; then
    echo "changed: this is not what was seen with glusterfs 10.3"
    exit 1
fi
