//! A server in a thread, and clients that speak to it byte by byte: good ones, slow ones, silent and hostile
//! ones.

mod client;
mod errors;
mod hostile;
mod limits;
mod requests;
mod status;
