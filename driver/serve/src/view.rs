//! The server as its control socket sees it.
//!
//! Knows: the disks, how many clients there are. Must never know: requests of the control, clients' own.

use crate::disks::Disks;
use quod::{DiskId, Driver};
use quod_door::{Count, Door, Shown};

/// Numbers of the loop's own.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Numbers {
    pub clients: u64,
    /// Connections that were taken.
    pub taken: u64,
    /// And turned away, because there were enough.
    pub turned_away: u64,
}

/// See the module's header.
pub(crate) struct View<'a> {
    pub disks: &'a mut Disks,
    pub numbers: Numbers,
    /// A disk is not held any more.
    pub freed: bool,
}

impl Door for View<'_> {
    fn protocol(&self) -> &'static str {
        "nbd"
    }

    fn driver(&mut self) -> &mut Driver {
        &mut self.disks.driver
    }

    fn shown(&self) -> Vec<Shown> {
        let exports = self.disks.exports.iter().map(|export| Shown {
            name: export.name.clone(),
            path: export.path.clone(),
            disk: export.disk,
            read_only: export.read_only,
        });
        exports.collect()
    }

    fn counts(&self) -> Vec<Count> {
        let Numbers { clients, taken, turned_away } = self.numbers;
        vec![
            Count { name: "clients", help: "Clients that are connected.", value: clients },
            Count { name: "connections_total", help: "Connections that were taken.", value: taken },
            Count {
                name: "connections_refused_total",
                help: "Connections that were turned away, because there were enough.",
                value: turned_away,
            },
        ]
    }

    fn hold(&mut self, disk: DiskId, hold: bool) {
        self.freed |= !hold;
        self.disks.hold(disk, hold);
    }

    /// Whoever chooses the export next is told, and a request's range is looked at by the size as it is.
    fn resized(&mut self, _: DiskId) {}
}
