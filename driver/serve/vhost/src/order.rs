//! Which answers wait for which: a guest does not see that its server is killed, so what it was told of must
//! be in the image's file.
//!
//! Knows: ranges of writes, in clusters. Must never know: what a request is, the driver.
//!
//! A write that takes new space ends when the tables that lead to it are written (the driver's writethrough
//! policy). One beside it, in the same cluster, ends when its bytes are there; but the tables may not lead to
//! them yet, if it met the cluster that the first has taken. So it is answered when all writes that it met in
//! its clusters have ended.
//!
//! Invariants: an answer waits for writes alone that were begun before it came, so it does not wait for ever;
//! each comes out once.

/// One write that is under way, or a range of one.
#[derive(Clone, Copy, Debug)]
struct UnderWay<N> {
    name: N,
    number: u64,
    first: u64,
    last: u64,
}

/// An answer that waits.
#[derive(Clone, Debug)]
struct Held<A> {
    answer: A,
    /// Writes from this number on were begun when it came.
    before: u64,
    ranges: Vec<(u64, u64)>,
}

/// See the module's header. `N` names a write, `A` is its answer.
#[derive(Debug)]
pub struct Order<N, A> {
    /// Bytes of a cluster.
    cluster: u64,
    next: u64,
    under_way: Vec<UnderWay<N>>,
    held: Vec<Held<A>>,
}

impl<N: Copy + PartialEq, A> Order<N, A> {
    /// Of an image of such clusters.
    pub fn new(cluster: u32) -> Order<N, A> {
        Order { cluster: u64::from(cluster.max(1)), next: 0, under_way: Vec::new(), held: Vec::new() }
    }

    /// A write, or a range of one, is begun. It has bytes.
    pub fn begin(&mut self, name: N, offset: u64, len: u64) {
        debug_assert!(len > 0);
        let (first, last) = (offset / self.cluster, (offset + len - 1) / self.cluster);
        self.under_way.push(UnderWay { name, number: self.next, first, last });
        self.next += 1;
    }

    fn is_met(&self, before: u64, (first, last): (u64, u64)) -> bool {
        let meets = |write: &UnderWay<N>| write.number < before && write.first <= last && first <= write.last;
        self.under_way.iter().any(meets)
    }

    /// A write has ended. What may be answered by that goes to `out`.
    pub fn end(&mut self, name: N, answer: A, mut out: impl FnMut(A)) {
        let mut ranges = Vec::new();
        let mut one = None;
        self.under_way.retain(|write| {
            let stays = write.name != name;
            if !stays && let Some(range) = one.replace((write.first, write.last)) {
                ranges.push(range);
            }
            stays
        });
        let before = self.next;
        let met = |range: &(u64, u64)| self.is_met(before, *range);
        if one.iter().chain(&ranges).any(met) {
            ranges.extend(one);
            self.held.push(Held { answer, before, ranges });
        } else {
            out(answer);
        }
        let mut at = 0;
        while at < self.held.len() {
            let held = &self.held[at];
            if held.ranges.iter().any(|range| self.is_met(held.before, *range)) {
                at += 1;
            } else {
                out(self.held.remove(at).answer);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn end(order: &mut Order<u8, u8>, name: u8) -> Vec<u8> {
        let mut out = Vec::new();
        order.end(name, name, |answer| out.push(answer));
        out
    }

    #[test]
    fn writes_of_one_cluster_wait_for_those_that_they_met() {
        let mut order = Order::new(65536);
        order.begin(1, 0, 4096);
        order.begin(2, 4096, 4096);
        order.begin(3, 65536, 4096);
        assert_eq!(end(&mut order, 3), [3], "another cluster");
        assert_eq!(end(&mut order, 2), [0u8; 0], "the first one's space may be new");
        order.begin(4, 8192, 4096);
        assert_eq!(end(&mut order, 1), [2], "which does not wait for those that came later");
        assert_eq!(end(&mut order, 4), [4, 1]);
    }

    #[test]
    fn an_answer_does_not_wait_for_ever() {
        let mut order = Order::new(65536);
        order.begin(0, 0, 512);
        order.begin(1, 512, 512);
        assert_eq!(end(&mut order, 1), [0u8; 0]);
        for name in 2..50 {
            order.begin(name, 1024, 512);
            assert_eq!(end(&mut order, name), [0u8; 0], "{name}");
        }
        assert_eq!(end(&mut order, 0).len(), 50);
        assert!(order.held.is_empty() && order.under_way.is_empty());
    }

    #[test]
    fn ranges_of_one_request_are_one() {
        let mut order = Order::new(512);
        order.begin(1, 0, 512);
        order.begin(1, 5120, 512);
        order.begin(2, 5000, 1000);
        order.begin(3, 700, 100);
        assert_eq!(end(&mut order, 3), [3]);
        assert_eq!(end(&mut order, 2), [0u8; 0]);
        assert_eq!(end(&mut order, 1), [1, 2]);
    }
}
