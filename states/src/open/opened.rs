//! What an opening ends with.

use crate::check::Report;
use crate::image::Image;
use crate::info::Info;

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
