//! The images of a backing chain, one below the other, by what their headers say.
//!
//! Knows: headers, names. Must never know: what is done with a chain.
//! Invariants: no image stands in it twice; it has [`LAYERS_MAX`] images at most.

use crate::below::Below;
use crate::info::{ImageInfo, info};
use quod::{Error, Format};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// A chain longer than this is refused; a loop is found before.
const LAYERS_MAX: usize = 200;

/// Why a chain is not known.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum ChainError {
    /// This image of it cannot be looked at.
    Image(PathBuf, Box<Error>),
    /// The file of this name cannot be known, and why not.
    Name(String, String),
    /// This image is in it already, or it is too long.
    Loop(PathBuf),
}

/// All images of a chain, the image itself first.
///
/// ```
/// use quod::Format;
/// use quod_tools::{CreateOptions, create};
/// # let folder = tempfile::tempdir()?;
/// # let (base, top) = (folder.path().join("base"), folder.path().join("top"));
/// create(&base, &CreateOptions::new(Format::Raw, 1 << 20))?;
/// let mut options = CreateOptions::new(Format::Qcow2, 1 << 20);
/// options.backing = Some(("base".into(), Some(Format::Raw)));
/// create(&top, &options)?;
/// let found = quod_tools::chain(&top, None, false).unwrap();
/// let paths: Vec<_> = found.into_iter().map(|image| image.path).collect();
/// assert_eq!(paths, [top, base]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # Errors
/// [`ChainError`]; of the first image that is not known.
pub fn chain(path: &Path, format: Option<Format>, force_share: bool) -> Result<Vec<ImageInfo>, ChainError> {
    let failed = |path: &Path, error| ChainError::Image(path.to_path_buf(), Box::new(error));
    let mut layers = vec![info(path, format, force_share).map_err(|error| failed(path, error))?];
    while let Some(found) = layers.last().and_then(|last: &ImageInfo| last.below.clone()) {
        let Below { path, format } = found.map_err(|why| ChainError::Name(name_below(&layers), why))?;
        if layers.len() == LAYERS_MAX || layers.iter().any(|layer| same_file(&layer.path, &path)) {
            return Err(ChainError::Loop(path));
        }
        layers.push(info(&path, format, force_share).map_err(|error| failed(&path, error))?);
    }
    Ok(layers)
}

/// The name that the last image gives.
fn name_below(layers: &[ImageInfo]) -> String {
    let backing = layers.last().and_then(|last| last.info.backing.as_ref());
    backing.map(|backing| String::from_utf8_lossy(&backing.name).into_owned()).unwrap_or_default()
}

/// Which file a name leads to: its device, and its number there. None: to none that can be looked at.
pub(crate) type FileOf = Option<(u64, u64)>;

pub(crate) fn file_of(path: &Path) -> FileOf {
    std::fs::metadata(path).ok().map(|facts| (facts.dev(), facts.ino()))
}

/// Both names lead to one file.
pub(crate) fn same_file(one: &Path, other: &Path) -> bool {
    file_of(one).is_some_and(|file| Some(file) == file_of(other))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::create::{CreateOptions, create};

    #[test]
    fn a_chain_ends_or_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        let make = |name: &str, below: &str| {
            let mut options = CreateOptions::new(Format::Qed, 1 << 20);
            options.backing = Some((below.into(), Some(Format::Qed)));
            create(path(name), &options).unwrap();
        };
        make("a", "b");
        let missing = chain(&path("a"), None, false);
        assert!(matches!(&missing, Err(ChainError::Image(image, _)) if *image == path("b")), "{missing:?}");
        make("b", "a");
        assert_eq!(chain(&path("a"), None, false).unwrap_err(), ChainError::Loop(path("a")));
        make("b", "nbd://host/x");
        let name = chain(&path("a"), None, false);
        assert!(matches!(&name, Err(ChainError::Name(name, _)) if name == "nbd://host/x"), "{name:?}");
        create(path("b"), &CreateOptions::new(Format::Qed, 1 << 20)).unwrap();
        assert_eq!(chain(&path("a"), None, false).unwrap().len(), 2);
    }
}
