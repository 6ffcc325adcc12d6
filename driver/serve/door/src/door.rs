//! What a server shows of itself.
//!
//! Knows: names of what may be asked. Must never know: who asks, by which protocol.

use quod::{DiskId, Driver};
use std::path::PathBuf;

/// A disk that is served.
#[derive(Clone, Debug)]
pub struct Shown {
    /// By this name clients ask for it; empty where there is one, or a default.
    pub name: String,
    /// The image.
    pub path: PathBuf,
    /// Of the driver.
    pub disk: DiskId,
    /// Clients may not write.
    pub read_only: bool,
}

/// A number that the server counts by itself.
#[derive(Clone, Copy, Debug)]
pub struct Count {
    /// As Prometheus wants names, without `quod_`; one that only grows ends in `_total`.
    pub name: &'static str,
    /// What it counts, in a sentence.
    pub help: &'static str,
    /// How much.
    pub value: u64,
}

/// A server, as its [`Control`](crate::Control) sees it.
pub trait Door {
    /// "nbd", for instance.
    fn protocol(&self) -> &'static str;

    /// The driver of all disks.
    fn driver(&mut self) -> &mut Driver;

    /// The disks, in an order that stays.
    fn shown(&self) -> Vec<Shown>;

    /// Numbers of the server's own.
    fn counts(&self) -> Vec<Count>;

    /// From now on nothing that a client asks of this disk is handed to the driver (true), or it is again.
    /// What the driver has goes on.
    fn hold(&mut self, disk: DiskId, hold: bool);

    /// The disk has another size.
    fn resized(&mut self, disk: DiskId);
}
