//! stub
use crate::{Error, Image, Io, IoId, Machine, Options, Outcome};
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
/// What an image says about its backing file.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Backing {
    /// The name as it stands in the image: bytes, relative to the image's folder if relative.
    pub name: Vec<u8>,
    /// The format if the image names one; None: probe.
    pub format: Option<Format>,
}
/// Facts about an open image.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Info {
    /// Its format.
    pub format: Format,
    /// Size of the guest disk, bytes.
    pub virtual_size: u64,
    /// Bytes; 0 for raw.
    pub cluster_size: u32,
    /// The need-check or dirty bit stood in the header when it was opened.
    pub dirty: bool,
    /// Its backing file.
    pub backing: Option<Backing>,
}
/// A finished opening.
#[derive(Clone, Debug)]
pub struct Opened {
    /// The machine, ready for `set_backing_len` and then requests.
    pub image: Image,
    /// Facts.
    pub info: Info,
    /// The image was dirty, opened for writing, and this many entries were repaired.
    pub repaired: Option<u64>,
}
/// Opens an image: reads and validates the header, checks and repairs a dirty image if it may write.
pub struct Opening {}
impl Opening {
    /// `format` None: probe (what is neither QED nor qcow2 is raw). `file_len` is the file's length in bytes.
    pub fn new(_format: Option<Format>, _file_len: u64, _options: Options) -> Opening { unimplemented!() }
    /// The outcome, once.
    pub fn poll_result(&mut self) -> Option<Result<Opened, Error>> { unimplemented!() }
}
impl Machine for Opening {
    fn poll_io(&mut self) -> Option<Io> { unimplemented!() }
    fn encode(&mut self, _id: IoId, _buf: &mut [u8]) { unimplemented!() }
    fn handle_completion(&mut self, _id: IoId, _outcome: Outcome<'_>) { unimplemented!() }
}
