//! What a server tells unasked: that the config space has changed.
//!
//! Knows: the channel back to a front end, by the crate `vhost`. Must never know: what has changed.

use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Token};
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;
use std::time::Duration;
use vhost::vhost_user::{FrontendReqHandler, HandlerResult, VhostUserFrontendReqHandler};

/// Agrees to everything that it knows.
struct Listens;

impl VhostUserFrontendReqHandler for Listens {
    fn handle_config_change(&self) -> HandlerResult<u64> {
        Ok(0)
    }
}

/// See the module's header.
pub struct Changes {
    handler: FrontendReqHandler<Listens>,
    poll: Poll,
    events: Events,
}

impl Changes {
    pub(crate) fn new() -> io::Result<Changes> {
        let handler = FrontendReqHandler::new(Arc::new(Listens)).map_err(io::Error::other)?;
        let poll = Poll::new()?;
        poll.registry().register(&mut SourceFd(&handler.as_raw_fd()), Token(0), Interest::READABLE)?;
        Ok(Changes { handler, poll, events: Events::with_capacity(1) })
    }

    /// The end that the server has.
    pub(crate) fn given(&self) -> RawFd {
        self.handler.get_tx_raw_fd()
    }

    /// Waits for one. False: it took too long.
    ///
    /// # Errors
    /// Of the wait; or it was something else that was told.
    pub fn wait(&mut self, most: Duration) -> io::Result<bool> {
        self.poll.poll(&mut self.events, Some(most))?;
        if self.events.is_empty() {
            return Ok(false);
        }
        self.handler.handle_request().map_err(io::Error::other)?;
        Ok(true)
    }
}
