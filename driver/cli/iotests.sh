#!/usr/bin/env bash
# Runs QEMU's own iotests for one format with quod in the places of qemu-io, qemu-img and, if asked, qemu-nbd.
#
#   driver/cli/iotests.sh SOURCE [TEST...]
#
# SOURCE   an unpacked QEMU source tree (tests/qemu-iotests, python and scripts are enough); the release must
#          be the one whose words quod says (10.0.2), because the expected outputs belong to it:
#              apt-get source --download-only qemu && tar xJf qemu_*.orig.tar.xz
# TEST     numbers of tests; without them, every test that `check` finds (those that do not apply to the
#          format say so themselves).
#
# Environment:
#   IO       the program in qemu-io's place. Default: quod from the target folder (built with --release when it
#            is missing). IO=/usr/bin/qemu-io gives the baseline that docs/compat.md compares with.
#   IMG      the program in qemu-img's place. Default: as IO. IMG=/usr/bin/qemu-img leaves qemu-img there.
#   WORK     folder for images and logs. Default: a new temporary folder, removed at the end.
#   CACHE    the cache mode handed to `check -c` (none needs a file system with O_DIRECT below WORK).
#   AIO      the engine handed to `check -i`: threads (its default) or io_uring.
#   LIMIT    seconds that one test may take (default 120).
#   FMT      image format: qed (the default), qcow2 or raw.
#   NBD      the program in qemu-nbd's place: its own (the default), or `quod` for `quod serve nbd` behind a script that
#            translates the options.
#   PROTO    nbd: images behind a server (FMT=raw).
#   OPTIONS  options of every image, handed to `check -o` (for instance compat=0.10).
#
# Prints one line a test: NUMBER pass|fail|notrun|timeout REASON. No emulator is needed: where a test starts one,
# a stub that knows no machine and no device stands in its place: such a test fails, or skips itself, in the baseline
# too, and says nothing about quod.
set -u

usage() {
    sed -n '2,/^set -u/{/^set -u/d;s/^# \{0,1\}//p}' "$0"
    exit 1
}

find_quod() {
    local top target
    top=$(cd "$(dirname "$0")/../.." && pwd)
    target=${CARGO_TARGET_DIR:-$top/target}
    if [ ! -x "$target/release/quod" ]; then
        (cd "$top" && cargo build --quiet --release -p quod-cli) >&2 || exit 1
    fi
    echo "$target/release/quod"
}

need() {
    command -v "$1" || { echo "iotests.sh: $1 is not installed" >&2; exit 1; }
}

# The tree that `check` expects to be started from: a link to itself, and programs two folders above.
lay_out() {
    mkdir -p "$build" "$WORK/bin" "$WORK/scratch"
    ln -sfn "$iotests/check" "$build/check"
    ln -sfn "$io" "$WORK/bin/qemu-io"
    ln -sfn "$img" "$WORK/bin/qemu-img"
    cat > "$WORK/bin/qemu-stub" <<'STUB'
#!/bin/sh
case "$*" in
    *'-machine help'*) echo 'none                 empty machine' ;;
    *) echo 'qemu-stub: there is no emulator here' >&2; exit 1 ;;
esac
STUB
    chmod +x "$WORK/bin/qemu-stub"
    [ "${NBD:-}" != quod ] || lay_out_nbd
}

# `quod serve nbd`, called as qemu-nbd is: what has no counterpart fails by name.
lay_out_nbd() {
    local real=$nbd
    nbd=$WORK/bin/qemu-nbd
    cat > "$nbd" <<WRAPPER
#!/usr/bin/env bash
quod=$(find_quod)
real=$real
WRAPPER
    cat >> "$nbd" <<'WRAPPER'
args=() image='' pid_file='' name='' format='' socket='' address=0.0.0.0 port='' fork=''
# as a client it is itself
[[ " $* " != *" --list "* ]] || exec "$real" "$@"
while [ $# -gt 0 ]; do
    case $1 in
    --pid-file=*) pid_file=${1#*=} ;;
    -v | -t | --persistent | -A) ;;
    -e | --shared) shift ;;
    --shared=*) ;;
    --fork) fork=1 ;;
    -r | --read-only) args+=(--read-only) ;;
    -f) shift; format=$1 ;;
    -k) shift; socket=$1 ;;
    -b) shift; address=$1 ;;
    -p) shift; port=$1 ;;
    -x) shift; name=$1 ;;
    -l) shift; args+=(--load-snapshot "$1") ;;
    -*) echo "qemu-nbd: quod serve nbd has no $1" >&2; exit 1 ;;
    *) image=$1 ;;
    esac
    shift
done
[ -z "$format" ] || args+=(--format "$format")
[ -z "$socket" ] || args+=(--socket "$socket")
[ -n "$socket" ] || args+=(--tcp "$address:${port:-10809}")
[ -z "$pid_file" ] || echo $$ > "$pid_file"
if [ -n "$name" ]; then args+=(--export "$name=$image"); else args+=("$image"); fi
[ -n "$fork" ] || exec "$quod" serve nbd --allow-backing / "${args[@]}" > /dev/null
told=$(mktemp)
"$quod" serve nbd --allow-backing / "${args[@]}" > "$told" &
until grep -q Serving "$told"; do kill -0 $! || exit 1; sleep 0.05; done
rm "$told"
[ -z "$pid_file" ] || echo $! > "$pid_file"
WRAPPER
    chmod +x "$nbd"
}

run_one() {
    local test=$1 log=$WORK/$1.log status
    (
        cd "$build" || exit 1
        export TEST_DIR=$WORK/scratch QEMU_PROG=$WORK/bin/qemu-stub QSD_PROG=$WORK/bin/qemu-stub
        export QEMU_IMG_PROG=$WORK/bin/qemu-img QEMU_NBD_PROG=$nbd QEMU_IO_PROG=$WORK/bin/qemu-io
        export MALLOC_PERTURB_=0
        timeout -k 5 "${LIMIT:-120}" ./check "-$FMT" ${PROTO:+"-$PROTO"} ${OPTIONS:+-o "$OPTIONS"} ${CACHE:+-c "$CACHE"} \
            ${AIO:+-i "$AIO"} --color off "$test"
    ) > "$log" 2>&1
    status=$?
    if [ "$status" -ge 124 ]; then
        echo "$test timeout"
    elif grep -q '^Not run: ' "$log"; then
        echo "$test notrun: $(sed -n 's/.* not run  *[][0-9: .]*//p' "$log" | head -1)"
    elif [ "$status" = 0 ]; then
        echo "$test pass"
    else
        echo "$test fail"
    fi
}

[ $# -ge 1 ] || usage
case $1 in -h | --help) usage ;; esac
FMT=${FMT:-qed}
case $FMT in
    qed | qcow2 | raw) ;;
    *) echo "iotests.sh: FMT=$FMT: quod knows qed, qcow2 and raw" >&2; exit 1 ;;
esac
iotests=$(cd "$1/tests/qemu-iotests" 2>/dev/null && pwd) ||
    { echo "iotests.sh: $1/tests/qemu-iotests is not there" >&2; exit 1; }
shift
io=$(readlink -f "${IO:-$(find_quod)}")
img=$(readlink -f "${IMG:-$(find_quod)}")
need qemu-img > /dev/null || exit 1
nbd=$(need qemu-nbd) || exit 1
need python3 > /dev/null || exit 1
if [ -z "${WORK:-}" ]; then
    WORK=$(mktemp -d)
    trap 'rm -rf "$WORK"' EXIT
fi
build=$WORK/build/tests/qemu-iotests
lay_out
if [ $# -eq 0 ]; then
    # shellcheck disable=SC2046 # one word a test
    set -- $(cd "$build" && TEST_DIR=$WORK/scratch ./check "-$FMT" ${PROTO:+"-$PROTO"} -n 2>/dev/null)
fi
for test in "$@"; do
    run_one "$test"
done
