//! The budget over a ring that is a list, and a clock that is a script: what a system call takes is what the
//! script says of its entries.

use super::*;

/// What an entry is.
#[derive(Clone, Copy, Debug)]
enum Entry {
    Small,
    Move { file: u32, write: bool, len: u64 },
}

/// The ring, its files' paces, and the script.
struct Ring<S> {
    budget: Budget,
    paces: [[Pace; 2]; 2],
    published: VecDeque<(u64, Entry)>,
    pushed: u64,
    /// In the order in which the kernel took them.
    taken: Vec<u64>,
    workers: u64,
    script: S,
    /// What each turn took, all of its system calls together.
    turns: Vec<u64>,
}

impl<S: FnMut(Entry) -> u64> Ring<S> {
    fn new(script: S) -> Ring<S> {
        let paces = [[Pace::new(), Pace::new()], [Pace::new(), Pace::new()]];
        let (budget, published, taken, turns) = (Budget::new(), VecDeque::new(), vec![], vec![]);
        Ring { budget, paces, published, pushed: 0, taken, workers: 0, script, turns }
    }

    /// As `Uring::weigh` and `publish`.
    fn push(&mut self, entry: Entry) {
        if let Entry::Move { file, write, len } = entry {
            let pace = &self.paces[file as usize][usize::from(write)];
            let Some(price) = pace.price(len) else {
                self.workers += 1;
                return;
            };
            self.budget.weigh(self.published.len(), (file, write), price, pace.byte());
        }
        self.published.push_back((self.pushed, entry));
        self.pushed += 1;
    }

    /// One system call, of which the kernel takes `most` entries.
    fn enter(&mut self, most: usize) -> u64 {
        let share = self.budget.share(self.published.len());
        assert!(share.entries <= self.published.len());
        let mut took = 0;
        let entries = share.entries.min(most);
        for (number, entry) in self.published.drain(..entries) {
            took += (self.script)(entry);
            self.taken.push(number);
        }
        let paces = &mut self.paces;
        let measured = share.measured.then_some(Duration::from_nanos(took));
        self.budget.took(share, entries, measured, |file, write, byte, times| {
            paces[file as usize][usize::from(write)].learn(byte, times);
        });
        took
    }

    /// A turn of `calls` system calls. What it left.
    fn turn(&mut self, calls: usize) -> usize {
        self.budget.refill();
        let before = self.taken.len();
        let waiting = self.published.len();
        let took = (0..calls).map(|_| self.enter(usize::MAX)).sum();
        assert!(waiting == 0 || self.taken.len() > before, "a turn takes one at least");
        self.turns.push(took);
        self.published.len()
    }

    fn longest(&self, from: usize) -> u64 {
        self.turns[from..].iter().copied().max().unwrap_or(0)
    }

    /// Each entry was taken, once, in the order in which they were published.
    fn check_all_taken(&self) {
        assert!(self.published.is_empty() && self.budget.weighed.is_empty());
        assert_eq!(self.taken, (0..self.pushed).collect::<Vec<_>>());
        assert_eq!(self.budget.taken, self.pushed);
    }
}

fn of(file: u32, len: u64) -> Entry {
    Entry::Move { file, write: true, len }
}

/// A device that works inside the system call, and one that does not.
fn by_byte(entry: Entry, picos: [u64; 2]) -> u64 {
    match entry {
        Entry::Small => 800,
        Entry::Move { file, len, .. } => BASE + len * picos[file as usize] / 1000,
    }
}

#[test]
fn what_a_turn_takes_converges_to_its_portion_whatever_a_byte_costs() {
    for len in [32 << 10, LARGE] {
        for picos in [5, 50, 250, 500, 700, 2_000, 10_000] {
            let mut ring = Ring::new(|entry| by_byte(entry, [picos, picos]));
            for round in 0..4000 {
                for _ in 0..16 {
                    ring.push(of(round % 2, len));
                }
                while ring.turn(4) > 200 {}
            }
            while ring.turn(4) > 0 {}
            ring.check_all_taken();
            let price = |len| BASE + len * picos / 1000;
            // one that was tried inside goes although the portion is nearly used up
            let most = PORTION + PORTION / 4 + price(len);
            assert!(ring.longest(300) <= most, "{len}, {picos}: {}", ring.longest(300));
            assert_eq!(ring.workers > 10_000, price(len) > DEAR, "{len}, {picos}: {}", ring.workers);
            assert!(ring.taken.len() > 1000, "{len}, {picos}: some are tried inside, always");
        }
    }
}

#[test]
fn small_entries_are_cut_by_what_they_cost_too() {
    for nanos in [300, 2_000, 15_000, 80_000] {
        let mut ring = Ring::new(|_| nanos);
        for _ in 0..1024 {
            ring.push(Entry::Small);
        }
        for _ in 0..3000 {
            let before = ring.taken.len();
            ring.turn(2);
            (before..ring.taken.len()).for_each(|_| ring.push(Entry::Small));
        }
        assert!(ring.longest(500) <= PORTION + PORTION / 4 + 9 * nanos, "{nanos}: {}", ring.longest(500));
        let most = ring.turns[500..].iter().filter(|&&took| took >= PORTION / 2).count();
        assert!(most > 2000, "{nanos}: a portion is used");
    }
}

#[test]
fn a_batch_of_few_small_entries_is_neither_measured_nor_cut() {
    let budget = Budget::new();
    for waiting in 1..=FEW {
        let price = waiting as u64 * ENTRY.2;
        assert_eq!(budget.share(waiting), Share { entries: waiting, price, measured: false });
    }
    assert_eq!(budget.share(0).entries, 0);
    assert!(budget.share(FEW + 1).measured);
}

#[test]
fn nobody_starves_between_small_and_weighed_entries() {
    let mut ring = Ring::new(|entry| by_byte(entry, [600, 600]));
    let mut waits = 0;
    for _ in 0..2000 {
        (0..500).for_each(|_| ring.push(Entry::Small));
        ring.push(of(0, 64 << 10));
        let number = ring.pushed - 1;
        let mut turns = 0;
        while ring.taken.last().is_none_or(|&last| last < number) && !ring.published.is_empty() {
            ring.turn(1);
            turns += 1;
        }
        waits = waits.max(turns);
    }
    ring.check_all_taken();
    assert!(waits <= 8, "{waits} turns");
}

#[test]
fn a_dear_file_does_not_make_another_one_dear() {
    let mut ring = Ring::new(|entry| by_byte(entry, [9_000, 40]));
    for _ in 0..5000 {
        ring.push(of(0, 64 << 10));
        while ring.turn(1) > 0 {}
        ring.push(of(1, 64 << 10));
        while ring.turn(1) > 0 {}
    }
    ring.check_all_taken();
    assert!(ring.paces[0][1].byte > 4_500 && ring.paces[1][1].byte < 100);
    assert!(ring.workers < 5000, "the cheap one's are never a worker's: {}", ring.workers);
    assert!(ring.paces.iter().all(|pace| pace[0].byte == BYTE.2), "nothing was read");
}

#[test]
fn a_device_that_gets_faster_is_found_out() {
    let picos = std::rc::Rc::new(Cell::new(20_000));
    let script = std::rc::Rc::clone(&picos);
    let mut ring = Ring::new(move |entry| by_byte(entry, [script.get(); 2]));
    let all = |ring: &mut Ring<_>, rounds| {
        let before = ring.workers;
        for _ in 0..rounds {
            ring.push(of(0, 64 << 10));
            while ring.turn(1) > 0 {}
        }
        ring.workers - before
    };
    all(&mut ring, 1000);
    assert_eq!(all(&mut ring, 320), 300, "one of {PROBE} is tried");
    picos.set(50);
    all(&mut ring, 2000);
    assert_eq!(all(&mut ring, 320), 0);
    assert!(ring.paces[0][1].price(LARGE + 1).is_none(), "large ones never are");
}

#[test]
fn a_thread_that_was_put_aside_is_no_reason_for_much() {
    let mut pace = Pace::new();
    let before = pace.byte();
    let learn = |pace: &mut Pace, took| pace.learn(pace.byte(), Times { took, believed: 10_000 });
    learn(&mut pace, 50_000_000);
    assert!(pace.byte() <= before + before * (STEP - 1) / WEIGHT + 1);
    learn(&mut pace, 0);
    assert!(pace.byte() >= before);
    (0..200).for_each(|_| learn(&mut pace, 0));
    assert_eq!(pace.byte(), BYTE.0);
    (0..400).for_each(|_| learn(&mut pace, u64::MAX / 4));
    assert_eq!(pace.byte(), BYTE.1);
}

#[test]
fn what_the_kernel_did_not_take_stays_in_line() {
    let mut ring = Ring::new(|entry| by_byte(entry, [500, 500]));
    for i in 0..300 {
        ring.push(if i % 3 == 0 { of(0, 20 << 10) } else { Entry::Small });
    }
    for most in (0..7).cycle() {
        if ring.published.is_empty() {
            break;
        }
        ring.budget.refill();
        ring.enter(most);
        if most == 3 {
            ring.push(of(1, 30 << 10));
            ring.push(Entry::Small);
            ring.enter(1);
        }
    }
    ring.check_all_taken();
}
