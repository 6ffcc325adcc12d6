//! Write-zeroes and discard, of raw and QED images; qcow2's whole clusters are `unmap.rs`'s.
//!
//! QE10: an unallocated cluster becomes a zero entry, which needs no data; an allocated one is zeroed in
//! place, never replaced.

use crate::acb::request::{Flags, Met};
use crate::acb::{AcbIndex, State};
use crate::base::geometry::{align_down, align_up};
use crate::base::span::Span;
use crate::image::next::Next;
use crate::image::value::Image;
use crate::io::{IoOp, Part};
#[cfg(feature = "sabotage")]
use crate::rule::Rule;
use crate::tables::mapping::{Mapping, Run, ZERO_ENTRY};
use alloc::boxed::Box;

impl Image {
    /// Write-zeroes of a run.
    pub(crate) fn zero_run(&mut self, a: AcbIndex, run: Run, slot: Option<u32>) -> Next {
        debug_assert!(run.len > 0);
        let Run { mapping, len, .. } = run;
        let acb = self.requests.acb(a);
        let (pos, end) = (acb.pos, acb.pos + len);
        debug_assert!(end <= acb.end, "a run ends with the range");
        match mapping {
            #[cfg(feature = "sabotage")]
            Mapping::Data(_) if self.options.sabotaged(Rule::KeptClusters) => self.zero_entry(a, run, slot),
            Mapping::Data(host) => self.zero_in_place(a, host, len),
            Mapping::Zero => self.skip(a, len),
            Mapping::ZeroAllocated(_) | Mapping::Reserved(_) | Mapping::Compressed { .. } => {
                debug_assert!(false, "only qcow2 has them");
                self.write_run(a, run, slot)
            }
            // what no layer holds reads as zeros already
            Mapping::NoTable | Mapping::Unallocated
                if self.backing_len.is_none_or(|backing| backing <= pos) =>
            {
                self.requests.note(a, Met::ZERO);
                self.skip(a, len)
            }
            Mapping::NoTable | Mapping::Unallocated => {
                let Some(geometry) = self.layout.geometry().copied() else { return Next::On };
                let whole = |offset: u64| offset == geometry.cluster_start(offset);
                let first = geometry.cluster_end(pos);
                // a cluster that is zeroed to the end of the disk is zeroed whole
                let last =
                    if end == self.size { geometry.cluster_end(end) } else { geometry.cluster_start(end) };
                if !whole(pos) {
                    // the rest of a partly covered cluster shows the backing layer: it is copied
                    return self.write_run(a, Run { len: len.min(first - pos), ..run }, slot);
                }
                if last <= pos {
                    return self.write_run(a, run, slot);
                }
                self.set_zero_entries(a, Span::new(pos, last), end.min(last) - pos, slot)
            }
        }
    }

    /// QE10: the entry of a cluster becomes a zero entry, where the request covers it.
    #[cfg(feature = "sabotage")]
    fn zero_entry(&mut self, a: AcbIndex, run: Run, slot: Option<u32>) -> Next {
        debug_assert!(self.options.sabotaged(Rule::KeptClusters));
        let Some(cluster) = self.layout.geometry().map(|geometry| geometry.cluster_size()) else {
            return Next::On;
        };
        let pos = self.requests.acb(a).pos;
        match run.mapping {
            _ if pos.is_multiple_of(cluster) && run.len >= cluster => {
                self.set_zero_entries(a, Span::at(pos, cluster), cluster, slot)
            }
            Mapping::Data(host) => self.zero_in_place(a, host, run.len.min(cluster - pos % cluster)),
            _ => self.skip(a, run.len),
        }
    }

    /// The entries of these guest clusters say zero; `len` bytes of the request are done with it.
    fn set_zero_entries(&mut self, a: AcbIndex, guest: Span, len: u64, slot: Option<u32>) -> Next {
        debug_assert!(!guest.is_empty() && len > 0, "it gets on");
        let new_table = slot.is_none();
        if !self.pass_gate(a, guest, new_table) {
            return Next::Wait;
        }
        let Some(slot) = slot else { return self.new_table(a, guest.start) };
        let Some(geometry) = self.layout.geometry().copied() else { return Next::On };
        if self.tables.is_overfull() {
            return self.wait_for_slot(a);
        }
        let (_, first) = geometry.l2_slice(guest.start);
        let count = (guest.len() >> geometry.cluster_bits) as usize;
        debug_assert!((guest.start | guest.end) & (geometry.cluster_size() - 1) == 0, "whole clusters");
        debug_assert!(first + count <= geometry.slice_words(), "a run ends with its slice");
        self.set_entries(slot, (first, count), (ZERO_ENTRY, 0));
        self.requests.note(a, Met::ZERO);
        self.note_written(a, true);
        self.skip(a, len)
    }

    /// Zeros over data: whole blocks by the host's means, the rest by modifying sectors.
    pub(crate) fn zero_in_place(&mut self, a: AcbIndex, host: u64, len: u64) -> Next {
        debug_assert!(len > 0);
        let pos = self.requests.acb(a).pos;
        if let Some(counted) = self.refcounted.as_deref()
            && let Err(error) = counted.check_data_place(pos, host, len)
        {
            return self.fail_lookup(Box::new(error));
        }
        let align = u64::from(self.options.align);
        let (first, last) = (align_up(host, align), align_down(host + len, align));
        if first >= last {
            return self.write_in_place(a, host, len);
        }
        if host < first {
            return self.write_in_place(a, host, first - host);
        }
        let unmap = self.layout.is_raw() && self.requests.acb(a).flags.contains(Flags::MAY_UNMAP);
        self.zero_host(a, Span::new(host, last), |host, len| IoOp::ZeroRange { host, len, unmap })
    }

    fn zero_host(&mut self, a: AcbIndex, range: Span, op: impl FnOnce(u64, u64) -> IoOp) -> Next {
        debug_assert!(!range.is_empty());
        if !self.pass_sectors(a, range, false) {
            return Next::Wait;
        }
        let host = range.start;
        debug_assert!(host.is_multiple_of(self.options.align.into()), "whole blocks are zeroed");
        debug_assert!(range.end.is_multiple_of(self.options.align.into()), "to the last");
        let len = self.requests.take_run(a, range.len(), host, Met::HIT);
        let acb = self.requests.acb_mut(a);
        acb.write.fill = Span::new(acb.pos, acb.extent.end);
        self.requests.set_state(a, State::ZeroData);
        self.outbox.emit_own(&mut self.requests, a, Part::Head, op(host, len));
        Next::Wait
    }

    /// The acb's next `len` bytes need nothing more.
    pub(crate) fn skip(&mut self, a: AcbIndex, len: u64) -> Next {
        debug_assert_eq!(self.requests.acb(a).io.pending, 0, "nothing of it is in flight while it looks");
        self.requests.skip(a, len);
        Next::On
    }

    /// `ZeroData`: the range reads as zeros.
    pub(crate) fn extent_zeroed(&mut self, a: AcbIndex) -> Next {
        let acb = self.requests.acb_mut(a);
        debug_assert!(acb.pos < acb.extent.end, "zeros were written");
        acb.pos = acb.extent.end;
        self.let_go(a);
        self.note_written(a, false);
        Next::Extent
    }

    /// Discard. QED has nothing to give back (formats.md 2.11): the data stays, which a discard allows.
    pub(crate) fn discard_run(&mut self, a: AcbIndex, run: Run) -> Next {
        debug_assert!(run.len > 0 && self.refcounted.is_none());
        let Run { mapping, len, .. } = run;
        let (true, Mapping::Data(host)) = (self.layout.is_raw(), mapping) else {
            return self.skip(a, len);
        };
        let align = u64::from(self.options.align).max(crate::base::geometry::SECTOR);
        let (first, last) = (align_up(host, align), align_down(host + len, align));
        if first >= last {
            return self.skip(a, len);
        }
        if host < first {
            return self.skip(a, first - host);
        }
        // a device may have no way to zeros but to write them, which nobody has asked for
        let device = self.space.is_device();
        self.zero_host(a, Span::new(first, last), |host, len| match device {
            true => IoOp::Discard { host, len },
            false => IoOp::ZeroRange { host, len, unmap: true },
        })
    }
}
