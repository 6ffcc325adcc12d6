#!/usr/bin/env bash
# dissect.hypervisor takes the backing format's name in a version 2 header for feature bits.
#
# Versions: dissect.hypervisor 3.21; qemu-img 10.0.2 makes the images.
# One would guess: the header of version 2 has no feature bits, so an overlay of version 2 reads like one of version 3.
# What happens: the words behind byte 72 are taken for the features of version 3. In an overlay whose backing format is
#   named they are an extension: its length is the low word. "qcow2" has five letters, 5 has the bit for an external data
#   file, and the image is refused for the want of one. With "raw", three letters, it opens.
# Seen: "v2 over qcow2: needs a data file, not opened", "v2 over raw: opened", "v3 over qcow2: opened"
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
cd "$dir"
python3 -m venv venv
venv/bin/pip -q install --disable-pip-version-check dissect.hypervisor==3.21
qemu-img create -q -f raw base.raw 1M
qemu-img create -q -f qcow2 base.qcow2 1M
qemu-img create -q -f qcow2 -o compat=v2 -b base.qcow2 -F qcow2 v2-qcow2.qcow2
qemu-img create -q -f qcow2 -o compat=v2 -b base.raw -F raw v2-raw.qcow2
qemu-img create -q -f qcow2 -b base.qcow2 -F qcow2 v3-qcow2.qcow2
for image in v2-qcow2 v2-raw v3-qcow2; do qemu-img check -q "$image.qcow2"; done
cat > try.py <<'P'
import pathlib, sys
from dissect.hypervisor.disk.qcow2 import QCow2
seen = []
for name in ("v2-qcow2", "v2-raw", "v3-qcow2"):
    try:
        disk = QCow2(pathlib.Path(name + ".qcow2"))
        seen.append("opened" if disk.open().read(512) == bytes(512) else "wrong")
    except Exception:
        needs = QCow2(open(name + ".qcow2", "rb"), allow_no_data_file=True, allow_no_backing_file=True).needs_data_file
        seen.append("needs a data file, not opened" if needs else "not opened")
print("v2 over qcow2: %s\nv2 over raw: %s\nv3 over qcow2: %s" % tuple(seen))
if seen != ["needs a data file, not opened", "opened", "opened"]:
    sys.exit("changed: this is not what was seen with dissect.hypervisor 3.21")
P
venv/bin/python try.py
