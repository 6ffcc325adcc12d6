//! Which request comes next: where it goes, and whether it reads.
//!
//! Knows: numbers. Must never know: drivers, buffers.
//!
//! Invariant: equal settings and an equal seed give equal requests, on every machine.

/// Where requests go, one after the other.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Order {
    /// A step on from the one before, modulo the size of the image, as `qemu-img bench` does.
    Steps,
    /// At any whole number of steps behind the first, each as likely as the other, so that some places come
    /// twice and others not at all.
    Random,
}

/// What a sequence of requests is made of.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Sequence {
    /// Where to.
    pub order: Order,
    /// Of the first request, bytes.
    pub offset: u64,
    /// From one to the next, or between two places that may be next to each other, bytes; not 0.
    pub step: u64,
    /// Bytes of each request.
    pub size: u64,
    /// Requests of a hundred that read; the others write.
    pub reads: u32,
    /// Of the chances.
    pub seed: u64,
}

/// One request.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Next {
    /// Where it begins.
    pub offset: u64,
    /// It reads.
    pub reads: bool,
}

/// Makes the requests of a sequence, without end.
#[derive(Clone, Debug)]
pub struct Places {
    sequence: Sequence,
    image_size: u64,
    /// Places that may be drawn; none in an order of steps.
    count: u64,
    at: u64,
    chance: u64,
}

impl Places {
    /// The requests for an image of this size; `None` if they are in no order and not one of them fits.
    pub fn new(sequence: Sequence, image_size: u64) -> Option<Places> {
        debug_assert!(sequence.step > 0 && sequence.reads <= 100);
        let count = match sequence.order {
            Order::Steps => 0,
            Order::Random => {
                let room = image_size.checked_sub(sequence.offset)?.checked_sub(sequence.size)?;
                room / sequence.step + 1
            }
        };
        Some(Places { sequence, image_size, count, at: sequence.offset, chance: sequence.seed })
    }

    /// The next request.
    pub fn draw(&mut self) -> Next {
        let Sequence { order, offset, step, reads, .. } = self.sequence;
        let reads = match reads {
            0 => false,
            100 => true,
            part => self.below(100) < u64::from(part),
        };
        let at = match order {
            Order::Steps => self.at,
            Order::Random => offset + self.below(self.count) * step,
        };
        if order == Order::Steps {
            self.at = next_offset(at, step, self.image_size);
        }
        Next { offset: at, reads }
    }

    /// A number below `bound`: the high half of a product, as even as it must be here.
    fn below(&mut self, bound: u64) -> u64 {
        self.chance = self.chance.wrapping_add(0x9e37_79b9_7f4a_7c15);
        // the finisher of splitmix64
        let word = (self.chance ^ (self.chance >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        let word = word ^ (word >> 31);
        ((u128::from(word) * u128::from(bound)) >> 64) as u64
    }
}

/// As QEMU goes on: modulo the size of the image, whatever fits there (a request across the end fails).
fn next_offset(offset: u64, step: u64, image_size: u64) -> u64 {
    if image_size <= step { 0 } else { (offset + step) % image_size }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLAIN: Sequence =
        Sequence { order: Order::Random, offset: 0, step: 4096, size: 4096, reads: 100, seed: 1 };

    fn take(sequence: Sequence, image_size: u64, count: usize) -> Vec<Next> {
        let mut places = Places::new(sequence, image_size).unwrap();
        (0..count).map(|_| places.draw()).collect()
    }

    #[test]
    fn offsets_wrap_as_in_qemu() {
        let mib = |n: u64| n << 20;
        let walk = |offset, step| {
            let sequence = Sequence { order: Order::Steps, offset, step, ..PLAIN };
            take(sequence, mib(16), 6).into_iter().map(|next| next.offset)
        };
        let expected = [3, 15, 11, 7, 3, 15].map(mib);
        assert!(walk(mib(3), mib(12)).eq(expected));
        assert!(walk(0, mib(4)).eq([0, 4, 8, 12, 0, 4].map(mib)));
        assert!(walk(0, mib(16)).eq([0; 6]));
    }

    #[test]
    fn a_seed_makes_the_same_places_again() {
        let again = take(PLAIN, 1 << 30, 1000);
        assert_eq!(take(PLAIN, 1 << 30, 1000), again);
        assert_ne!(take(Sequence { seed: 2, ..PLAIN }, 1 << 30, 1000), again);
    }

    #[test]
    fn random_places_are_all_that_fit_and_no_others() {
        let sequence = Sequence { offset: 512, step: 1024, size: 2048, ..PLAIN };
        // 512, 1536, ..., 6656: 8704 - 2048
        let mut seen: Vec<u64> = take(sequence, 8704, 1000).iter().map(|next| next.offset).collect();
        seen.sort_unstable();
        let often = |offset| seen.iter().filter(|&&at| at == offset).count();
        let places: Vec<u64> = (0..7).map(|n| 512 + n * 1024).collect();
        assert!(places.iter().all(|at| (100..200).contains(&often(*at))), "{seen:?}");
        seen.dedup();
        assert_eq!(seen, places);
    }

    #[test]
    fn what_fits_nowhere_has_no_places() {
        assert!(Places::new(PLAIN, 4095).is_none() && Places::new(PLAIN, 4096).is_some());
        assert!(Places::new(Sequence { offset: 4096, ..PLAIN }, 4096).is_none());
        // in steps the request that does not fit is sent, and fails, as QEMU's does
        assert!(Places::new(Sequence { order: Order::Steps, ..PLAIN }, 0).is_some());
    }

    #[test]
    fn a_mix_is_as_it_is_asked_for() {
        let reads = |part| {
            take(Sequence { reads: part, ..PLAIN }, 1 << 30, 10_000).iter().filter(|next| next.reads).count()
        };
        assert_eq!((reads(0), reads(100)), (0, 10_000));
        assert!((6800..7200).contains(&reads(70)), "{}", reads(70));
    }
}
