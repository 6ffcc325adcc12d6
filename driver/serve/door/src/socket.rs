//! A client's socket, of either family.
//!
//! Knows: streams. Must never know: what is said over them.

use mio::event::Source;
use mio::net::{TcpStream, UnixStream};
use mio::{Interest, Registry, Token};
use std::io::{self, IoSlice, IoSliceMut, Read, Write};

/// A stream that does not block.
#[derive(Debug)]
pub enum Socket {
    /// Of this host.
    Unix(UnixStream),
    /// Of any.
    Tcp(TcpStream),
}

macro_rules! either {
    ($socket:expr, $stream:ident => $call:expr) => {
        match $socket {
            Socket::Unix($stream) => $call,
            Socket::Tcp($stream) => $call,
        }
    };
}

impl Read for Socket {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        either!(self, stream => stream.read(bytes))
    }

    fn read_vectored(&mut self, lists: &mut [IoSliceMut<'_>]) -> io::Result<usize> {
        either!(self, stream => stream.read_vectored(lists))
    }
}

impl Write for Socket {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        either!(self, stream => stream.write(bytes))
    }

    fn write_vectored(&mut self, lists: &[IoSlice<'_>]) -> io::Result<usize> {
        either!(self, stream => stream.write_vectored(lists))
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Source for Socket {
    fn register(&mut self, registry: &Registry, token: Token, interests: Interest) -> io::Result<()> {
        either!(self, stream => stream.register(registry, token, interests))
    }

    fn reregister(&mut self, registry: &Registry, token: Token, interests: Interest) -> io::Result<()> {
        either!(self, stream => stream.reregister(registry, token, interests))
    }

    fn deregister(&mut self, registry: &Registry) -> io::Result<()> {
        either!(self, stream => stream.deregister(registry))
    }
}
