//! What a count may end with.

/// Whatever goes wrong.
pub type Fault = Box<dyn std::error::Error>;
