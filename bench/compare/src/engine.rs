//! Who is compared, on which format, and why not on which work.
//!
//! Knows: names. Must never know: how an engine is called.

use crate::setting::{Format, Start};
use crate::workload::{Work, Workload};
use serde::{Deserialize, Serialize};

/// A program or a library.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Maker {
    /// The limit: fio's io_uring engine with registered files and buffers, no format.
    Fio,
    /// quod over io_uring with registered memory, writeback.
    Quod,
    /// The same with memory that is not registered.
    QuodPlain,
    /// quod on threads.
    QuodThreads,
    /// quod over io_uring with registered memory, an allocating write completes when its mapping is written.
    QuodWritethrough,
    /// `qemu-img bench`, the best of its three engines.
    Qemu,
    /// imago, one thread.
    Imago,
    /// imago, a thread for each request in flight.
    ImagoPool,
    /// qcow2-rs on tokio-uring.
    Qcow2Rs,
}

/// One of the compared.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Engine {
    /// Who.
    pub maker: Maker,
    /// On what.
    pub format: Format,
}

/// All of them, in the order of the table.
pub const ALL: [Engine; 20] = {
    use Format::{Qcow2, Qed, Raw};
    use Maker::{Fio, Imago, ImagoPool, Qcow2Rs, Qemu, Quod, QuodPlain, QuodThreads, QuodWritethrough};
    const fn of(maker: Maker, format: Format) -> Engine {
        Engine { maker, format }
    }
    [
        of(Fio, Raw),
        of(Quod, Raw),
        of(Quod, Qed),
        of(Quod, Qcow2),
        of(QuodPlain, Raw),
        of(QuodPlain, Qed),
        of(QuodPlain, Qcow2),
        of(QuodThreads, Raw),
        of(QuodThreads, Qed),
        of(QuodThreads, Qcow2),
        of(QuodWritethrough, Qed),
        of(QuodWritethrough, Qcow2),
        of(Qemu, Raw),
        of(Qemu, Qed),
        of(Qemu, Qcow2),
        of(Imago, Raw),
        of(Imago, Qcow2),
        of(ImagoPool, Raw),
        of(ImagoPool, Qcow2),
        of(Qcow2Rs, Qcow2),
    ]
};

impl Maker {
    fn name(self) -> &'static str {
        match self {
            Maker::Fio => "fio",
            Maker::Quod => "quod",
            Maker::QuodPlain => "quod-plain",
            Maker::QuodThreads => "quod-threads",
            Maker::QuodWritethrough => "quod-writethrough",
            Maker::Qemu => "qemu-img",
            Maker::Imago => "imago",
            Maker::ImagoPool => "imago-pool",
            Maker::Qcow2Rs => "qcow2-rs",
        }
    }

    /// One of quod's.
    pub fn is_quod(self) -> bool {
        matches!(self, Maker::Quod | Maker::QuodPlain | Maker::QuodThreads | Maker::QuodWritethrough)
    }

    /// Neither quod nor the limit.
    pub fn is_peer(self) -> bool {
        !self.is_quod() && self != Maker::Fio
    }

    fn is_imago(self) -> bool {
        matches!(self, Maker::Imago | Maker::ImagoPool)
    }
}

impl Engine {
    /// Its name in the table.
    pub fn name(&self) -> String {
        format!("{} {}", self.maker.name(), self.format.name())
    }

    /// Whether a word of `--engines` means it: the maker, or maker and format with a colon.
    pub fn is_meant(&self, word: &str) -> bool {
        let maker = self.maker.name();
        word == maker || word == format!("{maker}:{}", self.format.name())
    }

    /// Why this engine does not do this work: `Err` with a reason that the reader should know, or `Ok(false)`
    /// where there is no such image or nothing that it would add.
    pub fn does(&self, workload: &Workload) -> Result<bool, &'static str> {
        let Engine { maker, format } = *self;
        let start = workload.start;
        if !start.has(format) {
            return Ok(false);
        }
        let allocates = !matches!(start, Start::Full) && workload.work.writes();
        let mix = matches!(workload.work, Work::Load(load) if load.is_mix());
        match (maker, workload.work) {
            (Maker::QuodWritethrough, _) if !allocates => Ok(false),
            // their requests have buffers of their own, of many sizes: none is registered
            (Maker::QuodPlain, Work::Discard { .. } | Work::Trace { .. }) => Ok(false),
            (Maker::Fio, Work::Load(_)) => Ok(true),
            (Maker::Fio, _) => Ok(false),
            (Maker::Qemu, Work::Discard { .. }) => Err("qemu-img bench has no discards"),
            (Maker::Qemu, Work::Trace { .. }) => Err("qemu-img bench plays no trace"),
            (Maker::Qemu, _) if mix => Err("qemu-img bench mixes no reads and writes"),
            (Maker::Qcow2Rs, Work::Discard { .. }) => Err("qcow2-rs has no discard"),
            (Maker::Qcow2Rs, Work::Trace { .. }) => {
                Err("qcow2-rs with blocks of 4 KiB takes no smaller requests, and the trace has such")
            }
            _ if maker.is_imago() && matches!(workload.work, Work::Discard { .. }) => {
                Err("imago's discard takes the image for itself, so that nothing else can be in flight")
            }
            _ if matches!(start, Start::OverlayExtended) && !maker.is_quod() && maker != Maker::Qemu => {
                Err("imago and qcow2-rs know no extended L2 entries")
            }
            _ if matches!(start, Start::Zstd | Start::HotZstd)
                && !maker.is_quod()
                && maker != Maker::Qemu =>
            {
                Err("imago and qcow2-rs know no zstd")
            }
            _ => Ok(true),
        }
    }

    /// What the reader of its row must know.
    pub fn note(&self, workload: &Workload) -> Option<&'static str> {
        let one = Maker::Imago == self.maker;
        match (self.maker, workload.work) {
            (Maker::Imago | Maker::ImagoPool, Work::Trace { .. }) => {
                Some("imago plays the trace without its 39 discards")
            }
            (Maker::Imago | Maker::ImagoPool, _) if workload.start == Start::Cold => {
                Some("imago's cache of 128 tables of 64 KiB cannot be made smaller")
            }
            (_, Work::Load(load)) if one && load.depth > 1 => Some(
                "imago's calls block: on one thread (`imago`) one request is in flight, whatever the depth",
            ),
            (Maker::Fio, Work::Load(load)) if load.is_scattered() => Some("fio draws its places at random"),
            _ => None,
        }
    }
}
