#!/usr/bin/env bash
# fio: sync=1 with the nbd engine is not an error and sends nothing: neither FUA nor flush reaches the server.
#
# Versions: fio 3.33 (Debian 3.33-3; the installed one, if it is that), qemu-nbd 10.0.2, strace 6.1.
# One would guess: as with O_SYNC for files, a write is durable when it completes; NBD has a flag for it (FUA), and the server offers it.
# What happens: for 100 writes with sync=1 qemu-nbd never calls fdatasync(2), but when it ends; with fsync=1 it does 99 times.
# Seen: "syncs at the server for 100 writes: 1 with sync=1, 100 with fsync=1"; one of each is from the end of the server
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
cd "$dir"
if [ "$(fio --version 2> /dev/null || true)" != fio-3.33 ]; then
    mkdir -p debs/partial root
    apt-get -qq -y --no-install-recommends -d -o Dir::Cache::archives="$dir/debs" install fio=3.33-3 > apt.log 2>&1
    for deb in debs/*.deb; do dpkg -x "$deb" root; done
    LD_LIBRARY_PATH=$(find "$dir/root" -name '*.so*' -printf '%h\n' | sort -u | paste -sd:)
    export LD_LIBRARY_PATH PATH="$dir/root/usr/bin:$PATH"
fi
truncate -s 64M disk
# two connections: the engine makes one for the size and one for the requests
served() {
    rm -f socket
    strace -f -o "calls.$1" -e trace=fdatasync,pwrite64 timeout 60 qemu-nbd -t -f raw -k "$dir/socket" disk &
    for _ in $(seq 100); do [ -S socket ] && break; sleep 0.1; done
    fio --name=x --ioengine=nbd --uri="nbd+unix:///?socket=$dir/socket" --rw=write --bs=4k --size=1M --number_ios=100 \
        "--$1" > fio.log
    kill "$(pgrep -P "$(pgrep -P $!)" || pgrep -P $!)"
    wait $! || true
    grep -c fdatasync "calls.$1" || true
}
sync=$(served sync=1); fsync=$(served fsync=1)
echo "syncs at the server for 100 writes: $sync with sync=1, $fsync with fsync=1"
# one more than what fio asks for, when the server ends
if ((sync > 1 || fsync < 99)); then
    echo "changed: this is not what was seen with fio 3.33"
    exit 1
fi
