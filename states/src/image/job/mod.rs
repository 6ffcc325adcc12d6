//! Jobs on the whole image, and tables on their way to another place.

pub(crate) mod resize;
pub(crate) mod table_copy;
