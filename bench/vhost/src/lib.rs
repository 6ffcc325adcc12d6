//! The other side of vhost-user-blk: a front end and the guest's driver behind it, for tests and for
//! measuring any server by one ruler.
//!
//! Knows: vhost-user as a front end speaks it, split rings as a driver fills them. Must never know: which
//! server answers.
#![forbid(unsafe_code)]

mod changes;
mod guest;
mod queue;

pub use changes::Changes;
pub use guest::{Guest, Options};
pub use queue::{Ask, Queue};
pub use vhost;
pub use virtio_queue::desc::split::Descriptor;
pub use vm_memory;
