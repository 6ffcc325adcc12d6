#!/usr/bin/env bash
# A replicated GlusterFS volume of three bricks on this machine, and quod on it: replay, with a brick killed in the middle
# and healed; zeros that are zeros; a store that goes away; allocating writes side by side with qemu-img. Takes everything
# down again. Fails when a promise of docs/distributed.md does not hold. Runs for some minutes, for less than one without the
# undisturbed run and the measuring (--short); needs root, /dev/fuse, QEMU's tools, a Rust toolchain (not if QUOD names the
# command), and glusterfs-server (on Debian it is installed if it is missing), and no glusterd that runs.
# usage: bench/gluster.sh [--short] [FOLDER]   the bricks' folder, on a file system with extended attributes (/var/tmp)
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

SHORT=
[ "${1:-}" != --short ] || { SHORT=yes; shift; }
NAME=quodtest$$
# So many times faster than qemu-img, at least: the goal is 10; on a machine that does other things as well it is less.
RATIO=${QUOD_GLUSTER_RATIO:-5}
COUNT=2000

die() { echo "gluster: $*" >&2; exit 1; }
say() { printf '\n== %s\n' "$*"; }

[ "$(id -u)" = 0 ] || die "needs root: it mounts, and runs glusterd"
[ -c /dev/fuse ] || die "there is no /dev/fuse"
command -v qemu-img > /dev/null || die "qemu-img is needed"
if ! command -v glusterd > /dev/null; then
    command -v apt-get > /dev/null || die "glusterfs-server is needed"
    export DEBIAN_FRONTEND=noninteractive
    install=(apt-get -qq install -y --no-install-recommends glusterfs-server)
    "${install[@]}" > /dev/null 2>&1 || { apt-get -qq update; "${install[@]}" > /dev/null; }
    # where the package starts one
    systemctl stop glusterd > /dev/null 2>&1 || true
fi
pgrep -r R,S,D -x glusterd > /dev/null && die "a glusterd is running: this would be its volume too"

# the server and its bricks answer on the machine's first address, or on its loopback
HOST=$(hostname -I | awk '{ print $1 }')
HOST=${HOST:-127.0.0.1}
WORK=$(mktemp -d "${1:-/var/tmp}/quod-gluster-XXXXXX")
MOUNT=$WORK/mount
gl() { gluster --mode=script "$@" > "$WORK/gluster.out" 2>&1 || { cat "$WORK/gluster.out" >&2; return 1; }; }

down() {
    local code=$?
    trap - EXIT
    umount -l "$MOUNT" 2> /dev/null || true
    gluster --mode=script volume stop "$NAME" force > /dev/null 2>&1 || true
    gluster --mode=script volume delete "$NAME" > /dev/null 2>&1 || true
    [ -s "$WORK/glusterd.pid" ] && kill "$(cat "$WORK/glusterd.pid")" 2> /dev/null || true
    rm -rf "$WORK"
    [ $code = 0 ] && printf '\nall good\n'
    exit $code
}
trap down EXIT

brick_pid() { gluster volume status "$NAME" "$HOST:$WORK/brick$1/b" detail | awk '$1 == "Pid" { print $3 }'; }
kill_brick() { kill -9 "$(brick_pid "$1")"; }

# The mount has found enough bricks again to write.
can_write() {
    for _ in $(seq 120); do
        # a brick that was killed just now is not started again until glusterd knows: asked for again and again
        gl volume start "$NAME" force
        if dd if=/dev/zero of="$MOUNT/probe" bs=4k count=1 oflag=direct conv=fsync 2> /dev/null; then return; fi
        sleep 0.5
    done
    die "the bricks do not come back"
}

# All bricks run, and none has anything that another lacks.
heal() {
    local n
    for n in $(seq 0 180); do
        # a brick that was killed just now is not started again until glusterd knows, and nothing is healed before
        # the daemon for that has found the bricks: asked for again and again
        [ $((n % 5)) != 0 ] || gl volume start "$NAME" force
        [ $((n % 5)) != 3 ] || gluster --mode=script volume heal "$NAME" > "$WORK/gluster.out" 2>&1 || true
        gluster volume heal "$NAME" info > "$WORK/heal" 2>&1 || true
        if [ "$(grep -c 'Number of entries: 0' "$WORK/heal")" = 3 ]; then return; fi
        sleep 1
    done
    cat "$WORK/heal" >&2
    die "not healed"
}

# A file is the same on all bricks.
same_on_bricks() {
    local n
    for n in 2 3; do
        cmp "$WORK/brick1/b/$1" "$WORK/brick$n/b/$1" || die "$1 differs between bricks"
    done
}

say "the command, a volume $NAME, a mount"
if [ -z "${QUOD:-}" ]; then
    cargo build --release --quiet -p quod-cli
    QUOD=$(cargo metadata --format-version 1 --no-deps | sed 's/.*"target_directory":"\([^"]*\)".*/\1/')/release/quod
fi
mkdir -p "$MOUNT" "$WORK"/brick{1,2,3}
glusterd --pid-file="$WORK/glusterd.pid" --log-file="$WORK/glusterd.log"
for _ in $(seq 30); do gluster volume list > /dev/null 2>&1 && break; sleep 1; done
gl volume create "$NAME" replica 3 "$HOST:$WORK/brick1/b" "$HOST:$WORK/brick2/b" "$HOST:$WORK/brick3/b" force
# what makes it honest: a direct write is answered when it is where it belongs
gl volume set "$NAME" performance.strict-o-direct on
gl volume set "$NAME" network.remote-dio disable
gl volume set "$NAME" network.ping-timeout 5
gl volume start "$NAME"
mount -t glusterfs -o direct-io-mode=enable "$HOST:/$NAME" "$MOUNT"
glusterd --version | head -n 1

say "zeros"
for format in raw qed qcow2; do
    qemu-img create -q -f "$format" "$MOUNT/zeros" 4M
    for engine in io_uring threads; do
        for cache in none writeback; do
            "$QUOD" io -f "$format" -t "$cache" -i "$engine" -c 'write -q -P 1 0 1M' -c 'write -q -z 64k 64k' \
                -c 'write -q -z 260k 4k' -c 'read -q -P 0 64k 64k' -c 'read -q -P 0 260k 4k' -c 'read -q -P 1 264k 60k' \
                -c 'flush' "$MOUNT/zeros" | tee "$WORK/out"
            ! grep -q failed "$WORK/out" || die "zeros are not zeros: $format, $engine, $cache"
        done
    done
    qemu-io -r -f "$format" -c 'read -P 0 64k 64k' "$MOUNT/zeros" | grep -q 'read 65536' || die "qemu-io sees no zeros"
done
[ -z "$(find "$MOUNT" -name '.quod*' -o -name '.fuse*' -not -path '*/.glusterfs/*')" ] || die "a proof left a file"

if [ -z "$SHORT" ]; then
    say "replay"
    "$QUOD" replay --direct -f qcow2 --image "$MOUNT/whole.qcow2" | tail -n 4
    "$QUOD" check -q "$MOUNT/whole.qcow2"
fi

say "replay, a brick is killed in the middle"
"$QUOD" replay --direct -f qcow2 --image "$MOUNT/killed.qcow2" > "$WORK/replay" 2>&1 &
REPLAY=$!
sleep 1
kill_brick 1
wait "$REPLAY" || { cat "$WORK/replay"; die "the replay failed"; }
tail -n 4 "$WORK/replay"
heal
"$QUOD" check -q "$MOUNT/killed.qcow2"
qemu-img check -q "$MOUNT/killed.qcow2"
[ -n "$SHORT" ] || qemu-img compare "$MOUNT/whole.qcow2" "$MOUNT/killed.qcow2"
same_on_bricks killed.qcow2

say "two bricks are gone, and come back"
qemu-img create -q -f qcow2 "$MOUNT/gone" 64M
coproc IO { "$QUOD" io -f qcow2 -t none "$MOUNT/gone" 2>&1; }
exec 7>&"${IO[1]}" 8<&"${IO[0]}"
told() { printf '%s\necho-end\n' "$1" >&7; timeout 60 sed -u '/echo-end/q' <&8; }
told 'write -P 1 0 4M' > "$WORK/told"
told 'flush' >> "$WORK/told"
kill_brick 1
kill_brick 2
sleep 1
told 'write -P 2 0 64k' > "$WORK/lost"
told 'flush' >> "$WORK/lost"
cat "$WORK/lost"
grep -qi 'fail' "$WORK/lost" || die "nobody said that the write was lost"
can_write
told 'flush' > "$WORK/later"
told 'write -P 3 0 64k' >> "$WORK/later"
cat "$WORK/later"
[ "$(grep -ci 'fail' "$WORK/later")" = 2 ] || die "the image was written after its store had gone"
echo quit >&7
exec 7>&- 8<&-
wait "$IO_PID" 2> /dev/null || true
heal
"$QUOD" check -q "$MOUNT/gone"
"$QUOD" io -f qcow2 -t none -c 'read -P 1 64k 4032k' -c 'write -P 4 0 64k' -c flush -c 'read -P 4 0 64k' "$MOUNT/gone" |
    tee "$WORK/out"
! grep -q failed "$WORK/out" || die "flushed data are lost, or the image cannot be written"

[ -z "$SHORT" ] || exit 0

say "$COUNT allocating writes of 4 KiB, depth 16, O_DIRECT"
# Seconds of a run on a fresh image.
seconds() {
    rm -f "$MOUNT/bench"
    qemu-img create -q -f qcow2 "$MOUNT/bench" 8G
    "$@" -w -f qcow2 -t none -c "$COUNT" -d 16 -s 4096 -S 65536 "$MOUNT/bench" | sed -n 's/.*completed in \([0-9.]*\) sec.*/\1/p'
}
for _ in 1 2 3; do
    seconds "$QUOD" bench -q -i io_uring >> "$WORK/ours"
    seconds qemu-img bench -i io_uring >> "$WORK/theirs"
done
median() { sort -n "$1" | sed -n 2p; }
ours=$(median "$WORK/ours")
theirs=$(median "$WORK/theirs")
echo "medians of three: quod $ours s, qemu-img $theirs s (threads: $(seconds "$QUOD" bench -q -i threads) s," \
    "$(seconds qemu-img bench -i threads) s)"
awk -v a="$ours" -v b="$theirs" -v r="$RATIO" 'BEGIN { printf "%.1f times\n", b / a; exit !(b / a >= r) }' ||
    die "less than $RATIO times qemu-img"
