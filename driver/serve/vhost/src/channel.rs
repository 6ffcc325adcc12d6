//! The channel back to a front end, on which it is told that the disk has another size.
//!
//! Knows: the two messages for that, of which the crate `vhost` keeps the first one's descriptor to itself
//! and has no way to send the second. Must never know: what else a front end says, the disk.
//!
//! Invariants: nothing here blocks; no answer is asked for; a channel that does not take a whole message is
//! not used again, and the guest asks for the size when it begins anew.

use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendFlags, SocketType, recvmsg,
    send, sockopt,
};
use std::io::{self, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};

/// The message that brings the channel: it has no body.
pub const SET_BACKEND_REQ_FD: u32 = 21;
/// The message that is sent there.
const CONFIG_CHANGE_MSG: u32 = 2;

/// Bytes of a message's head.
const HEAD: usize = 12;
/// Flags: the version of the protocol, and that it is an answer.
const VERSION: u32 = 1;
const REPLY: u32 = 4;
/// Descriptors that are looked at, so that none of them stays open.
const DESCRIPTORS: usize = 8;

fn head(code: u32, flags: u32, len: u32) -> [u8; HEAD] {
    let mut bytes = [0; HEAD];
    for (to, word) in bytes.chunks_exact_mut(4).zip([code, flags, len]) {
        to.copy_from_slice(&word.to_ne_bytes());
    }
    bytes
}

/// See the module's header.
#[derive(Debug)]
pub struct Channel {
    /// None: it took no whole message.
    socket: Option<OwnedFd>,
}

impl Channel {
    /// Takes the message that has come on a front end's socket. `told`: it waits for a word about it.
    ///
    /// # Errors
    /// It brings no stream of the kind, or more than that. The front end was told so, if it waits for that.
    pub fn take(front: impl AsFd, told: bool) -> io::Result<Channel> {
        let channel = Channel::receive(&front);
        if told {
            let mut answer = [0; HEAD + 8];
            answer[..HEAD].copy_from_slice(&head(SET_BACKEND_REQ_FD, VERSION | REPLY, 8));
            answer[HEAD..].copy_from_slice(&u64::from(channel.is_err()).to_ne_bytes());
            send(&front, &answer, SendFlags::DONTWAIT | SendFlags::NOSIGNAL)?;
        }
        channel
    }

    fn receive(front: impl AsFd) -> io::Result<Channel> {
        let mut bytes = [0; HEAD];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS))];
        let mut told = RecvAncillaryBuffer::new(&mut space);
        let flags = RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
        let got = recvmsg(front, &mut [IoSliceMut::new(&mut bytes)], &mut told, flags)?;
        let descriptors = |message| match message {
            RecvAncillaryMessage::ScmRights(descriptors) => Some(descriptors),
            _ => None,
        };
        let mut sockets = told.drain().filter_map(descriptors).flatten();
        let (socket, more) = (sockets.next(), sockets.next());
        // it was looked at before: the code is right, and all of it is here
        let (Some(socket), None, HEAD) = (socket, more, got.bytes) else {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "no channel, or several"));
        };
        let is_stream = sockopt::socket_domain(&socket).is_ok_and(|domain| domain == AddressFamily::UNIX)
            && sockopt::socket_type(&socket).is_ok_and(|kind| kind == SocketType::STREAM);
        match is_stream {
            true => Ok(Channel { socket: Some(socket) }),
            false => Err(io::Error::new(io::ErrorKind::InvalidData, "a channel is a UNIX socket")),
        }
    }

    /// The config space is not what it was.
    pub fn tell_of_change(&mut self) {
        let Some(socket) = &self.socket else { return };
        let message = head(CONFIG_CHANGE_MSG, VERSION, 0);
        match send(socket, &message, SendFlags::DONTWAIT | SendFlags::NOSIGNAL) {
            Ok(HEAD) => {}
            told => {
                tracing::warn!("the front end was not told of the new size: {told:?}");
                self.socket = None;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, sendmsg};
    use std::fs::File;
    use std::io::{IoSlice, Read};
    use std::os::fd::BorrowedFd;
    use std::os::unix::net::UnixStream;

    /// Sends the message with these descriptors; what came of it, and the answer.
    fn sent(descriptors: &[BorrowedFd<'_>]) -> (io::Result<Channel>, [u8; HEAD + 8]) {
        let (mut theirs, ours) = UnixStream::pair().unwrap();
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS))];
        let mut with = SendAncillaryBuffer::new(&mut space);
        if !descriptors.is_empty() {
            assert!(with.push(SendAncillaryMessage::ScmRights(descriptors)));
        }
        let message = head(SET_BACKEND_REQ_FD, VERSION | 8, 0);
        sendmsg(&theirs, &[IoSlice::new(&message)], &mut with, SendFlags::empty()).unwrap();
        let channel = Channel::take(&ours, true);
        let mut answer = [0; HEAD + 8];
        theirs.read_exact(&mut answer).unwrap();
        (channel, answer)
    }

    #[test]
    fn a_channel_is_taken_and_told() {
        let (mut end, given) = UnixStream::pair().unwrap();
        let (channel, answer) = sent(&[given.as_fd()]);
        let mut channel = channel.unwrap();
        let words = |bytes: &[u8]| -> Vec<u32> {
            bytes.chunks_exact(4).map(|word| u32::from_ne_bytes(word.try_into().unwrap())).collect()
        };
        assert_eq!(words(&answer), [21, 5, 8, 0, 0]);
        channel.tell_of_change();
        let mut told = [0; HEAD];
        end.read_exact(&mut told).unwrap();
        assert_eq!(words(&told), [2, 1, 0]);
        // one that nobody reads is given up, and nothing waits for it
        for _ in 0..1_000_000 {
            channel.tell_of_change();
        }
        assert!(channel.socket.is_none());
    }

    #[test]
    fn what_is_no_channel_is_refused() {
        let file = File::open("/dev/null").unwrap();
        let (one, other) = UnixStream::pair().unwrap();
        for descriptors in [&[][..], &[file.as_fd()], &[one.as_fd(), other.as_fd()]] {
            let (channel, answer) = sent(descriptors);
            assert!(channel.is_err(), "{descriptors:?}");
            assert_eq!(answer[HEAD..], 1u64.to_ne_bytes());
        }
    }
}
