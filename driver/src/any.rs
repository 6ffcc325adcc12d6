//! Stand-in for the backend's own `AnyBackend` until it lands.
#![allow(missing_docs)]
use quod_backend::{Backend, Completion, Full, Op, Segment, Token};
use std::os::fd::BorrowedFd;
use std::time::Duration;
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub enum BackendKind {
    #[default]
    Auto,
    Uring,
    Threads,
}
#[derive(Debug)]
pub struct AnyBackend {}
impl AnyBackend {
    pub fn new(_kind: BackendKind, _depth: u32) -> std::io::Result<AnyBackend> {
        Err(std::io::ErrorKind::Unsupported.into())
    }
}
impl Backend for AnyBackend {
    fn push(&mut self, _token: Token, op: Op) -> Result<(), Full> {
        Err(Full(op))
    }
    fn submit(&mut self) -> std::io::Result<()> {
        Ok(())
    }
    fn reap(&mut self, _out: &mut Vec<Completion>) -> usize {
        0
    }
    fn wait(&mut self, _timeout: Option<Duration>) -> std::io::Result<()> {
        Ok(())
    }
    fn notify_fd(&self) -> Option<BorrowedFd<'_>> {
        None
    }
    fn clear_notify(&mut self) {}
    fn capacity(&self) -> usize {
        0
    }
    fn in_flight(&self) -> usize {
        0
    }
    fn now(&self) -> Duration {
        Duration::ZERO
    }
    fn name(&self) -> &'static str {
        "none"
    }
    fn take_syscall_nanos(&mut self) -> u64 {
        0
    }
    fn register_buffer(&mut self, _segment: Segment) {}
}
