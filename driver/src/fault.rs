//! What the errors of images are made of, for programs that tell them apart: the parts of a
//! [`Fault`](crate::Fault), of [`Lack::Format`](crate::Lack::Format), of
//! [`DeviceOp::Machine`](crate::DeviceOp::Machine) and of [`Report::problems`](crate::Report), which are
//! errors of one layer without its file. A program that only shows an error needs none of them.
//!
//! Knows: which types of the machines an embedder meets in an error. Must never know: any other of theirs.

pub use quod_states::fault::{
    BitmapFault, BitmapLack, BitsFault, By, ClusterFault, DanglingFault, ExtensionFault, HeaderFault,
    L1Fault, L2Fault, Metadata, NewFault, PointerFault, QedFault, ReferenceFault, ReftableFault,
    SnapshotFault, WalkFault,
};
pub use quod_states::{Error as LayerError, Lack as FormatLack, Op};
