#!/usr/bin/env bash
# QEMU as an NBD client with extended headers: are its writes marked as requests that have a payload?
#
# Versions: QEMU 10.0.2 (qemu-io), Python 3 for a server of some lines.
# One would guess: it sets NBD_CMD_FLAG_PAYLOAD_LEN, as the protocol's extension wants it of every write with extended headers ("the
#   command NBD_CMD_WRITE MUST use the flag"): without the flag a length is no payload's, and no bytes follow the header.
# What happens: it agrees on extended headers, sends the write without the flag, and the payload all the same. A server that believes the
#   header takes the payload for requests, and the connection is lost.
# Seen: "flags of a write: 0x0000, 512 bytes of payload behind it"
set -euo pipefail
dir=$(mktemp -d)
trap 'kill $server 2> /dev/null || true; rm -rf "$dir"' EXIT
cd "$dir"
cat > server.py <<'P'
import socket, struct

def exactly(stream, length):
    data = b""
    while len(data) < length:
        more = stream.recv(length - len(data))
        if not more:
            raise SystemExit("the client is gone")
        data += more
    return data

listener = socket.socket(socket.AF_UNIX)
listener.bind("s")
listener.listen(1)
stream, _ = listener.accept()
stream.sendall(b"NBDMAGICIHAVEOPT" + struct.pack(">H", 3))
exactly(stream, 4)
extended = False
while True:
    _, option, length = struct.unpack(">8sII", exactly(stream, 16))
    exactly(stream, length)
    reply = lambda kind, data=b"": stream.sendall(struct.pack(">QIII", 0x3E889045565A9, option, kind, len(data)) + data)
    if option == 11:
        extended = True
        reply(1)
    elif option == 7:
        reply(3, struct.pack(">HQH", 0, 1 << 20, 1 | 1 << 2 | 1 << 3))
        reply(1)
        break
    else:
        reply((1 << 31) + 1)
print("extended headers agreed on:", extended)
while True:
    magic, flags, command, cookie, offset, length = struct.unpack(">IHHQQQ", exactly(stream, 32))
    if command == 2:
        break
    if command == 1:
        payload = exactly(stream, length)
        print(f"flags of a write: {flags:#06x}, {len(payload)} bytes of payload behind it")
        whole = payload == b"\x05" * length
    stream.sendall(struct.pack(">IHHQQQ", 0x6E8A278C, 1, 0, cookie, offset, 0))
print("the payload is whole:", whole)
P
python3 server.py > seen &
server=$!
while [ ! -S s ]; do sleep 0.05; done
qemu-io -f raw -t writeback -c 'write -P 5 0 512' 'nbd+unix:///?socket=s' > /dev/null
wait $server
cat seen
[ "$(cat seen)" = "extended headers agreed on: True
flags of a write: 0x0000, 512 bytes of payload behind it
the payload is whole: True" ] || {
    echo "changed: this is not what was seen with QEMU 10.0.2" >&2
    exit 1
}
