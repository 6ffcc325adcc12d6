//! Jobs on the whole image, and tables on their way to another place.

pub(in crate::image) mod resize;
pub(in crate::image) mod table_copy;
