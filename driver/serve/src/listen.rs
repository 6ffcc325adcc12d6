//! Where clients come from: addresses, listeners, and sockets of the dead.
//!
//! Knows: both families of sockets. Must never know: what clients want.
//! Invariant: the path of a UNIX socket is removed only if nobody listens there, or if it is the one that was
//! made here.

use crate::socket::Socket;
use mio::event::Source;
use mio::net::{TcpListener, UnixListener};
use mio::{Interest, Registry, Token};
use rustix::net::sockopt;
use std::fmt;
use std::fs;
use std::io;
use std::net;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net as unix;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// A client that says nothing for so long is asked by TCP whether it is there.
const KEEPALIVE: Duration = Duration::from_secs(300);

/// Where a server listens.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Address {
    /// A UNIX socket of this path.
    Unix(PathBuf),
    /// `HOST:PORT`, the host by name or number (IPv6 in brackets).
    Tcp(String),
    /// It was given to the process.
    Given,
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Address::Unix(path) => write!(f, "{}", path.display()),
            Address::Tcp(name) => f.write_str(name),
            Address::Given => f.write_str("a socket that was given"),
        }
    }
}

/// The path of a socket, and which file it was when it was made.
#[derive(Debug)]
struct Made {
    path: PathBuf,
    identity: (u64, u64),
}

impl Drop for Made {
    fn drop(&mut self) {
        let same =
            fs::symlink_metadata(&self.path).is_ok_and(|file| (file.dev(), file.ino()) == self.identity);
        if same && let Err(error) = fs::remove_file(&self.path) {
            tracing::warn!("{}: not removed: {error}", self.path.display());
        }
    }
}

#[derive(Debug)]
enum Kind {
    Unix(UnixListener),
    Tcp(TcpListener),
}

/// A socket that clients connect to.
#[derive(Debug)]
pub(crate) struct Listener {
    kind: Kind,
    /// How clients find it.
    pub address: Address,
    _made: Option<Made>,
}

impl Listener {
    /// Listens at an address.
    pub fn at(address: &Address) -> io::Result<Vec<Listener>> {
        match address {
            Address::Unix(path) => bind_unix(path).map(|listener| vec![listener]),
            Address::Tcp(name) => bind_tcp(name),
            Address::Given => Ok(Vec::new()),
        }
    }

    /// One that somebody else made.
    pub fn given_unix(listener: unix::UnixListener) -> io::Result<Listener> {
        listener.set_nonblocking(true)?;
        let kind = Kind::Unix(UnixListener::from_std(listener));
        Ok(Listener { kind, address: Address::Given, _made: None })
    }

    /// The same of the other family.
    pub fn given_tcp(listener: net::TcpListener) -> io::Result<Listener> {
        listener.set_nonblocking(true)?;
        let address = Address::Tcp(listener.local_addr()?.to_string());
        Ok(Listener { kind: Kind::Tcp(TcpListener::from_std(listener)), address, _made: None })
    }

    /// The next client. None: nobody waits.
    pub fn accept(&self) -> io::Result<Option<Socket>> {
        let accepted = match &self.kind {
            Kind::Unix(listener) => listener.accept().map(|(stream, _)| Socket::Unix(stream)),
            Kind::Tcp(listener) => listener.accept().map(|(stream, _)| Socket::Tcp(stream)),
        };
        match accepted {
            Ok(socket) => {
                if let Socket::Tcp(stream) = &socket {
                    // "both the client and server SHOULD disable Nagle's algorithm"; without it is slower
                    let _ = stream.set_nodelay(true);
                    // a client whose host has died is noticed; without it its place is not free again
                    let _ = sockopt::set_socket_keepalive(stream, true);
                    let _ = sockopt::set_tcp_keepidle(stream, KEEPALIVE);
                }
                Ok(Some(socket))
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
            Err(error) => Err(error),
        }
    }

    pub fn register(&mut self, registry: &Registry, token: Token) -> io::Result<()> {
        match &mut self.kind {
            Kind::Unix(listener) => listener.register(registry, token, Interest::READABLE),
            Kind::Tcp(listener) => listener.register(registry, token, Interest::READABLE),
        }
    }
}

fn bind_unix(path: &Path) -> io::Result<Listener> {
    let listener = match unix::UnixListener::bind(path) {
        Err(error) if error.kind() == io::ErrorKind::AddrInUse && is_left_over(path) => {
            fs::remove_file(path)?;
            unix::UnixListener::bind(path)?
        }
        bound => bound?,
    };
    let file = fs::symlink_metadata(path)?;
    let made = Made { path: path.to_path_buf(), identity: (file.dev(), file.ino()) };
    listener.set_nonblocking(true)?;
    let kind = Kind::Unix(UnixListener::from_std(listener));
    Ok(Listener { kind, address: Address::Unix(path.to_path_buf()), _made: Some(made) })
}

/// A socket that nobody listens at: its server was killed.
fn is_left_over(path: &Path) -> bool {
    let is_socket = fs::symlink_metadata(path).is_ok_and(|file| file.file_type().is_socket());
    let refused = |error: io::Error| error.kind() == io::ErrorKind::ConnectionRefused;
    is_socket && unix::UnixStream::connect(path).err().is_some_and(refused)
}

/// All numbers that a name has: `localhost` is often two. One that cannot be bound is an error only if none
/// can.
fn bind_tcp(name: &str) -> io::Result<Vec<Listener>> {
    let mut listeners = Vec::new();
    let mut failed = None;
    let addresses: Vec<net::SocketAddr> = net::ToSocketAddrs::to_socket_addrs(name)?.collect();
    for address in addresses {
        match net::TcpListener::bind(address).and_then(Listener::given_tcp) {
            Ok(listener) => listeners.push(listener),
            Err(error) => failed = Some(error),
        }
    }
    match failed {
        Some(error) if listeners.is_empty() || error.kind() == io::ErrorKind::AddrInUse => Err(error),
        None if listeners.is_empty() => Err(io::ErrorKind::AddrNotAvailable.into()),
        _ => Ok(listeners),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_socket_that_nobody_listens_at_is_replaced_and_a_living_one_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s");
        drop(unix::UnixListener::bind(&path).unwrap());
        assert!(path.exists(), "a dead server leaves its socket");
        let address = Address::Unix(path.clone());
        let first = Listener::at(&address).unwrap();
        let second = Listener::at(&address).unwrap_err();
        assert_eq!(second.kind(), io::ErrorKind::AddrInUse);
        drop(first);
        assert!(!path.exists(), "an ended server leaves none");
        std::fs::write(&path, "a file").unwrap();
        assert!(Listener::at(&address).is_err());
        assert_eq!(std::fs::read(&path).unwrap(), b"a file");
    }

    #[test]
    fn a_socket_that_somebody_else_made_there_stays() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s");
        let first = Listener::at(&Address::Unix(path.clone())).unwrap();
        std::fs::remove_file(&path).unwrap();
        let other = unix::UnixListener::bind(&path).unwrap();
        drop(first);
        assert!(path.exists());
        drop(other);
    }

    #[test]
    fn tcp_addresses() {
        let listeners = Listener::at(&Address::Tcp("127.0.0.1:0".into())).unwrap();
        let Address::Tcp(bound) = &listeners[0].address else { panic!() };
        assert!(bound.starts_with("127.0.0.1:") && !bound.ends_with(":0"));
        let taken = Listener::at(&Address::Tcp(bound.clone())).unwrap_err();
        assert_eq!(taken.kind(), io::ErrorKind::AddrInUse);
        assert!(Listener::at(&Address::Tcp("no-port".into())).is_err());
    }
}
