//! Where clients come from: addresses, listeners, and sockets of the dead.
//!
//! Knows: both families of sockets. Must never know: what clients want.
//! Invariant: the path of a UNIX socket is removed only if nobody listens there, or if it is the one that was
//! made here.

use crate::socket::Socket;
use mio::event::Source;
use mio::net::{TcpListener, UnixListener};
use mio::{Interest, Registry, Token};
use rustix::fs::Mode;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, sockopt};
use std::fmt;
use std::fs;
use std::io;
use std::net;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net as unix;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

/// A client that says nothing for so long is asked by TCP whether it is there.
const KEEPALIVE: Duration = Duration::from_secs(300);
/// Clients that wait to be taken at a private socket.
const PRIVATE_BACKLOG: i32 = 16;

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

impl FromStr for Address {
    type Err = std::convert::Infallible;

    /// `HOST:PORT`, or a path: it has a slash, or no colon.
    fn from_str(text: &str) -> Result<Address, Self::Err> {
        Ok(match text.contains('/') || !text.contains(':') {
            true => Address::Unix(text.into()),
            false => Address::Tcp(text.into()),
        })
    }
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
pub struct Listener {
    kind: Kind,
    address: Address,
    _made: Option<Made>,
}

impl Listener {
    /// Listens at an address. A UNIX socket whose server is dead is replaced, and goes with this value. A
    /// name of a host may have several numbers.
    ///
    /// # Errors
    /// The host's: [`io::ErrorKind::AddrInUse`] if another server listens there.
    pub fn at(address: &Address) -> io::Result<Vec<Listener>> {
        match address {
            Address::Unix(path) => bind_unix(path, bind_open).map(|listener| vec![listener]),
            Address::Tcp(name) => bind_tcp(name),
            Address::Given => Ok(Vec::new()),
        }
    }

    /// Listens at a UNIX socket that its owner alone may connect to.
    ///
    /// # Errors
    /// As of [`Listener::at`].
    pub fn private(path: &Path) -> io::Result<Listener> {
        bind_unix(path, bind_private)
    }

    /// How clients find it.
    pub fn address(&self) -> &Address {
        &self.address
    }

    /// One that somebody else made.
    ///
    /// # Errors
    /// The host's.
    pub fn given_unix(listener: unix::UnixListener) -> io::Result<Listener> {
        listener.set_nonblocking(true)?;
        let kind = Kind::Unix(UnixListener::from_std(listener));
        Ok(Listener { kind, address: Address::Given, _made: None })
    }

    /// The same of the other family.
    ///
    /// # Errors
    /// The host's.
    pub fn given_tcp(listener: net::TcpListener) -> io::Result<Listener> {
        listener.set_nonblocking(true)?;
        let address = Address::Tcp(listener.local_addr()?.to_string());
        Ok(Listener { kind: Kind::Tcp(TcpListener::from_std(listener)), address, _made: None })
    }

    /// The next client. None: nobody waits.
    ///
    /// # Errors
    /// The host's; it may have no descriptors left.
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

    /// Clients are waited for by this loop.
    ///
    /// # Errors
    /// The host's.
    pub fn register(&mut self, registry: &Registry, token: Token) -> io::Result<()> {
        match &mut self.kind {
            Kind::Unix(listener) => listener.register(registry, token, Interest::READABLE),
            Kind::Tcp(listener) => listener.register(registry, token, Interest::READABLE),
        }
    }
}

type Bind = fn(&Path) -> io::Result<unix::UnixListener>;

fn bind_open(path: &Path) -> io::Result<unix::UnixListener> {
    unix::UnixListener::bind(path)
}

/// With no moment in which others could connect: the file gets the mode that the socket has before.
fn bind_private(path: &Path) -> io::Result<unix::UnixListener> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    rustix::fs::fchmod(&socket, Mode::RUSR | Mode::WUSR)?;
    rustix::net::bind(&socket, &SocketAddrUnix::new(path)?)?;
    rustix::net::listen(&socket, PRIVATE_BACKLOG)?;
    Ok(socket.into())
}

fn bind_unix(path: &Path, bind: Bind) -> io::Result<Listener> {
    let listener = match bind(path) {
        Err(error) if error.kind() == io::ErrorKind::AddrInUse && is_left_over(path) => {
            fs::remove_file(path)?;
            bind(path)?
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
    fn a_private_socket_is_its_owner_s_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s");
        let listener = Listener::private(&path).unwrap();
        let mode = fs::metadata(&path).unwrap().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert!(listener.accept().unwrap().is_none());
        let _client = unix::UnixStream::connect(&path).unwrap();
        assert!(listener.accept().unwrap().is_some());
        assert_eq!(Listener::private(&path).unwrap_err().kind(), io::ErrorKind::AddrInUse);
    }

    #[test]
    fn addresses_are_told_from_paths() {
        for (text, address) in [
            ("127.0.0.1:1", Address::Tcp("127.0.0.1:1".into())),
            ("[::1]:1", Address::Tcp("[::1]:1".into())),
            ("a.sock", Address::Unix("a.sock".into())),
            ("./a:b", Address::Unix("./a:b".into())),
        ] {
            assert_eq!(text.parse(), Ok(address));
        }
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
        let Address::Tcp(bound) = listeners[0].address() else { panic!() };
        assert!(bound.starts_with("127.0.0.1:") && !bound.ends_with(":0"));
        let taken = Listener::at(&Address::Tcp(bound.clone())).unwrap_err();
        assert_eq!(taken.kind(), io::ErrorKind::AddrInUse);
        assert!(Listener::at(&Address::Tcp("no-port".into())).is_err());
    }
}
