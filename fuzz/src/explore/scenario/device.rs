//! Scenarios on a block device: it has the length that it has, and holds old content where nothing was
//! written.
//!
//! Knows: which space a request takes. Must never know: how it is cleared, or covered.

use super::qcow2::{K, LAZY, S, SMALL, SPAN, SPLIT, USUAL, WIDE, data, discard, scenario};
use super::setting::{CLUSTER, Scenario, read, write, zero};
use crate::image::Part;
use crate::world::Ask;

impl Scenario {
    /// On a device, with so many bytes behind the image.
    fn on_device(mut self, more: u64) -> Scenario {
        self.device = Some(more);
        self
    }
}

/// All of them.
pub fn all() -> Vec<Scenario> {
    let mut list = qed();
    list.extend(qcow2());
    list.extend(full());
    list
}

/// Its tables say where the free end begins.
fn qed() -> Vec<Scenario> {
    let parts = [write(512, 512), write(CLUSTER + 512, 512), Ask::Flush];
    // there is a table already, so what is wanted first is space for data
    let whole = [write(CLUSTER, 2 * CLUSTER), read(CLUSTER, CLUSTER), Ask::Flush];
    let mixed = [write(CLUSTER, CLUSTER), write(2 * CLUSTER, 512), Ask::Flush];
    let again = [write(CLUSTER, 512), Ask::Flush, Ask::Close];
    let room = 12 * CLUSTER;
    vec![
        Scenario::new("device-parts-of-clusters", 2, &parts).on_device(room),
        Scenario::new("device-part-and-whole", 2, &mixed).after(&[write(0, 512)]).on_device(room),
        Scenario::new("device-whole-clusters", 2, &whole).after(&[write(0, 512)]).on_device(room),
        Scenario::new("device-copies", 2, &[write(512, 512), read(0, CLUSTER), Ask::Flush])
            .backed(2 * CLUSTER + 512)
            .on_device(room),
        Scenario::new("device-second-session", 1, &again).after(&[write(0, CLUSTER)]).on_device(room),
        Scenario::new("device-empty", 1, &[Ask::Empty, write(CLUSTER, 512), Ask::Close])
            .after(&[write(0, CLUSTER), write(2 * CLUSTER, 512)])
            .on_device(room),
        Scenario::new("device-second-table", 1, &[write(super::setting::SPAN, CLUSTER), Ask::Flush])
            .large()
            .after(&[write(0, 512)])
            .on_device(room),
    ]
}

/// Counts say where it begins.
fn qcow2() -> Vec<Scenario> {
    let grow = Ask::Resize { len: SPAN + 4096 };
    let again = [discard(0, K), Ask::Flush, write(2 * K, K), Ask::Flush];
    vec![
        scenario("qcow2-device-parts-of-clusters", USUAL, 2, &[write(512, 256), write(K, 512), Ask::Flush])
            .on_device(12 * K),
        scenario("qcow2-device-whole-clusters", USUAL, 2, &[write(K, 2 * K), read(K, K), Ask::Flush])
            .made(&[data(0, 1)])
            .on_device(12 * K),
        scenario("qcow2-device-part-and-whole", USUAL, 2, &[write(K, K), write(2 * K, 512), Ask::Flush])
            .made(&[data(0, 1)])
            .on_device(12 * K),
        scenario("qcow2-device-copies", USUAL, 2, &[write(512, 256), read(0, K), Ask::Flush])
            .backed(K + 512)
            .on_device(12 * K),
        scenario("qcow2-device-discard-and-write", USUAL, 1, &again).made(&[data(0, 2)]).on_device(12 * K),
        scenario("qcow2-device-zeros", USUAL, 2, &[zero(256, 256), write(K, K), Ask::Flush])
            .made(&[data(0, 1)])
            .on_device(12 * K),
        scenario("qcow2-device-lazy", LAZY, 1, &[write(0, K), Ask::Flush, Ask::Quiesce]).on_device(12 * K),
        scenario("qcow2-device-two-new-tables", SMALL, 2, &[write(0, 512), write(SPAN, 512), Ask::Flush])
            .sized(SPAN + 2048)
            .on_device(12 * K),
        scenario("qcow2-device-new-refcount-block", WIDE, 1, &[write(0, 512), Ask::Flush])
            .made(&[Part::Leaks { end: 63 }])
            .on_device(12 * K),
        scenario("qcow2-device-subclusters", SPLIT, 1, &[write(S + 512, 512), Ask::Flush])
            .made(&[data(0, 1)])
            .on_device(4 * S),
        scenario("qcow2-device-grow-moves-the-table", SMALL, 1, &[grow, write(2048, 512), Ask::Flush])
            .made(&[data(0, 2)])
            .on_device(12 * K),
    ]
}

/// There is room for some of it only.
fn full() -> Vec<Scenario> {
    let two = [write(0, CLUSTER), write(CLUSTER, 512), read(0, 2 * CLUSTER), Ask::Flush];
    let more = [write(0, K), write(K, 512), Ask::Flush];
    vec![
        Scenario::new("device-full", 2, &two).on_device(2 * CLUSTER),
        Scenario::new("device-full-in-one", 1, &[write(0, 3 * CLUSTER), Ask::Flush]).on_device(3 * CLUSTER),
        scenario("qcow2-device-full", USUAL, 1, &more).on_device(2 * K),
    ]
}
