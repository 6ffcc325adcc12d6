#!/usr/bin/env bash
# vhost-user-blk servers side by side, one front end: bench/vhost.sh FOLDER [SECONDS] [ROUNDS]
#
# An image of random bytes in FOLDER, served by quod and by qemu-storage-daemon, as qcow2 and as a raw file; each run has a copy of its own, which is
# in the page cache (a clone would not be). `vhost-load` (bench/vhost) is the front end. Servers take turns, ROUNDS times; the table has the
# medians of requests a second, p50, p99, and the server's processor time a
# request. QUOD, LOAD: the programs (default: the release build of this tree). SIZE: MiB of the image (512). DIRECT=1: past the page cache, too.
# SERVERS: only these.
# Needs qemu-utils (qemu-storage-daemon), python3.
set -euo pipefail
folder=${1:?a folder to work in}
seconds=${2:-3}
rounds=${3:-3}
size=${SIZE:-512}
top=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
quod=$(realpath "${QUOD:-$top/target/release/quod}")
load=$(realpath "${LOAD:-$top/target/release/vhost-load}")
[ -x "$quod" ] && [ -x "$load" ] || cargo build --release --manifest-path "$top/Cargo.toml" -p quod-cli -p quod-vhost-load
cd "$folder"
pid=''
trap '[ -z "$pid" ] || kill "$pid"; rm -f vhost-base.* vhost-run.* vhost.sock vhost-results' EXIT
head -c "${size}M" /dev/urandom > vhost-base.raw
qemu-img convert -f raw -O qcow2 vhost-base.raw vhost-base.qcow2
: > vhost-results

serve() {
    local direct=() cache=off
    case $1 in *-direct) direct=(--direct) cache=on ;; esac
    case $1 in
    quod-registered*) exec "$quod" serve vhost-user "${direct[@]}" --register-memory -k vhost.sock vhost-run.qcow2 > /dev/null ;;
    quod-raw*) exec "$quod" serve vhost-user "${direct[@]}" -f raw -k vhost.sock vhost-run.raw > /dev/null ;;
    quod*) exec "$quod" serve vhost-user "${direct[@]}" -k vhost.sock vhost-run.qcow2 > /dev/null ;;
    storage-daemon-raw*)
        exec qemu-storage-daemon --blockdev "driver=file,filename=vhost-run.raw,node-name=q,aio=io_uring,cache.direct=$cache" \
            --export type=vhost-user-blk,id=e,node-name=q,writable=on,addr.type=unix,addr.path=vhost.sock ;;
    storage-daemon*)
        exec qemu-storage-daemon --blockdev "driver=file,filename=vhost-run.qcow2,node-name=f,aio=io_uring,cache.direct=$cache" \
            --blockdev "driver=qcow2,file=f,node-name=q,cache.direct=$cache" \
            --export type=vhost-user-blk,id=e,node-name=q,writable=on,addr.type=unix,addr.path=vhost.sock ;;
    esac
}

run() {
    local server=$1 rw=$2 bs=$3 depth=$4
    local form=qcow2
    case $server in *raw*) form=raw ;; esac
    rm -f vhost.sock vhost-run.*
    cp --reflink=never "vhost-base.$form" "vhost-run.$form"
    # else the copy is written back while it is measured
    sync "vhost-run.$form"
    serve "$server" &
    pid=$!
    until [ -S vhost.sock ]; do sleep 0.05; done
    sleep 0.2
    echo "$rw $bs $depth $server $("$load" --socket vhost.sock --rw "$rw" --bs "$bs" --depth "$depth" --seconds "$seconds")" >> vhost-results
    kill "$pid"
    wait "$pid" || true
    pid=''
}

servers=(quod storage-daemon quod-raw storage-daemon-raw)
[ -z "${DIRECT:-}" ] || servers+=(quod-direct quod-registered-direct storage-daemon-direct quod-raw-direct storage-daemon-raw-direct)
[ -z "${SERVERS:-}" ] || read -ra servers <<< "$SERVERS"
for ((round = 0; round < rounds; round++)); do
    for job in "randread 4096 64" "randwrite 4096 64" "randread 4096 1" "read 262144 16"; do
        for server in "${servers[@]}"; do
            run "$server" $job
        done
    done
done
python3 - << 'TABLE'
import json
from collections import defaultdict
from statistics import median
found = defaultdict(list)
for line in open("vhost-results"):
    rw, bs, depth, server, told = line.split(" ", 4)
    found[f"{rw} {int(bs) // 1024}k, depth {depth}", server].append(json.loads(told))
print("| work | server | requests/s | p50, us | p99, us | server, us a request | front end, us |")
print("| --- | --- | ---: | ---: | ---: | ---: | ---: |")
for (work, server), runs in found.items():
    of = lambda name: median(run[name] for run in runs)
    print(f"| {work} | {server} | {of('iops'):,.0f} | {of('p50_us'):,.0f} | {of('p99_us'):,.0f} | {of('server_us'):.1f} | {of('client_us'):.1f} |")
TABLE
