//! Opening an image, as a machine: header, backing name, autoclear bits, and the check of a dirty image.
//!
//! Knows: the order in which a header is read, validated and, if the image may be written, put in order. Must
//! never know: what the name of a backing or data file means to the host.
//!
//! Invariants:
//! * nothing is written to an image that is open for reading only, nor before the whole header is valid;
//! * a dirty image that may be written is checked and repaired, durably, before it is ready (QE6);
//! * one whose file was cut off within a cluster is searched before it is written, and refused if entries
//!   lead beyond its end (QE7): the file would grow over them.

use crate::check::{Repair, Report};
use crate::error::Error;
use crate::fault::Op;
use crate::geometry::align_up;
use crate::image::Image;
use crate::io::{Io, IoId, IoOp, Outcome};
use crate::machine::Machine;
use crate::options::Options;
use crate::probe;
use crate::qcow2::{self, Compression};
use crate::qed::{Check, Header};
use crate::rule::Rule;
use alloc::boxed::Box;
use alloc::vec::Vec;

/// An image format.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Format {
    /// No format: guest offset = host offset.
    Raw,
    /// QED.
    Qed,
    /// qcow2.
    Qcow2,
}

impl Format {
    /// As qemu-img calls it.
    pub const fn name(self) -> &'static str {
        match self {
            Format::Raw => "raw",
            Format::Qed => "qed",
            Format::Qcow2 => "qcow2",
        }
    }
}

/// What an image says about its backing file.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Backing {
    /// The name as it stands in the image: bytes, relative to the image's folder if relative.
    pub name: Vec<u8>,
    /// The format if the image names one; None: probe.
    pub format: Option<Format>,
    /// The format's name as it stands in the image. An image whose backing format is one that quod does not
    /// read is not opened; only [`Info::of_qcow2`] tells of it.
    pub format_name: Option<Vec<u8>>,
}

/// Persistent bitmaps of an image that is open for writing. quod does not keep them up: the first change of
/// the image makes them invalid, durably, before anything else is written; until then they stay as they are.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Bitmaps {
    /// How many are valid, as far as it is known.
    pub valid: u32,
    /// Their names, as far as they are known: those in the first 64 KiB of the directory.
    pub names: Vec<Vec<u8>>,
    /// The opening itself had to repair the image, which was dirty: they are invalid already.
    pub dropped: bool,
}

/// Facts about an open image.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Info {
    /// Its format.
    pub format: Format,
    /// Size of the guest disk, bytes: whole sectors. As QEMU counts them, a part of one at the end is shown
    /// of a raw file, and not of a qcow2 image.
    pub virtual_size: u64,
    /// Bytes; 0 for raw.
    pub cluster_size: u32,
    /// Bytes that have space of their own, or have not: a cluster, or one of its subclusters; 0 for raw.
    pub unit: u32,
    /// The version of its format (qcow2: 2 or 3); 0 if the format has no versions.
    pub version: u32,
    /// The need-check or dirty bit stood in the header when it was opened.
    pub dirty: bool,
    /// Its backing file.
    pub backing: Option<Backing>,
    /// How its compressed clusters are compressed (qcow2).
    pub compression: Compression,
    /// Its persistent bitmaps, if it has valid ones and is open for writing (qcow2).
    pub bitmaps: Option<Bitmaps>,
    /// The external data file that holds its guest data (qcow2): the name as it stands in the image, as for
    /// the backing file; of no bytes if the image names none.
    pub data_file: Option<Vec<u8>>,
    /// The data file is the guest disk byte for byte, also without the image.
    pub data_file_raw: bool,
}

impl Info {
    /// Of a raw file of this length: its last sector is whole.
    pub const fn of_raw(file_len: u64) -> Info {
        Info {
            format: Format::Raw,
            virtual_size: file_len.next_multiple_of(512),
            cluster_size: 0,
            unit: 0,
            version: 0,
            dirty: false,
            backing: None,
            compression: Compression::Deflate,
            bitmaps: None,
            data_file: None,
            data_file_raw: false,
        }
    }

    /// Of a QED image with this header and this name of a backing file, which stands beside the header.
    pub fn of_qed(header: &Header, backing: Option<&[u8]>) -> Info {
        let format = header.backing_raw().then_some(Format::Raw);
        let format_name = format.map(|format| format.name().as_bytes().to_vec());
        // a name of no bytes is no backing file, as for QEMU
        let name = backing.filter(|name| !name.is_empty());
        Info {
            format: Format::Qed,
            virtual_size: header.image_size,
            cluster_size: header.cluster_size,
            unit: header.cluster_size,
            dirty: header.need_check(),
            backing: name.map(|name| Backing { name: name.to_vec(), format, format_name }),
            ..Info::of_raw(0)
        }
    }

    /// Of a qcow2 image with this header.
    pub fn of_qcow2(header: &qcow2::Header) -> Info {
        let format_name = header.backing_format().map(<[u8]>::to_vec);
        let format = match header.backing_format() {
            Some(b"raw" | b"file" | b"host_device") => Some(Format::Raw),
            Some(b"qed") => Some(Format::Qed),
            Some(b"qcow2") => Some(Format::Qcow2),
            _ => None,
        };
        let backing = header.backing();
        Info {
            format: Format::Qcow2,
            virtual_size: header.guest_size(),
            cluster_size: 1 << header.cluster_bits,
            unit: (1 << header.cluster_bits) / if header.shape().extended { 32 } else { 1 },
            version: header.version,
            dirty: header.is_dirty(),
            backing: backing.map(|name| Backing { name: name.to_vec(), format, format_name }),
            compression: header.compression,
            bitmaps: None,
            data_file: header.has_data_file().then(|| header.data_file().unwrap_or_default().to_vec()),
            data_file_raw: header.data_file_raw(),
        }
    }
}

/// A finished opening.
#[derive(Clone, Debug)]
pub struct Opened {
    /// The machine, ready for `set_backing_len` and then requests.
    pub image: Image,
    /// Facts.
    pub info: Info,
    /// The image was dirty and open for writing: what its check found and repaired.
    pub report: Option<Report>,
}

#[derive(Clone, Debug)]
enum Step {
    ReadHeader,
    /// Its first bytes say nothing: is it a format that ends with its header?
    ReadTail,
    ReadRegion,
    ReadName(Header),
    ClearAutoclear(Header),
    SyncAutoclear(Header),
    Check(Box<Check>),
    Qcow2(Box<qcow2::Opening>),
    Ended,
}

/// See the module's header.
#[derive(Clone, Debug)]
pub struct Opening {
    format: Option<Format>,
    file_len: u64,
    options: Options,
    step: Step,
    id: u32,
    out: Option<IoOp>,
    dirty: bool,
    /// The check is no repair.
    searches: bool,
    /// The name of the backing file.
    backing: Option<Vec<u8>>,
    result: Option<Result<Box<Opened>, Error>>,
}

impl Opening {
    /// `format` None: probe ([`probe`]; formats that quod does not read are refused by name). `file_len` is
    /// the file's length in bytes.
    pub fn new(format: Option<Format>, file_len: u64, options: Options) -> Opening {
        let mut opening = Opening {
            format,
            file_len,
            options,
            step: Step::ReadHeader,
            id: 0,
            out: None,
            dirty: false,
            searches: false,
            backing: None,
            result: None,
        };
        if format == Some(Format::Raw) {
            opening.finish_raw();
        } else {
            let len = options.align.max(512);
            opening.emit(Step::ReadHeader, IoOp::ReadTable { offset: 0, len });
        }
        opening
    }

    /// The outcome, once.
    pub fn poll_result(&mut self) -> Option<Result<Opened, Error>> {
        self.result.take().map(|result| result.map(|opened| *opened))
    }

    fn emit(&mut self, step: Step, op: IoOp) {
        self.step = step;
        self.id = self.id.wrapping_add(1);
        self.out = Some(op);
    }

    fn fail(&mut self, error: Error) {
        self.step = Step::Ended;
        self.result = Some(Err(error));
    }

    fn finish_raw(&mut self) {
        let info = Info::of_raw(self.file_len);
        let image = Image::raw(self.file_len, &self.options);
        self.step = Step::Ended;
        self.result = Some(Ok(Box::new(Opened { image, info, report: None })));
    }

    fn finish(&mut self, header: Header, report: Option<Report>) {
        let info = Info { dirty: self.dirty, ..Info::of_qed(&header, self.backing.as_deref()) };
        let image = Image::qed(header, self.file_len, &self.options);
        self.step = Step::Ended;
        self.result = Some(Ok(Box::new(Opened { image, info, report })));
    }

    fn header_read(&mut self, bytes: &[u8]) {
        let format = match self.format.map_or_else(|| probe::head(bytes), Ok) {
            Ok(format) => format,
            Err(foreign) => return self.fail(Error::Foreign(foreign)),
        };
        match format {
            Format::Raw => match self.file_len.checked_sub(probe::TAIL as u64) {
                None | Some(0) => self.finish_raw(),
                Some(offset) => {
                    self.emit(Step::ReadTail, IoOp::ReadTable { offset, len: probe::TAIL as u32 });
                }
            },
            Format::Qcow2 => self.read_region(bytes),
            Format::Qed => match Header::parse(bytes, self.file_len) {
                Ok(header) => self.header_valid(header),
                Err(error) => self.fail(error),
            },
        }
    }

    /// The qcow2 header with its extensions and names may be longer than one block.
    fn read_region(&mut self, bytes: &[u8]) {
        let align = u64::from(self.options.align.max(512));
        let len = align_up(qcow2::Header::region(bytes) as u64, align) as u32;
        self.emit(Step::ReadRegion, IoOp::ReadTable { offset: 0, len });
    }

    fn region_read(&mut self, bytes: &[u8]) {
        match qcow2::Opening::new(bytes, self.file_len, self.options) {
            Ok(opening) => {
                self.step = Step::Qcow2(Box::new(opening));
                self.qcow2_ended();
            }
            Err(error) => self.fail(error),
        }
    }

    fn qcow2_ended(&mut self) {
        let Step::Qcow2(opening) = &mut self.step else { return };
        if let Some(result) = opening.poll_result() {
            self.step = Step::Ended;
            self.result = Some(result);
        }
    }

    fn header_valid(&mut self, header: Header) {
        self.dirty = header.need_check();
        match header.backing_name() {
            Some((offset, len)) if len > 0 => {
                self.emit(Step::ReadName(header), IoOp::ReadTable { offset, len });
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
        let len = header.block_len();
        self.emit(Step::ClearAutoclear(header), IoOp::WriteTable { offset: 0, len });
    }

    fn check(&mut self, header: Header) {
        let skipped = self.options.sabotaged(Rule::CheckBeforeUse);
        self.searches = !header.need_check();
        let cut_off = !self.file_len.is_multiple_of(header.cluster_size.into());
        if self.options.read_only || skipped || self.searches && !cut_off {
            return self.finish(header, None);
        }
        let repair = (!self.searches).then_some(Repair::All);
        self.step = Step::Check(Box::new(Check::new(header, self.file_len, repair)));
    }

    /// Whole clusters alone are written to the file: one that does not end so has lost its end. Nothing else
    /// tells which entries led there.
    fn search_ended(&mut self, header: Header, report: &Report) {
        if report.corruptions == 0 {
            return self.finish(header, None);
        }
        let (place, index) = ("cluster of the file", self.file_len / u64::from(header.cluster_size));
        let what = "the file is cut off within it, and entries lead beyond its end: check the image";
        self.fail(Error::Corrupt { place, index, value: self.file_len, what });
    }

    fn check_ended(&mut self) {
        let Step::Check(check) = &mut self.step else { return };
        let Some(result) = check.poll_result() else { return };
        let step = core::mem::replace(&mut self.step, Step::Ended);
        let Step::Check(check) = step else { return };
        let (header, file_len) = check.into_parts();
        self.file_len = file_len;
        match result {
            Ok(report) if self.searches => self.search_ended(header, &report),
            Ok(report) => self.finish(header, Some(report)),
            Err(error) => self.fail(error),
        }
    }
}

impl Machine for Opening {
    fn poll_io(&mut self) -> Option<Io> {
        match &mut self.step {
            Step::Check(check) => {
                let io = check.poll_io()?;
                if io.op == IoOp::Sync && self.options.sabotaged(Rule::RepairDurably) {
                    self.handle_completion(io.id, Outcome::Done);
                    return self.poll_io();
                }
                return Some(io);
            }
            Step::Qcow2(opening) => return opening.poll_io(),
            _ => {}
        }
        self.out.take().map(|op| Io { id: IoId { index: 0, generation: self.id }, op })
    }

    fn encode(&mut self, id: IoId, buf: &mut [u8]) {
        match &mut self.step {
            Step::Check(check) => check.encode(id, buf),
            Step::Qcow2(opening) => opening.encode(id, buf),
            Step::ClearAutoclear(header) => header.encode_block(buf),
            _ => debug_assert!(false, "nothing to encode"),
        }
    }

    fn handle_completion(&mut self, id: IoId, outcome: Outcome<'_>) {
        if let Step::Check(check) = &mut self.step {
            check.handle_completion(id, outcome);
            return self.check_ended();
        }
        if let Step::Qcow2(opening) = &mut self.step {
            opening.handle_completion(id, outcome);
            return self.qcow2_ended();
        }
        if id.generation != self.id {
            return;
        }
        if let Outcome::Failed(errno) = outcome {
            return self.fail(Error::Device { op: Op::Open, offset: 0, errno });
        }
        match (core::mem::replace(&mut self.step, Step::Ended), outcome) {
            (Step::ReadHeader, Outcome::Table(bytes)) => self.header_read(bytes),
            (Step::ReadTail, Outcome::Table(bytes)) => match probe::tail(bytes) {
                None => self.finish_raw(),
                Some(foreign) => self.fail(Error::Foreign(foreign)),
            },
            (Step::ReadRegion, Outcome::Table(bytes)) => self.region_read(bytes),
            (Step::ReadName(header), Outcome::Table(bytes)) => {
                self.backing = Some(bytes.to_vec());
                self.put_in_order(header);
            }
            (Step::ClearAutoclear(header), _) if self.options.sabotaged(Rule::AutoclearFirst) => {
                self.check(header);
            }
            (Step::ClearAutoclear(header), _) => self.emit(Step::SyncAutoclear(header), IoOp::Sync),
            (Step::SyncAutoclear(header), _) => self.check(header),
            _ => self.fail(Error::Misuse("a completion that was not asked for")),
        }
    }
}
