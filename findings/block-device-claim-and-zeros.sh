#!/usr/bin/env bash
# fallocate on a block device: a process that has claimed it with one descriptor cannot zero what it wrote with another.
#
# Versions: Linux 6.18, a loop device (root), Python 3.
# One would guess: O_EXCL keeps other programs from claiming the device; what its owner does with its other descriptors is no matter.
# What happens: the kernel tells strangers by the descriptor, not by the process. Before it zeroes, it drops the page cache of the range;
#   without the claim it may only do so where nothing is dirty: FALLOC_FL_ZERO_RANGE (PUNCH_HOLE and BLKZEROOUT go the same way) fails
#   with EBUSY after a buffered write, and works after fsync, or on the descriptor that has the claim.
# Seen: "claim on another descriptor: EBUSY, after fsync: 0; on this one: 0"
set -euo pipefail
dir=$(mktemp -d)
trap 'losetup -d "$loop" 2> /dev/null || true; rm -rf "$dir"' EXIT
cd "$dir"
truncate -s 16M back
loop=$(losetup -f --show back)
cat > try.py <<'P'
import ctypes, errno, os, sys
libc = ctypes.CDLL(None, use_errno=True)
libc.fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_long, ctypes.c_long]
ZERO_RANGE = 0x10

def zero(fd):
    return "0" if libc.fallocate(fd, ZERO_RANGE, 0, 32768) == 0 else errno.errorcode[ctypes.get_errno()]

device = sys.argv[1]
claim = os.open(device, os.O_RDONLY | os.O_EXCL)
fd = os.open(device, os.O_RDWR)
os.pwrite(fd, b"a" * 65536, 0)
dirty = zero(fd)
os.fsync(fd)
clean = zero(fd)
os.close(fd)
os.close(claim)
fd = os.open(device, os.O_RDWR | os.O_EXCL)
os.pwrite(fd, b"a" * 65536, 0)
said = f"claim on another descriptor: {dirty}, after fsync: {clean}; on this one: {zero(fd)}"
print(said)
if said != "claim on another descriptor: EBUSY, after fsync: 0; on this one: 0":
    sys.exit("changed: this is not what was seen with Linux 6.18")
P
python3 try.py "$loop"
