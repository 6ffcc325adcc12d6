//! `quod serve nbd` with TLS: certificates of openssl's, clients of libnbd's and QEMU's.

mod common;

use common::server::Server;
use common::{must, prepare, run};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

/// A root, a server's and a client's certificate, by the names that all of them use.
const CERTIFICATES: &str = "set -e; mkdir c; cd c
for who in ca server client; do
    openssl genpkey -quiet -algorithm EC -pkeyopt ec_paramgen_curve:P-256 -out $who-key.pem
done
openssl req -x509 -key ca-key.pem -subj /CN=root -days 2 -out ca-cert.pem \
    -addext keyUsage=critical,keyCertSign
for who in server client; do
    printf 'basicConstraints=CA:FALSE\\nkeyUsage=critical,digitalSignature,keyEncipherment\\n' > ext
    printf \"extendedKeyUsage=${who}Auth\\nsubjectAltName=DNS:localhost,IP:127.0.0.1\\n\" >> ext
    openssl req -new -key $who-key.pem -subj /CN=localhost -out request
    openssl x509 -req -in request -CA ca-cert.pem -CAkey ca-key.pem -days 2 -extfile ext -out $who-cert.pem
done";

struct Served {
    _server: Server,
    port: String,
}

impl Served {
    fn new(folder: &Path, args: &[&str]) -> Served {
        let mut command = Command::new(env!("CARGO_BIN_EXE_quod"));
        command.args(["serve", "nbd", "--tcp", "127.0.0.1:0", "--tls-certificates", "c"]);
        let (_server, line) = Server::start(command.args(args).current_dir(folder));
        let port = line.trim().rsplit(':').next().unwrap().to_string();
        Served { _server, port }
    }

    fn uri(&self, scheme: &str, folder: &Path) -> String {
        let certificates = folder.join("c");
        format!("{scheme}://localhost:{}/?tls-certificates={}", self.port, certificates.display())
    }
}

fn folder() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    must("sh", &["-c", CERTIFICATES], folder.path());
    prepare("qemu-img", &["create", "-q", "-f", "qcow2", "d", "64M"], folder.path());
    folder
}

/// Both ways, by libnbd and by QEMU, which says no host's name, and ends without saying so.
#[test]
fn copies_are_the_same_and_nothing_goes_without() {
    let folder = folder();
    let path = folder.path();
    let served = Served::new(path, &["--tls-verify-peer", "d"]);
    let uri = served.uri("nbds", path);
    let bytes: Vec<u8> = (0..64u32 << 20).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    std::fs::write(path.join("in"), &bytes).unwrap();
    must("nbdcopy", &["--connections=3", "in", &uri], path);
    must("nbdcopy", &[&uri, "out"], path);
    assert!(std::fs::read(path.join("out")).unwrap() == bytes);
    let object = format!("tls-creds-x509,id=t,dir={},endpoint=client", path.join("c").display());
    let nbd = format!("driver=nbd,host=localhost,port={},tls-creds=t", served.port);
    let file = "driver=raw,file.driver=file,file.filename=in";
    must("qemu-img", &["compare", "--object", &object, "--image-opts", file, &nbd], path);
    let clear = run("nbdinfo", &["--size", &served.uri("nbd", path)], path, "");
    assert!(clear.code != Some(0) && clear.stderr.contains("TLS"), "{clear:?}");
}

/// A client whose certificate nobody has signed, and one that has no TLS to say: they are gone, others are
/// not.
#[test]
fn strangers_are_turned_away() {
    let folder = folder();
    let path = folder.path();
    let served = Served::new(path, &["--tls-verify-peer", "d"]);
    let uri = served.uri("nbds", path);
    std::fs::create_dir(path.join("other")).unwrap();
    std::fs::copy(path.join("c/ca-cert.pem"), path.join("other/ca-cert.pem")).unwrap();
    let stranger = uri.replace("/c", "/other");
    assert_ne!(run("nbdinfo", &["--size", &stranger], path, "").code, Some(0));
    for noise in [&b""[..], &[0; 3000], b"\x16\x03\x01\xff\xff", &[0xff; 100_000]] {
        let mut stream = TcpStream::connect(format!("127.0.0.1:{}", served.port)).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(1))).unwrap();
        stream.read_exact(&mut [0; 18]).unwrap();
        // what comes behind the option belongs to the handshake, and never to the negotiation
        let start = [&3u32.to_be_bytes()[..], b"IHAVEOPT", &5u32.to_be_bytes(), &[0; 4], noise].concat();
        let _ = stream.write_all(&start);
        let _ = stream.read(&mut [0; 100]);
    }
    assert_eq!(must("nbdinfo", &["--size", &uri], path), "67108864\n");
}

#[test]
fn tls_may_be_left_to_the_client() {
    let folder = folder();
    let path = folder.path();
    let served = Served::new(path, &["--tls", "on", "d"]);
    for scheme in ["nbds", "nbd"] {
        let told = must("nbdinfo", &[&served.uri(scheme, path)], path);
        let expected = if scheme == "nbds" { "with TLS" } else { "without TLS" };
        assert!(told.contains(expected), "{told}");
    }
}

#[test]
fn what_is_wrong_is_said_plainly() {
    let folder = folder();
    let path = folder.path();
    let says = |args: &[&str], text: &str| {
        let words: Vec<&str> =
            ["serve", "nbd", "-k", "t"].iter().chain(args).chain(&["d"]).copied().collect();
        let answer = run(env!("CARGO_BIN_EXE_quod"), &words, path, "");
        assert!(answer.code == Some(1) && answer.stderr.contains(text), "{args:?}: {answer:?}");
    };
    says(&["--tls-psk", "keys"], "no TLS with pre-shared keys");
    says(&["--tls-certificates", "missing"], "TLS: missing/server-cert.pem: ");
    std::fs::write(path.join("c/server-key.pem"), "nonsense").unwrap();
    says(&["--tls-certificates", "c"], "TLS: c/server-key.pem: ");
    std::fs::write(path.join("c/server-cert.pem"), "nonsense").unwrap();
    says(&["--tls-certificates", "c"], "TLS: c/server-cert.pem: there is no certificate in it");
    says(&["--tls", "on"], "--tls-certificates");
}
