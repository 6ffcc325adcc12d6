//! What was accepted and not handed to the backend yet is taken back for who cancels it.
//!
//! Knows: the port's queue, which request an operation is for. Must never know: what a machine left unbegun.
//! Invariant: only reads of guest data are taken back; a machine is told of each as of a failure. A write
//! goes to its end: the clusters that it has would be lost where nobody counts them (QED).

use super::Engine;
use crate::error::Error;
use crate::layer::flight::Place;
use quod_backend::{Backend, Errno};

impl<B: Backend> Engine<B> {
    /// Begins nothing more for the guest's requests with this `user` value. How many are left undone, or in
    /// part.
    pub(crate) fn cancel(&mut self, index: u32, user: u64) -> usize {
        let mut cut = Vec::new();
        // what goes on after a failure may name more
        while let Some(request) = self.take_back(index, user) {
            if !cut.contains(&request) {
                cut.push(request);
            }
        }
        let image = self.disks[index as usize].layers.first_mut().map(|layer| &mut layer.image);
        cut.len() + image.map_or(0, |image| image.cancel(user))
    }

    /// Takes one operation back. The slot of the request that it was for.
    fn take_back(&mut self, index: u32, user: u64) -> Option<u32> {
        let disk = &self.disks[index as usize];
        let ours = |request| disk.is_user_s(request, user);
        let flight = self
            .port
            .take_back(|flight| flight.disk == index && disk.request_of(flight).is_some_and(ours))?;
        let request = disk.request_of(&flight)?;
        let (layer, slot) = flight.reads()?;
        let disk = &mut self.disks[index as usize];
        disk.layers[usize::from(layer)].slots[slot as usize].cause = Some(Box::new(Error::Cancelled));
        disk.flights -= 1;
        self.layer_landed(Place { disk: index, layer }, flight, Err(Errno(libc::ECANCELED)));
        Some(request)
    }
}
