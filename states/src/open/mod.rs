//! Opening an image, as a machine: header, backing name, autoclear bits, and the check of a dirty image.
//!
//! Knows: the order in which a header is read, validated and, if the image may be written, put in order. Must
//! never know: what the name of a backing or data file means to the host.
//!
//! Invariants:
//! * nothing is written to an image that is open for reading only, nor before the whole header is valid;
//! * a dirty image that may be written is checked and repaired, durably, before it is ready (QE6);
//! * one whose file was cut off within a cluster is searched before it is written, and refused if entries
//!   lead beyond its end (QE7): the file would grow over them;
//! * of one on a device, which has no end that says where space is free, all tables are walked before it is
//!   written.

mod opened;
mod qcow2;

pub use opened::Opened;

use crate::base::geometry::align_up;
use crate::check::{Repair, Report};
use crate::error::Error;
use crate::fault::{ClusterFault, Fault, Lack, Op};
use crate::image::Image;
use crate::info::{Format, Info};
use crate::io::{Io, IoId, IoOp, Outcome};
use crate::machine::Machine;
use crate::options::Options;
use crate::probe;
use crate::qcow2::Header as Qcow2Header;
use crate::qcow2::snapshot::Selector;
use crate::qed::{self, Header};
use crate::rule::Rule;
use crate::steps::Steps;
use alloc::boxed::Box;
use alloc::vec::Vec;
use qcow2::Qcow2Opening;

#[derive(Clone, Debug)]
enum OpenStep {
    ReadHeader,
    /// Its first bytes say nothing: is it a format that ends with its header?
    ReadTail,
    ReadRegion,
    ReadName(Header),
    ClearAutoclear(Header),
    SyncAutoclear(Header),
    Check(Box<qed::Check>),
    Qcow2(Box<Qcow2Opening>),
}

/// See the module's header.
#[derive(Clone, Debug)]
pub struct Opening {
    format: Option<Format>,
    file_len: u64,
    options: Options,
    steps: Steps<OpenStep, Box<Opened>>,
    dirty: bool,
    /// The check is no repair.
    searches: bool,
    /// Of an image on a device: nothing is in use from here on.
    free_end: Option<u64>,
    /// The name of the backing file.
    backing: Option<Vec<u8>>,
    /// The disk is that of this snapshot.
    snapshot: Option<Selector>,
}

impl Opening {
    /// `format` None: probe ([`probe`]; formats that quod does not read are refused by name). `file_len` is
    /// the file's length in bytes.
    pub fn new(format: Option<Format>, file_len: u64, options: Options) -> Opening {
        Opening::begin(format, file_len, options, None)
    }

    /// The same of a snapshot in the image, as it was when it was taken. It is only read, whatever the
    /// options say.
    pub fn of_snapshot(
        format: Option<Format>,
        file_len: u64,
        options: Options,
        snapshot: Selector,
    ) -> Opening {
        Opening::begin(format, file_len, options.read_only(true), Some(snapshot))
    }

    fn begin(format: Option<Format>, file_len: u64, options: Options, snapshot: Option<Selector>) -> Opening {
        debug_assert!(options.align.is_power_of_two(), "blocks are");
        let mut opening = Opening {
            format,
            file_len,
            options,
            steps: Steps::new(),
            dirty: false,
            searches: false,
            free_end: None,
            backing: None,
            snapshot,
        };
        if format == Some(Format::Raw) {
            opening.finish_raw();
        } else {
            let len = options.align.max(512);
            opening.steps.emit(OpenStep::ReadHeader, IoOp::ReadTable { offset: 0, len });
        }
        opening
    }

    /// The outcome, once.
    pub fn poll_result(&mut self) -> Option<Result<Opened, Error>> {
        self.steps.poll_result().map(|result| result.map(|opened| *opened))
    }

    fn finish_raw(&mut self) {
        debug_assert!(self.backing.is_none(), "a raw file names no other");
        if self.snapshot.is_some() {
            return self.steps.fail(Error::Unsupported(Lack::Snapshots(Format::Raw.name())));
        }
        let info = Info::of_raw(self.file_len);
        let image = Image::raw(self.file_len, &self.options);
        self.steps.end(Ok(Box::new(Opened { image, info, report: None })));
    }

    fn finish(&mut self, header: Header, report: Option<Report>) {
        let info = Info { dirty: self.dirty, ..Info::of_qed(&header, self.backing.as_deref()) };
        debug_assert!(self.format != Some(Format::Raw), "a raw file has no header");
        let unchecked = self.dirty && report.is_none() && !self.options.read_only;
        debug_assert!(!unchecked || self.options.sabotaged(Rule::CheckBeforeUse), "a dirty image is checked");
        debug_assert!(self.free_end.is_none() || self.options.fixed_len, "a file's own end says it");
        let image = Image::qed(header, self.file_len, self.free_end, &self.options);
        self.steps.end(Ok(Box::new(Opened { image, info, report })));
    }

    fn header_read(&mut self, bytes: &[u8]) {
        debug_assert!(self.steps.step().is_none(), "the header comes first");
        let format = match self.format.map_or_else(|| probe::head(bytes), Ok) {
            Ok(format) => format,
            Err(foreign) => return self.steps.fail(Error::Foreign(foreign)),
        };
        match format {
            Format::Raw => match self.file_len.checked_sub(probe::TAIL as u64) {
                None | Some(0) => self.finish_raw(),
                Some(offset) => {
                    self.steps.emit(OpenStep::ReadTail, IoOp::ReadTable { offset, len: probe::TAIL as u32 });
                }
            },
            Format::Qcow2 => self.read_region(bytes),
            Format::Qed if self.snapshot.is_some() => {
                self.steps.fail(Error::Unsupported(Lack::Snapshots(Format::Qed.name())));
            }
            Format::Qed => match Header::parse(bytes, self.file_len) {
                Ok(header) => self.header_valid(header),
                Err(error) => self.steps.fail(error),
            },
        }
    }

    /// The qcow2 header with its extensions and names may be longer than one block.
    fn read_region(&mut self, bytes: &[u8]) {
        let align = u64::from(self.options.align.max(512));
        let len = align_up(Qcow2Header::region(bytes) as u64, align) as u32;
        debug_assert!(len >= self.options.align, "whole blocks are read");
        debug_assert!(u64::from(len) <= (2 << 20).max(align), "a header is one cluster at most");
        self.steps.emit(OpenStep::ReadRegion, IoOp::ReadTable { offset: 0, len });
    }

    fn region_read(&mut self, bytes: &[u8]) {
        debug_assert!(!matches!(self.format, Some(Format::Raw | Format::Qed)), "no other has such a region");
        match Qcow2Opening::new(bytes, self.file_len, self.options, self.snapshot.take()) {
            Ok(opening) => {
                self.steps.enter(OpenStep::Qcow2(Box::new(opening)));
                self.qcow2_ended();
            }
            Err(error) => self.steps.fail(error),
        }
    }

    fn qcow2_ended(&mut self) {
        let Some(OpenStep::Qcow2(opening)) = self.steps.step_mut() else { return };
        if let Some(result) = opening.poll_result() {
            self.steps.end(result);
        }
    }

    fn header_valid(&mut self, header: Header) {
        debug_assert!(!self.dirty && self.backing.is_none(), "a header is looked at once");
        self.dirty = header.need_check();
        match header.backing_name() {
            Some((offset, len)) if len > 0 => {
                self.steps.emit(OpenStep::ReadName(header), IoOp::ReadTable { offset, len });
            }
            _ => self.put_in_order(header),
        }
    }

    /// Unknown autoclear bits go before anything else is written: here, if there is something to repair.
    fn put_in_order(&mut self, mut header: Header) {
        if self.options.read_only || header.autoclear_features == 0 || !header.need_check() {
            return self.check(header);
        }
        header.autoclear_features = 0;
        debug_assert!(!self.options.read_only, "what is read alone is not written");
        let len = header.block_len();
        self.steps.emit(OpenStep::ClearAutoclear(header), IoOp::WriteTable { offset: 0, len });
    }

    fn check(&mut self, header: Header) {
        let skipped = self.options.sabotaged(Rule::CheckBeforeUse);
        self.searches = !header.need_check();
        let device = self.options.fixed_len;
        let searched = device || !self.file_len.is_multiple_of(header.cluster_size.into());
        debug_assert!(self.steps.step().is_none(), "the header is in order");
        if self.options.read_only || skipped || self.searches && !searched {
            return self.finish(header, None);
        }
        let repair = (!self.searches).then_some(Repair::All);
        let check = qed::Check::new(header, self.file_len, repair).on_device(device);
        self.steps.enter(OpenStep::Check(Box::new(check)));
    }

    /// Whole clusters alone are written to the file: one that does not end so has lost its end. Nothing else
    /// tells which entries led there.
    fn search_ended(&mut self, header: Header, report: &Report) {
        if report.corruptions == 0 || self.options.fixed_len {
            return self.finish(header, None);
        }
        let (value, index) = (self.file_len, self.file_len / u64::from(header.cluster_size));
        debug_assert!(!self.options.read_only, "what is read alone is not searched");
        self.steps.fail(Error::Corrupt(Fault::Cluster { index, value, why: ClusterFault::CutOff }));
    }

    fn check_ended(&mut self) {
        let Some(OpenStep::Check(check)) = self.steps.step_mut() else { return };
        let Some(result) = check.poll_result() else { return };
        let Some(OpenStep::Check(check)) = self.steps.leave() else { return };
        let end_in_use = check.end_in_use();
        let (header, file_len) = check.into_parts();
        debug_assert!(file_len <= self.file_len, "a check cuts the file, or leaves it");
        self.file_len = file_len;
        if self.options.fixed_len {
            self.free_end = Some(end_in_use);
        }
        match result {
            // what a table that could not be read leads to is not free
            Ok(mut report) if self.options.fixed_len && report.check_errors > 0 => {
                let unread =
                    report.problems.drain(..).find(|problem| matches!(problem, Error::Device { .. }));
                self.steps.fail(unread.unwrap_or(Error::Device { op: Op::CheckL2, offset: 0, errno: 5 }));
            }
            Ok(report) if self.searches => self.search_ended(header, &report),
            Ok(report) => self.finish(header, Some(report)),
            Err(error) => self.steps.fail(error),
        }
    }
}

impl Machine for Opening {
    fn poll_io(&mut self) -> Option<Io> {
        let io = match self.steps.step_mut() {
            Some(OpenStep::Check(check)) => {
                let io = check.poll_io()?;
                if io.op == IoOp::Sync && self.options.sabotaged(Rule::RepairDurably) {
                    self.handle_completion(io.id, Outcome::Done);
                    return self.poll_io();
                }
                Some(io)
            }
            Some(OpenStep::Qcow2(opening)) => opening.poll_io(),
            _ => self.steps.poll_io(),
        };
        let changes = io.is_some_and(|io| io.op.changes_file());
        debug_assert!(!changes || !self.options.read_only, "what is read alone is not written");
        io
    }

    fn encode(&mut self, id: IoId, buf: &mut [u8]) {
        match self.steps.step_mut() {
            Some(OpenStep::Check(check)) => check.encode(id, buf),
            Some(OpenStep::Qcow2(opening)) => opening.encode(id, buf),
            Some(OpenStep::ClearAutoclear(header)) => header.encode_block(buf),
            _ => debug_assert!(false, "nothing to encode"),
        }
    }

    fn handle_completion(&mut self, id: IoId, outcome: Outcome<'_>) {
        if let Some(OpenStep::Check(check)) = self.steps.step_mut() {
            check.handle_completion(id, outcome);
            return self.check_ended();
        }
        if let Some(OpenStep::Qcow2(opening)) = self.steps.step_mut() {
            opening.handle_completion(id, outcome);
            return self.qcow2_ended();
        }
        let Some(step) = self.steps.answered(id) else { return };
        if let Outcome::Failed(errno) = outcome {
            return self.steps.fail(Error::Device { op: Op::Open, offset: 0, errno });
        }
        match (step, outcome) {
            (OpenStep::ReadHeader, Outcome::Table(bytes)) => self.header_read(bytes),
            (OpenStep::ReadTail, Outcome::Table(bytes)) => match probe::tail(bytes) {
                None => self.finish_raw(),
                Some(foreign) => self.steps.fail(Error::Foreign(foreign)),
            },
            (OpenStep::ReadRegion, Outcome::Table(bytes)) => self.region_read(bytes),
            (OpenStep::ReadName(header), Outcome::Table(bytes)) => {
                self.backing = Some(bytes.to_vec());
                self.put_in_order(header);
            }
            (OpenStep::ClearAutoclear(header), _) if self.options.sabotaged(Rule::AutoclearFirst) => {
                self.check(header);
            }
            (OpenStep::ClearAutoclear(header), _) => {
                self.steps.emit(OpenStep::SyncAutoclear(header), IoOp::Sync)
            }
            (OpenStep::SyncAutoclear(header), _) => self.check(header),
            _ => self.steps.fail(Error::Misuse("a completion that was not asked for")),
        }
    }
}
