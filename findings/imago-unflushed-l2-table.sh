#!/usr/bin/env bash
# imago: the data of a process that ends without a flush is gone, and the image has L2 tables that nobody counts.
#
# Versions: imago 0.2.6; qemu-img and qemu-io 10.0.2 as the judges.
# One would guess: without a flush the last writes may be lost, and the image stays sound or leaks, since the write was acknowledged and the
#   library orders its metadata.
# What happens: after a write that returned, and an ordinary end of the process, the L1 entry on disk leads to an L2 table whose refcount is 0
#   and which holds nothing: `qemu-img check` has two errors (exit code 2), so the next program may give that table's cluster to data.
# Seen: "check: exit code 2, ERROR cluster 4 refcount=0 reference=1", "data: not there"
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
cd "$dir"
cargo -q new --vcs none trial
cd trial
cat > Cargo.toml <<'T'
[package]
name = "trial"
version = "0.0.0"
edition = "2021"
[dependencies]
imago = "=0.2.6"
tokio = { version = "=1.47.1", features = ["rt"] }
T
cat > src/main.rs <<'R'
use imago::{file::File, qcow2::Qcow2, FormatAccess, FormatDriverBuilder, PermissiveImplicitOpenGate};

fn main() -> std::io::Result<()> {
    tokio::runtime::Builder::new_current_thread().build()?.block_on(async {
        let disk = Qcow2::<File>::builder_path("../x.qcow2").write(true);
        let disk = FormatAccess::new(disk.open(PermissiveImplicitOpenGate::default()).await?);
        disk.write(&[0xaa; 65536][..], 0).await
    })
}
R
qemu-img create -q -f qcow2 ../x.qcow2 1G
cargo build -q
cargo run -q
cd ..
code=0; qemu-img check x.qcow2 > check.log 2>&1 || code=$?
counts=$(grep -c 'ERROR cluster 4 refcount=0 reference=1' check.log || true)
data=there; qemu-io -r -c 'read -q -P 0xaa 0 64k' x.qcow2 > io.log 2>&1 || data="not there"
grep -q 'verification failed' io.log && data="not there"
echo "check: exit code $code, uncounted L2 table: $counts; data: $data"
if [ "$code $counts $data" != "2 1 not there" ]; then
    echo "changed: this is not what was seen with imago 0.2.6"
    exit 1
fi
