//! TLS: certificates, and a socket that may have it.
//!
//! Knows: rustls. Must never know: what is said over a stream, the protocol.
//! Invariants: what is sent after the handshake has begun is encrypted; bytes that came in the clear before
//! it are taken for the handshake's, and for nothing else.

use mio::event::Source;
use mio::{Interest, Registry, Token};
use quod_door::Socket;
use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig, ServerConnection};
use std::fmt;
use std::io::{self, IoSlice, IoSliceMut, Read, Write};
use std::path::Path;
use std::sync::Arc;

/// Bytes that wait inside TLS to be sent, at most.
const BUFFERED_MAX: usize = 256 << 10;

/// TLS with X.509 certificates, as files of the names that QEMU, libnbd and nbdkit use.
#[derive(Clone)]
pub struct TlsOptions {
    pub(crate) config: Arc<ServerConfig>,
    pub(crate) required: bool,
}

impl fmt::Debug for TlsOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TlsOptions").field("required", &self.required).finish_non_exhaustive()
    }
}

impl TlsOptions {
    /// The certificate `server-cert.pem` (with those that lead to its root behind it) and the key
    /// `server-key.pem` of a folder. With `verify` clients must show a certificate that one of `ca-cert.pem`
    /// has signed. Clients without TLS are refused, unless [`TlsOptions::required`] says otherwise. Reads
    /// files: not for a loop that runs.
    ///
    /// # Errors
    /// What is wrong with which file, as text.
    pub fn x509(folder: &Path, verify: bool) -> Result<TlsOptions, String> {
        let provider = Arc::new(ring::default_provider());
        let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()
            .map_err(|error| error.to_string())?;
        let builder = if verify {
            let mut roots = RootCertStore::empty();
            let path = folder.join("ca-cert.pem");
            for root in certificates(&path)? {
                roots.add(root).map_err(|error| format!("{}: {error}", path.display()))?;
            }
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider).build();
            let verifier = verifier.map_err(|error| format!("{}: {error}", path.display()))?;
            builder.with_client_cert_verifier(verifier)
        } else {
            builder.with_no_client_auth()
        };
        let chain = certificates(&folder.join("server-cert.pem"))?;
        let path = folder.join("server-key.pem");
        let key = PrivateKeyDer::from_pem_file(&path);
        let key = key.map_err(|error| format!("{}: {error}", path.display()))?;
        // one certificate for all: QEMU does not say which host it wants
        let config = builder.with_single_cert(chain, key);
        let config = config.map_err(|error| format!("{}: {error}", folder.display()))?;
        Ok(TlsOptions { config: Arc::new(config), required: true })
    }

    /// Are clients without TLS refused? Default: they are.
    pub fn required(self, required: bool) -> TlsOptions {
        TlsOptions { required, ..self }
    }
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let said = |error: &dyn fmt::Display| format!("{}: {error}", path.display());
    let found = CertificateDer::pem_file_iter(path).map_err(|error| said(&error))?;
    let found: Vec<_> = found.collect::<Result<_, _>>().map_err(|error| said(&error))?;
    if found.is_empty() { Err(said(&"there is no certificate in it")) } else { Ok(found) }
}

/// A socket, in the clear or encrypted.
pub(crate) struct Stream {
    socket: Socket,
    tls: Option<Box<ServerConnection>>,
}

fn is_blocked(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::WouldBlock
}

impl Stream {
    pub fn new(socket: Socket) -> Stream {
        Stream { socket, tls: None }
    }

    /// A handshake begins: what is written from now on is encrypted. `came`: bytes of it that were read
    /// already.
    pub fn secure(&mut self, config: &Arc<ServerConfig>, mut came: &[u8]) -> io::Result<()> {
        let mut tls = ServerConnection::new(Arc::clone(config)).map_err(io::Error::other)?;
        tls.set_buffer_limit(Some(BUFFERED_MAX));
        while !came.is_empty() && tls.read_tls(&mut came)? > 0 {
            tls.process_new_packets().map_err(io::Error::other)?;
        }
        self.tls = Some(Box::new(tls));
        Ok(())
    }

    pub fn is_secure(&self) -> bool {
        self.tls.is_some()
    }

    /// Goes on with the handshake. True: it is done. False: the other side is waited for.
    pub fn shake_hands(&mut self) -> io::Result<bool> {
        loop {
            if !self.push()? {
                return Ok(false);
            }
            let Some(tls) = self.tls.as_mut().filter(|tls| tls.is_handshaking()) else { return Ok(true) };
            match tls.read_tls(&mut self.socket) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(_) => {}
                Err(error) if is_blocked(&error) => return Ok(false),
                Err(error) => return Err(error),
            }
            self.process()?;
        }
    }

    /// Looks at what came. What is wrong is told to the other side, too.
    fn process(&mut self) -> io::Result<()> {
        let Some(tls) = &mut self.tls else { return Ok(()) };
        if let Err(error) = tls.process_new_packets() {
            // it may be gone
            let _ = self.push();
            return Err(io::Error::other(error));
        }
        Ok(())
    }

    /// Sends what waits inside TLS. False: the socket takes no more for now.
    pub fn push(&mut self) -> io::Result<bool> {
        let Some(tls) = &mut self.tls else { return Ok(true) };
        while tls.wants_write() {
            match tls.write_tls(&mut self.socket) {
                Ok(_) => {}
                Err(error) if is_blocked(&error) => return Ok(false),
                Err(error) => return Err(error),
            }
        }
        Ok(true)
    }

    /// Something waits inside TLS.
    pub fn is_pending(&self) -> bool {
        self.tls.as_ref().is_some_and(|tls| tls.wants_write())
    }

    /// Reads decrypted bytes by one of both calls.
    fn decrypted(
        &mut self,
        read: &mut dyn FnMut(&mut rustls::Reader) -> io::Result<usize>,
    ) -> io::Result<usize> {
        loop {
            let Some(tls) = &mut self.tls else { return Ok(0) };
            match read(&mut tls.reader()) {
                Err(error) if is_blocked(&error) => {}
                // QEMU ends without saying so
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(0),
                read => return read,
            }
            tls.read_tls(&mut self.socket)?;
            self.process()?;
        }
    }
}

impl Read for Stream {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        if self.tls.is_none() {
            return self.socket.read(bytes);
        }
        self.decrypted(&mut |reader| reader.read(bytes))
    }

    fn read_vectored(&mut self, lists: &mut [IoSliceMut<'_>]) -> io::Result<usize> {
        if self.tls.is_none() {
            return self.socket.read_vectored(lists);
        }
        self.decrypted(&mut |reader| reader.read_vectored(lists))
    }
}

impl Write for Stream {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.write_vectored(&[IoSlice::new(bytes)])
    }

    fn write_vectored(&mut self, lists: &[IoSlice<'_>]) -> io::Result<usize> {
        if self.tls.is_none() {
            return self.socket.write_vectored(lists);
        }
        if !self.push()? {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        let Some(tls) = &mut self.tls else { return Ok(0) };
        let len = tls.writer().write_vectored(lists)?;
        self.push()?;
        Ok(len)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Source for Stream {
    fn register(&mut self, registry: &Registry, token: Token, interests: Interest) -> io::Result<()> {
        self.socket.register(registry, token, interests)
    }

    fn reregister(&mut self, registry: &Registry, token: Token, interests: Interest) -> io::Result<()> {
        self.socket.reregister(registry, token, interests)
    }

    fn deregister(&mut self, registry: &Registry) -> io::Result<()> {
        self.socket.deregister(registry)
    }
}
