#!/usr/bin/env bash
# dissect.hypervisor returns too few bytes, and what follows at the wrong place, for an overlay longer than its backing file.
#
# Versions: dissect.hypervisor 3.21; qemu-img and qemu-io 10.0.2 make the image.
# One would guess: behind the end of the backing file an overlay reads as zeros, as the format says; or the read fails.
# What happens: the run that goes over the end is as short as what the backing file had, and the overlay's own data that
#   follows is moved to where the zeros should be. There is no error.
# Seen: "read(3 MiB): 2097152 bytes", "the overlay's data of 2 MiB is at 1 MiB"
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
cd "$dir"
python3 -m venv venv
venv/bin/pip -q install --disable-pip-version-check dissect.hypervisor==3.21
qemu-img create -q -f raw base.raw 1M
qemu-io -f raw -c 'write -q -P 1 0 1M' base.raw
qemu-img create -q -f qcow2 -b base.raw -F raw over.qcow2 3M
qemu-io -c 'write -q -P 2 2M 1M' over.qcow2
qemu-io -r -c 'read -q -P 1 0 1M' -c 'read -q -P 0 1M 1M' -c 'read -q -P 2 2M 1M' over.qcow2
cat > try.py <<'P'
import pathlib, sys
from dissect.hypervisor.disk.qcow2 import QCow2
M = 1 << 20
got = QCow2(pathlib.Path("over.qcow2")).open().read(3 * M)
print(f"read(3 MiB): {len(got)} bytes")
moved = got == b"\1" * M + b"\2" * M
print("the overlay's data of 2 MiB is at 1 MiB" if moved else "not moved")
if not moved:
    sys.exit("changed: this is not what was seen with dissect.hypervisor 3.21")
P
venv/bin/python try.py
