//! A rateless IBLT: a stream of symbols of which some multiple of the differences is enough, whatever the size of the sets.
//! After Yang, Gilad and Alizadeh, "Practical Rateless Set Reconciliation", SIGCOMM 2024.

use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

/// Bytes of a symbol on the wire: a sum of hashes, a sum of checks, and a count, which mostly fits a byte.
pub(crate) const SYMBOL: usize = 32 + 8 + 1;

#[derive(Clone, Default)]
struct Symbol {
    sum: [u64; 4],
    check: u64,
    count: i64,
}

/// The first symbols of a set's stream.
pub(crate) struct Sketch(Vec<Symbol>);

type Item = [u64; 4];

fn bytes(item: &Item) -> [u8; 32] {
    let mut bytes = [0; 32];
    bytes.chunks_exact_mut(8).zip(item).for_each(|(chunk, word)| chunk.copy_from_slice(&word.to_le_bytes()));
    bytes
}

fn check(item: &Item) -> u64 {
    xxh3_64_with_seed(&bytes(item), 1)
}

/// The places of an item among the first `symbols`: of those at `n`, one in (1 + n / 2).
#[allow(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "places are small"
)]
fn places(item: &Item, symbols: usize) -> impl Iterator<Item = usize> {
    let mut state = xxh3_64(&bytes(item));
    std::iter::successors(Some(0_usize), move |place| {
        state = state.wrapping_mul(0xda94_2042_e4dd_58b5);
        let chance = (state >> 32) as f64 / f64::from(u32::MAX) + f64::EPSILON;
        let step = (*place as f64 + 1.5) * (1.0 / chance.sqrt() - 1.0);
        Some(place + (step.ceil() as usize).max(1))
    })
    .take_while(move |place| *place < symbols)
}

impl Sketch {
    pub(crate) fn new(symbols: usize) -> Self {
        Self(vec![Symbol::default(); symbols])
    }

    pub(crate) fn add(&mut self, hash: &[u8; 32]) {
        let mut item = [0; 4];
        item.iter_mut().zip(hash.chunks_exact(8)).for_each(|(word, chunk)| {
            *word = u64::from_le_bytes(chunk.try_into().unwrap());
        });
        self.change(&item, 1);
    }

    fn change(&mut self, item: &Item, count: i64) {
        let check = check(item);
        for place in places(item, self.0.len()) {
            let symbol = &mut self.0[place];
            symbol.sum.iter_mut().zip(item).for_each(|(sum, word)| *sum ^= word);
            symbol.check ^= check;
            symbol.count += count;
        }
    }

    /// The symbols of what is in one set alone.
    pub(crate) fn minus(mut self, other: &Self) -> Self {
        for (symbol, other) in self.0.iter_mut().zip(&other.0) {
            symbol.sum.iter_mut().zip(other.sum).for_each(|(sum, word)| *sum ^= word);
            symbol.check ^= other.check;
            symbol.count -= other.count;
        }
        self
    }

    /// How many symbols were needed, and how many items they gave; `None` if there are too few.
    pub(crate) fn decode(mut self) -> Option<(usize, usize)> {
        let mut found = 0;
        for received in 0..self.0.len() {
            let mut look: Vec<usize> = vec![received];
            while let Some(place) = look.pop() {
                let Symbol { sum, check: sums, count } = self.0[place].clone();
                if matches!(count, 1 | -1) && check(&sum) == sums {
                    found += 1;
                    self.change(&sum, -count);
                    look.extend(places(&sum, received + 1));
                }
            }
            // Every item is in the first symbol.
            if self.0[0].count == 0 && self.0[0].sum == [0; 4] {
                return Some((received + 1, found));
            }
        }
        None
    }
}
