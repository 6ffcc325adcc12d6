//! What a client of NBD says, as bytes: options and requests, to be put in a row and changed.
//!
//! Knows: the wire's layout. Must never know: what is answered.

/// The style that a conversation of requests begins with: its first byte, see `nbd.rs`.
const STYLES: u8 = 6;

fn option(number: u32, data: &[u8]) -> Vec<u8> {
    let head = [&b"IHAVEOPT"[..], &number.to_be_bytes(), &(data.len() as u32).to_be_bytes()].concat();
    [&head, data].concat()
}

fn string(text: &str) -> Vec<u8> {
    [&(text.len() as u32).to_be_bytes()[..], text.as_bytes()].concat()
}

fn queries(name: &str, queries: &[&str]) -> Vec<u8> {
    let mut data = [string(name), (queries.len() as u32).to_be_bytes().to_vec()].concat();
    data.extend(queries.iter().flat_map(|query| string(query)));
    data
}

/// Options of every kind.
pub(super) fn options() -> Vec<Vec<u8>> {
    let info = |name: &str, wants: &[u8]| [&string(name)[..], wants].concat();
    vec![
        option(1, b""),
        option(1, b"quiet"),
        option(2, b""),
        option(3, b""),
        option(5, b""),
        option(6, &info("quiet", &[0, 3, 0, 1, 0, 2, 0, 3])),
        option(7, &info("", &[0, 1, 0, 3])),
        option(7, &info("nothing", &[0, 0])),
        option(8, b""),
        option(9, &queries("", &[])),
        option(9, &queries("quiet", &["base:", "qemu:allocation-depth", "x:y"])),
        option(10, &queries("", &["base:allocation", "x-quod:kind"])),
        option(11, b""),
        option(77, &[7; 40]),
        option(3, &[0; 17_000]),
    ]
}

/// Negotiations: the byte that says which TLS there is, the client's flags, some options.
pub(super) fn negotiations(pick: &mut dyn FnMut(usize) -> usize) -> Vec<u8> {
    let options = options();
    let mut bytes = vec![pick(3) as u8, 0, 0, 0, [3, 3, 3, 1, 0, 2, 7][pick(7)]];
    for _ in 0..1 + pick(8) {
        bytes.extend(&options[pick(options.len())]);
    }
    bytes
}

/// Requests: the byte that says of which style they are, and some of them.
pub(super) fn requests(pick: &mut dyn FnMut(usize) -> usize) -> Vec<u8> {
    let style = pick(usize::from(STYLES)) as u8;
    let extended = style % 3 == 2;
    let mut bytes = vec![style];
    for _ in 0..1 + pick(8) {
        let command = pick(9) as u16;
        let flags = [0, 0, 1, 2, 4, 8, 16, 32][pick(8)] | if command == 1 && extended { 32 } else { 0 };
        let magic = if extended { 0x21e4_1c71u32 } else { 0x2560_9513 };
        let len = [0u64, 1, 512, 4096, 20, 100, 1 << 20, 1 << 33][pick(8)];
        let len = if command == 1 { len.min(200) } else { len };
        bytes.extend(magic.to_be_bytes());
        bytes.extend(u16::to_be_bytes(flags));
        bytes.extend(command.to_be_bytes());
        bytes.extend((pick(256) as u64).to_be_bytes());
        bytes.extend(([0u64, 512, 7, 1 << 32, (1 << 33) - 512, u64::MAX][pick(6)]).to_be_bytes());
        if extended {
            bytes.extend(len.to_be_bytes());
        } else {
            bytes.extend((len as u32).to_be_bytes());
        }
        let payload = command == 1 || extended && flags & 32 != 0;
        if payload && len <= 4096 {
            bytes.extend(vec![pick(256) as u8; len as usize]);
        }
    }
    bytes
}
