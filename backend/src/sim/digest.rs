//! A stable 128-bit digest: two lanes of folded multiplication. Not for adversaries.

const SEED_A: u64 = 0x243F_6A88_85A3_08D3;
const SEED_B: u64 = 0x1319_8A2E_0370_7344;
const MUL_A: u64 = 0xA076_1D64_78BD_642F;
const MUL_B: u64 = 0xE703_7ED1_A0B4_28DB;

fn fold(x: u64, y: u64) -> u64 {
    let product = u128::from(x) * u128::from(y);
    (product as u64) ^ ((product >> 64) as u64)
}

/// Takes words, gives a digest of their sequence.
pub(super) struct Digest {
    a: u64,
    b: u64,
}

impl Digest {
    pub(super) fn new() -> Digest {
        Digest { a: SEED_A, b: SEED_B }
    }

    pub(super) fn word(&mut self, word: u64) -> &mut Digest {
        // the additions keep a lane that became zero moving
        self.a = fold(self.a ^ word, MUL_A).wrapping_add(SEED_B);
        self.b = fold(self.b.rotate_left(29) ^ word, MUL_B).wrapping_add(SEED_A);
        self
    }

    pub(super) fn wide(&mut self, word: u128) -> &mut Digest {
        self.word(word as u64).word((word >> 64) as u64)
    }

    pub(super) fn bytes(&mut self, bytes: &[u8]) -> &mut Digest {
        self.word(bytes.len() as u64);
        let mut words = bytes.chunks_exact(8);
        for word in &mut words {
            let mut array = [0; 8];
            array.copy_from_slice(word);
            self.word(u64::from_le_bytes(array));
        }
        let mut array = [0; 8];
        array[..words.remainder().len()].copy_from_slice(words.remainder());
        self.word(u64::from_le_bytes(array))
    }

    pub(super) fn finish(&self) -> u128 {
        let (a, b) = (fold(self.a, MUL_B ^ self.b), fold(self.b, MUL_A ^ self.a));
        u128::from(a ^ self.b) << 64 | u128::from(b ^ self.a)
    }
}

pub(super) fn of_bytes(bytes: &[u8]) -> u128 {
    Digest::new().bytes(bytes).finish()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn single_bits_and_order_matter() {
        let mut seen = HashSet::new();
        let mut bytes = [0u8; 512];
        assert!(seen.insert(of_bytes(&bytes)));
        for i in 0..4096 {
            bytes[i / 8] ^= 1 << (i % 8);
            assert!(seen.insert(of_bytes(&bytes)));
        }
        for (a, b) in [(1, 2), (2, 1), (0, 1), (1, 0), (0, 0)] {
            assert!(seen.insert(Digest::new().word(a).word(b).finish()));
        }
        assert!(seen.insert(Digest::new().word(0).finish()));
    }
}
