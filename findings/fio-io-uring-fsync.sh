#!/usr/bin/env bash
# fio: with a queue depth, fsync=N sends several times as many syncs with io_uring as with libaio.
#
# Versions: fio 3.33 (Debian 3.33-3; the installed one, if it is that).
# One would guess: fsync=8 is a sync after every eighth write, whatever the engine: 256 writes, 31 syncs.
# What happens: libaio 31 at depths 1 and 16, io_uring 31 at depth 1 and five times as many at depth 16, so the two engines do not do
#   the same work in a comparison.
# Seen: "libaio 31 31, io_uring 31 175" (the last number varies)
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
syncs() {
    fio --name=x --filename=disk --size=1M --bs=4k --rw=write --number_ios=256 --fsync=8 \
        --ioengine="$1" --iodepth="$2" --output-format=json --output=out
    python3 -c 'import json; j = json.load(open("out"))["jobs"][0]; print(j["sync"]["total_ios"])'
}
one=$(syncs libaio 1); deep=$(syncs libaio 16); ring=$(syncs io_uring 1); deep_ring=$(syncs io_uring 16)
echo "256 writes, fsync=8, depth 1 and 16: libaio $one $deep, io_uring $ring $deep_ring"
if [ "$one $deep $ring" != "31 31 31" ] || ((deep_ring < 62)); then
    echo "changed: this is not what was seen with fio 3.33"
    exit 1
fi
